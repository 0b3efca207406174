use granule::policy::Granularity;
use granule::units::{PAGES_PER_BLOCK, PAGES_PER_SLOT_64K, PageMask};

use super::super::{Brought, Eviction, Victim, pages_of_unit, unit_of};
use super::queue::Queue;
use crate::replay::Blocks;

/// The counterpart of the tree prefetcher: the least recently used 64 KiB leave, and with them the largest subtree
/// around them of which less than half is left on the device.
#[derive(Clone, Debug, Default)]
pub struct TreeEviction {
    order: Queue,
}

const UNIT: Granularity = Granularity::Kib64;

impl Eviction for TreeEviction {
    fn unit(&self) -> Granularity {
        UNIT
    }

    fn brought(&mut self, unit: u32, how: Brought) {
        if how.fresh || how.demanded {
            self.order.push_last(unit);
        }
    }

    fn sees_hits(&self) -> bool {
        true
    }

    fn hit(&mut self, unit: u32, _: u64) {
        self.order.push_last(unit);
    }

    fn gone(&mut self, unit: u32) {
        self.order.remove(unit);
    }

    fn victim(&mut self, blocks: &Blocks) -> Option<Victim> {
        let first = pages_of_unit(UNIT, self.order.pop_first()?);
        let resident = *blocks.get(first.block).resident;
        let at = first.pages.first()?.0 as usize;
        let mut pages = first.pages;
        let mut size = 2 * PAGES_PER_SLOT_64K;
        while size <= PAGES_PER_BLOCK {
            let start = at & !(size - 1);
            let node = PageMask::of_range(start..start + size);
            if 2 * ((resident & node) - pages).count() < size {
                pages = node;
            }
            size *= 2;
        }
        let leaving = pages & resident;
        for unit in (0..PAGES_PER_BLOCK).step_by(PAGES_PER_SLOT_64K) {
            if leaving.intersects(&PageMask::of_range(unit..unit + PAGES_PER_SLOT_64K)) {
                self.order.remove(unit_of(UNIT, first.block, unit));
            }
        }
        Some(Victim { block: first.block, pages: leaving | first.pages })
    }
}
