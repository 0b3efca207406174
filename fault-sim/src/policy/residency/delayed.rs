use granule::units::{PAGES_PER_SLOT_64K, PageMask, SLOTS_64K_PER_BLOCK};

use super::super::{Decision, FaultView, Residency};
use crate::replay::Proc;

/// A page is mapped where it is at first; once its 64 KiB were touched so often through the bus, what is mapped of them
/// moves.
#[derive(Clone, Debug)]
pub struct Delayed {
    threshold: u16,
    touches: Vec<[u16; SLOTS_64K_PER_BLOCK]>,
}

impl Delayed {
    /// Moves at this many touches; 1 is the first one after the fault.
    pub fn new(threshold: u16) -> Self {
        Self { threshold, touches: Vec::new() }
    }
}

/// Counts a touch through the bus of a page's 64 KiB; what of them is mapped, once there were enough.
pub(super) fn count_touch(
    touches: &mut Vec<[u16; SLOTS_64K_PER_BLOCK]>,
    threshold: u16,
    fault: &FaultView<'_>,
) -> PageMask {
    let block = fault.block as usize;
    if block >= touches.len() {
        touches.resize(block + 1, [0; SLOTS_64K_PER_BLOCK]);
    }
    let unit = fault.page / PAGES_PER_SLOT_64K;
    let count = &mut touches[block][unit];
    *count = count.saturating_add(1);
    if *count < threshold {
        return PageMask::EMPTY;
    }
    *count = 0;
    let first = unit * PAGES_PER_SLOT_64K;
    PageMask::of_range(first..first + PAGES_PER_SLOT_64K) & fault.rare.linked
}

impl Residency for Delayed {
    fn decide(&mut self, _: &FaultView<'_>) -> Decision {
        Decision::Cpu
    }

    fn remote_touch(&mut self, fault: &FaultView<'_>) -> PageMask {
        match fault.by {
            Proc::Device => count_touch(&mut self.touches, self.threshold, fault),
            Proc::Cpu => PageMask::EMPTY,
        }
    }
}
