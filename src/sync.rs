//! The one door to atomics and locks: the real ones, or loom's (`--cfg granule_loom`). Nothing else in the pure
//! part names an atomic type or an ordering of its own invention.
//!
//! # Words
//! * [`Park`] says what it means to sleep on a word. The service hands in the kernel's futex, a model hands in
//!   loom's yield. Nothing here allocates.
//! * [`WordLock`] is a lock of 4 bytes that parks through a [`Park`]. It is the lock of every block: whoever
//!   serves CPU faults may take it, so it keeps no state on any heap.
//!
//! * [`LockedU32`], [`LockedU64`] are words that one thread at a time may reach: under a lock, or because it owns
//!   them. They are relaxed atomics only so that safe code may share them. In a model they are loom's tracked
//!   cells: no switch point and no choice of values, which keeps models small, but an access that is not ordered
//!   by its lock fails the model at once.
//!
//! # Rules
//! 1. Bitmap words are read and written relaxed and only under their block's lock; the lock's acquire and
//!    release order them.
//! 2. Every ordering stronger than relaxed outside this file names the store or load it pairs with.

#[cfg(not(granule_loom))]
pub use core::sync::atomic::{AtomicU32, AtomicU64, Ordering, fence};
#[cfg(granule_loom)]
pub use loom::sync::atomic::{AtomicU32, AtomicU64, Ordering, fence};

/// See the module header.
#[cfg(not(granule_loom))]
pub use core::sync::atomic::{AtomicU32 as LockedU32, AtomicU64 as LockedU64};

#[cfg(granule_loom)]
mod locked {
    use super::Ordering;

    macro_rules! locked {
        ($name:ident, $int:ty) => {
            /// See the module header. Its methods are those of an atomic; the ordering is not looked at.
            #[derive(Debug, Default)]
            pub struct $name(loom::cell::Cell<$int>);

            impl $name {
                /// A word with this value.
                pub fn new(value: $int) -> Self {
                    Self(loom::cell::Cell::new(value))
                }
                /// Reads it; fails the model if a write is not ordered before.
                pub fn load(&self, _: Ordering) -> $int {
                    self.0.get()
                }
                /// Writes it; fails the model if any access is not ordered before.
                pub fn store(&self, value: $int, _: Ordering) {
                    self.0.set(value);
                }
            }
        };
    }
    locked!(LockedU32, u32);
    locked!(LockedU64, u64);
}
#[cfg(granule_loom)]
pub use locked::{LockedU32, LockedU64};

/// A rule of the state machine that a model may switch off, to show that the model would notice.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[repr(u32)]
pub enum Rule {
    /// A fault commits only if the block's sequence is the sampled one.
    SequenceAtCommit = 1,
    /// Pages are in transit before they are taken, and a fault on them is queued.
    InTransitBeforeTake = 2,
    /// The reader waits until every worker is outside the gate.
    GateWaits = 3,
    /// Whoever ends a transit wakes those who wait for the block.
    WakeAfterTransit = 4,
    /// A commit takes only what the transit record still holds.
    CommitWhatIsOwned = 5,
    /// A block has one worker's transit at a time.
    OneMover = 6,
    /// A device loses access to a page before its memory is copied out.
    UnmapBeforeCopy = 7,
    /// While a worker moves pages of a block, none of its slots is given back.
    SlotsStayWithMover = 8,
    /// No engine is inside an access to system memory while events are read.
    QuiesceBeforeRead = 9,
    /// A mapping that is followed only from now on is looked up again.
    LookAgain = 10,
    /// Whoever reserves looks again once it has the lock.
    ReserveOnce = 11,
    /// Whoever takes a lock waits while another has it.
    LockWaits = 12,
    /// Giving a lock back releases what was written under it.
    LockReleases = 13,
    /// A lock that somebody had to wait for is taken as contended.
    LockStaysContended = 14,
    /// A worker looks whether the gate is closed after it took its seat.
    GateIsLookedAt = 15,
    /// A block is trapped until its last page is home.
    ArmedWhileAway = 16,
    /// Whoever wakes those who wait forgets that they wait.
    WakeOnce = 17,
    /// A mapping is looked up again also if another thread followed it meanwhile.
    LookAgainIfAnotherFollows = 18,
    /// Whoever closes a board waits until nobody is inside.
    PosterWaits = 19,
    /// A take that stops half way has taken what it says.
    PartialIsPartial = 20,
    /// A CPU fault that cannot be served now stays in the queue.
    FaultsAreKept = 21,
    /// A retry climbs the ladder.
    LadderClimbs = 22,
    /// What could not be copied out stays where it is.
    FailedCopyKeeps = 23,
    /// What a policy answers is clipped to the mapping.
    PolicyIsClipped = 24,
    /// Nothing but what is passed in decides.
    SeedDecides = 25,
    /// The reader ends the trapping of blocks when every event that was read is applied.
    DisarmedLast = 26,
    /// A block without a page on a device belongs to no device.
    OwnerWhileThere = 27,
    /// Pages are made present outside the gate.
    PopulateOutside = 28,
    /// Whoever links or unlinks changes the reservation's count in one step.
    CountLinksAtOnce = 40,
}

