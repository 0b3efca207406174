//! Sparse mode, the library's side: which pages shaders may reach directly, and what is still to be bound.
//!
//! A granule (512 MiB of addresses) that has a sparse buffer has a *record*: the buffer's address and two bitmaps, pages
//! that may be read directly and pages that may be written. A shader that finds its bit set adds the offset in the granule
//! to the buffer's address; one that does not walks the page table. So the table is always the truth, and a bit only a
//! short cut: nothing depends on when a page is bound, or whether it ever is, and no shader looks at an unbound page.
//!
//! # Roles
//! * *Service threads* and whoever else calls `map` and `unmap` of the device: they clear bits and note what was mapped.
//!   They call no driver.
//! * The *binder* (a thread that launches, one at a time: see `binder`) takes the notes, has the driver bind, and sets
//!   bits.
//!
//! # Rules
//! 1. A bit is set only under the lock, for a page that is bound, and only if the page table says the same at that moment.
//! 2. Who changes the page table clears the bits of the range under the lock afterwards, and flushes, as for the table: a
//!    set bit and a table entry become void together.
//! 3. Notes that find no room are dropped: their pages are reached through the table.
//! 4. Everything here is private memory. Whoever holds the lock waits for nothing.

use granule::os::FutexPark;
use granule::os::private::{PrivateBytes, PrivateError, Slab};
use granule::sync::{AtomicU32, AtomicU64, Ordering, WordLock};
use granule::units::{Access, PAGE_BYTES, SPACE_BYTES};

use super::control::half;
use crate::software::page_table::{Found, PageTable};

/// Bytes of a granule.
pub(super) const GRANULE_BYTES: u64 = 512 << 20;
/// The most granules that have a sparse buffer; pages of others are reached through the table.
pub(super) const MOST_GRANULES: usize = 1024;
/// A record: the buffer's address; from a page on the two bitmaps.
const RECORD_BYTES: usize = READABLE_AT + 2 * BITMAP_BYTES;
const READABLE_AT: usize = PAGE_BYTES as usize;
const BITMAP_BYTES: usize = (GRANULE_BYTES / PAGE_BYTES / 8) as usize;
/// Notes between two takings.
const MOST_NOTES: usize = 1 << 16;

/// A run of pages and the device memory that they lie in.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) struct Run {
    pub(super) at: u64,
    pub(super) bytes: u64,
    pub(super) memory: u64,
}

impl Run {
    /// Whether another one continues it.
    pub(super) fn is_followed_by(&self, next: &Run) -> bool {
        self.at + self.bytes == next.at && self.memory + self.bytes == next.memory
    }
}

/// A list of runs in private memory.
pub(super) struct Runs {
    words: Slab<[AtomicU64; 3]>,
    count: AtomicU32,
}

impl Runs {
    pub(super) fn new() -> Result<Self, PrivateError> {
        Ok(Self { words: Slab::new(MOST_NOTES)?, count: AtomicU32::new(0) })
    }

    pub(super) fn len(&self) -> usize {
        self.count.load(Ordering::Relaxed) as usize
    }

    pub(super) fn clear(&self) {
        self.count.store(0, Ordering::Relaxed);
    }

    pub(super) fn get(&self, index: usize) -> Run {
        assert!(index < self.len(), "a run of the list");
        let [at, bytes, memory] = [0, 1, 2].map(|word| self.words[index][word].load(Ordering::Relaxed));
        Run { at, bytes, memory }
    }

    /// Adds a run, to the last one if it continues that; `false` if there is no room.
    pub(super) fn push(&self, run: Run) -> bool {
        let count = self.len();
        if let Some(last) = count.checked_sub(1)
            && self.get(last).is_followed_by(&run)
        {
            self.words[last][1].fetch_add(run.bytes, Ordering::Relaxed);
            return true;
        }
        if count == MOST_NOTES {
            return false;
        }
        for (word, value) in [run.at, run.bytes, run.memory].into_iter().enumerate() {
            self.words[count][word].store(value, Ordering::Relaxed);
        }
        self.count.store(count as u32 + 1, Ordering::Relaxed);
        true
    }
}

/// What the service and the binder share.
pub(super) struct Residency {
    /// A word per granule: where shaders find its record; 0 for none.
    pub(super) directory: PrivateBytes,
    pub(super) records: PrivateBytes,
    /// Notes, written into one list while the binder works on the other one.
    notes: [Runs; 2],
    /// Which list is written.
    writing: AtomicU32,
    /// Where shaders find the records.
    records_address: AtomicU64,
    used: AtomicU32,
    lock: WordLock,
    /// Pages that may be reached directly now.
    pub(super) direct: AtomicU64,
}

