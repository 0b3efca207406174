//! The ladder: again, wait, evict, link instead, fail with a cause. Bounded and typed.

use crate::granule::TransitBusy;
use crate::migrate::Retry;
use crate::ports::Count;
use crate::sync::{Rule, holds};

/// What to do before the next try.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Climb {
    /// Try again at once.
    Again,
    /// Let others run, then try again.
    Pause,
    /// Wait for a transit to end.
    WaitTransit(TransitBusy),
    /// Make room on the device.
    Evict,
    /// Bring the block's pages home from the device that has them.
    BringHome,
    /// The budget is spent.
    GiveUp,
}

/// One fault's way up the ladder.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Ladder {
    left: u32,
}

/// Tries per block and batch. Each is at least a system call long; the kernel's comparable bound was a second, and
/// was removed by one driver because it fired without need (drivers of Linux 7.3), so this one is generous.
const TRIES: u32 = if cfg!(granule_loom) { 16 } else { 1 << 20 };

impl Ladder {
    /// A fresh one.
    pub fn new() -> Self {
        Self { left: TRIES }
    }

    /// The rung for a reason, and the counter that names it.
    pub fn climb(&mut self, why: Retry) -> (Climb, Count) {
        let (climb, count) = match why {
            Retry::Sequence => (Climb::Pause, Count::RetrySequence),
            Retry::LookAgain => (Climb::Again, Count::RetryNewlyMirrored),
            Retry::InTransit(busy) => (Climb::WaitTransit(busy), Count::RetryInTransit),
            Retry::Changing | Retry::NoStaging => (Climb::Pause, Count::RetryAddressSpaceChanging),
            Retry::DeviceFull => (Climb::Evict, Count::RetryDeviceFull),
            Retry::OtherOwner => (Climb::BringHome, Count::RetryTakenBack),
            Retry::Unreadable => (Climb::Pause, Count::RetryTakenBack),
        };
        let climb = if holds(Rule::LadderClimbs) { climb } else { Climb::Pause };
        match self.left.checked_sub(1) {
            Some(left) => {
                self.left = left;
                (climb, count)
            }
            None => (Climb::GiveUp, count),
        }
    }
}

impl Default for Ladder {
    fn default() -> Self {
        Self::new()
    }
}
