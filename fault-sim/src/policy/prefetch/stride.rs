use granule::units::{PAGES_PER_BLOCK, PageIndex, PageMask};

use super::super::{Demand, Prefetcher};
use crate::replay::Proc;

/// How many pages ahead, in strides.
const DEGREE: i64 = 8;

/// Two equal distances between faults in a row make a stride; the next eight pages along it come, as far as they lie in
/// the block.
#[derive(Clone, Copy, Debug, Default)]
pub struct Stride {
    last: Option<u64>,
    distance: i64,
    confirmed: bool,
}

impl Stride {
    fn see(&mut self, page: u64) {
        if let Some(last) = self.last {
            let distance = page.wrapping_sub(last) as i64;
            self.confirmed = distance == self.distance && distance != 0;
            self.distance = distance;
        }
        self.last = Some(page);
    }
}

impl Prefetcher for Stride {
    fn widen(&mut self, demand: &Demand<'_>) -> PageMask {
        let mut wide = PageMask::EMPTY;
        if demand.to == Proc::Cpu {
            return wide;
        }
        for page in demand.faulted.pages() {
            self.see(demand.first_page + u64::from(page.0));
            if self.confirmed {
                for step in 1..=DEGREE {
                    let Some(way) = self.distance.checked_mul(step) else { break };
                    let at = i64::from(page.0).saturating_add(way);
                    if (0..PAGES_PER_BLOCK as i64).contains(&at) {
                        wide.insert(PageIndex(at as u16));
                    }
                }
            }
        }
        wide
    }
}
