//! [`LinuxHost`]: the CPU side of one address space on Linux. Lives in private memory.
//!
//! # Parts
//! * the *main* userfaultfd (events, sync write protection) holds what is mirrored, and the staging slots in which
//!   pages stand while they move; another one (no events) helps to discard them;
//! * a third one holds regions of the library, in so far as they can move (`regions`);
//! * `tables` say what is mirrored, armed, and being removed; `drops` which discards are our own;
//! * `take` moves pages there and back, `events` reads what the kernel tells.
//!
//! # Rules
//! 1. Nothing after [`LinuxHost::open`] touches the heap but `vma` (the loader's list of objects lies on it).
//! 2. Locks, outermost first: tables, then staging or drops. No call under them waits for the reader.
#![allow(unsafe_code, reason = "registers and populates memory")]

use core::fmt;
use core::ops::Range;
use core::sync::atomic::AtomicI32;
use core::time::Duration;

use thiserror::Error;

use super::abi::{Errno, Outcome};
use super::drops::Drops;
use super::events::{CHILDREN, Signal};
use super::pagemap::Pagemap;
use super::park::FutexPark;
use super::private::{PrivateArc, PrivateError, Slab};
use super::regions::Regions;
use super::staging::{Staging, StagingError};
use super::tables::{Held, Tables};
use super::take::TakeWay;
use super::userfaultfd::{Features, Mode, Role, Userfaultfd, UserfaultfdError};
use super::vma::Vmas;
use super::walk::{Step, walk};
use super::whole::WholeBlocks;
use crate::ports::{
    FollowCount, Give, Host, HostError, HostEvent, Lookup, Mirrored, StagingId, Take, WORDS_PER_PAGE, Word,
};
use crate::sync::AtomicU32;
use crate::units::{Access, BlockNo, PAGE_BYTES, PageMask, SPACE_BYTES, VirtAddr, VirtRange};

/// How a [`LinuxHost`] is opened.
#[derive(Clone, Copy, Debug)]
pub struct HostOptions {
    /// The part of the address space that is served.
    pub window: VirtRange,
    /// Staging slots of 2 MiB: one for each thread that serves faults, plus a few. At least 1.
    pub staging_slots: usize,
    /// Pages that were taken stay in free staging slots, up to so many bytes, to go home in.
    pub pool_bytes: u64,
    /// The way in which pages are taken; `None`: the best that the kernel has.
    pub take_way: Option<TakeWay>,
    /// Ask for no more than the user-mode-only fault mode (`named`), as a process without rights gets it.
    pub user_mode_only: bool,
}

impl Default for HostOptions {
    /// The whole address space, 16 slots, a pool of 512 MiB, the best way.
    fn default() -> Self {
        let window = VirtRange::of_pages(VirtAddr(0), SPACE_BYTES / PAGE_BYTES);
        Self { window, staging_slots: 16, pool_bytes: 512 << 20, take_way: None, user_mode_only: false }
    }
}

