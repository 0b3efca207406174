use granule::units::{PAGES_PER_BLOCK, PageMask};

use super::super::{Demand, Prefetcher};

/// The pages behind each fault, up to so many and up to the block's end.
#[derive(Clone, Copy, Debug)]
pub struct Sequential {
    /// How many pages beside the fault.
    pub pages: usize,
}

impl Prefetcher for Sequential {
    fn widen(&mut self, demand: &Demand<'_>) -> PageMask {
        let mut wide = PageMask::EMPTY;
        for run in demand.faulted.runs() {
            wide.insert_range(run.start..(run.end + self.pages).min(PAGES_PER_BLOCK));
        }
        wide
    }
}
