use granule::policy::Granularity;

use super::super::{Brought, Eviction, Victim, pages_of_unit};
use crate::replay::Blocks;
use crate::seed;

/// Anyone, each with the same chance.
#[derive(Clone, Debug)]
pub struct Random {
    unit: Granularity,
    seed: u64,
    draws: u64,
    members: Vec<u32>,
    /// For each unit its place in `members`, plus one; 0: not in.
    places: Vec<u32>,
}

impl Random {
    /// Empty.
    pub fn new(unit: Granularity, seed: u64) -> Self {
        Self { unit, seed, draws: 0, members: Vec::new(), places: Vec::new() }
    }

    fn remove(&mut self, unit: u32) {
        let Some(place) = self.places.get(unit as usize).and_then(|place| place.checked_sub(1)) else {
            return;
        };
        self.members.swap_remove(place as usize);
        self.places[unit as usize] = 0;
        if let Some(moved) = self.members.get(place as usize) {
            self.places[*moved as usize] = place + 1;
        }
    }
}

impl Eviction for Random {
    fn unit(&self) -> Granularity {
        self.unit
    }

    fn brought(&mut self, unit: u32, how: Brought) {
        if how.fresh {
            if unit as usize >= self.places.len() {
                self.places.resize((unit as usize + 1).next_power_of_two(), 0);
            }
            self.members.push(unit);
            self.places[unit as usize] = self.members.len() as u32;
        }
    }

    fn gone(&mut self, unit: u32) {
        self.remove(unit);
    }

    fn victim(&mut self, _: &Blocks) -> Option<Victim> {
        if self.members.is_empty() {
            return None;
        }
        self.draws += 1;
        let unit = self.members[seed::below(self.seed, self.draws, self.members.len() as u64) as usize];
        self.remove(unit);
        Some(pages_of_unit(self.unit, unit))
    }
}
