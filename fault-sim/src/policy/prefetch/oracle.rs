use std::sync::Arc;

use granule::policy::Granularity;
use granule::units::{PAGES_PER_BLOCK, PageIndex, PageMask};

use super::super::{Demand, Prefetcher, unit_of};
use crate::replay::{NEVER, Proc, Schedule};

/// Knows what comes: of the block, the pages that the device needs within the next so many events.
#[derive(Clone, Debug)]
pub struct Oracle {
    schedule: Arc<Schedule>,
    cursors: Vec<u32>,
    horizon: u64,
}

impl Oracle {
    /// With what comes, by page.
    pub fn new(schedule: Arc<Schedule>, horizon: u64) -> Self {
        Self { cursors: vec![0; schedule.units()], schedule, horizon }
    }
}

impl Prefetcher for Oracle {
    fn widen(&mut self, demand: &Demand<'_>) -> PageMask {
        let mut wide = PageMask::EMPTY;
        if demand.to == Proc::Cpu {
            return wide;
        }
        for page in 0..PAGES_PER_BLOCK {
            let unit = unit_of(Granularity::Kib4, demand.block, page);
            let Some(cursor) = self.cursors.get_mut(unit as usize) else { break };
            let next = self.schedule.next(unit, demand.position, cursor);
            if next != NEVER && u64::from(next) <= demand.position + self.horizon {
                wide.insert(PageIndex(page as u16));
            }
        }
        wide
    }
}