/// Why a [`LinuxHost`] cannot be opened.
#[derive(Debug, Error)]
#[non_exhaustive]
pub enum OpenError {
    /// No userfaultfd.
    #[error(transparent)]
    Userfaultfd(#[from] UserfaultfdError),
    /// No private memory.
    #[error(transparent)]
    Private(#[from] PrivateError),
    /// The wanted way of taking pages is not there.
    #[error(
        "this kernel has no UFFDIO_MOVE; use Linux 6.8 or newer, or let pages be write-protected and copied"
    )]
    NoMove,
    /// A file of /proc, or the descriptor for signals.
    #[error("the files through which the kernel tells about memory cannot be opened ({0}); mount /proc")]
    Proc(#[from] std::io::Error),
}

impl From<StagingError> for OpenError {
    fn from(error: StagingError) -> Self {
        match error {
            StagingError::Userfaultfd(error) => error.into(),
            StagingError::Private(error) => error.into(),
        }
    }
}

/// The CPU side of one address space on Linux.
pub struct LinuxHost {
    pub(super) window: VirtRange,
    pub(super) uffd: Userfaultfd,
    /// For ranges that asked for SIGBUS; `None` where the kernel has no such thing.
    pub(super) sigbus: Option<Userfaultfd>,
    /// For regions of the library; `None` where the kernel cannot trap touches of them.
    pub(super) region_uffd: Option<Userfaultfd>,
    pub(super) regions: PrivateArc<Regions>,
    pub(super) staging: Staging,
    pub(super) tables: Tables,
    pub(super) drops: Drops,
    pub(super) pagemap: Pagemap,
    pub(super) way: TakeWay,
    pub(super) signal: Signal,
    /// Blocks that left the CPU as huge pages.
    pub(super) whole: WholeBlocks,
    /// The descriptors of children after fork, plus one; 0 is free.
    pub(super) children: Slab<AtomicI32>,
    /// How often `wait` has looked for pages being removed since the last such event.
    pub(super) settling: AtomicU32,
    pub(super) vmas: Vmas,
}

impl LinuxHost {
    /// Opens the CPU side of this process. Nothing is followed yet.
    ///
    /// # Errors
    /// [`OpenError`], saying what is missing and what grants it.
    ///
    /// # Safety
    /// The methods of [`Host`] take memory away from whoever uses it. The caller follows the contract of that
    /// trait: one thread reads events and serves every fault until [`LinuxHost::release`] or drop, and what is
    /// taken is given back first.
    pub unsafe fn open(options: HostOptions) -> Result<PrivateArc<Self>, OpenError> {
        let uffd = Userfaultfd::open(Role::Main, options.user_mode_only)?;
        let can_move = uffd.features().move_pages();
        let way = options.take_way.unwrap_or(if can_move { TakeWay::Move } else { TakeWay::WriteProtect });
        if way == TakeWay::Move && !can_move {
            return Err(OpenError::NoMove);
        }
        let host = Self {
            window: options.window,
            staging: Staging::open(
                options.staging_slots.max(1),
                options.pool_bytes,
                (way == TakeWay::Move).then_some(&uffd),
                options.user_mode_only,
            )?,
            tables: Tables::new()?,
            drops: Drops::new()?,
            pagemap: Pagemap::open()?,
            way,
            signal: Signal::open()?,
            whole: WholeBlocks::new()?,
            children: Slab::new(CHILDREN)?,
            settling: AtomicU32::new(u32::MAX),
            vmas: Vmas::open()?,
            sigbus: Userfaultfd::open(Role::Sigbus, options.user_mode_only).ok(),
            region_uffd: Userfaultfd::open(Role::Regions, options.user_mode_only).ok(),
            regions: PrivateArc::new(Regions::new(options.staging_slots.max(1))?)?,
            uffd,
        };
        Ok(PrivateArc::new(host)?)
    }

    /// What the kernel and this process's rights offer.
    pub fn features(&self) -> Features {
        self.uffd.features()
    }

    /// The way in which pages are taken.
    pub fn take_way(&self) -> TakeWay {
        self.way
    }

    /// The regions of the library.
    pub(crate) fn regions(&self) -> &PrivateArc<Regions> {
        &self.regions
    }

    /// The mapping that holds an address, or the next one above it.
    ///
    /// # Errors
    /// [`HostError`] if the kernel cannot be asked.
    pub(crate) fn next_mapped(&self, at: VirtAddr) -> Result<Option<VirtRange>, HostError> {
        self.vmas.next_mapped(at)
    }

    /// Which pages the CPU has.
    pub fn pagemap(&self) -> &Pagemap {
        &self.pagemap
    }

    /// Bytes of memory that stand in staging slots.
    pub fn staging_resident_bytes(&self) -> u64 {
        self.staging.maybe_bytes()
    }

    /// Whether all of a range is followed.
    pub fn is_mirrored(&self, range: VirtRange) -> bool {
        self.tables.lock().mirrored.first_gap(range).is_none()
    }

    /// Whether touches of absent pages are trapped in all of a range.
    pub fn is_armed(&self, range: VirtRange) -> bool {
        self.tables.lock().armed.first_gap(range).is_none()
    }

    /// Ends following everything, and wakes who waits. What is still taken then reads as zeros, so give it back
    /// first. The host can be used again.
    pub fn release(&self) {
        let held = self.tables.lock();
        for index in 0..held.mirrored.len() {
            self.unregister(&held, held.mirrored.get(index));
        }
        held.mirrored.clear();
        held.armed.clear();
        held.removing.clear();
        for set in [held.sigbus, held.regions, held.named] {
            set.clear();
        }
    }

