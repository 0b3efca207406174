use alloc::boxed::Box;

use crate::ports::{BounceFault, BounceMemory};
use crate::sync::{AtomicU64, Ordering, Park, WordLock};
use crate::units::{Iova, PhysAddr};

/// Which bounce page stands for what.
///
/// A slot belongs to whoever has the DMA page that it stands for: `what` is written before the key is (by the owner,
/// under the lock) and read by the owner only. Keys of other pages may change while one looks for one's own.
pub(super) struct BouncePool<'d> {
    pub(super) memory: &'d dyn BounceMemory,
    slots: Box<[Slot]>,
    lock: WordLock,
    park: &'d dyn Park,
}

#[derive(Debug, Default)]
struct Slot {
    /// The DMA page plus 1; 0: free.
    key: AtomicU64,
    /// The page of memory that it stands for.
    phys: AtomicU64,
    /// The bytes of it: first in the upper half, end in the lower.
    part: AtomicU64,
}

/// A page that is bounced.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) struct Bounced {
    /// The page of memory.
    pub(super) phys: PhysAddr,
    /// First byte in it.
    pub(super) from: u64,
    /// End in it, exclusive.
    pub(super) until: u64,
}

impl core::fmt::Debug for BouncePool<'_> {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        write!(f, "BouncePool({} of {} in use)", self.in_use(), self.slots.len())
    }
}

impl<'d> BouncePool<'d> {
    pub(super) fn new(memory: &'d dyn BounceMemory, park: &'d dyn Park) -> Self {
        let slots = (0..memory.pages()).map(|_| Slot::default()).collect();
        Self { memory, slots, lock: WordLock::new(), park }
    }

    pub(super) fn in_use(&self) -> usize {
        self.slots.iter().filter(|slot| slot.key.load(Ordering::Relaxed) != 0).count()
    }

    pub(super) fn phys(&self, slot: usize) -> PhysAddr {
        self.memory.phys(slot)
    }

    /// Takes `count` neighbouring pages that are one run of physical addresses, of which the last ends at `last` or
    /// before; `key` says which DMA page the first stands for, given its slot. Says the first slot.
    pub(super) fn take(
        &self,
        count: usize,
        last: u64,
        key: impl Fn(usize) -> Iova,
        what: impl Fn(usize) -> Bounced,
    ) -> Option<usize> {
        let _lock = self.lock.lock(self.park);
        let page = self.memory.page_bytes();
        let is_free = |slot: usize| self.slots[slot].key.load(Ordering::Relaxed) == 0;
        let follows = |slot: usize| self.phys(slot).checked_add(page) == Some(self.phys(slot + 1));
        let mut first = 0;
        let mut slot = 0;
        while slot < self.slots.len() {
            let reached = key(slot).0.checked_add(page - 1).is_some_and(|end| end <= last);
            if !is_free(slot) || !reached {
                first = slot + 1;
            } else if slot + 1 - first == count {
                break;
            } else if slot + 1 < self.slots.len() && !follows(slot) {
                first = slot + 1;
            }
            slot += 1;
        }
        if slot >= self.slots.len() {
            return None;
        }
        for index in 0..count {
            let (slot, what) = (&self.slots[first + index], what(index));
            slot.phys.store(what.phys.0, Ordering::Relaxed);
            slot.part.store(what.from << 32 | what.until, Ordering::Relaxed);
            // Release pairs with the acquire in `own`: who finds the key finds what it stands for.
            slot.key.store(key(first + index).0 + 1, Ordering::Release);
        }
        Some(first)
    }

    /// Fills the pages from `first` on with what they stand for, and zeros around it.
    pub(super) fn fill(&self, first: usize, count: usize) -> Result<(), BounceFault> {
        for slot in first..first + count {
            let what = self.what(slot);
            if what.until - what.from < self.memory.page_bytes() {
                self.memory.clear(slot);
            }
            self.copy_in(slot, what)?;
        }
        Ok(())
    }

    pub(super) fn copy_in(&self, slot: usize, what: Bounced) -> Result<(), BounceFault> {
        self.memory.copy_in(slot, what.from, what.phys + what.from, what.until - what.from)
    }

    pub(super) fn copy_out(&self, slot: usize, what: Bounced) -> Result<(), BounceFault> {
        self.memory.copy_out(slot, what.from, what.phys + what.from, what.until - what.from)
    }

    fn what(&self, slot: usize) -> Bounced {
        let part = self.slots[slot].part.load(Ordering::Relaxed);
        let phys = PhysAddr(self.slots[slot].phys.load(Ordering::Relaxed));
        Bounced { phys, from: part >> 32, until: part & u64::from(u32::MAX) }
    }

    /// The slots that stand for DMA pages of a range that the caller has.
    pub(super) fn own(&self, at: Iova, bytes: u64) -> impl Iterator<Item = (usize, Bounced)> {
        (0..self.slots.len()).filter_map(move |slot| {
            // Acquire pairs with the release in `take`.
            let page = self.slots[slot].key.load(Ordering::Acquire).checked_sub(1)?;
            let inside = page.checked_sub(at.0).is_some_and(|offset| offset < bytes);
            inside.then(|| (slot, self.what(slot)))
        })
    }

    /// Gives pages back.
    pub(super) fn release(&self, first: usize, count: usize) {
        let _lock = self.lock.lock(self.park);
        self.slots[first..first + count].iter().for_each(|slot| slot.key.store(0, Ordering::Relaxed));
    }
}
