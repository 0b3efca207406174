//! Drops of our own: `madvise(MADV_DONTNEED)` on mirrored memory by the service itself, whose event the reader
//! must not mistake for the application's.
//!
//! # Rules
//! 1. A drop is entered before the call and left after it, and covers pages that were present when it was entered. Its
//!    events come in ascending order, one per mapping, each beginning where the one before ended: the cursor. If another
//!    thread cuts the mapping meanwhile, the kernel tells of what lies behind the cut once more, from the beginning of
//!    the mapping there: such an event is the drop's, too ([`Drops::swallows`]).
//! 2. While a drop is entered, the reader reads one message at a time, and having read an event of a drop it reads on
//!    only when that part is discarded: when the call has returned, or the part's first page is seen absent. The kernel
//!    looks at the mapping again between the event and the discard; until then nobody who unmaps that memory gets his
//!    event read, so that he cannot have put something of his own there. The wait is short: the dropping thread needs
//!    the reader no more for this part. It must not be for the end of the call: behind a cut the call waits for the
//!    reader again. It is bounded: a page that yet another thread has put in the place of the first one looks like it.
//! 3. The read of an event lets the call go on, so the drop may be left before the reader has looked it up. It stays in
//!    the table until the reader has, or reads again: by then everything that it caused was looked up.
//! 4. **The window that stays open**: from leaving the gate, where the pages were still in transit and no change was
//!    under way, to the moment the kernel looks at the mapping. Writes that come in between are lost if they are made
//!    * by a thread that unmaps the pages, has its event read, and maps something new at the same address, or another
//!      thread that maps there before that event is read;
//!    * or if memory comes there by `mremap` over the pages, data and all, in the one call that takes them away;
//!    * by a thread that discards the pages itself (`madvise`), has its event read, and writes there: the discard of its
//!      own lifts the protection, and ours comes after it.
//!
//!    Only kernels without `UFFDIO_MOVE` are served this way; nothing in such a kernel makes a discard conditional on the
//!    mapping.
//! 5. A call that fails (a part of its range was unmapped) may have discarded the rest: who dropped looks what is gone.

use core::sync::atomic::{AtomicU32, AtomicU64, Ordering};
use core::time::Duration;

use super::park::FutexPark;
use super::private::{PrivateError, Slab, ZeroValid};
use crate::sync::{Park, WordLock};
use crate::units::{VirtAddr, VirtRange};

const FREE: u32 = 0;
const ENTERED: u32 = 1;
/// An event was read whose part the call may still have to discard.
const TOLD: u32 = 2;
/// The call has returned; an event that was read may still be looked up.
const LEFT: u32 = 3;

/// How often the reader looks whether the part of an event is discarded, if the call does not return before.
const LOOK_EVERY: Duration = Duration::from_micros(200);
/// After so many looks the reader goes on (rule 2).
const LOOKS: u32 = 500;

struct Drop {
    state: AtomicU32,
    /// Where its last event began (or it begins), and ended.
    last: AtomicU64,
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
                    entry.last.store(range.start().0, Ordering::Relaxed);
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

    /// Whether a REMOVE event that the reader read is of a drop of ours. If so, its part is discarded when this returns
    /// (rule 2). `is_absent` looks whether a page is gone, `begins` whether a mapping begins there.
    pub(super) fn swallows(
        &self,
        range: VirtRange,
        is_absent: impl Fn(VirtAddr) -> bool,
        begins: impl Fn(VirtAddr) -> bool,
    ) -> bool {
        let told = {
            let _guard = self.lock.lock(&FutexPark);
            // A call that has returned is older than one under way: its event comes first. Mistaking it would make
            // the reader wait for a call that waits for the reader.
            let hit = [LEFT, ENTERED].into_iter().find_map(|state| {
                self.entries.iter().find(|entry| {
                    entry.state.load(Ordering::Relaxed) == state && entry.covers(range, &begins)
                })
            });
            let Some(entry) = hit else { return false };
            entry.last.store(range.start().0, Ordering::Relaxed);
            entry.cursor.store(range.end().0, Ordering::Relaxed);
            if entry.state.load(Ordering::Relaxed) == LEFT {
                // It is forgotten before the next read.
                return true;
            }
            entry.state.store(TOLD, Ordering::Relaxed);
            entry
        };
        for _ in 0..LOOKS {
            if told.state.load(Ordering::Acquire) != TOLD {
                return true;
            }
            FutexPark.park_for(&told.state, TOLD, LOOK_EVERY);
            if is_absent(range.start()) {
                break;
            }
        }
        // The call goes on behind a cut, or is about to return: another event of it may come.
        let _guard = self.lock.lock(&FutexPark);
        if told.state.load(Ordering::Relaxed) == TOLD {
            told.state.store(ENTERED, Ordering::Relaxed);
        }
        true
    }
}

