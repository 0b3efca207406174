use std::time::{Duration, Instant};

use thiserror::Error;

use super::builder::SvmBuilder;
use super::core::Core;
use super::region::{Region, RegionError};
use super::request::{Answered, Ask, Asker, RequestError};
use super::sigbus::{self, FaultModeError};
use super::spaces::Place;
use super::statistics::{MemoryUse, Stats};
use super::userptr::{Userptr, UserptrError, UserptrOptions};
use crate::os::private::PrivateArc;
use crate::os::thread::ServiceThread;
use crate::os::{FaultMode, FutexPark};
use crate::ports::Host;
use crate::sync::Ordering;
use crate::units::{DeviceId, VirtAddr, VirtRange};

/// A shared address space: while it lives, its devices may use every pointer of the process (or of its window).
///
/// Dropping it waits until every page is back in RAM and ordinary memory again; [`Svm::close`] does the same and says
/// whether a device kept some. In a child after `fork` dropping it does nothing: the child has no devices.
pub struct Svm {
    pub(super) core: PrivateArc<Core>,
    pub(super) asker: Asker,
    pub(super) device_threads: Vec<ServiceThread>,
    pub(super) reader: Option<ServiceThread>,
    pub(super) pool: Option<rayon::ThreadPool>,
    pub(super) workers: Vec<ServiceThread>,
    /// Whether it has ended: dropping it does nothing more.
    pub(super) ended: bool,
    /// Declared last: the window is free when everything else is gone.
    pub(super) place: Place,
}

/// Longer than any round that waits for nobody.
const ROUND_LIMIT: Duration = Duration::from_millis(20);

impl Svm {
    /// Starts to build one.
    pub fn builder() -> SvmBuilder {
        SvmBuilder::new()
    }

    /// Moves (or links, where memory cannot move) a range to a device now, as if it had faulted on every page of it
    /// for reading; pages that are linked because they could not move then are tried again. Waits until it is done; returns
    /// how many pages the device may access.
    ///
    /// # Errors
    /// [`RequestError`]. Pages without a mapping are not an error: they are not counted.
    pub fn prefetch(&self, range: VirtRange, device: DeviceId) -> Result<u64, RequestError> {
        self.check(range)?;
        self.asker.ask_pages(device, Ask::Prefetch(range))
    }

    /// Brings what of a range is on a device to RAM. Waits until it is done; returns how many pages came home.
    ///
    /// # Errors
    /// [`RequestError`].
    pub fn to_ram(&self, range: VirtRange) -> Result<u64, RequestError> {
        self.check(range)?;
        self.asker.ask_pages(DeviceId(0), Ask::ToRam(range))
    }

    /// Registers `bytes` bytes from `start` for a device in advance, at any alignment: links them (unless they may
    /// move), and keeps them linked until the handle is dropped. Waits until it is done.
    ///
    /// # Errors
    /// [`UserptrError`]; nothing stays registered then.
    pub fn userptr(
        &self,
        start: VirtAddr,
        bytes: u64,
        options: UserptrOptions,
    ) -> Result<Userptr, UserptrError> {
        Userptr::register(self.core.clone(), self.asker.clone(), start, bytes, options)
    }

    /// Allocates `bytes` bytes (rounded up to whole pages) of zeroed memory in a memfd that is mapped twice, inside of
    /// the window. Devices move its pages as they move ordinary memory (and link them where the policy says so, or a
    /// userptr that does not allow moving lies on them), and what they link stays valid for the region's life. Its sharing
    /// is that of a shared mapping: a child after fork sees the same memory, and from then on it is linked only.
    ///
    /// # Errors
    /// [`RegionError`]; nothing is left behind.
    pub fn alloc(&self, bytes: u64) -> Result<Region, RegionError> {
        Region::new(&self.core, &self.asker, bytes)
    }

    /// Chooses who serves touches by the CPU of pages of `range` that are on a device: the service, while the thread
    /// sleeps (the default), or the thread itself, which is faster; [`FaultMode`] says what that costs. The choice moves
    /// with `mremap` and ends when the range is unmapped or this space is dropped.
    ///
    /// # Errors
    /// [`FaultModeError`]; in particular once a device has touched the mapping.
    pub fn fault_mode(&self, range: VirtRange, mode: FaultMode) -> Result<(), FaultModeError> {
        self.check(range)?;
        if mode == FaultMode::Sigbus {
            sigbus::enter(&self.core)?;
        }
        match self.asker.ask(DeviceId(0), Ask::FaultMode(range, mode))? {
            Answered::FaultMode(chosen) => Ok(chosen?),
            other => panic!("a choice is answered by its result, not {other:?}"),
        }
    }

