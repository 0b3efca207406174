//! Regions of the library: memory that is mapped twice, once for the application and once for the service. In private
//! memory.
//!
//! A page of a region is taken by unmapping it in the application's view, and given back by mapping it there again; its
//! contents stand in the service's view all the while.
//!
//! # Roles
//! * The owner (`service::Region`) enters a region, ends its takes, unmaps the application's view, and retires it.
//! * A worker takes pages inside the gate, and copies between the service's view and a device outside of it, as long as
//!   it holds a staging slot.
//!
//! # Rules
//! 1. Taking acts on addresses, whatever is mapped there. So a region is taken from only between `enter` and
//!    `end_takes`, which comes before the owner unmaps it and waits for takes under way. Both sides write first and look
//!    then, sequentially consistent (Dekker): the take finds the region ended, or the owner waits for it.
//! 2. The service's view outlives the event of the application's view: whoever uses it inside the gate, or is the
//!    reader, is done before that event is read.
//! 3. Whoever uses it outside of the gate holds a staging slot, whose word in `uses` is odd from its first use of any
//!    view to its release. `retire` comes after the event was read, refuses new uses, and waits for those words that are
//!    odd at that moment (Dekker again).
//! 4. A child after fork sees the memory through a mapping from which nothing is taken away. So from a fork on the
//!    regions that exist stay in RAM: everything is brought home and nothing served, then comes `share_all`, then the
//!    child is made. (For a raw clone, the event comes when it is made, and its touches are trapped until all is home.)

use core::sync::atomic::{AtomicU32, AtomicU64, Ordering};

use super::park::FutexPark;
use super::private::{PrivateError, Slab, ZeroValid};
use crate::ports::{StagingId, WORDS_PER_PAGE, Word};
use crate::sync::{Park, WordLock};
use crate::units::{PAGE_BYTES, VirtAddr, VirtRange};

/// Regions that one space can have at once.
const REGIONS: usize = 4_096;

const FREE: u32 = 0;
const LIVE: u32 = 1;
/// Nothing is taken any more; the service's view is there.
const ENDED: u32 = 2;
/// The service's view is about to go.
const RETIRED: u32 = 3;

#[derive(Debug)]
struct Record {
    state: AtomicU32,
    /// Takes under way.
    takes: AtomicU32,
    /// A child may have it, too.
    shared: AtomicU32,
    start: AtomicU64,
    end: AtomicU64,
    view: AtomicU64,
}
// SAFETY: atomics only; zero is a free record.
#[allow(unsafe_code, reason = "vouching for a type of atomics")]
unsafe impl ZeroValid for Record {}

/// The regions of one space. In private memory.
#[derive(Debug)]
pub(crate) struct Regions {
    records: Slab<Record>,
    /// Records below this were ever used.
    used: AtomicU32,
    /// Guards entering.
    lock: WordLock,
    /// By staging slot: odd while its holder may use a view.
    uses: Slab<AtomicU32>,
    /// Owners that wait for a word of `uses`.
    waits: AtomicU32,
}

/// A region's number.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct RegionNo(usize);

/// A take under way.
pub(super) struct Taking<'a>(&'a Record);

impl Drop for Taking<'_> {
    fn drop(&mut self) {
        self.0.takes.fetch_sub(1, Ordering::SeqCst);
        if self.0.state.load(Ordering::SeqCst) != LIVE {
            FutexPark.unpark_all(&self.0.takes);
        }
    }
}

impl Record {
    fn range(&self) -> VirtRange {
        let end = |cell: &AtomicU64| VirtAddr(cell.load(Ordering::Relaxed));
        VirtRange::between(end(&self.start), end(&self.end))
    }
}

impl Regions {
    pub(super) fn new(staging_slots: usize) -> Result<Self, PrivateError> {
        Ok(Self {
            records: Slab::new(REGIONS)?,
            used: AtomicU32::new(0),
            lock: WordLock::new(),
            uses: Slab::new(staging_slots)?,
            waits: AtomicU32::new(0),
        })
    }

    /// Enters a region; `None` if there are too many. Its application's view is mapped, as is the service's at `view`.
    pub(super) fn enter(&self, range: VirtRange, view: VirtAddr) -> Option<RegionNo> {
        let _guard = self.lock.lock(&FutexPark);
        let index = self.records.iter().position(|record| record.state.load(Ordering::Acquire) == FREE)?;
        let record = &self.records[index];
        record.start.store(range.start().0, Ordering::Relaxed);
        record.end.store(range.end().0, Ordering::Relaxed);
        record.view.store(view.0, Ordering::Relaxed);
        record.shared.store(0, Ordering::Relaxed);
        // Release pairs with the acquire in `at`: a region that is found is complete.
        record.state.store(LIVE, Ordering::Release);
        self.used.fetch_max(index as u32 + 1, Ordering::AcqRel);
        Some(RegionNo(index))
    }

