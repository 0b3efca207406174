//! How fast a trace is played: NVIDIA's full policy at half of the memory, reading included, on one core. And how much
//! memory that takes over 64 GiB, which must not grow with the number of faults.
//!
//! The touches are of distinct pages. A figure is the best round: what the machine did besides only ever adds to it.

#[path = "../../benches/support/mod.rs"]
mod support;

use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::Instant;

use fault_sim::pattern::{Events, Pattern, Shape};
use fault_sim::policy::catalogue;
use fault_sim::replay::{Engine, Limits, profile_named};
use fault_sim::trace::{Metadata, TraceKind, TraceReader, TraceWriter};
use support::{Bound, Report, Row, is_quick, pin_to_core};

/// At least 10 million a second.
const MOST_NS: f64 = 100.0;
/// A block is 448 bytes for 512 pages, and their tables grow by doubling.
const MOST_STATE_BYTES: f64 = 2.1;

fn generated(path: &Path, pattern: Pattern, pages: u64, events: u64) {
    let shape =
        Shape { pages, events, seed: 1, engines: 64, gap_ns: 100, cpu_per_myriad: 0, unmap_per_myriad: 0 };
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

/// The most memory that the program held while it replayed, in bytes: what the kernel said last before its end.
fn peak_bytes(trace: &Path) -> u64 {
    let mut child = Command::new(env!("CARGO_BIN_EXE_fault-sim"))
        .args(["replay", "--policy", "nvidia", "--json"])
        .arg(trace)
        .stdout(Stdio::null())
        .spawn()
        .expect("the built program starts");
    let status = format!("/proc/{}/status", child.id());
    let mut most = 0;
    loop {
        let text = std::fs::read_to_string(&status).unwrap_or_default();
        let line = text.lines().find_map(|line| line.strip_prefix("VmHWM:"));
        let kib = line.and_then(|line| line.trim().strip_suffix("kB")?.trim().parse::<u64>().ok());
        most = most.max(kib.unwrap_or(0) * 1024);
        if let Some(status) = child.try_wait().expect("it is ours") {
            assert!(status.success() && most > 0, "the replay ends well and its memory was seen");
            return most;
        }
        std::thread::yield_now();
    }
}

/// Memory over 64 GiB: every page of it touched, once and then twice.
fn memory(report: &mut Report) {
    let pages = (64 << 30) / 4096;
    let path = PathBuf::from(env!("CARGO_TARGET_TMPDIR")).join("wide.parquet");
    let peaks = [1, 2].map(|times| {
        generated(&path, Pattern::Random, pages, times * pages);
        let peak = peak_bytes(&path);
        std::fs::remove_file(&path).expect("it was just read");
        peak as f64
    });
    let question = "most memory of a replay over 64 GiB, every page touched twice";
    let row = Row::exact(question, "MiB", peaks[1] / f64::from(1 << 20), Bound::AtMost(1024.0));
    report.push(row.note(format!("{} faults; reading and the program itself included", 2 * pages)));
    let question = "the same, against every page touched once";
    report.push(Row::exact(question, "times", peaks[1] / peaks[0], Bound::AtMost(1.05)).note(
        "it does not grow with the number of faults: what is kept is kept by block, and a billion faults take as much",
    ));
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
        generated(&path, pattern, events, events);
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
    memory(&mut report);
}