    /// The mode of armed ranges. Protecting needs its bit, and a mode with both bits cannot be left again.
    fn armed_mode(&self) -> Mode {
        match self.way {
            TakeWay::Move => Mode::Missing,
            TakeWay::WriteProtect => Mode::Both,
        }
    }

    /// Whether a change of followed memory is under way: a mapping may stand already where an event that is still to be
    /// read says that one is gone.
    pub(super) fn is_changing(&self) -> bool {
        let sigbus = self.sigbus.as_ref().filter(|_| self.tables.any_sigbus());
        let regions = self.region_uffd.as_ref().filter(|_| self.tables.any_region());
        [Some(&self.uffd), sigbus, regions].into_iter().flatten().any(Userfaultfd::is_changing)
    }

    fn fill(
        &self,
        range: VirtRange,
        mut call: impl FnMut(VirtRange) -> Outcome,
    ) -> (u64, Result<(), HostError>) {
        let (mut filled, mut stopped) = (0, Ok(()));
        let part = |page: u64, pages: u64| VirtRange::of_pages(range.start() + page * PAGE_BYTES, pages);
        walk(
            0..range.pages(),
            |page, pages| call(part(page, pages)),
            |done| filled += done.end - done.start,
            |page, errno| {
                if errno.0 == libc::EEXIST {
                    self.uffd.wake(part(page, 1));
                }
                stopped = Err(errno.into());
                Step::Stop
            },
        );
        (filled, stopped)
    }
}

impl Host for LinuxHost {
    fn window(&self) -> VirtRange {
        self.window
    }

    fn vma(&self, at: VirtAddr) -> Result<Lookup, HostError> {
        Ok(match self.vmas.lookup(at)? {
            Lookup::Mapped(vma) => Lookup::Mapped(self.judge(vma, at)),
            hole => hole,
        })
    }

    fn mirror(&self, range: VirtRange) -> Result<Mirrored, HostError> {
        if super::private::overlaps(range) {
            return Err(HostError::NotSupported);
        }
        if self.is_changing() {
            // The tables tell of the mapping that was here when events were last read. Another one may stand here
            // now, which is followed by nobody: what is taken from it would read as zeros without a trap.
            return Err(HostError::Changing);
        }
        let held = self.tables.lock();
        let (mut was, mut rest) = (Mirrored::Already, range);
        while let Some(gap) = held.mirrored.first_gap(rest) {
            if !held.has_room() {
                return Err(HostError::MappingLimit);
            }
            rest = VirtRange::between(gap.end(), range.end());
            // SAFETY: nothing is trapped until pages are protected or the range is armed; the caller of `open`
            // vouches that faults are served then.
            let registered = unsafe { self.follow(&held, gap, Mode::WriteProtect) };
            held.followed();
            was = Mirrored::FromNow;
            // A part may have been unmapped since the range was looked up, without an event: nothing is followed
            // there. What is unmapped from here on has its event read after the gate was left.
            let mut at = gap.start();
            while at < gap.end()
                && let Some(part) = self.vmas.next_mapped(at)?.map(|mapped| mapped.intersection(gap))
                && !part.is_empty()
            {
                registered.map_err(|error| match error {
                    // It may be another part's fault, of a mapping that came since.
                    HostError::NotSupported if part != gap => HostError::Changing,
                    error => error,
                })?;
                held.mirrored.insert(part).map_err(|_| HostError::MappingLimit)?;
                at = part.end();
            }
        }
        Ok(was)
    }

    fn follow_count(&self) -> FollowCount {
        FollowCount(self.tables.follows())
    }

    fn arm(&self, range: VirtRange) -> Result<(), HostError> {
        let held = self.tables.lock();
        if held.mirrored.first_gap(range).is_some() {
            return Err(HostError::NoMapping);
        }
        while let Some(gap) = held.armed.first_gap(range) {
            if !held.has_room() {
                return Err(HostError::MappingLimit);
            }
            // SAFETY: the caller of `open` vouches that faults are served.
            unsafe { self.follow(&held, gap, self.armed_mode()) }?;
            if self.is_changing() {
                // Since the caller followed it, the mapping may have been moved away and another have come: that one is
                // trapped now, and the event would carry the entry to where nothing is.
                return Err(HostError::Changing);
            }
            held.armed.insert(gap).map_err(|_| HostError::MappingLimit)?;
        }
        Ok(())
    }

