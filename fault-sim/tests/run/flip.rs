//! One byte of device memory that is not what it should be must be noticed, in every workload.

use super::{SOURCES, WORKLOADS, fault_sim, run_json};

#[test]
fn a_flipped_byte_fails_every_workload() {
    for workload in WORKLOADS {
        for source in SOURCES {
            let words = ["run", "--workload", workload, "--alloc", source, "--size", "4MiB", "--flip-byte"];
            let out = fault_sim(&words);
            let sentence = String::from_utf8_lossy(&out.stderr);
            assert_eq!(out.status.code(), Some(1), "{words:?}: {sentence}");
            assert_eq!(sentence.lines().count(), 1, "{sentence}");
            assert!(sentence.starts_with("wrong result: ") && sentence.contains(" at 0x"), "{sentence}");
        }
    }
}

#[test]
fn the_report_says_so_too() {
    let report = run_json(&["--size", "4MiB", "--flip-byte"], 1);
    assert_eq!(report["verified"], false);
    assert!(report["error"].as_str().is_some_and(|error| error.contains(" at 0x")), "{report}");
}
