//! One plan, from start to end.

use std::panic::{AssertUnwindSafe, catch_unwind};

use granule::dma::ReserveIova;
use granule::ports::Device;

use super::actors::{Actors, CLIENTS, FIBERS, READER, SEATS, USERPTR_PAGES, name};
use super::audit;
use super::counts::Counts;
use super::device::SimDevice;
use super::fibers::{self, Stacks, Stay};
use super::host::{SimHost, SimPark};
use super::oracle::{Checker, Violation};
use super::plan::{Op, Plan};
use super::ports::{SimIovas, SimPolicy, SimProbe};
use super::world::{BLOCKS, CHUNKS, World};
use crate::service_sim::{Iovas, Sizes, SpaceMemory};

/// What a run did.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Report {
    /// Stays in fibers.
    pub steps: u64,
    /// By kind.
    pub counts: Counts,
    /// What was wrong.
    pub violation: Option<Violation>,
    /// All that happened in one word.
    pub digest: u64,
    /// The operations that were begun, in order.
    pub begun: Vec<Op>,
    /// Every step in words, if the plan asks for it.
    pub log: Vec<String>,
}

/// After so many steps without new work, nobody gets anywhere.
const MOST_STEPS_TO_END: u64 = 200_000;

/// Runs a plan.
pub fn run(plan: &Plan, stacks: &mut Stacks) -> Report {
    let world = World::new(plan, FIBERS, CLIENTS, READER);
    let count = world.state().devices.len();
    let sizes = Sizes {
        granules: 3,
        blocks: BLOCKS + 1,
        fine: BLOCKS,
        seats: SEATS,
        homecomings: BLOCKS,
        userptrs: 1,
        userptr_pages: USERPTR_PAGES,
        chunks: CHUNKS,
        devices: count,
    };
    let memory = SpaceMemory::new(&sizes);
    let (host, park) = (SimHost(&world), SimPark(&world));
    let (policy, probe) = (SimPolicy(&world), SimProbe(&world));
    let devices: Vec<_> = (0..count).map(|no| SimDevice { world: &world, no }).collect();
    let iovas: Vec<_> = devices.iter().map(|device| SimIovas(&world, Iovas::new(device))).collect();
    let parts: Vec<_> = (0..count)
        .map(|no| memory.device(no, &devices[no] as &dyn Device, &iovas[no] as &dyn ReserveIova))
        .collect();
    let space = memory.space(&host, &park, &parts, &policy, &probe);
    let actors = Actors::new(&world, plan, &space, &devices, &iovas);
    fibers::run(stacks, actors.bodies(), |last| {
        let mut state = world.state();
        match last {
            Some((at, Stay::Ended)) => state.scheduler.end(at),
            Some((at, Stay::Panicked(said))) => {
                state.violate(Checker::Assertion, format!("{}: {said}", name(at)));
            }
            _ => {}
        }
        if state.violation.is_some() {
            return None;
        }
        let steps = state.scheduler.steps;
        if steps > plan.steps + MOST_STEPS_TO_END {
            let waiting: Vec<_> = state.scheduler.waiting().map(|(at, _)| name(at)).collect();
            state.violate(
                Checker::Progress,
                format!(
                    "after {MOST_STEPS_TO_END} steps without new work there are still {}",
                    waiting.join(", ")
                ),
            );
            return None;
        }
        let next = state.scheduler.next(steps >= plan.steps);
        if next.is_none() {
            let waiting: Vec<_> =
                state.scheduler.waiting().map(|(at, key)| format!("{} for {key:?}", name(at))).collect();
            if !state.scheduler.is_over() {
                state.violate(
                    Checker::Progress,
                    format!("nobody can go on; there wait {}", waiting.join(", ")),
                );
                return None;
            }
            drop(state);
            let ended = catch_unwind(AssertUnwindSafe(|| audit::end(&world, &space)));
            if ended.is_err() {
                world.state().violate(Checker::Assertion, "the library asserts when nobody runs any more");
            }
        }
        next
    });
    let mut state = world.state();
    Report {
        steps: state.scheduler.steps,
        counts: std::mem::take(&mut state.counts),
        violation: state.violation.take(),
        digest: state.digest,
        begun: std::mem::take(&mut state.begun),
        log: state.log.take().unwrap_or_default(),
    }
}
