//! Userptrs: ranges registered in advance. Each has an IOVA range of just its size, a device address, and a link
//! bitmap of its own; residency is kept once, in the granule.
//!
//! # Roles and rules
//! 1. A record changes under its own lock; lock order is gate, block, record. Its sequence moves with every
//!    invalidation that hits it (as a block's does).
//! 2. A record is live from `publish` to `retire`. Both are done inside the gate, so that no event is applied
//!    between a registration and its first link.
//! 3. Pages under a live record that may not move are not taken for a device (`pinned_in`).
//! 4. A submission raises `begun` and then looks at the sequence; an invalidation moves the sequence and then looks
//!    at `begun`. Both are sequentially consistent: the submission fails, or the invalidation waits for it (Dekker).

use super::sequence::{Sequence, SequenceWord};
use crate::dma::PageList;
use crate::sync::{AtomicU32, AtomicU64, LockedU64, Ordering, Park, WordGuard, WordLock};
use crate::units::{Access, BlockNo, DevAddr, DeviceId, Iova, PAGE_BYTES, PageMask, VirtAddr, VirtRange};

/// A userptr's number: its position in the list of records.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Hash)]
pub struct UserptrNo(pub u32);

/// What a userptr is, fixed at its registration.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct UserptrSpec {
    /// The pages of the process.
    pub range: VirtRange,
    /// Whose.
    pub device: DeviceId,
    /// Where the device sees them.
    pub device_at: DevAddr,
    /// First DMA address.
    pub iova: Iova,
    /// What the device may do.
    pub access: Access,
    /// Whether the pages may move to the device.
    pub movable: bool,
    /// First word of its link bitmap in the space's bitmap memory.
    pub first_word: u32,
}

/// One userptr.
#[derive(Debug, Default)]
#[repr(C, align(64))]
pub struct UserptrRecord {
    lock: WordLock,
    live: AtomicU32,
    sequence: SequenceWord,
    start: AtomicU64,
    pages: AtomicU64,
    device_at: AtomicU64,
    iova: AtomicU64,
    /// Device, then bit 8: writable, bit 9: movable.
    kind: AtomicU32,
    first_word: AtomicU32,
    /// Submissions begun and ended, wrapping.
    begun: AtomicU32,
    ended: AtomicU32,
}

const WRITABLE: u32 = 1 << 8;
const MOVABLE: u32 = 1 << 9;

/// All userptrs of a space.
#[derive(Debug)]
pub struct Userptrs<'m> {
    records: &'m [UserptrRecord],
    words: &'m [LockedU64],
    /// Records below this were ever live.
    used: AtomicU32,
    live: AtomicU32,
}

/// A record, locked.
pub struct UserptrGuard<'a> {
    record: &'a UserptrRecord,
    words: &'a [LockedU64],
    spec: UserptrSpec,
    _lock: WordGuard<'a>,
}

impl<'m> Userptrs<'m> {
    /// None yet. `words` is the memory of all link bitmaps.
    pub fn new(records: &'m [UserptrRecord], words: &'m [LockedU64]) -> Self {
        Self { records, words, used: AtomicU32::new(0), live: AtomicU32::new(0) }
    }

    /// Whether there is none: what most faults ask.
    pub fn is_empty(&self) -> bool {
        self.live.load(Ordering::Acquire) == 0
    }

    /// How many there may be at once.
    pub fn capacity(&self) -> usize {
        self.records.len()
    }

    /// Makes record `no` live. Inside the gate. Asserts that it is not, and that its bitmap is clear.
    pub fn publish(&self, no: UserptrNo, spec: &UserptrSpec, park: &dyn Park) {
        let record = &self.records[no.0 as usize];
        let _lock = record.lock.lock(park);
        assert!(record.live.load(Ordering::Relaxed) == 0, "a userptr's record is used once at a time");
        record.start.store(spec.range.start().0, Ordering::Relaxed);
        record.pages.store(spec.range.pages(), Ordering::Relaxed);
        record.device_at.store(spec.device_at.0, Ordering::Relaxed);
        record.iova.store(spec.iova.0, Ordering::Relaxed);
        let writable = if spec.access == Access::Write { WRITABLE } else { 0 };
        let movable = if spec.movable { MOVABLE } else { 0 };
        record.kind.store(u32::from(spec.device.0) | writable | movable, Ordering::Relaxed);
        record.first_word.store(spec.first_word, Ordering::Relaxed);
        record.live.store(1, Ordering::Release);
        self.used.fetch_max(no.0 + 1, Ordering::AcqRel);
        self.live.fetch_add(1, Ordering::AcqRel);
    }

    /// Ends a record. Inside the gate, its pages unlinked.
    pub fn retire(&self, guard: UserptrGuard<'_>) {
        debug_assert!(guard.list().runs(0..guard.spec.range.pages(), true).next().is_none());
        guard.record.live.store(0, Ordering::Release);
        self.live.fetch_sub(1, Ordering::AcqRel);
    }

