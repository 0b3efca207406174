use std::collections::BinaryHeap;
use std::sync::Arc;

use granule::policy::Granularity;

use super::super::{Brought, Eviction, Victim, pages_of_unit};
use crate::replay::{Blocks, NEVER, Schedule};

/// Who is needed last, leaves: no policy that brings the same units on demand, one fault at a time, brings fewer. With a
/// prefetcher, or with batches, it is a good guess and no bound.
///
/// Memory: the schedule, 12 bytes for each touch of the trace, and 4 for each unit.
#[derive(Clone, Debug)]
pub struct Belady {
    unit: Granularity,
    schedule: Arc<Schedule>,
    /// For each unit, how far into its list the trace has come.
    cursors: Vec<u32>,
    members: Vec<bool>,
    count: usize,
    heap: BinaryHeap<(u32, u32)>,
}

impl Belady {
    /// With what comes, in this unit.
    pub fn new(unit: Granularity, schedule: Arc<Schedule>) -> Self {
        let units = schedule.units();
        Self {
            unit,
            cursors: vec![0; units],
            members: vec![false; units],
            schedule,
            count: 0,
            heap: BinaryHeap::new(),
        }
    }

    fn enter(&mut self, unit: u32, position: u64) {
        let next = self.schedule.next(unit, position, &mut self.cursors[unit as usize]);
        self.heap.push((next, unit));
        if self.heap.len() > 4 * self.count + 1024 {
            self.compact(position);
        }
    }

    /// Throws away entries of the past and of who is not there.
    fn compact(&mut self, position: u64) {
        let members = (0..self.members.len() as u32).filter(|unit| self.members[*unit as usize]);
        let entries =
            members.map(|unit| (self.schedule.next(unit, position, &mut self.cursors[unit as usize]), unit));
        self.heap = entries.collect::<Vec<_>>().into();
    }
}

impl Eviction for Belady {
    fn unit(&self) -> Granularity {
        self.unit
    }

    fn brought(&mut self, unit: u32, how: Brought) {
        if !std::mem::replace(&mut self.members[unit as usize], true) {
            self.count += 1;
        }
        self.enter(unit, how.position);
    }

    fn sees_hits(&self) -> bool {
        true
    }

    fn hit(&mut self, unit: u32, position: u64) {
        self.enter(unit, position);
    }

    fn gone(&mut self, unit: u32) {
        if std::mem::replace(&mut self.members[unit as usize], false) {
            self.count -= 1;
        }
    }

    fn victim(&mut self, blocks: &Blocks) -> Option<Victim> {
        let position = blocks.position();
        loop {
            let (entered, unit) = self.heap.pop()?;
            if !self.members[unit as usize] {
                continue;
            }
            let next = self.schedule.next(unit, position, &mut self.cursors[unit as usize]);
            if next == entered || next == NEVER {
                self.gone(unit);
                return Some(pages_of_unit(self.unit, unit));
            }
            // Time has passed it by; it waits at its true place.
            if entered < next {
                self.heap.push((next, unit));
            }
        }
    }
}
