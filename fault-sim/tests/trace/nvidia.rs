//! NVIDIA's driver as a whole: what the parts' own tests do not show.

use fault_sim::replay::{Cost, Engine, Limits};
use fault_sim::trace::{Access, Event};

use super::support::{BASE, play, reads};

/// The bytes that come with each fault of a stream through a block, as seen on a real A100: 4K+60K, 4K+60K, 4K+124K,
/// 4K+252K, 4K+508K, 4K+1020K.
#[test]
fn the_streaming_signature() {
    let plan = fault_sim::policy::catalogue::parse("nvidia+serial").expect("a policy");
    let mut engine =
        Engine::new(plan.build(1, None), Cost::FREE, Limits::new(8 << 20)).expect("enough memory");
    let mut seen = Vec::new();
    let mut before = 0;
    for event in reads(&(0..1024).collect::<Vec<_>>()) {
        engine.feed(&[event]);
        let m = engine.metrics();
        if m.demand_pages as usize > seen.len() {
            seen.push((m.prefetch_pages - before) * 4);
            before = m.prefetch_pages;
        }
    }
    assert_eq!(seen, [[60, 60, 124, 252, 508, 1020]; 2].concat());
    let m = engine.metrics();
    assert_eq!((m.faults_unique, m.demand_pages, m.prefetch_pages, m.copies_in), (12, 12, 1012, 24));
    assert_eq!((m.prefetch_hits, m.hits), (1012, 1012));
}

/// In batches the same stream asks for more at once: the pages of a batch count as asked for together.
#[test]
fn a_batch_is_one_service_per_block() {
    let m = play(
        "nvidia",
        2048,
        &(0..512).map(|page| Event::access(0, BASE + page, Access::Read, 0)).collect::<Vec<_>>(),
    );
    // 256 faults fill half of the block, of which 50 percent is not enough; the other 256 follow.
    assert_eq!((m.batches, m.services, m.faults_unique, m.prefetch_pages), (2, 2, 512, 0));
}

/// Blocks that were moved to longest ago leave; a hit does not count, a page that comes does.
#[test]
fn least_recently_migrated_leaves() {
    // Two blocks fit. Block 0 is hit again, block 1 gets a second page after that: block 0 leaves for block 2.
    let order = [0, 512, 0, 512 + 100, 1024, 512 + 100, 0];
    let m = play("nvidia+on-demand-4k+serial", 1024, &reads(&order));
    assert_eq!((m.evictions, m.faults_unique, m.hits), (2, 5, 2));
}

/// A page that both sides write for long is pinned in the end, and the device maps it in system memory or has it alone.
#[test]
fn a_page_that_thrashes_for_long_is_pinned() {
    let events: Vec<_> = (0..2000u64)
        .map(|at| match at % 2 {
            0 => Event::access(at * 100_000, BASE, Access::Write, 0),
            _ => Event::cpu(at * 100_000, BASE, Access::Write),
        })
        .collect();
    let calm = play("nvidia-535+nvidia-residency-no-thrashing", 1024, &events);
    let watched = play("nvidia-535", 1024, &events);
    assert_eq!((calm.throttles, calm.cpu_faults), (0, 1000));
    assert!(watched.throttles > 10, "{watched:?}");
    assert!(watched.remote_touches + watched.linked_pages > 0, "never pinned: {watched:?}");
    assert!(watched.cpu_faults < calm.cpu_faults, "{} of {}", watched.cpu_faults, calm.cpu_faults);
}
