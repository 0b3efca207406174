//! Drops of our own: `madvise(MADV_DONTNEED)` on mirrored memory by the service itself, whose event the reader
//! must not mistake for the application's.
//!
//! # Rules
//! 1. A drop is entered before the call and left after it. Its events come in ascending order, one per mapping,
//!    each beginning where the one before ended; the cursor matches exactly those, once each.
//! 2. While a drop is entered, the reader reads one message at a time, and having read a drop's last event it
//!    waits for the call to return before it reads on. The kernel looks at the mapping again between the event
//!    and the zap; until then nobody who unmaps that memory gets his event read, so nobody can have put something
//!    of his own there. The wait is short: the dropping thread needs the reader no more.
//! 3. The read of the last event lets the call return, so the drop may be left before the reader has looked it up.
//!    It stays in the table until the reader has, or reads again: by then everything that it caused was looked up.
//! 4. **The window that stays open**: from leaving the gate to the moment the kernel looks at the mapping. A
//!    thread that unmaps the block, has its event read, maps something new at the same address and writes to it,
//!    all between these two, loses those writes. Only kernels without `UFFDIO_MOVE` are served this way; nothing
//!    in such a kernel makes a discard conditional on the mapping.

use core::sync::atomic::{AtomicU32, AtomicU64, Ordering};

use super::park::FutexPark;
use super::private::{PrivateError, Slab, ZeroValid};
use crate::sync::{Park, WordLock};
use crate::units::VirtRange;

const FREE: u32 = 0;
const ENTERED: u32 = 1;
/// All events were read; the call has not returned.
const TOLD: u32 = 2;
/// The call has returned; an event that was read may still be looked up.
const LEFT: u32 = 3;

struct Drop {
    state: AtomicU32,
    cursor: AtomicU64,
    end: AtomicU64,
    /// When it was left, in leavings.
    left_at: AtomicU64,
}
// SAFETY: atomics only; zero is a free entry.
#[allow(unsafe_code, reason = "vouching for a type of atomics")]
unsafe impl ZeroValid for Drop {}

pub(super) struct Drops {
    entries: Slab<Drop>,
    lock: WordLock,
    entered: AtomicU32,
    /// Rises when an entry becomes free or left, for who waits for one.
    freed: AtomicU32,
    leavings: AtomicU64,
}

/// An entry of the table.
#[derive(Clone, Copy)]
pub(super) struct DropId(usize);

impl Drops {
    pub(super) fn new() -> Result<Self, PrivateError> {
        Ok(Self {
            entries: Slab::new(128)?,
            lock: WordLock::new(),
            entered: AtomicU32::new(0),
            freed: AtomicU32::new(0),
            leavings: AtomicU64::new(0),
        })
    }

    /// Enters a drop. Sleeps while the table is full.
    pub(super) fn enter(&self, range: VirtRange) -> DropId {
        loop {
            let seen = self.freed.load(Ordering::Acquire);
            {
                let _guard = self.lock.lock(&FutexPark);
                if let Some(index) = self.vacant() {
                    let entry = &self.entries[index];
                    entry.cursor.store(range.start().0, Ordering::Relaxed);
                    entry.end.store(range.end().0, Ordering::Relaxed);
                    entry.state.store(ENTERED, Ordering::Relaxed);
                    // Release: the reader's `any` must see it before the event of this drop.
                    self.entered.fetch_add(1, Ordering::Release);
                    return DropId(index);
                }
            }
            FutexPark.park(&self.freed, seen);
        }
    }

    /// A free entry, or else the one that was left longest ago: it had no event, or its event was looked up long
    /// since, for the reader has one message in hand at most. The lock is held.
    fn vacant(&self) -> Option<usize> {
        let is = |state: u32| move |entry: &&Drop| entry.state.load(Ordering::Relaxed) == state;
        let index = |found: &Drop| self.entries.iter().position(|entry| core::ptr::eq(entry, found));
        if let Some(free) = self.entries.iter().find(is(FREE)) {
            return index(free);
        }
        let left = self.entries.iter().filter(is(LEFT));
        let oldest = left.min_by_key(|entry| entry.left_at.load(Ordering::Relaxed))?;
        self.free(oldest);
        index(oldest)
    }

    /// Leaves a drop: the call has returned.
    pub(super) fn leave(&self, id: DropId) {
        let entry = &self.entries[id.0];
        {
            let _guard = self.lock.lock(&FutexPark);
            if entry.state.load(Ordering::Relaxed) == TOLD {
                self.free(entry);
            } else {
                let left_at = self.leavings.fetch_add(1, Ordering::Relaxed);
                entry.left_at.store(left_at, Ordering::Relaxed);
                entry.state.store(LEFT, Ordering::Relaxed);
                self.freed.fetch_add(1, Ordering::Release);
            }
        }
        FutexPark.unpark_all(&entry.state);
        FutexPark.unpark_all(&self.freed);
    }

