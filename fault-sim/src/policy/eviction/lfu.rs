use std::cmp::Reverse;
use std::collections::BinaryHeap;

use granule::policy::Granularity;

use super::super::{Brought, Eviction, Victim, pages_of_unit};
use crate::replay::Blocks;

/// Who was touched least often since it came; of those, who was touched longest ago.
#[derive(Clone, Debug)]
pub struct Lfu {
    unit: Granularity,
    /// (touches, when) of each unit; (0, 0): not in.
    state: Vec<(u32, u64)>,
    /// Entries that were true once; the true ones are those that equal the state.
    heap: BinaryHeap<Reverse<(u32, u64, u32)>>,
    members: usize,
    clock: u64,
}

impl Lfu {
    /// Empty.
    pub fn new(unit: Granularity) -> Self {
        Self { unit, state: Vec::new(), heap: BinaryHeap::new(), members: 0, clock: 0 }
    }

    fn touch(&mut self, unit: u32, touches: u32) {
        self.clock += 1;
        self.state[unit as usize] = (touches, self.clock);
        self.heap.push(Reverse((touches, self.clock, unit)));
        if self.heap.len() > 4 * self.members + 1024 {
            let state = &self.state;
            self.heap.retain(|Reverse((touches, when, unit))| state[*unit as usize] == (*touches, *when));
        }
    }
}

impl Eviction for Lfu {
    fn unit(&self) -> Granularity {
        self.unit
    }

    fn brought(&mut self, unit: u32, how: Brought) {
        if unit as usize >= self.state.len() {
            self.state.resize((unit as usize + 1).next_power_of_two(), (0, 0));
        }
        if how.fresh {
            self.members += 1;
            self.touch(unit, 1);
        } else if how.demanded {
            self.hit(unit, how.position);
        }
    }

    fn sees_hits(&self) -> bool {
        true
    }

    fn hit(&mut self, unit: u32, _: u64) {
        let touches = self.state[unit as usize].0.saturating_add(1);
        self.touch(unit, touches);
    }

    fn gone(&mut self, unit: u32) {
        if let Some(state) = self.state.get_mut(unit as usize)
            && *state != (0, 0)
        {
            *state = (0, 0);
            self.members -= 1;
        }
    }

    fn victim(&mut self, _: &Blocks) -> Option<Victim> {
        loop {
            let Reverse((touches, when, unit)) = self.heap.pop()?;
            if self.state[unit as usize] == (touches, when) {
                self.gone(unit);
                return Some(pages_of_unit(self.unit, unit));
            }
        }
    }
}
