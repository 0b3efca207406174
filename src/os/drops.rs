//! Drops of our own: `madvise(MADV_DONTNEED)` on mirrored memory by the service itself, whose event the reader
//! must not mistake for the application's.
//!
//! # Rules
//! 1. A drop is entered before the call and left after it. Its events come in ascending order, one per mapping,
//!    each beginning where the one before ended; the cursor matches exactly those, once each. The call may return
//!    before the reader has looked at the event that it has read, so an entry outlives its call until then.
//! 2. While a drop is entered, the reader reads one message at a time, and having read a drop's last event it
//!    waits for the call to return before it reads on. The kernel looks at the mapping again between the event
//!    and the zap; until then nobody who unmaps that memory gets his event read, so nobody can have put something
//!    of his own there. The wait is short: the dropping thread needs the reader no more.
//! 3. **The window that stays open**: from leaving the gate to the moment the kernel looks at the mapping. A
//!    thread that unmaps the block, has its event read, maps something new at the same address and writes to it,
//!    all between these two, loses those writes. Only kernels without `UFFDIO_MOVE` are served this way; nothing
//!    in such a kernel makes a discard conditional on the mapping.

use core::sync::atomic::{AtomicU32, AtomicU64, Ordering};

use super::park::FutexPark;
use super::private::{PrivateError, Slab, ZeroValid};
use crate::sync::{Park, WordLock};
use crate::units::VirtRange;

const FREE: u32 = 0;
/// The call is under way.
const ENTERED: u32 = 1;
/// All events were looked at; the call has not returned.
const TOLD: u32 = 2;
/// The call has returned; the reader may not have looked at its last event yet.
const RETURNED: u32 = 3;

struct Drop {
    state: AtomicU32,
    cursor: AtomicU64,
    end: AtomicU64,
}
// SAFETY: atomics only; zero is a free entry.
#[allow(unsafe_code, reason = "vouching for a type of atomics")]
unsafe impl ZeroValid for Drop {}

pub(super) struct Drops {
    entries: Slab<Drop>,
    lock: WordLock,
    entered: AtomicU32,
    /// Rises when an entry becomes free, for who waits for one.
    freed: AtomicU32,
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
        })
    }

    /// Enters a drop; `None` while the table is full (see [`Drops::wait_for_room`]).
    pub(super) fn enter(&self, range: VirtRange) -> Option<DropId> {
        let _guard = self.lock.lock(&FutexPark);
        let index = self.entries.iter().position(|entry| entry.state.load(Ordering::Relaxed) == FREE)?;
        let entry = &self.entries[index];
        entry.cursor.store(range.start().0, Ordering::Relaxed);
        entry.end.store(range.end().0, Ordering::Relaxed);
        entry.state.store(ENTERED, Ordering::Relaxed);
        // Release: the reader's `any` must see it before the event of this drop.
        self.entered.fetch_add(1, Ordering::Release);
        Some(DropId(index))
    }

    /// Which room there was; to be asked before `enter` is tried.
    pub(super) fn room_ticket(&self) -> u32 {
        self.freed.load(Ordering::Acquire)
    }

    /// Sleeps until an entry became free since the ticket.
    pub(super) fn wait_for_room(&self, ticket: u32) {
        FutexPark.park(&self.freed, ticket);
    }

    /// Leaves a drop: the call has returned. `told`: it may have caused events.
    pub(super) fn leave(&self, id: DropId, told: bool) {
        let entry = &self.entries[id.0];
        {
            let _guard = self.lock.lock(&FutexPark);
            if told && entry.state.load(Ordering::Relaxed) == ENTERED {
                entry.state.store(RETURNED, Ordering::Relaxed);
                return;
            }
            self.free(entry);
        }
        FutexPark.unpark_all(&entry.state);
    }

    fn free(&self, entry: &Drop) {
        // Release pairs with the acquire in `swallows`.
        entry.state.store(FREE, Ordering::Release);
        self.entered.fetch_sub(1, Ordering::Release);
        self.freed.fetch_add(1, Ordering::Release);
        FutexPark.unpark_all(&self.freed);
    }

    /// Called by the reader when it has looked at everything that it has read: the events of calls that have
    /// returned are among that.
    pub(super) fn reap(&self) {
        if !self.any() {
            return;
        }
        let _guard = self.lock.lock(&FutexPark);
        let returned = self.entries.iter().filter(|entry| entry.state.load(Ordering::Relaxed) == RETURNED);
        returned.for_each(|entry| self.free(entry));
    }

    /// Whether any drop is entered.
    pub(super) fn any(&self) -> bool {
        self.entered.load(Ordering::Acquire) != 0
    }

    /// Whether a REMOVE event that the reader read is of a drop of ours; if it was its last, the call has
    /// returned when this does.
    pub(super) fn swallows(&self, range: VirtRange) -> bool {
        let told = {
            let _guard = self.lock.lock(&FutexPark);
            // A returned call's event is older than that of one under way.
            let Some(entry) = [RETURNED, ENTERED].iter().find_map(|&state| {
                self.entries.iter().find(|entry| {
                    entry.state.load(Ordering::Relaxed) == state
                        && entry.cursor.load(Ordering::Relaxed) == range.start().0
                        && range.end().0 <= entry.end.load(Ordering::Relaxed)
                })
            }) else {
                return false;
            };
            entry.cursor.store(range.end().0, Ordering::Relaxed);
            if range.end().0 < entry.end.load(Ordering::Relaxed) {
                return true;
            }
            if entry.state.load(Ordering::Relaxed) == RETURNED {
                self.free(entry);
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
        let id = drops.enter(pages(4, 12)).expect("room");
        assert!(!drops.swallows(pages(3, 4)) && !drops.swallows(pages(6, 8)), "of somebody else");
        assert!(drops.swallows(pages(4, 6)));
        assert!(!drops.swallows(pages(4, 6)), "the second of its kind is of somebody else");
        drops.leave(id, true);
        assert!(
            drops.any() && drops.swallows(pages(6, 12)),
            "read before the call returned, looked at after"
        );
        assert!(!drops.any() && !drops.swallows(pages(6, 12)));
    }

    #[test]
    fn a_new_drop_does_not_inherit_the_event_of_an_old_one() {
        let drops = Drops::new().expect("a page");
        let old = drops.enter(pages(0, 1)).expect("room");
        drops.leave(old, true);
        let new = drops.enter(pages(0, 1)).expect("room");
        assert!(drops.swallows(pages(0, 1)), "does not wait for the new one");
        drops.leave(new, true);
        drops.reap();
        assert!(!drops.any() && !drops.swallows(pages(0, 1)));
    }

    #[test]
    fn a_full_table_says_so_and_is_emptied_by_the_reader() {
        let drops = Drops::new().expect("a page");
        let ids: Vec<_> = core::iter::from_fn(|| drops.enter(pages(0, 1))).collect();
        assert_eq!(ids.len(), drops.entries.len());
        ids.into_iter().for_each(|id| drops.leave(id, true));
        let ticket = drops.room_ticket();
        assert!(drops.enter(pages(0, 1)).is_none());
        drops.reap();
        drops.wait_for_room(ticket);
        assert!(drops.enter(pages(0, 1)).is_some());
    }
}
