//! The order in which blocks leave a device: least recently migrated first. A doubly linked list through the
//! block records, under a leaf lock of its own.

use crate::granule::{BlockIndex, Tables};
use crate::sync::{LockedU32, Ordering, Park, WordLock};

/// One device's list. Empty at the start.
#[derive(Debug, Default)]
pub struct EvictionOrder {
    lock: WordLock,
    /// Least recently migrated, plus one.
    oldest: LockedU32,
    /// Most recently migrated, plus one.
    newest: LockedU32,
}

impl EvictionOrder {
    /// Makes a block the most recently migrated one.
    pub fn touch(&self, tables: &Tables<'_>, block: BlockIndex, park: &dyn Park) {
        let _lock = self.lock.lock(park);
        if self.newest.load(Ordering::Relaxed) == block.0 + 1 {
            return;
        }
        self.unlink(tables, block);
        let record = tables.record(block);
        let newest = self.newest.load(Ordering::Relaxed);
        record.order_prev.store(newest, Ordering::Relaxed);
        record.order_next.store(0, Ordering::Relaxed);
        record.order_member.store(1, Ordering::Relaxed);
        self.next_of(tables, newest).store(block.0 + 1, Ordering::Relaxed);
        self.newest.store(block.0 + 1, Ordering::Relaxed);
    }

    /// Takes a block out; nothing to do if it is not in.
    pub fn remove(&self, tables: &Tables<'_>, block: BlockIndex, park: &dyn Park) {
        let _lock = self.lock.lock(park);
        self.unlink(tables, block);
    }

    /// The `skip`-th oldest block (0: the oldest), if there are so many.
    pub fn oldest(&self, tables: &Tables<'_>, skip: usize, park: &dyn Park) -> Option<BlockIndex> {
        let _lock = self.lock.lock(park);
        let mut at = self.oldest.load(Ordering::Relaxed);
        for _ in 0..skip {
            at = tables.record(BlockIndex(at.checked_sub(1)?)).order_next.load(Ordering::Relaxed);
        }
        at.checked_sub(1).map(BlockIndex)
    }

    fn unlink(&self, tables: &Tables<'_>, block: BlockIndex) {
        let record = tables.record(block);
        if record.order_member.load(Ordering::Relaxed) == 0 {
            return;
        }
        let prev = record.order_prev.load(Ordering::Relaxed);
        let next = record.order_next.load(Ordering::Relaxed);
        self.next_of(tables, prev).store(next, Ordering::Relaxed);
        match next.checked_sub(1) {
            Some(next) => &tables.record(BlockIndex(next)).order_prev,
            None => &self.newest,
        }
        .store(prev, Ordering::Relaxed);
        record.order_member.store(0, Ordering::Relaxed);
    }

    /// The word that says what comes after `prev` (an index plus one; 0: the head).
    fn next_of<'a>(&'a self, tables: &'a Tables<'_>, prev: u32) -> &'a LockedU32 {
        match prev.checked_sub(1) {
            Some(prev) => &tables.record(BlockIndex(prev)).order_next,
            None => &self.oldest,
        }
    }
}