/// Whether a rule holds: always, but in models and in the simulation's twins.
#[cfg(not(any(granule_loom, feature = "twins")))]
pub(crate) const fn holds(_: Rule) -> bool {
    true
}

/// The rule that is switched off, as its number; 0: none. Not loom's atomic: no part of the state.
#[cfg(any(granule_loom, feature = "twins"))]
static BROKEN: core::sync::atomic::AtomicU32 = core::sync::atomic::AtomicU32::new(0);

/// Whether a rule holds.
#[cfg(any(granule_loom, feature = "twins"))]
pub(crate) fn holds(rule: Rule) -> bool {
    BROKEN.load(core::sync::atomic::Ordering::Relaxed) != rule as u32
}

/// Switches one rule off (for the twin of a model or of the simulation), or all on. For the whole process.
#[cfg(any(granule_loom, feature = "twins"))]
pub fn switch_off(rule: Option<Rule>) {
    BROKEN.store(rule.map_or(0, |rule| rule as u32), core::sync::atomic::Ordering::Relaxed);
}

/// A number that no other call returned before (until 2^32 calls were made). No part of any state that a model looks
/// at, so the real atomic also there.
pub(crate) fn unique_id() -> u32 {
    static NEXT: core::sync::atomic::AtomicU32 = core::sync::atomic::AtomicU32::new(1);
    NEXT.fetch_add(1, core::sync::atomic::Ordering::Relaxed)
}

/// Waits by looking again: for locks that are held for a few instructions and where nothing else is at hand.
#[derive(Clone, Copy, Debug, Default)]
pub struct SpinPark;

impl Park for SpinPark {
    fn park(&self, _: &AtomicU32, _: u32) {
        core::hint::spin_loop();
    }
    fn unpark_all(&self, _: &AtomicU32) {}
}

/// How a thread sleeps until a word changes.
pub trait Park: Sync {
    /// Sleeps while `*word == expected`; may return early. Must not touch memory that can fault.
    fn park(&self, word: &AtomicU32, expected: u32);
    /// Lets everyone go on who sleeps on `word`.
    fn unpark_all(&self, word: &AtomicU32);
}

/// A lock of one word. States: 0 free, 1 held, 2 held and somebody sleeps.
#[derive(Debug)]
pub struct WordLock(AtomicU32);

const FREE: u32 = 0;
const HELD: u32 = 1;
const CONTENDED: u32 = 2;

/// How often a taker looks again before it sleeps: a block lock is held for less than a microsecond in most
/// cases, and a sleep and a wake cost several.
#[cfg(not(granule_loom))]
const SPINS: u32 = 64;
#[cfg(granule_loom)]
const SPINS: u32 = 0;

impl WordLock {
    /// A free lock. (A zeroed word is a free lock, too.)
    pub fn new() -> Self {
        Self(AtomicU32::new(FREE))
    }

    /// Takes the lock, sleeping through `park` while somebody else holds it. The guard gives it back.
    #[inline]
    pub fn lock<'a>(&'a self, park: &'a dyn Park) -> WordGuard<'a> {
        // Acquire pairs with the release in `WordGuard::drop`.
        if self.0.compare_exchange(FREE, HELD, Ordering::Acquire, Ordering::Relaxed).is_err() {
            self.lock_slowly(park);
        }
        WordGuard { lock: self, park }
    }

    #[cold]
    fn lock_slowly(&self, park: &dyn Park) {
        for _ in 0..SPINS {
            core::hint::spin_loop();
            if self.0.compare_exchange(FREE, HELD, Ordering::Acquire, Ordering::Relaxed).is_ok() {
                return;
            }
        }
        // From here on the word is left at CONTENDED: one wake too many, never one too few.
        let taken = if holds(Rule::LockStaysContended) { CONTENDED } else { HELD };
        while self.0.swap(taken, Ordering::Acquire) != FREE && holds(Rule::LockWaits) {
            park.park(&self.0, taken);
        }
    }
}

impl Default for WordLock {
    fn default() -> Self {
        Self::new()
    }
}

/// Proof that a [`WordLock`] is held.
pub struct WordGuard<'a> {
    lock: &'a WordLock,
    park: &'a dyn Park,
}

impl Drop for WordGuard<'_> {
    #[inline]
    fn drop(&mut self) {
        // Release pairs with the acquire of the next taker.
        let release = if holds(Rule::LockReleases) { Ordering::Release } else { Ordering::Relaxed };
        if self.lock.0.swap(FREE, release) == CONTENDED {
            self.park.unpark_all(&self.lock.0);
        }
    }
}
