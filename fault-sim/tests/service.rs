//! The whole service over flat ports, and the replay of policies alone, take the same decisions on the same trace.

use fault_sim::pattern::{Events, Pattern, Shape};
use fault_sim::policy::catalogue;
use fault_sim::replay::{Engine, Limits, profile_named};
use fault_sim::service_sim::{self, with_service};
use fault_sim::trace::Event;
use granule::policy::{Granularity, MigrateOnFault};
use granule::ports::Count;
use granule::units::{BlockNo, PAGE_BYTES, PAGES_PER_BLOCK, PageMask};

const PAGES: u64 = 8 * PAGES_PER_BLOCK as u64;

fn events(pattern: Pattern, cpu_per_myriad: u32, unmap_per_myriad: u32) -> Vec<Event> {
    let shape = Shape {
        pages: PAGES,
        events: 20_000,
        seed: 7,
        engines: 8,
        gap_ns: 100,
        cpu_per_myriad,
        unmap_per_myriad,
    };
    Events::new(pattern, shape).expect("a good shape").collect()
}

/// What each block holds after every so many events, and what was moved in all.
type History = (Vec<Vec<PageMask>>, [u64; 4]);

const EVERY: usize = 500;

fn blocks(events: &[Event]) -> Vec<u64> {
    let mut blocks: Vec<_> = events.iter().map(|event| event.page / PAGES_PER_BLOCK as u64).collect();
    blocks.sort_unstable();
    blocks.dedup();
    blocks
}

fn alone(name: &str, events: &[Event], device_bytes: u64) -> History {
    let plan = catalogue::parse(name).expect("a policy");
    let cost = profile_named("ideal").expect("a profile").cost;
    let limits = Limits { outstanding: 1, ..Limits::new(device_bytes) };
    let mut engine = Engine::new(plan.build(1, None), cost, limits).expect("enough memory");
    let known = blocks(events);
    let mut history = Vec::new();
    for part in events.chunks(EVERY) {
        engine.feed(part);
        let state = engine.blocks();
        let resident = |block: &u64| {
            let at = state.known(block * PAGES_PER_BLOCK as u64);
            at.map_or(PageMask::EMPTY, |at| *state.get(at).resident)
        };
        history.push(known.iter().map(resident).collect());
    }
    let (counted, _) = engine.finish();
    let moved = counted.demand_pages + counted.prefetch_pages;
    (history, [moved, counted.evictions, counted.evicted_pages, counted.homecoming_pages])
}

fn through_the_service(granularity: Granularity, events: &[Event], device_bytes: u64) -> History {
    let known = blocks(events);
    let limits =
        service_sim::Limits { device_bytes, outstanding: 1, blocks: known.len(), granules: known.len() };
    with_service(&limits, &MigrateOnFault { granularity }, |player| {
        let mut history = Vec::new();
        for part in events.chunks(EVERY) {
            player.feed(part);
            history.push(known.iter().map(|block| player.resident(BlockNo(*block as u32))).collect());
        }
        let played = player.finish();
        assert_eq!((played.of(Count::FaultsFailed), played.outside), (0, 0));
        let evicted = played.of(Count::EvictedPages);
        let home = played.of(Count::PagesToRam) - evicted;
        (history, [played.of(Count::PagesToDevice), played.of(Count::Evictions), evicted, home])
    })
}

fn same(name: &str, granularity: Granularity, events: &[Event], device_bytes: u64) -> History {
    let (alone, service) =
        (alone(name, events, device_bytes), through_the_service(granularity, events, device_bytes));
    for (at, (alone, service)) in alone.0.iter().zip(&service.0).enumerate() {
        assert_eq!(alone, service, "{name}: what the device has after {} events", (at + 1) * EVERY);
    }
    assert_eq!(alone.1, service.1, "{name}: moved, evictions, evicted, brought home");
    alone
}

#[test]
fn whole_blocks_are_moved_and_evicted_alike() {
    for pattern in [Pattern::Stream, Pattern::Random, Pattern::Zipf] {
        let events = events(pattern, 0, 0);
        let (_, moved) = same("granule-2m+lrm-2m+serial", Granularity::Mib2, &events, PAGES * PAGE_BYTES / 2);
        assert!(moved[0] > 0 && moved[1] > 0, "{pattern:?}: something was evicted");
    }
}

#[test]
fn smaller_units_are_moved_and_come_home_alike() {
    let all = PAGES * PAGE_BYTES * 2;
    for (name, granularity) in [
        ("granule-64k", Granularity::Kib64),
        ("granule-4k", Granularity::Kib4),
        ("granule-2m", Granularity::Mib2),
    ] {
        for pattern in [Pattern::Random, Pattern::Zipf] {
            let events = events(pattern, 1000, 50);
            let (_, moved) = same(&format!("{name}+lrm-2m+serial"), granularity, &events, all);
            assert!(moved[0] > 0 && moved[3] > 0, "{pattern:?}: something came home");
        }
    }
}

/// The comparison would notice a policy that is another one by one constant.
#[test]
fn another_unit_is_another_history() {
    let events = events(Pattern::Random, 1000, 50);
    let bytes = PAGES * PAGE_BYTES * 2;
    let service = through_the_service(Granularity::Kib4, &events, bytes);
    assert_ne!(alone("granule-64k+lrm-2m+serial", &events, bytes), service);
}
