//! The library's fault path over simulated ports: how fast a trace goes through all of it, and how many seeds the
//! simulation runs.

#[path = "../../benches/support/mod.rs"]
mod support;

use std::time::Instant;

use fault_sim::pattern::{Events, Pattern, Shape};
use fault_sim::service_sim::{Limits, with_service};
use fault_sim::split::among_threads;
use fault_sim::swarm::{Plan, Stacks, run};
use fault_sim::trace::Event;
use granule::policy::{Granularity, MigrateOnFault};
use granule::ports::Count;
use granule::units::{BLOCKS_PER_GRANULE, PAGE_BYTES, PAGES_PER_BLOCK};
use support::{Bound, Report, Row, is_quick, pin_to_core};

/// At least 2 million faults a second.
const MOST_NS: f64 = 500.0;
/// 20,000 seeds a minute on two cores.
const MOST_MS_PER_SEED: f64 = 3.0;
const STEPS: u64 = 1000;

/// Nanoseconds per device fault; the trace lies in memory.
fn round(events: &[Event], pages: u64) -> f64 {
    let blocks = pages as usize / PAGES_PER_BLOCK;
    let limits = Limits {
        device_bytes: pages * PAGE_BYTES / 2,
        outstanding: 256,
        blocks: blocks + 1,
        granules: blocks / BLOCKS_PER_GRANULE + 2,
    };
    let policy = MigrateOnFault { granularity: Granularity::Kib64 };
    with_service(&limits, &policy, |player| {
        let start = Instant::now();
        player.feed(events);
        let played = player.finish();
        let took = start.elapsed().as_nanos() as f64;
        assert_eq!(played.of(Count::FaultsFailed), 0);
        assert!(played.of(Count::DeviceFaults) > played.events / 20, "the trace hardly faults");
        took / played.of(Count::DeviceFaults) as f64
    })
}

fn seeds(count: u64, threads: usize) -> f64 {
    let start = Instant::now();
    among_threads(threads, count as usize, |part| {
        let mut stacks = Stacks::default();
        let failing = part
            .map(|seed| seed as u64)
            .find(|seed| run(&Plan::new(*seed, STEPS), &mut stacks).violation.is_some());
        failing.map_or(Ok(()), Err)
    })
    .unwrap_or_else(|seed| panic!("seed {seed} fails"));
    start.elapsed().as_secs_f64() * 1e3 / count as f64
}

fn main() {
    let mut report = Report::new("service");
    let (count, rounds) = if is_quick() { (2_000_000, 2) } else { (20_000_000, 3) };
    let each = if is_quick() { 1_000 } else { 10_000 };
    let threads = std::thread::available_parallelism().map_or(1, std::num::NonZero::get).min(2);
    let all: Vec<_> = (0..rounds).map(|_| seeds(each, threads)).collect();
    let best = all.iter().copied().fold(f64::INFINITY, f64::min);
    let question = "a seed of the simulation, 1,000 steps, checkers on, two cores";
    report.push(
        Row::best(question, "ms/seed", &all, Bound::AtMost(MOST_MS_PER_SEED))
            .note(format!("{threads} threads, {:.0} seeds a minute", 60e3 / best)),
    );
    pin_to_core(0);
    for (pattern, question) in [
        (Pattern::Stream, "a stream through the whole service over simulated ports"),
        (Pattern::Random, "random pages through the whole service over simulated ports"),
    ] {
        let shape = Shape {
            pages: count,
            events: count,
            seed: 1,
            engines: 64,
            gap_ns: 100,
            cpu_per_myriad: 0,
            unmap_per_myriad: 0,
        };
        let events: Vec<_> = Events::new(pattern, shape).expect("a good shape").collect();
        let all: Vec<_> = (0..rounds).map(|_| round(&events, count)).collect();
        let best = all.iter().copied().fold(f64::INFINITY, f64::min);
        report.push(Row::best(question, "ns/fault", &all, Bound::AtMost(MOST_NS)).note(format!(
            "{count} touches of distinct pages, half of them in memory, policy granule: {:.1} million faults a second",
            1000.0 / best
        )));
    }
}
