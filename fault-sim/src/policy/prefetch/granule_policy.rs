use granule::policy::{DeviceFaultView, Granularity, MigrateOnFault, Policy};
use granule::units::{BlockNo, DeviceId, PAGES_PER_BLOCK, PageMask};

use super::super::{Demand, Prefetcher};
use crate::replay::Proc;

/// The very object that the live service asks, asked with the same view.
#[derive(Clone, Copy, Debug, Default)]
pub struct GranulePolicy(pub MigrateOnFault);

impl GranulePolicy {
    /// With this unit.
    pub fn of(granularity: Granularity) -> Self {
        Self(MigrateOnFault { granularity })
    }
}

impl Prefetcher for GranulePolicy {
    fn widen(&mut self, demand: &Demand<'_>) -> PageMask {
        let block = BlockNo((demand.first_page / PAGES_PER_BLOCK as u64) as u32);
        match demand.to {
            Proc::Device => {
                let view = DeviceFaultView {
                    block,
                    device: DeviceId(0),
                    faulted: *demand.faulted,
                    written: *demand.written,
                    resident: *demand.resident,
                    mapping: PageMask::of_range(demand.region.clone()),
                    movable: true,
                };
                self.0.place(&view).pages
            }
            Proc::Cpu => {
                let away = PageMask::of_range(demand.region.clone()) - *demand.resident;
                let touched = demand.faulted.pages();
                touched.fold(PageMask::EMPTY, |all, page| all | self.0.homecoming(block, page, &away))
            }
        }
    }
}
