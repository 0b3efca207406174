//! The sequence of a block: the kernel's interval notifier, one per 2 MiB (Linux `mmu_interval_notifier`, read in
//! 7.3: mm/mmu_notifier.c).
//!
//! Even: no invalidation runs. Odd: at least one does. A fault samples the sequence before it looks at the
//! mapping, prepares without a lock, and commits under the block lock only if the value is still the sampled
//! one. Several invalidations may overlap: an active count keeps the value odd until the last has ended.
//!
//! A lost race is a retry, never an error: the sample is old, so what the fault saw of the mapping may be, too.

use crate::sync::{AtomicU64, LockedU32, Ordering, Rule, holds};

/// A sampled value. Compare it only through `is_unchanged` of its owner.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Sequence(u64);

impl Sequence {
    /// Whether an invalidation was running when this was sampled: what is prepared from it will not commit.
    pub fn is_invalidating(self) -> bool {
        self.0 % 2 == 1
    }
}

/// Sequence and active count of one block.
#[derive(Debug, Default)]
pub(super) struct SequenceWord {
    value: AtomicU64,
    active: LockedU32,
}

impl SequenceWord {
    /// Samples without a lock.
    pub(super) fn sample(&self) -> Sequence {
        // Acquire pairs with the release in `begin` and `end`: a sample that shows the end of an invalidation
        // comes with everything that the invalidation did.
        Sequence(self.value.load(Ordering::Acquire))
    }

    /// Samples in the one order that all sequentially consistent accesses have (for the owner's Dekker).
    pub(super) fn sample_total(&self) -> Sequence {
        Sequence(self.value.load(Ordering::SeqCst))
    }

    /// Under the block lock: whether nothing was invalidated since the sample, nor is now.
    pub(super) fn is_unchanged(&self, sample: Sequence) -> bool {
        !holds(Rule::SequenceAtCommit)
            || (!sample.is_invalidating() && self.value.load(Ordering::Relaxed) == sample.0)
    }

    /// Under the block lock.
    pub(super) fn begin(&self) {
        let active = self.active.load(Ordering::Relaxed);
        self.active.store(active + 1, Ordering::Relaxed);
        if active == 0 {
            self.value.store(self.value.load(Ordering::Relaxed) + 1, Ordering::SeqCst);
        }
    }

    /// Under the block lock: whether an invalidation is running.
    pub(super) fn is_active(&self) -> bool {
        self.active.load(Ordering::Relaxed) > 0
    }

    /// Under the block lock. Asserts that an invalidation is running.
    pub(super) fn end(&self) {
        let active = self.active.load(Ordering::Relaxed);
        assert!(active > 0, "an invalidation ends that never began");
        self.active.store(active - 1, Ordering::Relaxed);
        if active == 1 {
            self.value.store(self.value.load(Ordering::Relaxed) + 1, Ordering::SeqCst);
        }
    }
}