    /// Waits for the end of the round that the reader is in, so that a thread that was woken by it finds itself counted:
    /// at most [`ROUND_LIMIT`], for a round may wait for a submission that uses a userptr.
    fn wait_for_round(&self) {
        let core = &self.core;
        core.stats_wait.fetch_add(1, Ordering::SeqCst);
        let seen = core.rounds.load(Ordering::SeqCst);
        let until = Instant::now() + ROUND_LIMIT;
        while seen % 2 == 1 && core.rounds.load(Ordering::Acquire) == seen {
            let left = until.saturating_duration_since(Instant::now());
            if left.is_zero() {
                break;
            }
            FutexPark.park_for(&core.rounds, seen, left);
        }
        core.stats_wait.fetch_sub(1, Ordering::SeqCst);
    }

    fn check(&self, range: VirtRange) -> Result<(), RequestError> {
        if !self.asker.is_this_process() {
            return Err(RequestError::NotThisProcess);
        }
        if self.core.host.window().covers(range) { Ok(()) } else { Err(RequestError::OutsideWindow(range)) }
    }

    /// Whether the kernel serves touches of user mode only, because the process has no right to more or because
    /// [`SvmBuilder::user_mode_only`] asked for it. Then only named memory moves; `docs/kernel.md` says what else changes.
    pub fn is_user_mode_only(&self) -> bool {
        self.asker.is_this_process() && self.core.host.is_user_mode_only()
    }

    /// What was done so far. All zero in a child after fork, which has nothing of it.
    pub fn stats(&self) -> Stats {
        if !self.asker.is_this_process() {
            return Stats::default();
        }
        self.wait_for_round();
        let [table_bytes, granule_bytes, block_bytes, fine_slot_bytes, device_record_bytes] =
            self.core.memory.resident_bytes();
        let threads = self.device_threads.iter().chain(&self.workers).chain(&self.reader);
        let stack_bytes = threads.map(ServiceThread::stack_resident_bytes).sum::<u64>()
            + self.core.fault_stacks.resident_bytes();
        // An entry of each of the three ordered maps; their nodes are at least half full.
        let reservations: u64 = self.core.iova.iter().map(|iova| iova.reserved_bytes() >> 29).sum();
        self.core.statistics.snapshot(MemoryUse {
            table_bytes,
            granule_bytes,
            block_bytes,
            fine_slot_bytes,
            device_record_bytes,
            iova_bytes: reservations * 3 * 2 * 16,
            staging_bytes: self.core.host.staging_resident_bytes(),
            stack_bytes,
            blocks: self.core.space.tables.all_blocks().count() as u64,
        })
    }
}

/// Pages were left on a device whose memory cannot be read: their contents are lost. A touch of them is SIGBUS until
/// they are discarded or unmapped; on a kernel before Linux 6.6 they read as zeros.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Error)]
#[error("{pages} pages could not be read back from a device; treat what was there as lost and map it anew")]
pub struct PagesLeft {
    /// How many pages, of all devices.
    pub pages: u64,
}

impl Svm {
    /// Ends the space as dropping it does, and says what became of it.
    ///
    /// # Errors
    /// [`PagesLeft`]; everything else is back in RAM then.
    pub fn close(mut self) -> Result<(), PagesLeft> {
        match self.end() {
            0 => Ok(()),
            pages => Err(PagesLeft { pages }),
        }
    }

    /// Ends it, once; returns how many pages could not be read back.
    fn end(&mut self) -> u64 {
        if !self.asker.is_this_process() || std::mem::replace(&mut self.ended, true) {
            return 0;
        }
        self.place.let_go();
        let mut left = 0;
        for device in self.asker.devices() {
            match self.asker.ask_pages(device, Ask::Stop) {
                Ok(0) => {}
                Ok(pages) => {
                    left += pages;
                    tracing::error!(%device, pages, "pages were left on a device whose memory cannot be read")
                }
                Err(error) => {
                    tracing::error!(%device, %error, "a device thread ended before it was asked to")
                }
            }
        }
        for thread in self.device_threads.drain(..) {
            join(thread);
        }
        self.core.crew.stop();
        self.pool = None;
        for thread in self.workers.drain(..) {
            join(thread);
        }
        // Release pairs with the acquire in the reader.
        self.core.stopping.store(1, Ordering::Release);
        self.core.host.interrupt();
        if let Some(reader) = self.reader.take() {
            join(reader);
        }
        // Threads that wait for a round need not: there is none any more. (An even number: it is in none.)
        self.core.rounds.fetch_add(4, Ordering::SeqCst);
        self.core.space.park.unpark_all(&self.core.rounds);
        self.core.host.release();
        sigbus::leave(&self.core);
        // A userptr may outlive this, and the host with it: the kernel must not wait for a reader that has gone.
        self.core.host.close();
        left
    }
}

impl Drop for Svm {
    fn drop(&mut self) {
        self.end();
    }
}

fn join(thread: ServiceThread) {
    if let Err(error) = thread.join() {
        tracing::error!(%error, "a thread of the service had panicked");
    }
}
