use std::sync::mpsc::{Sender, sync_channel};

use thiserror::Error;

use super::builder::SvmBuilder;
use super::core::Core;
use super::request::{Ask, Request};
use super::statistics::{MemoryUse, Stats};
use crate::os::private::PrivateArc;
use crate::os::thread::ServiceThread;
use crate::sync::Ordering;
use crate::units::{DeviceId, VirtRange, WrapError};

/// A shared address space: while it lives, its devices may use every pointer of the process (or of its window).
///
/// Dropping it waits until every page is back in RAM and ordinary memory again. In a child after `fork` dropping it
/// does nothing: the child has no devices.
pub struct Svm {
    pub(super) core: PrivateArc<Core>,
    pub(super) requests: Vec<Sender<Request>>,
    pub(super) device_threads: Vec<ServiceThread>,
    pub(super) reader: Option<ServiceThread>,
    pub(super) pool: Option<std::sync::Arc<rayon::ThreadPool>>,
    pub(super) workers: Vec<ServiceThread>,
    pub(super) process: u32,
}

/// Why a request was not done. Nothing is changed then.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Error)]
#[non_exhaustive]
pub enum RequestError {
    /// No such device.
    #[error("there is no {0} in this address space; ids count from dev0 in the order of the builder")]
    NoDevice(DeviceId),
    /// The range wraps.
    #[error(transparent)]
    Wrap(#[from] WrapError),
    /// The range leaves the window.
    #[error("{0} leaves the window of this address space; ask for a range inside of it")]
    OutsideWindow(VirtRange),
    /// This is a child after fork.
    #[error("this process is a child after fork: the address space stayed with its parent")]
    NotThisProcess,
    /// The service has ended.
    #[error("the service of this address space has ended; build a new one")]
    Ended,
}

impl Svm {
    /// Starts to build one.
    pub fn builder() -> SvmBuilder {
        SvmBuilder::new()
    }

    /// Moves (or links, where memory cannot move) a range to a device now, as if it had faulted on every page of it
    /// for reading. Waits until it is done; returns how many pages the device may access.
    ///
    /// # Errors
    /// [`RequestError`]. Pages without a mapping are not an error: they are not counted.
    pub fn prefetch(&self, range: VirtRange, device: DeviceId) -> Result<u64, RequestError> {
        self.ask(device, range, Ask::Prefetch(range))
    }

    /// Brings what of a range is on a device to RAM. Waits until it is done; returns how many pages came home.
    ///
    /// # Errors
    /// [`RequestError`].
    pub fn to_ram(&self, range: VirtRange) -> Result<u64, RequestError> {
        self.ask(DeviceId(0), range, Ask::ToRam(range))
    }

    fn ask(&self, device: DeviceId, range: VirtRange, what: Ask) -> Result<u64, RequestError> {
        if std::process::id() != self.process {
            return Err(RequestError::NotThisProcess);
        }
        let window = crate::ports::Host::window(&*self.core.host);
        if !window.covers(range) {
            return Err(RequestError::OutsideWindow(range));
        }
        let sender = self.requests.get(device.0 as usize).ok_or(RequestError::NoDevice(device))?;
        let (reply, answer) = sync_channel(1);
        sender.send(Request { what, reply }).map_err(|_| RequestError::Ended)?;
        self.core.space.device(device).port.interrupt();
        answer.recv().map_err(|_| RequestError::Ended)?
    }

    /// What was done so far.
    pub fn stats(&self) -> Stats {
        let [table_bytes, granule_bytes, block_bytes, fine_slot_bytes, device_record_bytes] =
            self.core.memory.resident_bytes();
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
            blocks: self.core.space.tables.all_blocks().count() as u64,
        })
    }
}

impl Drop for Svm {
    fn drop(&mut self) {
        if std::process::id() != self.process {
            return;
        }
        for (device, sender) in self.requests.drain(..).enumerate() {
            let (reply, answer) = sync_channel(1);
            if sender.send(Request { what: Ask::Stop, reply }).is_ok() {
                self.core.space.device(DeviceId(device as u8)).port.interrupt();
                match answer.recv() {
                    Ok(Ok(0)) => {}
                    Ok(Ok(pages)) => {
                        tracing::error!(pages, "pages were left on a device whose memory cannot be read");
                    }
                    _ => tracing::error!(device, "a device thread ended before it was asked to"),
                }
            }
        }
        for thread in self.device_threads.drain(..) {
            join(thread);
        }
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
        self.core.host.release();
    }
}

fn join(thread: ServiceThread) {
    if let Err(error) = thread.join() {
        tracing::error!(%error, "a thread of the service had panicked");
    }
}
