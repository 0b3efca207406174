//! How much two cores help a sweep, beside what two separate processes reach, each with half of it.
//!
//! The bound is 1.8 times one core, or 0.9 of what the two processes reach: 0.9 of the smaller of 2 and that.

#[path = "../../benches/support/mod.rs"]
mod support;

use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::Instant;

use support::{Bound, Pairs, Report, Row, is_quick};

const GRID: [&str; 4] = ["--policy", "nvidia,gpusvm,amd,granule", "--device-memory", "30%,50%,70%,90%"];

fn program(words: &[&str]) -> Child {
    let mut command = Command::new(env!("CARGO_BIN_EXE_fault-sim"));
    command.args(words).stdout(Stdio::null()).spawn().expect("the built program starts")
}

fn sweep(trace: &str, more: &[&str]) -> Child {
    program(&[&["sweep", trace, "--json"], &GRID[..], more].concat())
}

/// Nanoseconds until all of them are done.
fn timed(start: impl FnOnce() -> Vec<Child>) -> f64 {
    let begun = Instant::now();
    for mut child in start() {
        assert!(child.wait().expect("it is ours").success(), "the sweep ends well");
    }
    begun.elapsed().as_nanos() as f64
}

fn made(path: &Path, events: u64) -> String {
    let path = path.display().to_string();
    let faults = events.to_string();
    let words = ["gen", "zipf", "--size", "4GiB", "--faults", &faults, "-o", &path];
    assert!(program(&words).wait().expect("it is ours").success(), "the trace can be written");
    path
}

fn main() {
    let mut report = Report::new("sweep");
    let (events, rounds) = if is_quick() { (500_000, 3) } else { (2_000_000, 7) };
    let path = PathBuf::from(env!("CARGO_TARGET_TMPDIR")).join("sweep.parquet");
    let trace = made(&path, events);
    let (mut pairs, mut ones) = (Vec::new(), Vec::new());
    for _ in 0..rounds {
        let one = timed(|| vec![sweep(&trace, &["--threads", "1"])]);
        let two = timed(|| vec![sweep(&trace, &["--threads", "2"])]);
        let apart =
            timed(|| ["1/2", "2/2"].map(|shard| sweep(&trace, &["--threads", "1", "--shard", shard])).into());
        // Nobody is asked for more than twice the speed of one.
        pairs.push((apart.max(one / 2.0), two));
        ones.push((one / two, one / apart));
    }
    std::fs::remove_file(&path).expect("it was just read");
    let mean = |of: fn(&(f64, f64)) -> f64| ones.iter().map(of).sum::<f64>() / ones.len() as f64;
    let bytes = events * 16 * 32;
    report.push(
        Row::speed("sweep of 16 settings on two threads", bytes, &Pairs(pairs), Bound::AtLeast(0.9)).note(
            format!(
                "floor: two separate processes with half of the settings each, but no more than twice the \
                 speed of one thread; {:.2} times one thread, the two processes {:.2} times; bytes \
                 are 32 for each event and setting",
                mean(|of| of.0),
                mean(|of| of.1)
            ),
        ),
    );
}
