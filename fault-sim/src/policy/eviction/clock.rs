use granule::policy::Granularity;

use super::super::{Brought, Eviction, Victim, pages_of_unit};
use super::queue::Queue;
use crate::replay::Blocks;

/// First in, first out, but who was touched since the hand passed gets another round.
#[derive(Clone, Debug)]
pub struct Clock {
    unit: Granularity,
    order: Queue,
    touched: Vec<bool>,
}

impl Clock {
    /// Empty.
    pub fn new(unit: Granularity) -> Self {
        Self { unit, order: Queue::default(), touched: Vec::new() }
    }

    fn touch(&mut self, unit: u32, touched: bool) {
        if unit as usize >= self.touched.len() {
            self.touched.resize((unit as usize + 1).next_power_of_two(), false);
        }
        self.touched[unit as usize] = touched;
    }
}

impl Eviction for Clock {
    fn unit(&self) -> Granularity {
        self.unit
    }

    fn brought(&mut self, unit: u32, how: Brought) {
        if how.fresh {
            self.order.push_last(unit);
            // The touch that brought it does not count; what is touched again does.
            self.touch(unit, false);
        } else if how.demanded {
            self.touch(unit, true);
        }
    }

    fn sees_hits(&self) -> bool {
        true
    }

    fn hit(&mut self, unit: u32, _: u64) {
        self.touch(unit, true);
    }

    fn gone(&mut self, unit: u32) {
        self.order.remove(unit);
    }

    fn victim(&mut self, _: &Blocks) -> Option<Victim> {
        loop {
            let unit = self.order.pop_first()?;
            if std::mem::take(&mut self.touched[unit as usize]) {
                self.order.push_last(unit);
            } else {
                return Some(pages_of_unit(self.unit, unit));
            }
        }
    }
}