    fn disarm(&self, block: BlockNo) {
        if self.armed_mode() == Mode::Both || self.is_changing() {
            return;
        }
        let held = self.tables.lock();
        let mut rest = block.range();
        while let Some(part) = held.armed.first_in(rest) {
            let (part, is_region) = held.regions.part_around(part, part.start());
            rest = VirtRange::between(part.end(), rest.end());
            if is_region {
                // Trapped for as long as it lives, at no cost to what is mapped.
                continue;
            }
            // SAFETY: in this mode nothing is trapped.
            let disarmed = unsafe { self.register(&held, part, Mode::WriteProtect) }.is_ok();
            // Looked at again: mremap may just have brought pages that are away, and nobody was told yet.
            if disarmed && (self.is_changing() || held.armed.remove(part).is_err()) {
                // Trapped on, without anything away perhaps: that costs time only. Or no room to note it.
                // SAFETY: the caller of `open` vouches that faults are served.
                let _ = unsafe { self.register(&held, part, Mode::Missing) };
            }
        }
    }

    fn populate(&self, range: VirtRange, access: Access) -> Result<(), HostError> {
        let advice = match access {
            Access::Read => libc::MADV_POPULATE_READ,
            Access::Write => libc::MADV_POPULATE_WRITE,
        };
        loop {
            // SAFETY: populating touches pages as the application would; no contents change.
            let rc = unsafe { libc::madvise(range.start().0 as *mut _, range.bytes() as usize, advice) };
            if rc == 0 {
                return Ok(());
            }
            return Err(match Errno::last().0 {
                libc::EINTR | libc::EAGAIN => continue,
                libc::EINVAL | libc::EACCES => HostError::NotPermitted,
                libc::ENOMEM if !self.vmas.is_mapped(range) => HostError::NoMapping,
                libc::ENOMEM => HostError::OutOfMemory,
                libc::EFAULT if self.traps_system_calls(range) => HostError::Trapped,
                // A touch would be SIGBUS: beyond the end of the file.
                libc::EFAULT => HostError::NotPermitted,
                _ => HostError::NotSupported,
            });
        }
    }

    fn take(&self, block: BlockNo, pages: &PageMask, staging: StagingId) -> Take {
        self.take_pages(block, pages, staging)
    }

    fn takes_by_protecting(&self) -> bool {
        self.way == TakeWay::WriteProtect
    }

    fn is_changing(&self) -> bool {
        self.uffd.is_changing()
    }

    fn copy_taken(&self, block: BlockNo, pages: &PageMask) -> PageMask {
        match self.way {
            TakeWay::Move => *pages,
            TakeWay::WriteProtect => self.copy_protected(block, pages),
        }
    }

    fn drop_taken(&self, block: BlockNo, pages: &PageMask) -> PageMask {
        match self.way {
            TakeWay::Move => *pages,
            TakeWay::WriteProtect => self.drop_protected(block, pages),
        }
    }

    fn give(&self, block: BlockNo, pages: &PageMask, staging: StagingId) -> Give {
        self.give_pages(block, pages, staging)
    }

    fn give_words(&self, at: VirtAddr, words: &[Word]) -> (u64, Result<(), HostError>) {
        let range = VirtRange::of_pages(at, (words.len() / WORDS_PER_PAGE) as u64);
        if let Some(given) = self.give_region_words(at, words) {
            return given;
        }
        self.whole.set(BlockNo::of(at), false);
        self.fill(range, |part| {
            let from = (part.start().bytes_since(at) / PAGE_BYTES) as usize * WORDS_PER_PAGE;
            let (uffd, pages) = self.uffd_for(part.start(), part.pages());
            uffd.copy(part.start(), &words[from..][..pages as usize * WORDS_PER_PAGE])
        })
    }

    fn fill_zero(&self, range: VirtRange) -> (u64, Result<(), HostError>) {
        self.fill(range, |part| {
            let (uffd, pages) = self.uffd_for(part.start(), part.pages());
            let part = VirtRange::of_pages(part.start(), pages);
            if self.is_region(part.start()) { uffd.map_file_pages(part) } else { uffd.fill_zero(part) }
        })
    }