    /// Locks a live record; `None` if it is not live.
    pub fn lock<'a>(&'a self, no: UserptrNo, park: &'a dyn Park) -> Option<UserptrGuard<'a>> {
        let record = self.records.get(no.0 as usize)?;
        let lock = record.lock.lock(park);
        (record.live.load(Ordering::Acquire) != 0).then(|| {
            let kind = record.kind.load(Ordering::Relaxed);
            let spec = UserptrSpec {
                range: VirtRange::of_pages(
                    VirtAddr(record.start.load(Ordering::Relaxed)),
                    record.pages.load(Ordering::Relaxed),
                ),
                device: DeviceId(kind as u8),
                device_at: DevAddr(record.device_at.load(Ordering::Relaxed)),
                iova: Iova(record.iova.load(Ordering::Relaxed)),
                access: if kind & WRITABLE != 0 { Access::Write } else { Access::Read },
                movable: kind & MOVABLE != 0,
                first_word: record.first_word.load(Ordering::Relaxed),
            };
            UserptrGuard { record, words: self.words, spec, _lock: lock }
        })
    }

    /// The numbers that may be live.
    pub fn numbers(&self) -> impl Iterator<Item = UserptrNo> + use<> {
        let used = if self.is_empty() { 0 } else { self.used.load(Ordering::Acquire) };
        (0..used).map(UserptrNo)
    }

    /// The pages of a block that a live record keeps in system memory.
    pub fn pinned_in(&self, block: BlockNo, park: &dyn Park) -> PageMask {
        self.numbers()
            .filter_map(|no| self.lock(no, park))
            .filter(|guard| !guard.spec.movable)
            .fold(PageMask::EMPTY, |all, guard| all | guard.spec.range.mask_in(block))
    }

    /// The record whose device range holds an address that is not the process's own.
    pub fn alias_at(&self, at: DevAddr, device: DeviceId, park: &dyn Park) -> Option<UserptrNo> {
        self.numbers().find(|no| {
            self.lock(*no, park).is_some_and(|guard| {
                let spec = &guard.spec;
                spec.device == device
                    && spec.device_at.0 != spec.range.start().0
                    && at.0.checked_sub(spec.device_at.0).is_some_and(|offset| offset < spec.range.bytes())
            })
        })
    }

    /// Samples a record's sequence.
    pub fn sample(&self, no: UserptrNo) -> Sequence {
        self.records[no.0 as usize].sequence.sample()
    }

    /// Begins a submission that relies on what was linked when `sample` was taken. `false`: it was invalidated since,
    /// and nothing is begun. An invalidation waits until [`Userptrs::end_submission`].
    #[must_use = "a submission that was not begun must not be made"]
    pub fn begin_submission(&self, no: UserptrNo, sample: Sequence, park: &dyn Park) -> bool {
        let record = &self.records[no.0 as usize];
        record.begun.fetch_add(1, Ordering::SeqCst);
        let valid = !sample.is_invalidating() && record.sequence.sample_total() == sample;
        if !valid {
            self.end_submission(no, park);
        }
        valid
    }

    /// Ends a submission.
    pub fn end_submission(&self, no: UserptrNo, park: &dyn Park) {
        let record = &self.records[no.0 as usize];
        record.ended.fetch_add(1, Ordering::SeqCst);
        park.unpark_all(&record.ended);
    }

    /// The word that moves when a submission ends, and its value, while one is under way.
    pub fn busy(&self, no: UserptrNo) -> Option<(&'m AtomicU32, u32)> {
        let record = &self.records[no.0 as usize];
        let ended = record.ended.load(Ordering::SeqCst);
        (record.begun.load(Ordering::SeqCst) != ended).then_some((&record.ended, ended))
    }
}

impl UserptrGuard<'_> {
    /// What it is.
    pub fn spec(&self) -> &UserptrSpec {
        &self.spec
    }

    /// Its links.
    pub fn list(&self) -> PageList<'_> {
        let first = self.spec.first_word as usize;
        let pages = self.spec.range.pages();
        PageList::new(self.spec.iova, pages, &self.words[first..first + pages.div_ceil(64) as usize])
    }

    /// The positions of the pages that a range hits.
    pub fn hit(&self, range: VirtRange) -> core::ops::Range<u64> {
        let part = self.spec.range.intersection(range);
        let first = part.start().bytes_since(self.spec.range.start()) / PAGE_BYTES;
        first..first + part.pages()
    }

    /// Whether nothing was invalidated since.
    pub fn is_unchanged(&self, sample: Sequence) -> bool {
        self.record.sequence.is_unchanged(sample)
    }
    /// An invalidation begins.
    pub fn begin_invalidation(&mut self) {
        self.record.sequence.begin();
    }
    /// An invalidation ends.
    pub fn end_invalidation(&mut self) {
        self.record.sequence.end();
    }
}