impl Drop {
    /// Whether the next event of this drop may be about `range`.
    fn covers(&self, range: VirtRange, begins: &impl Fn(VirtAddr) -> bool) -> bool {
        let [last, cursor, end] = [&self.last, &self.cursor, &self.end].map(|at| at.load(Ordering::Relaxed));
        range.end().0 <= end
            && (range.start().0 == cursor || (range.start().0 > last && begins(range.start())))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::units::VirtAddr;

    fn pages(start: u64, end: u64) -> VirtRange {
        VirtRange::between(VirtAddr(start << 12), VirtAddr(end << 12))
    }

    /// Where each part is discarded at once.
    fn swallows(drops: &Drops, range: VirtRange) -> bool {
        drops.swallows(range, |_| true, |_| false)
    }

    #[test]
    fn each_event_of_a_drop_is_matched_once() {
        let drops = Drops::new().expect("a page");
        let id = drops.enter(pages(4, 12));
        assert!(!swallows(&drops, pages(3, 4)) && !swallows(&drops, pages(6, 8)), "of somebody else");
        assert!(swallows(&drops, pages(4, 6)));
        assert!(!swallows(&drops, pages(4, 6)), "the second of its kind is of somebody else");
        drops.leave(id);
        assert!(
            drops.any() && swallows(&drops, pages(6, 12)),
            "read before the call returned, looked at after"
        );
        drops.forget_left();
        assert!(!drops.any() && !swallows(&drops, pages(6, 12)));
    }

    #[test]
    fn a_new_drop_does_not_inherit_the_event_of_an_old_one() {
        let drops = Drops::new().expect("a page");
        let other = drops.enter(pages(7, 8));
        let old = drops.enter(pages(0, 1));
        assert!(std::thread::scope(|scope| {
            let told = scope.spawn(|| drops.swallows(pages(7, 8), |_| false, |_| false));
            while drops.entries[0].state.load(Ordering::Acquire) != TOLD {
                std::hint::spin_loop();
            }
            drops.leave(other);
            told.join().expect("it returns once the call has")
        }));
        drops.leave(old);
        // In the place of `other`, before the entry of `old`.
        let new = drops.enter(pages(0, 1));
        assert!(swallows(&drops, pages(0, 1)), "does not wait for the new one");
        drops.leave(new);
        drops.forget_left();
        assert!(!drops.any());
    }

    #[test]
    fn behind_a_cut_the_same_drop_is_told_again() {
        let drops = Drops::new().expect("a page");
        let id = drops.enter(pages(4, 12));
        assert!(swallows(&drops, pages(4, 12)), "told as a whole");
        // Pages 6 and 7 were unmapped before the kernel looked again.
        assert!(
            !drops.swallows(pages(9, 12), |_| true, |at| at.0 == 8 << 12),
            "of somebody else: nothing begins there"
        );
        assert!(drops.swallows(pages(8, 12), |_| true, |at| at.0 == 8 << 12));
        assert!(!drops.swallows(pages(8, 12), |_| true, |at| at.0 == 8 << 12), "each mapping once");
        drops.leave(id);
        drops.forget_left();
        assert!(!drops.any());
    }

    #[test]
    fn a_drop_whose_first_pages_were_unmapped_is_known_by_its_mapping() {
        let drops = Drops::new().expect("a page");
        let id = drops.enter(pages(4, 12));
        assert!(drops.swallows(pages(6, 12), |_| true, |at| at.0 == 6 << 12));
        drops.leave(id);
        drops.forget_left();
        assert!(!drops.any());
    }

    #[test]
    fn the_reader_goes_on_though_nothing_shows_that_a_part_is_discarded() {
        let drops = Drops::new().expect("a page");
        let id = drops.enter(pages(4, 5));
        assert!(drops.swallows(pages(4, 5), |_| false, |_| false), "after a bounded number of looks");
        drops.leave(id);
    }

    #[test]
    fn a_table_full_of_calls_that_returned_has_room() {
        let drops = Drops::new().expect("a page");
        (0..drops.entries.len() as u64 * 2).for_each(|page| drops.leave(drops.enter(pages(page, page + 1))));
        drops.forget_left();
        assert!(!drops.any());
    }
}