    fn poison(&self, range: VirtRange) -> (u64, Result<(), HostError>) {
        if !self.features().poison() {
            return (0, Err(HostError::NotSupported));
        }
        let (mut poisoned, mut stopped) = (0, Ok(()));
        walk(
            0..range.pages(),
            |page, pages| {
                let at = range.start() + page * PAGE_BYTES;
                let (uffd, pages) = self.uffd_for(at, pages);
                uffd.poison(VirtRange::of_pages(at, pages))
            },
            |done| poisoned += done.end - done.start,
            |page, errno| {
                if errno.0 == libc::EEXIST {
                    self.uffd.wake(VirtRange::of_pages(range.start() + page * PAGE_BYTES, 1));
                    return Step::Skip;
                }
                stopped = Err(errno.into());
                Step::Stop
            },
        );
        (poisoned, stopped)
    }

    fn wake(&self, range: VirtRange) {
        self.uffd.wake(range);
        if let Some(regions) = self.region_uffd.as_ref().filter(|_| self.tables.any_region()) {
            regions.wake(range);
        }
    }

    fn unprotect(&self, range: VirtRange) -> Result<(), HostError> {
        self.uffd.write_protect(range, false).map_err(HostError::from)
    }

    fn staging(&self, empty: &PageMask) -> Option<StagingId> {
        self.staging.claim(empty)
    }

    fn staging_for(&self, block: BlockNo, pages: &PageMask) -> Option<StagingId> {
        if pages.is_full() && self.whole.contains(block) {
            return self.staging.claim_whole();
        }
        self.staging.claim(&PageMask::EMPTY)
    }

    fn staging_words(&self, staging: StagingId) -> &[Word] {
        self.staging.words(staging)
    }

    fn moving_words(&self, block: BlockNo, run: Range<usize>, staging: StagingId) -> &[Word] {
        self.words_in_transit(block, run, staging)
    }

    fn shared_pages(&self, block: BlockNo) -> PageMask {
        self.region_pages(block)
    }

    fn staging_done(&self, staging: StagingId) {
        self.regions.end_use(staging);
        self.staging.release(staging);
    }

    fn drain(&self, out: &mut [HostEvent]) -> usize {
        self.read_messages(out)
    }

    fn wait_word(&self, word: &AtomicU32, seen: u32, limit_ns: u64) {
        FutexPark.park_for(word, seen, Duration::from_nanos(limit_ns));
    }

    fn pause(&self) {
        // SAFETY: no arguments.
        unsafe { libc::sched_yield() };
    }

    fn child_fill(&self, child: u32, at: VirtAddr, words: &[Word]) {
        self.fill_child(child, at, words);
    }

    fn child_done(&self, child: u32) {
        self.release_child(child);
    }
}

impl LinuxHost {
    /// Registers a range, or says why not. The kernel answers a mapping that is gone like one that it cannot
    /// follow, so that is looked up: it may have been unmapped since the caller saw it.
    ///
    /// # Safety
    /// As [`Userfaultfd::register`].
    unsafe fn follow(&self, held: &Held<'_>, range: VirtRange, mode: Mode) -> Result<(), HostError> {
        // SAFETY: the caller's promise.
        let register = || unsafe { self.register(held, range, mode) };
        register().or_else(|_| register()).map_err(|errno| match errno.0 {
            // These run out of mappings before they run out of memory.
            libc::ENOMEM => HostError::MappingLimit,
            libc::ESRCH => HostError::Gone,
            _ if !self.vmas.is_mapped(range) => HostError::NoMapping,
            _ => HostError::NotSupported,
        })
    }
}

impl LinuxHost {
    /// mremap moved `from` to `to`: the tables follow, and what they call armed there is armed. A worker that armed the
    /// rest of the old mapping after the kernel had moved this part, and before the event was read, entered the hole
    /// as well.
    pub(super) fn moved(&self, from: VirtRange, to: VirtAddr) {
        let held = self.tables.lock();
        held.remapped(from, to);
        let mut rest = VirtRange::of_pages(to, from.pages());
        while let Some(part) = held.armed.first_in(rest) {
            rest = VirtRange::between(part.end(), rest.end());
            // SAFETY: the caller of `open` vouches that faults are served.
            if unsafe { self.register(&held, part, self.armed_mode()) }.is_err() {
                // Unmapped meanwhile; that event is still to be read.
                let _ = held.armed.remove(part);
            }
        }
    }
}

impl fmt::Debug for LinuxHost {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("LinuxHost")
            .field("window", &self.window)
            .field("way", &self.way)
            .field("features", &self.features())
            .finish_non_exhaustive()
    }
}
