//! What is followed, armed and being removed: sets of ranges under one lock, in private memory.
//!
//! | set | a page in it |
//! |---|---|
//! | mirrored | is registered; its mapping's changes arrive as events |
//! | armed | is registered for touches of absent pages as well; a subset of mirrored |
//! | removing | belongs to a `madvise` whose event was read and whose discard may be still to come; not to be taken until seen absent |
//! | sigbus | asked for faults as SIGBUS: if it is registered, then with the second userfaultfd |
//! | regions | belongs to a region of the library that can move, and is registered with the userfaultfd of those; a subset of armed |
//! | named | may be taken in the user-mode-only fault mode, in which nothing else may |
//!
//! Registration happens under the lock, since registering a part that somebody has just armed would disarm it.

use super::park::FutexPark;
use super::private::PrivateError;
use super::range_set::{Full, RangeSet};
use core::sync::atomic::{AtomicU64, Ordering};

use crate::sync::{WordGuard, WordLock};
use crate::units::{VirtAddr, VirtRange};

/// As many as a process has mappings by default, and some.
const MIRRORED: usize = 81_920;
const FOR_CUTS: usize = 16_384;
const REMOVING: usize = 4_096;
const SIGBUS: usize = 4_096;
const REGIONS: usize = 8_192;
const NAMED: usize = 16_384;

pub(super) struct Tables {
    lock: WordLock,
    mirrored: RangeSet,
    armed: RangeSet,
    removing: RangeSet,
    sigbus: RangeSet,
    regions: RangeSet,
    named: RangeSet,
    /// How often `mirrored` grew; changed under the lock.
    follows: AtomicU64,
}

/// The tables while their lock is held.
pub(super) struct Held<'a> {
    pub(super) mirrored: &'a RangeSet,
    pub(super) armed: &'a RangeSet,
    pub(super) removing: &'a RangeSet,
    pub(super) sigbus: &'a RangeSet,
    pub(super) regions: &'a RangeSet,
    pub(super) named: &'a RangeSet,
    follows: &'a AtomicU64,
    _guard: WordGuard<'a>,
}

impl Tables {
    pub(super) fn new() -> Result<Self, PrivateError> {
        Ok(Self {
            lock: WordLock::new(),
            mirrored: RangeSet::new(MIRRORED)?,
            armed: RangeSet::new(MIRRORED)?,
            removing: RangeSet::new(REMOVING)?,
            sigbus: RangeSet::new(SIGBUS)?,
            regions: RangeSet::new(REGIONS)?,
            named: RangeSet::new(NAMED)?,
            follows: AtomicU64::new(0),
        })
    }

    /// Whether any range asked for SIGBUS: without the lock.
    pub(super) fn any_sigbus(&self) -> bool {
        self.sigbus.len() != 0
    }

    /// Whether any region can move: without the lock.
    pub(super) fn any_region(&self) -> bool {
        self.regions.len() != 0
    }

    pub(super) fn lock(&self) -> Held<'_> {
        Held {
            _guard: self.lock.lock(&FutexPark),
            mirrored: &self.mirrored,
            armed: &self.armed,
            removing: &self.removing,
            sigbus: &self.sigbus,
            regions: &self.regions,
            named: &self.named,
            follows: &self.follows,
        }
    }

    /// How often anything was newly followed. Exact for whoever has held the lock since.
    pub(super) fn follows(&self) -> u64 {
        self.follows.load(Ordering::Acquire)
    }
}

impl Held<'_> {
    /// Whether more may be followed or armed; what is kept back is for cuts, which events make.
    pub(super) fn has_room(&self) -> bool {
        self.mirrored.len().max(self.armed.len()) + FOR_CUTS < MIRRORED
    }

    /// Something was entered into `mirrored` that was not followed before.
    pub(super) fn followed(&self) {
        // Release pairs with the acquire in `follows`.
        self.follows.fetch_add(1, Ordering::Release);
    }

    /// A range is unmapped.
    pub(super) fn unmapped(&self, range: VirtRange) {
        for set in [self.mirrored, self.armed, self.regions] {
            let cut = set.remove(range);
            debug_assert_eq!(cut, Ok(()), "room is kept back for cuts");
        }
        // What cannot be cut stays: a page that is refused, SIGBUS for a mapping that did not ask for it, or a mapping
        // that may be taken though its name is gone.
        let _ = self.removing.remove(range);
        let _ = self.sigbus.remove(range);
        let _ = self.named.remove(range);
    }

    /// A mapping was moved; its registration moved with it. The old range is unmapped by an event of its own, or
    /// stays (MREMAP_DONTUNMAP).
    pub(super) fn remapped(&self, from: VirtRange, to: VirtAddr) {
        for set in [self.mirrored, self.armed, self.removing, self.sigbus, self.named] {
            set.for_each_in(from, |part| {
                let at = to + part.start().bytes_since(from.start());
                // Not entered for lack of room: looked at again, and registered again, at the next fault there.
                let _ = set.insert(VirtRange::of_pages(at, part.pages()));
            });
        }
    }

    /// A `madvise` on the range is about to discard its pages.
    pub(super) fn removing(&self, range: VirtRange) {
        if self.removing.insert(range) == Err(Full) {
            // Coarser, never finer: join with the neighbour that is nearest.
            let near = (0..self.removing.len())
                .map(|index| self.removing.get(index))
                .min_by_key(|have| have.start().0.abs_diff(range.start().0));
            if let Some(near) = near {
                let joined = VirtRange::between(near.start().min(range.start()), near.end().max(range.end()));
                let entered = self.removing.insert(joined);
                debug_assert_eq!(entered, Ok(()), "joining needs no room");
            }
        }
    }
}
