//! What the library itself costs per device fault: lookup, classify, decide, plan, commit, over ports that do nothing.

mod support;

use std::hint::black_box;
use std::time::Instant;

use criterion::Criterion;
use granule::fault::{BlockFault, group, invalidate, serve};
use granule::policy::{Granularity, LinkOnly, MigrateOnFault, Policy};
use granule::ports::{Count, DeviceFault};
use granule::units::{DeviceId, Seat};
use support::{AtomicProbe, Bound, NoopMemory, NoopSpace, Report, Row, rounds, spread_faults};

const BLOCKS: usize = 64;
const UNITS_PER_BLOCK: usize = 32;
const NO_FAULT: BlockFault = BlockFault::NONE;

/// Serves batches of `batch` faults until all are served; nanoseconds for all of it.
fn serve_all(space: &NoopSpace<'_>, faults: &[DeviceFault], batch: usize) -> f64 {
    let mut groups = vec![NO_FAULT; batch];
    let mut own = faults.to_vec();
    let begin = Instant::now();
    for faults in own.chunks_mut(batch) {
        let (used, duplicates) = group(faults, DeviceId(0), &mut groups);
        assert_eq!(duplicates, 0, "every fault is of a page of its own");
        for fault in &groups[..used] {
            let answer = serve(space, Seat(0), black_box(fault));
            assert_eq!(answer.served, fault.faulted, "every page was served");
        }
    }
    begin.elapsed().as_nanos() as f64
}

fn measure(
    c: &mut Criterion,
    name: &str,
    policy: &dyn Policy,
    moves: bool,
    faults: &[DeviceFault],
    batch: usize,
) -> Vec<f64> {
    let memory = NoopMemory::new(BLOCKS, 1);
    let (devices, probe) = ([memory.device()], AtomicProbe::default());
    let space = memory.space(&devices, policy, &probe);
    let mut served = 0;
    let ns = rounds(c, name, || {
        let mut ns = 0.0;
        // Several passes over the same memory, forgotten between, make a round long enough for the clock.
        for _ in 0..4 {
            ns += serve_all(&space, faults, batch);
            served += faults.len();
            invalidate(&space, memory.range());
        }
        ns / 4.0
    });
    let done = probe.count(if moves { Count::PagesToDevice } else { Count::PagesLinked });
    assert!(done >= served as u64, "{name}: {done} pages for {served} faults: not what was to be measured");
    ns
}

fn main() {
    let mut c = Criterion::default().configure_from_args();
    let mut report = Report::new("own_cost");
    let migrate = MigrateOnFault { granularity: Granularity::Kib64 };
    let policies: [(&str, &dyn Policy, bool); 2] =
        [("migrated", &migrate, true), ("linked", &LinkOnly, false)];
    support::pin_to_core(0);
    for (what, policy, moves) in policies {
        let faults = spread_faults(0, BLOCKS, UNITS_PER_BLOCK);
        let ns = measure(&mut c, &format!("own_cost/one/{what}"), policy, moves, &faults, 1);
        if !ns.is_empty() {
            let each: Vec<f64> = ns.iter().map(|ns| ns / faults.len() as f64).collect();
            let question = format!("own cost of one device fault, {what}");
            report.push(Row::best(&question, "ns", &each, Bound::AtMost(300.0)));
        }
        let faults = spread_faults(0, 16, 16);
        let ns = measure(&mut c, &format!("own_cost/batch/{what}"), policy, moves, &faults, 256);
        if !ns.is_empty() {
            let us: Vec<f64> = ns.iter().map(|ns| ns / 1000.0).collect();
            let question = format!("own cost of a batch of 256 device faults over 16 blocks, {what}");
            report.push(Row::best(&question, "us", &us, Bound::AtMost(30.0)));
        }
    }
    c.final_summary();
}
