//! What is printed, and where.

use super::{fault_sim, run_json};

/// The keys are a promise to other programs: this list may grow, and nothing in it changes.
const KEYS: [&str; 65] = [
    "verified",
    "error",
    "workload",
    "alloc",
    "take",
    "user_mode_only",
    "backend",
    "size_bytes",
    "device_memory_bytes",
    "granularity_bytes",
    "engines",
    "threads",
    "seed",
    "faults",
    "faults_unique",
    "faults_duplicate",
    "faults_failed",
    "batches",
    "cpu_faults",
    "cpu_faults_zero_filled",
    "cpu_faults_queued",
    "migrated_to_device_pages",
    "migrated_to_device_bytes",
    "migrated_to_ram_pages",
    "migrated_to_ram_bytes",
    "linked_pages",
    "unlinked_pages",
    "refused_pages",
    "evictions",
    "evicted_pages",
    "invalidations",
    "invalidated_pages",
    "granules_reserved",
    "gate_closed",
    "copies_failed",
    "unreadable_pages",
    "iommu_errors",
    "retries_sequence",
    "retries_newly_mirrored",
    "retries_in_transit",
    "retries_address_space_changing",
    "retries_device_full",
    "retries_taken_back",
    "device_fault_p50_ns",
    "device_fault_p99_ns",
    "device_fault_max_ns",
    "cpu_fault_p50_ns",
    "cpu_fault_p99_ns",
    "cpu_fault_max_ns",
    "device_seconds",
    "device_gb_per_second",
    "check_seconds",
    "check_gb_per_second",
    "pages_touched",
    "state_bytes_per_page",
    "table_bytes",
    "granule_bytes",
    "block_bytes",
    "iova_bytes",
    "fine_slot_bytes",
    "device_record_bytes",
    "staging_bytes",
    "stack_bytes",
    "device_page_table_bytes",
    "iommu_page_table_bytes",
];

#[test]
fn the_keys_of_the_object_are_stable() {
    let report = run_json(&["--size", "4MiB"], 0);
    let mut keys: Vec<_> = report.as_object().expect("an object").keys().cloned().collect();
    let mut promised = KEYS.to_vec();
    keys.sort_unstable();
    promised.sort_unstable();
    assert_eq!(keys, promised);
}

#[test]
fn the_default_run_prints_a_table_and_nothing_else() {
    let out = fault_sim(&["run"]);
    let (table, errors) = (String::from_utf8_lossy(&out.stdout), String::from_utf8_lossy(&out.stderr));
    assert_eq!(out.status.code(), Some(0), "{errors}");
    assert!(errors.is_empty(), "no progress bar in a pipe: {errors}");
    assert!(table.starts_with("saxpy over 64MiB on software: the result is right"), "{table}");
    for row in ["device faults", "migrated to the device", "CPU fault p50", "state per page"] {
        assert!(table.contains(row), "no row {row:?} in\n{table}");
    }
}

#[test]
fn help_says_what_there_is() {
    let out = fault_sim(&["run", "--help"]);
    let help = String::from_utf8_lossy(&out.stdout);
    assert_eq!(out.status.code(), Some(0));
    for option in ["--workload", "--size", "--device-memory", "--alloc", "--granularity", "--seed", "--json"]
    {
        assert!(help.contains(option), "{help}");
    }
    assert!(!help.contains("--flip-byte"), "the switch of the tests is shown to people");
}

#[test]
fn a_seed_gives_the_same_data_and_another_one_does_not() {
    let sentence = |seed: &str| {
        let report = run_json(&["--size", "4MiB", "--workload", "sum", "--flip-byte", "--seed", seed], 1);
        let error = report["error"].as_str().expect("a sentence").to_owned();
        // Addresses differ from run to run; the values behind them do not.
        error.split(" is ").nth(1).expect("found and expected").to_owned()
    };
    assert_eq!(sentence("5"), sentence("5"));
    assert_ne!(sentence("5"), sentence("6"));
}

/// Every key and every row is explained.
#[test]
fn the_page_about_counters_is_complete() {
    let page = include_str!("../../../docs/counters.md");
    for key in KEYS {
        assert!(page.contains(&format!("`{key}`")), "docs/counters.md does not explain the key {key}");
    }
    let out = fault_sim(&["run", "--size", "4MiB"]);
    let table = String::from_utf8_lossy(&out.stdout);
    let rows = table.lines().filter_map(|line| line.strip_prefix("  "));
    let labels: Vec<_> = rows.filter_map(|row| row.trim_start().split("   ").next()).collect();
    assert!(labels.len() > 30, "{table}");
    for label in labels {
        // Quantiles share a row of the page.
        let title = label.trim_end_matches(" p50").trim_end_matches(" p99").trim_end_matches(" max");
        assert!(page.contains(&format!("| {title}")), "docs/counters.md does not explain the row {label:?}");
    }
}

/// A reader that closes the pipe early is no error; a full disk is one, in a sentence.
#[test]
fn standard_output_that_takes_nothing() {
    use std::process::{Command, Stdio};
    let run = |stdout: Stdio| {
        let mut command = Command::new(env!("CARGO_BIN_EXE_fault-sim"));
        command.args(["run", "--json", "--size", "4MiB"]).stdout(stdout).stderr(Stdio::piped());
        command.spawn().expect("the built program starts")
    };
    let mut child = run(Stdio::piped());
    drop(child.stdout.take());
    let out = child.wait_with_output().expect("it ends");
    assert_eq!(
        (out.status.code(), out.stderr.len()),
        (Some(0), 0),
        "{}",
        String::from_utf8_lossy(&out.stderr)
    );
    let full = std::fs::File::options().write(true).open("/dev/full").expect("a device that is always full");
    let out = run(full.into()).wait_with_output().expect("it ends");
    let sentence = String::from_utf8_lossy(&out.stderr);
    assert_eq!(out.status.code(), Some(1), "{sentence}");
    assert!(sentence.lines().count() == 1 && sentence.contains("standard output"), "{sentence}");
}
