//! Every workload, with memory from everywhere, on devices that are too small, half as large and large enough.

use super::{SOURCES, number, run_json};

const SIZE: u64 = 8 << 20;

/// Runs a workload over every source of memory with device memory of 25, 50 and 200 % of the data.
fn everywhere(workload: &str, size_bytes: u64) {
    for source in SOURCES {
        for percent in [25, 50, 200] {
            let size = size_bytes.to_string();
            let memory = (size_bytes * percent / 100).next_multiple_of(2 << 20).to_string();
            let words =
                ["--workload", workload, "--alloc", source, "--size", &size, "--device-memory", &memory];
            let report = run_json(&words, 0);
            assert_eq!(report["verified"], true, "{words:?}");
            assert!(number(&report, "faults") > 0, "the device never faulted: {words:?}: {report}");
            assert_eq!(number(&report, "iommu_errors"), 0, "{words:?}: {report}");
            let used = number(&report, "migrated_to_device_bytes") + number(&report, "linked_pages") * 4096;
            assert!(used > 0, "nothing was reached: {words:?}: {report}");
        }
    }
}

#[test]
fn saxpy() {
    everywhere("saxpy", SIZE);
}

#[test]
fn sum() {
    everywhere("sum", SIZE);
}

#[test]
fn histogram() {
    everywhere("histogram", SIZE);
}

#[test]
fn list() {
    everywhere("list", SIZE);
}

#[test]
fn bfs() {
    everywhere("bfs", SIZE);
}

#[test]
fn ping_pong() {
    everywhere("ping-pong", SIZE);
}

#[test]
fn atomic() {
    everywhere("atomic", SIZE);
}

#[test]
fn every_granularity_works() {
    for granularity in ["4KiB", "64KiB", "2MiB"] {
        for source in SOURCES {
            let words = ["--granularity", granularity, "--alloc", source, "--size", "4MiB", "--engines", "3"];
            assert_eq!(run_json(&words, 0)["verified"], true, "{words:?}");
        }
    }
}

/// Both ways of taking pages from the CPU give the same result.
#[test]
fn both_ways_of_taking_work() {
    for workload in super::WORKLOADS {
        let words =
            ["--workload", workload, "--take", "write-protect", "--size", "4MiB", "--device-memory", "2MiB"];
        let report = run_json(&words, 0);
        assert_eq!(report["verified"], true, "{words:?}");
        assert!(number(&report, "migrated_to_device_pages") > 0, "{words:?}: {report}");
    }
}

/// What fits on the device goes there: at least 90 % of the pages.
#[test]
fn streams_migrate() {
    for workload in ["sum", "saxpy", "histogram"] {
        let size = 16u64 << 20;
        for source in SOURCES {
            let words =
                ["--workload", workload, "--alloc", source, "--size", "16MiB", "--device-memory", "32MiB"];
            let report = run_json(&words, 0);
            let migrated = number(&report, "migrated_to_device_bytes");
            assert!(
                migrated * 10 >= size * 9,
                "{words:?}: only {migrated} of {size} bytes migrated: {report}"
            );
            let back = number(&report, "migrated_to_ram_bytes");
            assert!(back * 10 >= size * 9, "{words:?}: the CPU read it all, but only {back} bytes came back");
        }
    }
}

/// A device a quarter as large as the data evicts, and loses nothing.
#[test]
fn a_small_device_evicts() {
    let report = run_json(&["--workload", "sum", "--size", "16MiB", "--device-memory", "4MiB"], 0);
    assert!(number(&report, "evictions") >= 4, "{report}");
    assert_eq!(report["verified"], true);
}

/// The same pages go to and fro: four turns of the device, so at least three times back.
#[test]
fn ping_pong_moves_every_turn() {
    let report = run_json(&["--workload", "ping-pong", "--size", "4MiB", "--device-memory", "16MiB"], 0);
    let (there, back) =
        (number(&report, "migrated_to_device_bytes"), number(&report, "migrated_to_ram_bytes"));
    assert!(there >= 3 * (4 << 20) && back >= 3 * (4 << 20), "{there} bytes there, {back} back: {report}");
}

/// In the mode of a process without rights every workload gives the same result; what nobody named stays, and what was
/// named moves.
#[test]
fn user_mode_only_moves_what_was_named() {
    for workload in super::WORKLOADS {
        for source in SOURCES {
            for take in ["move", "write-protect"] {
                let words = [
                    "--workload",
                    workload,
                    "--alloc",
                    source,
                    "--take",
                    take,
                    "--size",
                    "4MiB",
                    "--user-mode-only",
                ];
                let report = run_json(&words, 0);
                assert_eq!(report["verified"], true, "{words:?}");
                assert_eq!(report["user_mode_only"], true, "{words:?}");
                let moved = number(&report, "migrated_to_device_pages");
                let named = ["library", "userptr"].contains(&source);
                assert_eq!(moved > 0, named, "{words:?}: {moved} pages moved: {report}");
            }
        }
    }
}