impl Residency {
    pub(super) fn new(align: u64) -> Result<Self, PrivateError> {
        let bytes = |bytes: u64| PrivateBytes::aligned(bytes.next_multiple_of(align), align);
        Ok(Self {
            directory: bytes(SPACE_BYTES / GRANULE_BYTES * 8)?,
            records: bytes((MOST_GRANULES * RECORD_BYTES) as u64)?,
            notes: [Runs::new()?, Runs::new()?],
            writing: AtomicU32::new(0),
            records_address: AtomicU64::new(0),
            used: AtomicU32::new(0),
            lock: WordLock::new(),
            direct: AtomicU64::new(0),
        })
    }

    /// Where shaders find the records. Before the first granule.
    pub(super) fn publish(&self, records: u64) {
        self.records_address.store(records, Ordering::SeqCst);
    }

    fn entry(&self, granule: u64) -> &AtomicU64 {
        &self.directory.as_words()[granule as usize]
    }

    /// Where the record of a granule begins.
    fn record(&self, granule: u64) -> Option<usize> {
        let address = self.entry(granule).load(Ordering::Acquire);
        (address != 0).then(|| (address - self.records_address.load(Ordering::Relaxed)) as usize)
    }

    pub(super) fn has(&self, granule: u64) -> bool {
        self.record(granule).is_some()
    }

    /// Gives a granule a record; `false` if there is none left. The binder's.
    pub(super) fn enter(&self, granule: u64, buffer: u64) -> bool {
        let used = self.used.load(Ordering::Relaxed) as usize;
        if used == MOST_GRANULES {
            return false;
        }
        self.used.store(used as u32 + 1, Ordering::Relaxed);
        let at = used * RECORD_BYTES;
        self.records.as_words()[at / 8].store(buffer, Ordering::Relaxed);
        let address = self.records_address.load(Ordering::Relaxed) + at as u64;
        // Release: who finds the record finds the buffer's address in it.
        self.entry(granule).store(address, Ordering::Release);
        true
    }

    /// Sets or clears the bits of pages of one granule, in one bitmap. Under the lock. Returns how many changed.
    fn change(&self, record: usize, is_write: bool, at: u64, bytes: u64, set: bool) -> u64 {
        let bitmap = record + READABLE_AT + if is_write { BITMAP_BYTES } else { 0 };
        let (mut page, end) =
            (at % GRANULE_BYTES / PAGE_BYTES, (at % GRANULE_BYTES + bytes).div_ceil(PAGE_BYTES));
        let mut changed = 0;
        while page < end {
            let (first, last) = (page % 32, (end - page + page % 32).min(32));
            let mask = (u32::MAX >> (32 - (last - first))) << first;
            let word = half(&self.records, bitmap + (page / 32 * 4) as usize);
            // SeqCst: ordered with the window words, as stores to the page table are.
            let old = if set {
                word.fetch_or(mask, Ordering::SeqCst)
            } else {
                word.fetch_and(!mask, Ordering::SeqCst)
            };
            changed += u64::from((if set { !old & mask } else { old & mask }).count_ones());
            page += last - first;
        }
        changed
    }

    /// Calls `each` with the parts of a range that lie in granules with a record: record, first byte, bytes.
    fn parts(&self, at: u64, bytes: u64, mut each: impl FnMut(usize, u64, u64)) {
        let (mut here, end) = (at, at + bytes);
        while here < end {
            let until = end.min((here / GRANULE_BYTES + 1) * GRANULE_BYTES);
            if let Some(record) = self.record(here / GRANULE_BYTES) {
                each(record, here, until - here);
            }
            here = until;
        }
    }

    fn clear_locked(&self, at: u64, bytes: u64) -> bool {
        let mut cleared = 0;
        self.parts(at, bytes, |record, at, bytes| {
            self.change(record, true, at, bytes, false);
            cleared += self.change(record, false, at, bytes, false);
        });
        self.direct.fetch_sub(cleared, Ordering::Relaxed);
        cleared > 0
    }

    /// The table says nothing of this range any more, or something else. Says whether a bit was set.
    pub(super) fn cleared(&self, at: u64, bytes: u64) -> bool {
        let _held = self.lock.lock(&FutexPark);
        self.clear_locked(at, bytes)
    }

