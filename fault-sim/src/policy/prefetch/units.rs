use granule::policy::Granularity;
use granule::units::PageMask;

use super::super::{Demand, Prefetcher};

/// The aligned unit around each faulted page: a page (on demand), 64 KiB, or the whole block.
#[derive(Clone, Copy, Debug)]
pub struct WholeUnits(pub Granularity);

impl Prefetcher for WholeUnits {
    fn widen(&mut self, demand: &Demand<'_>) -> PageMask {
        match self.0 {
            Granularity::Kib4 => PageMask::EMPTY,
            unit => demand.faulted.widened_to(unit.pages()),
        }
    }
}