    /// Forgets the drops that were left. The reader calls it before a read, when it has looked up every event that
    /// it read before: a call that has returned has no event unread.
    pub(super) fn forget_left(&self) {
        if !self.any() {
            return;
        }
        {
            let _guard = self.lock.lock(&FutexPark);
            let left = self.entries.iter().filter(|entry| entry.state.load(Ordering::Relaxed) == LEFT);
            left.for_each(|entry| self.free(entry));
        }
        FutexPark.unpark_all(&self.freed);
    }

    /// Makes an entry free. The lock is held.
    fn free(&self, entry: &Drop) {
        // Release pairs with the acquire of the reader that waits for the end of the call.
        entry.state.store(FREE, Ordering::Release);
        self.entered.fetch_sub(1, Ordering::Release);
        self.freed.fetch_add(1, Ordering::Release);
    }

    /// Whether any drop is entered, or left and not yet forgotten.
    pub(super) fn any(&self) -> bool {
        self.entered.load(Ordering::Acquire) != 0
    }

    /// Whether a REMOVE event that the reader read is of a drop of ours; if it was its last, the call has
    /// returned when this does.
    pub(super) fn swallows(&self, range: VirtRange) -> bool {
        let told = {
            let _guard = self.lock.lock(&FutexPark);
            // A call that has returned is older than one under way: its event comes first. Mistaking it would make
            // the reader wait for a call that waits for the reader.
            let hit = [LEFT, ENTERED].into_iter().find_map(|state| {
                self.entries.iter().find(|entry| {
                    entry.state.load(Ordering::Relaxed) == state
                        && entry.cursor.load(Ordering::Relaxed) == range.start().0
                        && range.end().0 <= entry.end.load(Ordering::Relaxed)
                })
            });
            let Some(entry) = hit else { return false };
            entry.cursor.store(range.end().0, Ordering::Relaxed);
            if range.end().0 < entry.end.load(Ordering::Relaxed) {
                return true;
            }
            if entry.state.load(Ordering::Relaxed) == LEFT {
                // It is forgotten before the next read.
                return true;
            }
            entry.state.store(TOLD, Ordering::Relaxed);
            entry
        };
        while told.state.load(Ordering::Acquire) == TOLD {
            FutexPark.park(&told.state, TOLD);
        }
        true
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::units::VirtAddr;

    fn pages(start: u64, end: u64) -> VirtRange {
        VirtRange::between(VirtAddr(start << 12), VirtAddr(end << 12))
    }

    #[test]
    fn each_event_of_a_drop_is_matched_once() {
        let drops = Drops::new().expect("a page");
        let id = drops.enter(pages(4, 12));
        assert!(!drops.swallows(pages(3, 4)) && !drops.swallows(pages(6, 8)), "of somebody else");
        assert!(drops.swallows(pages(4, 6)));
        assert!(!drops.swallows(pages(4, 6)), "the second of its kind is of somebody else");
        drops.leave(id);
        assert!(
            drops.any() && drops.swallows(pages(6, 12)),
            "read before the call returned, looked at after"
        );
        drops.forget_left();
        assert!(!drops.any() && !drops.swallows(pages(6, 12)));
    }

    #[test]
    fn a_new_drop_does_not_inherit_the_event_of_an_old_one() {
        let drops = Drops::new().expect("a page");
        let other = drops.enter(pages(7, 8));
        let old = drops.enter(pages(0, 1));
        assert!(std::thread::scope(|scope| {
            let told = scope.spawn(|| drops.swallows(pages(7, 8)));
            while drops.entries[0].state.load(Ordering::Acquire) != TOLD {
                std::hint::spin_loop();
            }
            drops.leave(other);
            told.join().expect("it returns once the call has")
        }));
        drops.leave(old);
        // In the place of `other`, before the entry of `old`.
        let new = drops.enter(pages(0, 1));
        assert!(drops.swallows(pages(0, 1)), "does not wait for the new one");
        drops.leave(new);
        drops.forget_left();
        assert!(!drops.any());
    }

    #[test]
    fn a_table_full_of_calls_that_returned_has_room() {
        let drops = Drops::new().expect("a page");
        (0..drops.entries.len() as u64 * 2).for_each(|page| drops.leave(drops.enter(pages(page, page + 1))));
        drops.forget_left();
        assert!(!drops.any());
    }
}
