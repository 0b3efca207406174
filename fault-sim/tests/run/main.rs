//! Runs the built program as a person would.

mod bad_input;
mod devices;
mod flip;
mod matrix;
mod output;
mod rights;
mod terminal;
#[cfg(feature = "vulkan")]
mod vulkan;

use std::process::{Command, Output};

const WORKLOADS: [&str; 7] = ["saxpy", "sum", "histogram", "list", "bfs", "ping-pong", "atomic"];
const SOURCES: [&str; 4] = ["malloc", "mmap", "library", "userptr"];
/// Runs `fault-sim` with these words.
fn fault_sim(words: &[&str]) -> Output {
    Command::new(env!("CARGO_BIN_EXE_fault-sim")).args(words).output().expect("the built program starts")
}

/// Runs `fault-sim run --json` with these words and reads its object; the exit status must be `status`.
fn run_json(words: &[&str], status: i32) -> serde_json::Value {
    let out = fault_sim(&[&["run", "--json"], words].concat());
    let shown = || format!("{words:?}: {}\n{}", out.status, String::from_utf8_lossy(&out.stderr));
    assert_eq!(out.status.code(), Some(status), "{}", shown());
    let text = String::from_utf8(out.stdout.clone()).expect("JSON is UTF-8");
    assert_eq!(text.lines().count(), 1, "one object on one line: {}", shown());
    serde_json::from_str(&text).unwrap_or_else(|error| panic!("{error}: {text}: {}", shown()))
}

/// It was refused before any work, in one sentence that says `why`. `asked` names the run in what this prints.
fn is_refusal(out: &Output, asked: &str, why: &str) {
    let sentence = String::from_utf8_lossy(&out.stderr);
    assert_eq!(out.status.code(), Some(2), "{asked}: {sentence}");
    assert!(out.stdout.is_empty(), "{asked} printed to standard output");
    assert_eq!(sentence.lines().count(), 1, "{asked}: one sentence: {sentence}");
    assert!(sentence.contains(why), "{asked}: {sentence:?} does not say {why:?}");
}

fn number(report: &serde_json::Value, key: &str) -> u64 {
    report[key].as_u64().unwrap_or_else(|| panic!("{key} is {}", report[key]))
}
