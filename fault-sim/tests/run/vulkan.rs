//! The same workloads in compute shaders, on a real Vulkan device (`GRANULE_VULKAN_DEVICE` names it; else any).

use super::{WORKLOADS, fault_sim, number, run_json};

/// The words that choose the device; `None`, with the reason, where there is none. In CI that fails.
fn device() -> Option<Vec<String>> {
    let mut words = vec!["--backend".to_owned(), "vulkan".to_owned()];
    if let Ok(name) = std::env::var("GRANULE_VULKAN_DEVICE") {
        words.extend(["--device".to_owned(), name]);
    }
    let tried = fault_sim(
        &[&["run", "--size", "1MiB"][..], &words.iter().map(String::as_str).collect::<Vec<_>>()].concat(),
    );
    if tried.status.code() != Some(2) {
        return Some(words);
    }
    let why = String::from_utf8_lossy(&tried.stderr);
    let on_ci = std::env::var("CI").is_ok_and(|value| !matches!(value.as_str(), "" | "0" | "false"));
    assert!(!on_ci, "{why}");
    println!("skipped: {why}");
    None
}

fn run(device: &[String], words: &[&str]) -> serde_json::Value {
    let all: Vec<&str> = device.iter().map(String::as_str).chain(words.iter().copied()).collect();
    let report = run_json(&all, 0);
    assert_eq!(report["verified"], true, "{words:?}");
    assert_eq!(report["backend"], "vulkan");
    assert!(number(&report, "faults") > 0, "the device never faulted: {words:?}: {report}");
    report
}

/// Every workload, with memory from everywhere, on devices that are too small, half as large and large enough.
#[test]
fn every_workload_from_everywhere() {
    let Some(device) = device() else { return };
    for workload in WORKLOADS {
        for (source, memory, mode) in [
            ("malloc", "2MiB", "translation"),
            ("malloc", "4MiB", "sparse"),
            ("malloc", "16MiB", "translation"),
            ("mmap", "2MiB", "sparse"),
            ("mmap", "16MiB", "sparse"),
        ] {
            let words =
                ["--workload", workload, "--alloc", source, "--size", "8MiB", "--device-memory", memory];
            let words = [&words[..], &["--mode", mode]].concat();
            let report = run(&device, &words);
            assert!(number(&report, "migrated_to_device_pages") > 0, "{words:?}: {report}");
        }
        let words =
            ["--workload", workload, "--alloc", "userptr", "--size", "4MiB", "--device-memory", "2MiB"];
        run(&device, &words);
        let report = run(&device, &["--workload", workload, "--alloc", "library", "--size", "4MiB"]);
        let used = number(&report, "linked_pages") + number(&report, "migrated_to_device_pages");
        assert!(used >= 1024, "{report}");
    }
}

#[test]
fn every_granularity() {
    let Some(device) = device() else { return };
    for granularity in ["4KiB", "64KiB", "2MiB"] {
        let words = ["--workload", "sum", "--granularity", granularity, "--size", "8MiB"];
        run(&device, &words);
    }
}

/// With nothing but what was missed going to the device, each page of the data faults once.
#[test]
fn faults_are_the_pages_touched() {
    let Some(device) = device() else { return };
    for workload in ["ping-pong", "atomic"] {
        let words = ["--workload", workload, "--granularity", "4KiB", "--alloc", "mmap", "--size", "4MiB"];
        let report = run(&device, &words);
        // Each turn of ping-pong finds its pages in RAM again; the CPU counts in the same pages meanwhile.
        let pages = number(&report, "pages_touched");
        let unique = number(&report, "faults_unique");
        assert!(unique >= pages, "{unique} faults on {pages} pages: {report}");
        if workload == "ping-pong" {
            assert_eq!(unique, 4 * pages, "{report}");
        }
    }
}

#[test]
fn a_flipped_byte_is_found() {
    let Some(device) = device() else { return };
    for workload in ["sum", "list"] {
        let words = ["--workload", workload, "--alloc", "mmap", "--size", "4MiB", "--flip-byte"];
        let all: Vec<&str> = device.iter().map(String::as_str).chain(words).collect();
        let report = run_json(&all, 1);
        assert!(report["error"].as_str().is_some_and(|error| error.contains(" at 0x")), "{report}");
    }
}

#[test]
fn a_device_that_is_not_there_is_refused() {
    if device().is_none() {
        return;
    }
    for name in ["99", "no such device"] {
        let out = fault_sim(&["run", "--backend", "vulkan", "--device", name]);
        let sentence = String::from_utf8_lossy(&out.stderr);
        assert_eq!(out.status.code(), Some(2), "{sentence}");
        assert_eq!(sentence.lines().count(), 1, "{sentence}");
        assert!(sentence.contains(name) && sentence.contains("there are: 0 ("), "{sentence}");
    }
}

#[test]
fn without_a_driver_there_is_one_sentence() {
    let program = env!("CARGO_BIN_EXE_fault-sim");
    let out = std::process::Command::new(program)
        .args(["run", "--backend", "vulkan"])
        .env("VK_DRIVER_FILES", "/nowhere.json")
        .env("VK_ICD_FILENAMES", "/nowhere.json")
        .output()
        .expect("the built program starts");
    let sentence = String::from_utf8_lossy(&out.stderr);
    assert_eq!(out.status.code(), Some(2), "{sentence}");
    let (loader, driver) = ("there is no Vulkan loader here", "there is no Vulkan driver here");
    assert!(sentence.starts_with(loader) || sentence.starts_with(driver), "{sentence}");
    assert_eq!(sentence.lines().count(), 1, "{sentence}");
}
