use super::{DeviceFaultView, Granularity, Place, Placement, Policy};
use crate::units::{BlockNo, PAGES_PER_SLOT_64K, PageIndex, PageMask};

/// First touch moves: whoever touches a page gets it, with the aligned unit around it. The default.
#[derive(Clone, Copy, Debug, Default)]
pub struct MigrateOnFault {
    /// How much moves to the device, and comes back, per fault.
    pub granularity: Granularity,
}

impl Policy for MigrateOnFault {
    fn place(&self, fault: &DeviceFaultView) -> Placement {
        let unit = self.granularity.pages();
        if fault.movable {
            return Placement { place: Place::Device, pages: fault.faulted.widened_to(unit) };
        }
        // Linking makes pages present: no more around a fault than the kernel's own fault-around brings.
        Placement { place: Place::System, pages: fault.faulted.widened_to(unit.min(PAGES_PER_SLOT_64K)) }
    }

    fn homecoming(&self, _: BlockNo, touched: PageIndex, _: &PageMask) -> PageMask {
        PageMask::of(touched).widened_to(self.granularity.pages())
    }

    fn granularity(&self) -> Granularity {
        self.granularity
    }
}

/// Nothing moves: every page stays in system memory and is linked.
#[derive(Clone, Copy, Debug, Default)]
pub struct LinkOnly;

impl Policy for LinkOnly {
    fn place(&self, fault: &DeviceFaultView) -> Placement {
        Placement { place: Place::System, pages: fault.faulted }
    }

    fn homecoming(&self, _: BlockNo, touched: PageIndex, _: &PageMask) -> PageMask {
        PageMask::of(touched)
    }

    fn granularity(&self) -> Granularity {
        Granularity::Kib4
    }
}