    /// The table leads this range to device memory from now on.
    pub(super) fn mapped(&self, at: u64, bytes: u64, memory: u64) {
        let _held = self.lock.lock(&FutexPark);
        self.clear_locked(at, bytes);
        // What finds no room is reached through the table.
        let _ = self.notes[self.writing.load(Ordering::Relaxed) as usize].push(Run { at, bytes, memory });
    }

    /// What was noted since the last call. The binder's, until its next call.
    pub(super) fn take(&self) -> &Runs {
        let _held = self.lock.lock(&FutexPark);
        let writing = self.writing.load(Ordering::Relaxed);
        let other = &self.notes[1 - writing as usize];
        other.clear();
        self.writing.store(1 - writing, Ordering::Relaxed);
        &self.notes[writing as usize]
    }

    /// Has shaders reach directly what is bound and still mapped so. The binder's.
    pub(super) fn reach(&self, bound: Run, table: &PageTable) {
        let _held = self.lock.lock(&FutexPark);
        let (mut here, end) = (bound.at, bound.at + bound.bytes);
        let mut added = 0;
        while here < end {
            let next = match table.find(here) {
                Found::Hole(until) => until,
                Found::Leaf(leaf) => {
                    let until = end.min(leaf.base + leaf.bytes);
                    let is_bound =
                        !leaf.system && leaf.target + (here - leaf.base) == bound.memory + (here - bound.at);
                    if is_bound {
                        self.parts(here, until - here, |record, at, bytes| {
                            added += self.change(record, false, at, bytes, true);
                            if leaf.covers(Access::Write) {
                                self.change(record, true, at, bytes, true);
                            }
                        });
                    }
                    until
                }
            };
            here = next;
        }
        self.direct.fetch_add(added, Ordering::Relaxed);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::software::page_table::Quiet;

    struct Still;
    impl Quiet for Still {
        fn generation(&self) -> u64 {
            0
        }
        fn completed(&self) -> u64 {
            0
        }
        fn flush_all(&self) {}
    }

    const GRANULE: u64 = 5;
    const AT: u64 = GRANULE * GRANULE_BYTES;

    fn made() -> (Residency, PageTable) {
        let residency = Residency::new(PAGE_BYTES).expect("private memory");
        residency.publish(0x1000);
        assert!(residency.enter(GRANULE, 0xabc000));
        (residency, PageTable::new(64).expect("a table"))
    }

    #[test]
    fn bits_are_set_for_what_the_table_still_says() {
        let (residency, table) = made();
        table.set(AT, 64 << 12, 0, false, Access::Write, &Still).expect("nodes");
        table.set(AT + (10 << 12), 1 << 12, 0x20_0000, false, Access::Write, &Still).expect("nodes");
        table.clear(AT + (20 << 12), 3 << 12, &Still);
        residency.reach(Run { at: AT, bytes: 64 << 12, memory: 0 }, &table);
        assert_eq!(residency.direct.load(Ordering::Relaxed), 60);
        assert!(residency.cleared(AT + (9 << 12), 3 << 12));
        assert_eq!(residency.direct.load(Ordering::Relaxed), 58);
        assert!(!residency.cleared(AT + (9 << 12), 3 << 12));
        assert!(residency.cleared(0, SPACE_BYTES));
        assert_eq!(residency.direct.load(Ordering::Relaxed), 0);
    }

    #[test]
    fn a_page_that_may_be_read_only_has_no_bit_for_writing() {
        let (residency, table) = made();
        table.set(AT, 4 << 12, 0, false, Access::Read, &Still).expect("nodes");
        residency.reach(Run { at: AT, bytes: 4 << 12, memory: 0 }, &table);
        let record = residency.record(GRANULE).expect("a record");
        let word = |bitmap: usize| half(&residency.records, record + bitmap).load(Ordering::Relaxed);
        assert_eq!((word(READABLE_AT), word(READABLE_AT + BITMAP_BYTES)), (0xf, 0));
    }

    #[test]
    fn notes_are_joined_and_taken_once() {
        let (residency, _) = made();
        for page in 0..10 {
            residency.mapped(AT + page * PAGE_BYTES, PAGE_BYTES, page * PAGE_BYTES);
        }
        residency.mapped(AT + (100 << 12), PAGE_BYTES, 0);
        let runs = residency.take();
        assert_eq!(runs.len(), 2);
        assert_eq!(runs.get(0), Run { at: AT, bytes: 10 << 12, memory: 0 });
        assert_eq!(residency.take().len(), 0);
    }
}
