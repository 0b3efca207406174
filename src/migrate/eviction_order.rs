//! The order in which blocks leave a device: least recently migrated first.
//!
//! The blocks of a device hang in doubly linked lists through their records, one list per shard. A worker appends to
//! the shard of its seat, so that workers in different blocks do not meet. A block carries the stamp of the moment at
//! which it was appended, a reading of one clock that a shard advances after every [`TICK`] appends: a word that all
//! read and few write. Within a shard the order is exact; blocks of different shards with the same stamp count as
//! equally old. With one worker all blocks are in one shard.
//!
//! # Rules
//! 1. Which shard a block is in (`order_shard`) changes under the block's lock only, so whoever holds that lock knows
//!    which list to take it out of.
//! 2. A list and the neighbours of its members (`order_prev`, `order_next`, `order_stamp`) change under the shard's lock,
//!    a leaf lock below the block's.
//! 3. Whoever looks for the oldest block takes the locks of all shards, in the order of their numbers; nobody else
//!    takes two. What it finds may have moved on before it is locked: the caller looks again under the block's lock.

use crate::granule::{BlockIndex, Tables};
use crate::sync::{AtomicU32, LockedU32, Ordering, Park, WordGuard, WordLock};
use crate::units::Seat;

/// Lists of one device (1 under loom, where what counts is the order and not who waits).
const SHARDS: usize = if cfg!(granule_loom) { 1 } else { 8 };

/// Appends of one shard until the clock moves on.
const TICK: u32 = 16;

/// One list, in cache lines of its own.
#[derive(Debug, Default)]
#[repr(C, align(128))]
struct Shard {
    lock: WordLock,
    /// Least recently migrated, plus one.
    oldest: LockedU32,
    /// Most recently migrated, plus one.
    newest: LockedU32,
    /// Appends so far, wrapping.
    appended: LockedU32,
}

/// One device's order. Empty at the start.
#[derive(Debug, Default)]
pub struct EvictionOrder {
    shards: [Shard; SHARDS],
    clock: AtomicU32,
}

impl EvictionOrder {
    /// Makes a block the most recently migrated one. Under the block's lock.
    pub fn touch(&self, tables: &Tables<'_>, block: BlockIndex, seat: Seat, park: &dyn Park) {
        let shard = seat.0 as usize % SHARDS;
        let record = tables.record(block);
        if record.order_shard.load(Ordering::Relaxed) != shard as u32 + 1 {
            self.remove(tables, block, park);
        }
        let list = &self.shards[shard];
        let _lock = list.lock.lock(park);
        if list.newest.load(Ordering::Relaxed) != block.0 + 1 {
            if record.order_shard.load(Ordering::Relaxed) != 0 {
                list.unlink(tables, block);
            }
            let newest = list.newest.load(Ordering::Relaxed);
            record.order_prev.store(newest, Ordering::Relaxed);
            record.order_next.store(0, Ordering::Relaxed);
            record.order_shard.store(shard as u32 + 1, Ordering::Relaxed);
            list.next_of(tables, newest).store(block.0 + 1, Ordering::Relaxed);
            list.newest.store(block.0 + 1, Ordering::Relaxed);
        }
        let appended = list.appended.load(Ordering::Relaxed).wrapping_add(1);
        list.appended.store(appended, Ordering::Relaxed);
        let now = if appended.is_multiple_of(TICK) {
            self.clock.fetch_add(1, Ordering::Relaxed)
        } else {
            self.clock.load(Ordering::Relaxed)
        };
        record.order_stamp.store(now, Ordering::Relaxed);
    }

    /// Takes a block out; nothing to do if it is not in. Under the block's lock.
    pub fn remove(&self, tables: &Tables<'_>, block: BlockIndex, park: &dyn Park) {
        let record = tables.record(block);
        let Some(shard) = record.order_shard.load(Ordering::Relaxed).checked_sub(1) else { return };
        let list = &self.shards[shard as usize];
        let _lock = list.lock.lock(park);
        list.unlink(tables, block);
        record.order_shard.store(0, Ordering::Relaxed);
    }

    /// The `skip`-th oldest block (0: the oldest), if there are so many.
    pub fn oldest(&self, tables: &Tables<'_>, skip: usize, park: &dyn Park) -> Option<BlockIndex> {
        let _locks: [WordGuard<'_>; SHARDS] =
            core::array::from_fn(|shard| self.shards[shard].lock.lock(park));
        let mut heads: [u32; SHARDS] =
            core::array::from_fn(|shard| self.shards[shard].oldest.load(Ordering::Relaxed));
        let now = self.clock.load(Ordering::Relaxed);
        let age =
            |head: u32| now.wrapping_sub(tables.record(BlockIndex(head)).order_stamp.load(Ordering::Relaxed));
        let mut left = skip;
        loop {
            // Of equally old ones the first shard's: `max_by_key` returns the last.
            let next =
                heads.iter_mut().rev().filter(|head| **head != 0).max_by_key(|head| age(**head - 1))?;
            let block = BlockIndex(*next - 1);
            if left == 0 {
                return Some(block);
            }
            left -= 1;
            *next = tables.record(block).order_next.load(Ordering::Relaxed);
        }
    }
}

impl Shard {
    /// Under the shard's lock; the block is in this list.
    fn unlink(&self, tables: &Tables<'_>, block: BlockIndex) {
        let record = tables.record(block);
        let prev = record.order_prev.load(Ordering::Relaxed);
        let next = record.order_next.load(Ordering::Relaxed);
        self.next_of(tables, prev).store(next, Ordering::Relaxed);
        match next.checked_sub(1) {
            Some(next) => &tables.record(BlockIndex(next)).order_prev,
            None => &self.newest,
        }
        .store(prev, Ordering::Relaxed);
    }

    /// The word that says what comes after `prev` (an index plus one; 0: the head).
    fn next_of<'a>(&'a self, tables: &'a Tables<'_>, prev: u32) -> &'a LockedU32 {
        match prev.checked_sub(1) {
            Some(prev) => &tables.record(BlockIndex(prev)).order_next,
            None => &self.oldest,
        }
    }
}
