//! The small ports: policy, probe, clock, IOVAs. Each is a point at which others may run.

use granule::dma::{IovaSpace, ReserveIova};
use granule::policy::{DeviceFaultView, Granularity, MigrateOnFault, Place, Placement, Policy};
use granule::ports::{Clock, Count, Probe, Timing};
use granule::units::{BlockNo, PAGES_PER_BLOCK, PageIndex, PageMask};

use super::counts::Did;
use super::fibers;
use super::plan::Habit;
use super::world::World;
use crate::service_sim::Iovas;

/// First touch moves; in some worlds, whatever it likes: also pages that it was not asked for and that are not there.
pub struct SimPolicy<'w>(pub &'w World);

impl SimPolicy<'_> {
    fn plain(&self) -> MigrateOnFault {
        MigrateOnFault { granularity: self.0.shape.granularity }
    }

    fn whim(&self, around: &PageMask) -> PageMask {
        let mut state = self.0.state();
        match state.chance.below(6) {
            0 => PageMask::EMPTY,
            1 => around.widened_to(16),
            2 => around.widened_to(64),
            3 => {
                let start = state.chance.below(PAGES_PER_BLOCK as u64) as usize;
                let end = start + state.chance.below((PAGES_PER_BLOCK - start) as u64 + 1) as usize;
                PageMask::of_range(start..end)
            }
            _ => *around,
        }
    }
}

impl Policy for SimPolicy<'_> {
    fn place(&self, fault: &DeviceFaultView) -> Placement {
        self.0.step(Did::Decide);
        if !self.0.state().habits.has(Habit::Policy) {
            return self.plain().place(fault);
        }
        let place = if self.0.state().chance.once_in(4) { Place::System } else { Place::Device };
        Placement { place, pages: self.whim(&fault.faulted) }
    }

    fn homecoming(&self, block: BlockNo, touched: PageIndex, resident: &PageMask) -> PageMask {
        self.0.step(Did::Decide);
        if !self.0.state().habits.has(Habit::Policy) {
            return self.plain().homecoming(block, touched, resident);
        }
        self.whim(&PageMask::of(touched))
    }

    fn granularity(&self) -> Granularity {
        self.0.shape.granularity
    }
}

/// Counts what the library counts.
pub struct SimProbe<'w>(pub &'w World);

impl Probe for SimProbe<'_> {
    fn add(&self, what: Count, n: u64) {
        if n > 0 {
            self.0.state().counts.library(what, n);
            fibers::switch();
        }
    }
    fn time(&self, _: Timing, _: u64) {}
}

/// A step is a nanosecond.
pub struct SimClock<'w>(pub &'w World);

impl Clock for SimClock<'_> {
    fn now_ns(&self) -> u64 {
        self.0.state().scheduler.steps
    }
}

/// IOVAs, reserved with a lock of the library held.
pub struct SimIovas<'w>(pub &'w World, pub Iovas);

impl ReserveIova for SimIovas<'_> {
    fn with(&self, act: &mut dyn FnMut(&mut IovaSpace)) {
        self.0.step(Did::ReserveIova);
        self.1.with(act);
    }
}
