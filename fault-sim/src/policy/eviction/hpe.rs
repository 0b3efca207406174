use granule::policy::Granularity;

use super::super::{Brought, Eviction, Victim, pages_of_unit};
use super::queue::Queue;
use crate::replay::Blocks;

/// Faults that make an interval.
const INTERVAL: u32 = 64;
/// Touches that make a set of 16 pages a full one.
const FULL: u32 = 16;

/// After the idea of a hierarchical page eviction policy: sets of 16 pages in a chain, in three parts by the interval
/// (64 faults) in which they were touched last. Who was not touched in this interval or the last one is old, and only
/// what is old leaves, as long as there is some. If most of what is old was touched as often as it has pages (a regular
/// program), the most recently used of it leaves; otherwise the least recently used.
///
/// Like the published policy in its chain, its intervals and its two strategies; without its adjustment of strategies
/// while the program runs.
#[derive(Clone, Debug, Default)]
pub struct Hpe {
    old: Queue,
    middle: Queue,
    new: Queue,
    touches: Vec<u32>,
    faults: u32,
    /// Of the old ones, how many were touched at least as often as they have pages.
    old_full: usize,
    old_all: usize,
}

const UNIT: Granularity = Granularity::Kib64;

impl Hpe {
    fn touch(&mut self, unit: u32) {
        if unit as usize >= self.touches.len() {
            self.touches.resize((unit as usize + 1).next_power_of_two(), 0);
        }
        self.leave(unit);
        self.touches[unit as usize] = self.touches[unit as usize].saturating_add(1);
        self.new.push_last(unit);
    }

    fn leave(&mut self, unit: u32) {
        if self.old.contains(unit) {
            self.old_all -= 1;
            self.old_full -= usize::from(self.touches[unit as usize] >= FULL);
        }
        [&mut self.old, &mut self.middle, &mut self.new].into_iter().for_each(|part| part.remove(unit));
    }

    fn next_interval(&mut self) {
        let middle = std::mem::replace(&mut self.middle, std::mem::take(&mut self.new));
        for unit in middle.iter() {
            self.old.push_last(unit);
            self.old_all += 1;
            self.old_full += usize::from(self.touches[unit as usize] >= FULL);
        }
    }
}

impl Eviction for Hpe {
    fn unit(&self) -> Granularity {
        UNIT
    }

    fn brought(&mut self, unit: u32, how: Brought) {
        if how.demanded {
            self.faults += 1;
            if self.faults == INTERVAL {
                self.faults = 0;
                self.next_interval();
            }
        }
        self.touch(unit);
    }

    fn sees_hits(&self) -> bool {
        true
    }

    fn hit(&mut self, unit: u32, _: u64) {
        self.touch(unit);
    }

    fn gone(&mut self, unit: u32) {
        self.leave(unit);
        if let Some(touches) = self.touches.get_mut(unit as usize) {
            *touches = 0;
        }
    }

    fn victim(&mut self, _: &Blocks) -> Option<Victim> {
        let regular = 2 * self.old_full > self.old_all;
        let from_old = if regular { self.old.last() } else { self.old.first() };
        let unit = from_old.or_else(|| self.middle.first()).or_else(|| self.new.first())?;
        self.gone(unit);
        Some(pages_of_unit(UNIT, unit))
    }
}
