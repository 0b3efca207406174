use granule::policy::Granularity;

use super::super::{Brought, Eviction, Victim, pages_of_unit, units_per_block};
use super::queue::Queue;
use crate::replay::Blocks;

/// What moves a unit to the young end of the order, and which end leaves.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum RecencyRule {
    /// Everything that comes: NVIDIA's list of used chunks, for which hits do not count. Blocks that the program did
    /// not map whole move only when their memory is allocated.
    Migrated,
    /// Coming from nothing only: first in, first out.
    Allocated,
    /// Coming and being touched: least recently used.
    Touched,
    /// The same order, from the other end: most recently used.
    TouchedReversed,
}

/// An order by when something happened last.
#[derive(Clone, Debug)]
pub struct Recency {
    unit: Granularity,
    rule: RecencyRule,
    order: Queue,
}

impl Recency {
    /// Empty.
    pub fn new(unit: Granularity, rule: RecencyRule) -> Self {
        Self { unit, rule, order: Queue::default() }
    }
}

impl Eviction for Recency {
    fn unit(&self) -> Granularity {
        self.unit
    }

    fn brought(&mut self, unit: u32, how: Brought) {
        let moves = match self.rule {
            RecencyRule::Migrated => how.fresh || how.whole_block,
            RecencyRule::Allocated => how.fresh,
            RecencyRule::Touched | RecencyRule::TouchedReversed => how.fresh || how.demanded,
        };
        if moves {
            self.order.push_last(unit);
        }
    }

    fn sees_hits(&self) -> bool {
        matches!(self.rule, RecencyRule::Touched | RecencyRule::TouchedReversed)
    }

    fn hit(&mut self, unit: u32, _: u64) {
        self.order.push_last(unit);
    }

    fn gone(&mut self, unit: u32) {
        self.order.remove(unit);
    }

    fn soon(&self, count: usize) -> Box<dyn Iterator<Item = u32> + '_> {
        let per_block = units_per_block(self.unit);
        Box::new(self.order.near_first(count).map(move |unit| unit / per_block))
    }

    fn victim(&mut self, _: &Blocks) -> Option<Victim> {
        let unit = match self.rule {
            RecencyRule::TouchedReversed => self.order.pop_last(),
            _ => self.order.pop_first(),
        }?;
        Some(pages_of_unit(self.unit, unit))
    }
}