    /// Nothing of the region is taken from now on. Waits for takes under way, which wait for nobody.
    pub(crate) fn end_takes(&self, no: RegionNo) {
        let record = &self.records[no.0];
        record.state.store(ENDED, Ordering::SeqCst);
        loop {
            match record.takes.load(Ordering::SeqCst) {
                0 => return,
                takes => FutexPark.park(&record.takes, takes),
            }
        }
    }

    /// The service's view may go when this returns. The application's view is unmapped, and its event was read (or
    /// nobody follows it). Waits for copies under way.
    pub(crate) fn retire(&self, no: RegionNo) {
        let record = &self.records[no.0];
        record.state.store(RETIRED, Ordering::SeqCst);
        self.waits.fetch_add(1, Ordering::SeqCst);
        for slot in self.uses.iter() {
            let seen = slot.load(Ordering::SeqCst);
            while seen % 2 == 1 && slot.load(Ordering::SeqCst) == seen {
                FutexPark.park(slot, seen);
            }
        }
        self.waits.fetch_sub(1, Ordering::SeqCst);
        record.state.store(FREE, Ordering::Release);
    }

    /// Takes back `enter`: nobody has found the region.
    pub(super) fn forget(&self, no: RegionNo) {
        self.records[no.0].state.store(FREE, Ordering::Release);
    }

    /// The process is about to fork: whatever there is stays in RAM from now on.
    pub(crate) fn share_all(&self) {
        let _guard = self.lock.lock(&FutexPark);
        self.records.iter().for_each(|record| record.shared.store(1, Ordering::SeqCst));
    }

    fn at(&self, at: VirtAddr) -> Option<&Record> {
        let used = self.used.load(Ordering::Acquire) as usize;
        self.records[..used].iter().find(|record| {
            !matches!(record.state.load(Ordering::Acquire), FREE | RETIRED) && record.range().contains(at)
        })
    }

    /// Whether pages of the region at an address may move.
    pub(super) fn may_move(&self, at: VirtAddr) -> bool {
        self.at(at).is_some_and(|record| {
            record.shared.load(Ordering::SeqCst) == 0 && record.state.load(Ordering::SeqCst) == LIVE
        })
    }

    /// Begins a take at an address; `None` if the region there has ended. Nothing is taken of a region that is shared:
    /// ask `may_move`.
    pub(super) fn begin_take(&self, at: VirtAddr) -> Option<(Taking<'_>, VirtRange)> {
        let record = self.at(at)?;
        record.takes.fetch_add(1, Ordering::SeqCst);
        let taking = Taking(record);
        let range = record.range();
        // Looked at again: the record may have been used anew since it was found.
        (record.state.load(Ordering::SeqCst) == LIVE && range.contains(at)).then_some((taking, range))
    }

    /// Where the service sees an address, and how many of `pages` pages from there on. For whoever is inside the gate, or
    /// is the reader.
    pub(super) fn view(&self, at: VirtAddr, pages: u64) -> Option<(VirtAddr, u64)> {
        let record = self.at(at)?;
        let range = record.range();
        let view = VirtAddr(record.view.load(Ordering::Relaxed)) + at.bytes_since(range.start());
        Some((view, pages.min(range.end().bytes_since(at) / PAGE_BYTES)))
    }

    /// The same for whoever holds a staging slot, and him alone, until he releases it.
    pub(super) fn view_with(&self, staging: StagingId, at: VirtAddr, pages: u64) -> Option<(VirtAddr, u64)> {
        self.at(at)?;
        let slot = &self.uses[staging.0 as usize];
        let seen = slot.load(Ordering::Relaxed);
        if seen.is_multiple_of(2) {
            slot.store(seen + 1, Ordering::SeqCst);
        }
        // After the use was noted: `retire` waits for it, or is seen here.
        core::sync::atomic::fence(Ordering::SeqCst);
        self.view(at, pages)
    }

