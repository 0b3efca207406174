//! How fast a trace is played: NVIDIA's full policy at half of the memory, reading included, on one core.
//!
//! The touches are of distinct pages. A figure is the best round: what the machine did besides only ever adds to it.

#[path = "../../benches/support/mod.rs"]
mod support;

use std::path::{Path, PathBuf};
use std::time::Instant;

use fault_sim::pattern::{Events, Pattern, Shape};
use fault_sim::policy::catalogue;
use fault_sim::replay::{Engine, Limits, profile_named};
use fault_sim::trace::{Metadata, TraceKind, TraceReader, TraceWriter};
use support::{Bound, Report, Row, is_quick, pin_to_core};

/// At least 10 million a second.
const MOST_NS: f64 = 100.0;
/// A block is 512 bytes for 512 pages, and their table grows by doubling.
const MOST_STATE_BYTES: f64 = 2.1;

fn generated(path: &Path, pattern: Pattern, events: u64) {
    let shape = Shape {
        pages: events,
        events,
        seed: 1,
        engines: 64,
        gap_ns: 100,
        cpu_per_myriad: 0,
        unmap_per_myriad: 0,
    };
    let metadata = Metadata {
        kind: TraceKind::Accesses,
        origin: format!("gen {}", pattern.name()),
        clock: "virtual".to_owned(),
        policy: None,
        commit: "bench".to_owned(),
        seed: Some(1),
    };
    let mut writer = TraceWriter::create(path, &metadata).expect("the build folder can be written");
    for event in Events::new(pattern, shape).expect("a good shape") {
        writer.push(event).expect("the disk has room for the trace");
    }
    writer.finish().expect("the trace can be finished");
}

/// Nanoseconds per event, and bytes of block state for each page of the footprint.
fn round(path: &Path) -> (f64, f64) {
    let start = Instant::now();
    let mut reader = TraceReader::open(path).expect("just written");
    let pages = reader.summary().expect("the writer counted").footprint_pages;
    let plan = catalogue::parse("nvidia").expect("a preset");
    let cost = profile_named("a100-sxm").expect("a profile").cost;
    let mut engine =
        Engine::new(plan.build(1, None), cost, Limits::new(pages * 4096 / 2)).expect("enough memory");
    let mut events = Vec::new();
    while reader.read(&mut events).expect("a good trace") {
        engine.feed(&events);
    }
    let (counted, blocks) = engine.finish();
    assert!(counted.faults_unique > counted.events / 4, "the trace hardly faults");
    (start.elapsed().as_nanos() as f64 / counted.events as f64, blocks.bytes() as f64 / pages as f64)
}

fn main() {
    let mut report = Report::new("replay");
    let (events, rounds) = if is_quick() { (10_000_000, 3) } else { (100_000_000, 3) };
    pin_to_core(0);
    for (pattern, question) in [
        (Pattern::Stream, "replay of a stream under NVIDIA's policy, reading included"),
        (Pattern::Random, "replay of random pages under NVIDIA's policy, reading included"),
    ] {
        let path = PathBuf::from(env!("CARGO_TARGET_TMPDIR")).join(format!("{}.parquet", pattern.name()));
        generated(&path, pattern, events);
        let all: Vec<_> = (0..rounds).map(|_| round(&path)).collect();
        std::fs::remove_file(&path).expect("it was just read");
        let times: Vec<_> = all.iter().map(|(ns, _)| *ns).collect();
        let best = times.iter().copied().fold(f64::INFINITY, f64::min);
        report.push(Row::best(question, "ns/event", &times, Bound::AtMost(MOST_NS)).note(format!(
            "{events} touches of distinct pages, half of them in memory: {:.1} million a second",
            1000.0 / best
        )));
        if pattern == Pattern::Random {
            let question = "state of a replay for each page of the footprint";
            report.push(Row::exact(question, "bytes/page", all[0].1, Bound::AtMost(MOST_STATE_BYTES)));
        }
    }
}
