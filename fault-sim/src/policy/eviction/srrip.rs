use granule::policy::Granularity;

use super::super::{Brought, Eviction, Victim, pages_of_unit};
use super::queue::Queue;
use crate::replay::Blocks;

/// Predicted distances: two bits.
const DISTANCES: usize = 4;
/// What a new unit is predicted.
const LONG: usize = 2;

/// Static re-reference interval prediction: who comes is predicted to be needed late, who is touched again at once; who
/// is predicted to be needed last leaves, and when there is no such, all are predicted one later.
#[derive(Clone, Debug)]
pub struct Srrip {
    unit: Granularity,
    /// One order for each distance; `nearest` says which of them stands for distance 0, so that making all later is a
    /// turn of this wheel.
    orders: [Queue; DISTANCES],
    nearest: usize,
}

impl Srrip {
    /// Empty.
    pub fn new(unit: Granularity) -> Self {
        Self { unit, orders: Default::default(), nearest: 0 }
    }

    fn order(&mut self, distance: usize) -> &mut Queue {
        &mut self.orders[(self.nearest + distance) % DISTANCES]
    }

    fn predict(&mut self, unit: u32, distance: usize) {
        self.gone(unit);
        self.order(distance).push_last(unit);
    }
}

impl Eviction for Srrip {
    fn unit(&self) -> Granularity {
        self.unit
    }

    fn brought(&mut self, unit: u32, how: Brought) {
        if how.fresh {
            self.predict(unit, LONG);
        } else if how.demanded {
            self.predict(unit, 0);
        }
    }

    fn sees_hits(&self) -> bool {
        true
    }

    fn hit(&mut self, unit: u32, _: u64) {
        self.predict(unit, 0);
    }

    fn gone(&mut self, unit: u32) {
        self.orders.iter_mut().for_each(|order| order.remove(unit));
    }

    fn victim(&mut self, _: &Blocks) -> Option<Victim> {
        for _ in 0..DISTANCES {
            if let Some(unit) = self.order(DISTANCES - 1).pop_first() {
                return Some(pages_of_unit(self.unit, unit));
            }
            // The empty order of the last distance becomes that of the first; all others are one later.
            self.nearest = (self.nearest + DISTANCES - 1) % DISTANCES;
        }
        None
    }
}