    /// A staging slot is about to be released: its holder uses no view any more.
    pub(super) fn end_use(&self, staging: StagingId) {
        let slot = &self.uses[staging.0 as usize];
        if slot.load(Ordering::Relaxed) % 2 == 1 {
            slot.fetch_add(1, Ordering::SeqCst);
            if self.waits.load(Ordering::SeqCst) != 0 {
                FutexPark.unpark_all(slot);
            }
        }
    }
}

/// The words of a service's view.
///
/// # Safety
/// A rule of the header keeps the view mapped for as long as the result is used.
#[allow(unsafe_code, reason = "an address of the table becomes a slice")]
pub(super) unsafe fn words_of<'a>(view: VirtAddr, pages: u64) -> &'a [Word] {
    // SAFETY: page aligned and mapped, as the caller says; any bytes are words, and they may change under a shared
    // reference.
    unsafe { core::slice::from_raw_parts(view.0 as *const Word, pages as usize * WORDS_PER_PAGE) }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::AtomicBool;

    use super::*;

    const VIEW: VirtAddr = VirtAddr(0x7000_0000);

    fn pages(start: u64, end: u64) -> VirtRange {
        VirtRange::between(VirtAddr(start << 12), VirtAddr(end << 12))
    }

    /// Whether `ends` goes on waiting while `hold` is held, and returns when it is dropped.
    fn waits_for<H>(hold: H, has_begun: impl Fn() -> bool, ends: impl FnOnce() + Send) {
        let done = AtomicBool::new(false);
        std::thread::scope(|scope| {
            scope.spawn(|| {
                ends();
                done.store(true, Ordering::SeqCst);
            });
            while !has_begun() {
                std::thread::yield_now();
            }
            (0..1_000).for_each(|_| std::thread::yield_now());
            assert!(!done.load(Ordering::SeqCst), "it did not wait");
            drop(hold);
        });
        assert!(done.load(Ordering::SeqCst));
    }

    #[test]
    fn an_address_leads_to_its_region() {
        let regions = Regions::new(4).expect("private memory");
        let first = regions.enter(pages(16, 32), VIEW).expect("room");
        let second = regions.enter(pages(32, 40), VIEW + 0x100_0000).expect("room");
        let view = |page: u64, pages| regions.view(VirtAddr(page << 12), pages);
        assert_eq!(view(18, 100), Some((VIEW + 0x2000, 14)), "up to its end");
        assert_eq!(view(32, 2), Some((VIEW + 0x100_0000, 2)));
        assert_eq!((view(15, 1), view(40, 1)), (None, None));
        assert!(regions.may_move(VirtAddr(16 << 12)));
        regions.share_all();
        assert!(!regions.may_move(VirtAddr(16 << 12)));
        regions.forget(first);
        assert_eq!((view(18, 1), view(33, 1)), (None, Some((VIEW + 0x100_1000, 1))));
        regions.forget(second);
        regions.enter(pages(16, 32), VIEW).expect("room");
        assert!(regions.may_move(VirtAddr(16 << 12)), "another one is nobody else's");
    }

    #[test]
    fn an_end_waits_for_takes_and_lets_none_begin() {
        let regions = Regions::new(4).expect("private memory");
        let no = regions.enter(pages(16, 32), VIEW).expect("room");
        let at = VirtAddr(17 << 12);
        let taking = regions.begin_take(at).expect("it lives").0;
        waits_for(taking, || regions.begin_take(at).is_none(), || regions.end_takes(no));
        assert!(regions.begin_take(at).is_none() && !regions.may_move(at));
        assert!(regions.view(at, 1).is_some(), "its contents are there until it is retired");
    }

    #[test]
    fn a_view_stays_until_its_copies_are_done() {
        struct Copying<'a>(&'a Regions);
        impl Drop for Copying<'_> {
            fn drop(&mut self) {
                self.0.end_use(StagingId(2));
            }
        }
        let regions = Regions::new(4).expect("private memory");
        let no = regions.enter(pages(16, 32), VIEW).expect("room");
        let at = VirtAddr(17 << 12);
        assert!(regions.view_with(StagingId(2), at, 1).is_some());
        assert!(regions.view_with(StagingId(2), at, 1).is_some(), "as often as its holder likes");
        regions.end_takes(no);
        let begun = || regions.view(at, 1).is_none();
        waits_for(Copying(&regions), begun, || regions.retire(no));
        assert_eq!(regions.view_with(StagingId(1), at, 1), None);
        regions.end_use(StagingId(1));
        let again = regions.enter(pages(16, 32), VIEW).expect("room");
        regions.end_takes(again);
        regions.retire(again);
    }
}
