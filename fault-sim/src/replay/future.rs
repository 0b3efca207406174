use std::sync::{Arc, Mutex, PoisonError};

use granule::policy::Granularity;
use granule::units::PAGES_PER_BLOCK;
use thiserror::Error;

use crate::policy::{unit_of, units_per_block};
use crate::trace::{BlockMap, Event, EventKind};

/// The position of what never comes.
pub const NEVER: u32 = u32::MAX;

/// Why a future cannot be known.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Error)]
pub enum FutureError {
    /// Positions are kept in 32 bits.
    #[error(
        "the trace has more than 4,294,967,294 events, too many for policies that know the future; leave them out"
    )]
    TooLong,
    /// Pages are numbered in 32 bits.
    #[error("the trace touches more than 16 TiB, too much for policies that know the future; leave them out")]
    TooWide,
}

/// One thing that will happen to a page.
#[derive(Clone, Copy, Debug)]
struct Coming {
    /// Block number * 512 + page.
    page: u32,
    /// Position of the event in the trace, from 1.
    position: u32,
    /// The device needs it; otherwise it will be taken from the device.
    needed: bool,
}

/// What will happen to each page of a trace: which events touch it, and which take it from the device.
///
/// Memory: 12 bytes for each touch, and as much again for each unit in which a policy asks.
#[derive(Debug, Default)]
pub struct Future {
    map: BlockMap,
    coming: Vec<Coming>,
    position: u64,
    schedules: Mutex<Vec<(Granularity, Arc<Schedule>)>>,
}

impl Future {
    /// Enters the next events of the trace.
    ///
    /// # Errors
    /// The trace is too long or too wide.
    pub fn feed(&mut self, events: &[Event]) -> Result<(), FutureError> {
        for event in events {
            self.position += 1;
            let position =
                u32::try_from(self.position).ok().filter(|at| *at != NEVER).ok_or(FutureError::TooLong)?;
            match event.kind {
                EventKind::Access | EventKind::DeviceFault => {
                    let block = self.map.get_or_add(event.page / PAGES_PER_BLOCK as u64);
                    self.enter(block, event.page, position, true)?;
                }
                EventKind::CpuFault => {
                    if let Some(block) = self.map.get(event.page / PAGES_PER_BLOCK as u64) {
                        self.enter(block, event.page, position, false)?;
                    }
                }
                EventKind::Unmap => {
                    let (mut page, end) = (event.page, event.page + u64::from(event.pages));
                    while page < end {
                        let next = end.min((page / PAGES_PER_BLOCK as u64 + 1) * PAGES_PER_BLOCK as u64);
                        if let Some(block) = self.map.get(page / PAGES_PER_BLOCK as u64) {
                            for page in page..next {
                                self.enter(block, page, position, false)?;
                            }
                        }
                        page = next;
                    }
                }
                EventKind::Migration | EventKind::Advice | EventKind::Map => {}
            }
        }
        Ok(())
    }

    fn enter(&mut self, block: u32, page: u64, position: u32, needed: bool) -> Result<(), FutureError> {
        let page = block.checked_mul(PAGES_PER_BLOCK as u32).ok_or(FutureError::TooWide)?
            + (page % PAGES_PER_BLOCK as u64) as u32;
        self.coming.push(Coming { page, position, needed });
        Ok(())
    }

    /// The first page of each block that the device touches, in the order of its number.
    pub fn first_pages(&self) -> impl Iterator<Item = u64> + '_ {
        (0..self.map.len() as u32).map(|block| self.map.block(block) * PAGES_PER_BLOCK as u64)
    }

    /// The schedule in a unit; made once, whichever thread asks first. The others wait for it.
    pub fn schedule(&self, unit: Granularity) -> Arc<Schedule> {
        // What a panic of another thread left behind is whole: a schedule is entered once it is made.
        let mut made = self.schedules.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some((_, schedule)) = made.iter().find(|(of, _)| *of == unit) {
            return Arc::clone(schedule);
        }
        let schedule = Arc::new(Schedule::new(unit, self.map.len() as u32, &self.coming));
        made.push((unit, Arc::clone(&schedule)));
        schedule
    }
}

/// For each unit the positions at which it is touched or taken, in order.
#[derive(Debug)]
pub struct Schedule {
    /// Where each unit's list begins; one more at the end.
    starts: Vec<u64>,
    positions: Vec<u32>,
    needed: Vec<bool>,
}

impl Schedule {
    fn new(unit: Granularity, blocks: u32, coming: &[Coming]) -> Self {
        let of = |coming: &Coming| {
            let (block, page) =
                (coming.page / PAGES_PER_BLOCK as u32, coming.page as usize % PAGES_PER_BLOCK);
            unit_of(unit, block, page) as usize
        };
        let units = (blocks * units_per_block(unit)) as usize;
        let mut starts = vec![0u64; units + 1];
        coming.iter().for_each(|coming| starts[of(coming) + 1] += 1);
        (0..units).for_each(|at| starts[at + 1] += starts[at]);
        let mut next = starts.clone();
        let (mut positions, mut needed) = (vec![0; coming.len()], vec![false; coming.len()]);
        for coming in coming {
            let place = &mut next[of(coming)];
            positions[*place as usize] = coming.position;
            needed[*place as usize] = coming.needed;
            *place += 1;
        }
        Self { starts, positions, needed }
    }

    /// How many units there are.
    pub fn units(&self) -> usize {
        self.starts.len() - 1
    }

    /// When a unit is needed next, after `position`; [`NEVER`] if it is taken from the device before that, or not needed
    /// again. `cursor` begins at 0 and is the caller's for this unit; positions must not go back.
    pub fn next(&self, unit: u32, position: u64, cursor: &mut u32) -> u32 {
        let (start, end) = (self.starts[unit as usize], self.starts[unit as usize + 1]);
        let mut at = start + u64::from(*cursor);
        while at < end && u64::from(self.positions[at as usize]) <= position {
            at += 1;
        }
        *cursor = (at - start) as u32;
        if at < end && self.needed[at as usize] { self.positions[at as usize] } else { NEVER }
    }
}
