//! What must hold whatever the trace.

use clap::ValueEnum;
use fault_sim::pattern::Pattern;
use fault_sim::replay::{Cost, Limits, PROFILES};

use super::support::{generated, play, play_with};

/// One fault at a time, whole units: nobody brings fewer units than who knows the future.
#[test]
fn belady_is_never_worse_than_its_class() {
    let rules = ["lru", "mru", "fifo", "random", "clock", "lfu", "srrip"];
    let mut better = 0;
    for pattern in Pattern::value_variants() {
        for (unit, device_pages) in [("4k", 1024), ("64k", 1536), ("2m", 2048)] {
            let events = generated(*pattern, 4096, 20_000, 7);
            let best = play(&format!("belady-{unit}"), device_pages, &events).units_in;
            for rule in rules {
                let units = play(&format!("{rule}-{unit}"), device_pages, &events).units_in;
                assert!(best <= units, "{pattern:?}: belady-{unit} brings {best}, {rule}-{unit} {units}");
                better += usize::from(best < units);
            }
            if unit == "64k" {
                for name in ["hpe-64k", "tree-64k"] {
                    let units = play(name, device_pages, &events).units_in;
                    assert!(best <= units, "{pattern:?}: belady-64k brings {best}, {name} {units}");
                }
            }
        }
    }
    assert!(better > 100, "the bound is never strict, so it was not tested: {better}");
}

/// With touches of the CPU and unmaps in between, too.
#[test]
fn belady_knows_what_is_taken_from_the_device() {
    use fault_sim::pattern::{Events, Shape};
    for seed in 1..4 {
        let shape = Shape {
            pages: 4096,
            events: 20_000,
            seed,
            engines: 4,
            gap_ns: 100,
            cpu_per_myriad: 800,
            unmap_per_myriad: 100,
        };
        let events: Vec<_> = Events::new(Pattern::Zipf, shape).expect("a good shape").collect();
        let best = play("belady-4k", 1024, &events).units_in;
        for rule in ["lru", "fifo", "clock", "lfu", "srrip"] {
            let units = play(&format!("{rule}-4k"), 1024, &events).units_in;
            assert!(best < units, "seed {seed}: belady-4k brings {best}, {rule}-4k {units}");
        }
    }
}

#[test]
fn ideal_is_never_slower_than_any_profile() {
    let policies = [
        "nvidia",
        "gpusvm",
        "amd",
        "granule",
        "lru-4k",
        "nvidia+remote-only",
        "nvidia-grace",
        "nvidia+belady-2m",
    ];
    for pattern in [Pattern::Stream, Pattern::Random, Pattern::PingPong, Pattern::Bfs] {
        let events = generated(pattern, 4096, 10_000, 3);
        for policy in policies {
            let limits = Limits::new(2048 * 4096);
            let ideal = play_with(policy, limits, Cost::FREE, &events).total_ns;
            for profile in PROFILES {
                let total = play_with(policy, limits, profile.cost, &events).total_ns;
                assert!(ideal <= total, "{policy} on {pattern:?}: ideal {ideal}, {} {total}", profile.name);
            }
        }
    }
}

/// Whatever is counted adds up.
#[test]
fn pages_and_touches_add_up() {
    use fault_sim::pattern::{Events, Shape};
    let policies = [
        "nvidia",
        "nvidia-535",
        "gpusvm",
        "amd",
        "granule",
        "lru-4k",
        "clock-64k",
        "tree-64k",
        "hpe-64k",
        "oracle",
        "nvidia+read-duplication",
        "nvidia+delayed-8",
        "nvidia+batch-nvidia-once",
        "nvidia+batch-nvidia-block",
        "nvidia+batch-nvidia-batch",
        "random-page+srrip-64k",
        "stride+lfu-4k",
        "sequential-64k+mru-2m",
    ];
    for pattern in Pattern::value_variants() {
        let shape = Shape {
            pages: 3000,
            events: 8000,
            seed: 5,
            engines: 4,
            gap_ns: 300,
            cpu_per_myriad: 300,
            unmap_per_myriad: 50,
        };
        let events: Vec<_> = Events::new(*pattern, shape).expect("a good shape").collect();
        let touches =
            events.iter().filter(|event| event.kind == fault_sim::trace::EventKind::Access).count() as u64;
        for policy in policies {
            let m = play_with(policy, Limits::new(1024 * 4096), PROFILES[1].cost, &events);
            let told = || format!("{policy} on {pattern:?}: {m:?}");
            // Who is thrown out of the buffer or throttled is read again.
            assert!(m.hits + m.remote_touches + m.faults >= touches, "{}", told());
            assert_eq!(
                m.latency.count(),
                touches - m.hits - m.remote_touches,
                "every fault ends once: {}",
                told()
            );
            assert_eq!(
                (m.waiting.count(), m.serving.count()),
                (m.latency.count(), m.latency.count()),
                "{}",
                told()
            );
            let parts = m.waiting.mean_ns() + m.serving.mean_ns();
            assert!(parts.abs_diff(m.latency.mean_ns()) <= 2, "{}", told());
            let seen = m.faults_unique + m.faults_coalesced + m.faults_duplicate + m.faults_spurious;
            assert_eq!(m.faults, seen, "{}", told());
            let came = m.demand_pages + m.prefetch_pages;
            let left = m.evicted_pages + m.homecoming_pages + m.unmapped_pages;
            assert!(left <= came && came - left <= 1024, "came {came}, left {left}: {}", told());
            assert!(m.prefetch_hits + m.prefetch_wasted <= m.prefetch_pages, "{}", told());
            assert!(m.evicted_dirty_pages <= m.evicted_pages, "{}", told());
        }
    }
}
