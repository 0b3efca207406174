//! Page faults of a program that knows nothing of it.

use std::path::Path;
use std::process::{Command, Output};

use fault_sim::trace::{EventKind, TraceKind, TraceReader};

fn fault_sim(arguments: &[&str]) -> Output {
    Command::new(env!("CARGO_BIN_EXE_fault-sim")).args(arguments).output().expect("the program runs")
}

fn said(output: &Output) -> String {
    String::from_utf8_lossy(&output.stderr).into_owned()
}

/// Whether this kernel lets this user record at all; if not, the refusal must name the setting.
fn may(output: &Output) -> bool {
    if output.status.code() == Some(2) {
        let sentence = said(output);
        assert!(sentence.contains("perf_event"), "a refusal names the setting: {sentence}");
        return false;
    }
    true
}

#[test]
fn every_page_that_a_program_touches_first_is_in_the_trace() {
    let path = Path::new(env!("CARGO_TARGET_TMPDIR")).join("recorded.parquet");
    let name = path.to_str().expect("a plain path");
    // 4,000 fresh pages at least: 16 MB that the shell's child fills.
    let fill = "head -c 16000000 /dev/zero | tail -c 16000000 | wc -c";
    let output = fault_sim(&["record", "-o", name, "--json", "--", "sh", "-c", fill]);
    if !may(&output) {
        return;
    }
    assert!(output.status.success(), "{}", said(&output));
    let text = String::from_utf8_lossy(&output.stdout);
    assert!(text.contains("\"way\":\"perf page-faults"), "{text}");
    let mut reader = TraceReader::open(&path).expect("a whole trace");
    assert_eq!((reader.metadata().kind, reader.metadata().clock.as_str()), (TraceKind::Faults, "boottime"));
    let (mut all, mut events) = (Vec::new(), Vec::new());
    while reader.read(&mut events).expect("a good trace") {
        all.extend_from_slice(&events);
    }
    assert!(all.iter().all(|event| event.kind == EventKind::CpuFault && event.pages == 1));
    let mut pages: Vec<_> = all.iter().map(|event| event.page).collect();
    pages.sort_unstable();
    pages.dedup();
    assert!(pages.len() >= 3_900, "only {} pages of 16 MB", pages.len());
}

#[test]
fn a_program_that_is_not_there_is_refused_and_leaves_no_trace() {
    let path = Path::new(env!("CARGO_TARGET_TMPDIR")).join("nothing.parquet");
    let output =
        fault_sim(&["record", "-o", path.to_str().expect("a plain path"), "--", "there-is-no-such-program"]);
    assert_eq!(output.status.code(), Some(2));
    let sentence = said(&output);
    assert!(sentence.contains("cannot be started") || sentence.contains("perf_event"), "{sentence}");
    assert!(!path.exists() && !path.with_extension("parquet.part").exists());
}

#[test]
fn a_full_disk_ends_the_recording_and_not_the_program() {
    let mark = Path::new(env!("CARGO_TARGET_TMPDIR")).join("went-on");
    let _ = std::fs::remove_file(&mark);
    let touch = format!("head -c 4000000 /dev/zero | tail -c 4000000 > {}", mark.display());
    let output = fault_sim(&["record", "-o", "/dev/full", "--", "sh", "-c", &touch]);
    if output.status.code() == Some(2) && said(&output).contains("perf_event") {
        return;
    }
    assert_eq!(output.status.code(), Some(1), "{}", said(&output));
    assert_eq!(std::fs::metadata(&mark).expect("the program went on").len(), 4_000_000);
}
