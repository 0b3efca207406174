use granule::units::{PageIndex, PageMask};

use super::super::{Demand, Prefetcher};
use crate::seed;

/// For each fault one other page of the block's mapped pages, anyone.
#[derive(Clone, Copy, Debug)]
pub struct Random {
    seed: u64,
    draws: u64,
}

impl Random {
    /// Draws by this seed.
    pub fn new(seed: u64) -> Self {
        Self { seed, draws: 0 }
    }
}

impl Prefetcher for Random {
    fn widen(&mut self, demand: &Demand<'_>) -> PageMask {
        let mut wide = PageMask::EMPTY;
        for _ in 0..demand.faulted.count() {
            self.draws += 1;
            let at = demand.region.start as u64
                + seed::below(self.seed ^ 0x7066, self.draws, demand.region.len().max(1) as u64);
            wide.insert(PageIndex(at as u16));
        }
        wide
    }
}
