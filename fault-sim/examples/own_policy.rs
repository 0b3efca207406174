//! A policy of one's own, against LRU without it, on a pattern.

use fault_sim::pattern::{Events, Pattern, Shape};
use fault_sim::policy::{Demand, Prefetcher, catalogue};
use fault_sim::replay::{Engine, Limits, profile_named};
use granule::units::PageMask;

/// Brings the 64 KiB around each page that was written, and nothing beside what was read.
struct AroundWrites;

impl Prefetcher for AroundWrites {
    fn widen(&mut self, demand: &Demand<'_>) -> PageMask {
        demand.written.widened_to(16)
    }
}

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let shape = Shape {
        pages: 16_384,
        events: 200_000,
        seed: 1,
        engines: 16,
        gap_ns: 100,
        cpu_per_myriad: 0,
        unmap_per_myriad: 0,
    };
    let cost = profile_named("a100-sxm").ok_or("no such profile")?.cost;
    for own in [false, true] {
        let mut set = catalogue::parse("on-demand-4k+lru-64k+batch-nvidia")?.build(1, None);
        if own {
            set.prefetch = Box::new(AroundWrites);
        }
        let mut engine = Engine::new(set, cost, Limits::new(32 << 20))?;
        let events: Vec<_> = Events::new(Pattern::Stencil, shape)?.collect();
        engine.feed(&events);
        let (counted, _) = engine.finish();
        let name = if own { "around writes" } else { "on demand" };
        println!("{name:<14} {:>8} faults, {:>6} ms", counted.faults_unique, counted.total_ns / 1_000_000);
    }
    Ok(())
}
