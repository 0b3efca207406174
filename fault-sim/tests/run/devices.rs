//! `fault-sim devices` names what `run` takes.

use serde_json::Value;

use super::fault_sim;

fn devices(driver_files: Option<&str>) -> Value {
    let mut program = std::process::Command::new(env!("CARGO_BIN_EXE_fault-sim"));
    program.args(["devices", "--json"]);
    if let Some(files) = driver_files {
        program.env("VK_DRIVER_FILES", files).env("VK_ICD_FILENAMES", files);
    }
    let out = program.output().expect("the built program starts");
    assert_eq!(out.status.code(), Some(0), "{}", String::from_utf8_lossy(&out.stderr));
    serde_json::from_slice(&out.stdout).expect("one JSON object")
}

fn of<'a>(all: &'a Value, backend: &str) -> Vec<&'a Value> {
    let list = all["devices"].as_array().expect("a list of devices");
    list.iter().filter(|device| device["backend"] == backend).collect()
}

#[test]
fn the_software_device_is_always_there() {
    let all = devices(None);
    let software = of(&all, "software");
    assert_eq!(software.len(), 1);
    assert_eq!(software[0]["usable"], true);
}

/// By its index and by its name, whatever was listed as usable runs, and nothing else does.
#[test]
#[cfg(feature = "vulkan")]
fn what_is_listed_is_what_runs() {
    let all = devices(None);
    let vulkan = of(&all, "vulkan");
    if vulkan.is_empty() {
        let on_ci = std::env::var("CI").is_ok_and(|value| !matches!(value.as_str(), "" | "0" | "false"));
        assert!(!on_ci, "{all}");
        println!("skipped: {}", all["absent"]);
        return;
    }
    for (index, device) in vulkan.iter().enumerate() {
        assert_eq!(device["index"], index);
        assert_eq!(device["mode"].is_null(), device["usable"] == false, "{device}");
        assert!(device["why"].as_str().is_some_and(|why| why.len() > 10), "{device}");
        let name = device["name"].as_str().expect("a name");
        let first_of_its_name = vulkan.iter().position(|other| other["name"] == name) == Some(index);
        for meant in [Some(index.to_string()), first_of_its_name.then(|| name.to_owned())].iter().flatten() {
            let out = fault_sim(&["run", "--backend", "vulkan", "--size", "1MiB", "--device", meant]);
            let status = if device["usable"] == true { 0 } else { 2 };
            assert_eq!(out.status.code(), Some(status), "{meant}: {}", String::from_utf8_lossy(&out.stderr));
        }
    }
}

#[test]
fn a_backend_without_a_device_is_named_with_the_reason() {
    let all = devices(Some("/nowhere.json"));
    assert!(of(&all, "vulkan").is_empty());
    let absent = all["absent"].as_array().expect("a list");
    assert_eq!(absent.len(), 1, "{all}");
    assert_eq!(absent[0]["backend"], "vulkan");
    let why = absent[0]["why"].as_str().expect("a sentence");
    assert!(why.contains("Vulkan"), "{why}");
}

#[test]
fn the_table_says_the_same() {
    let out = fault_sim(&["devices"]);
    assert_eq!(out.status.code(), Some(0));
    let table = String::from_utf8(out.stdout).expect("text");
    assert!(table.starts_with("software: software\n"), "{table}");
    for device in of(&devices(None), "vulkan") {
        let line = format!("vulkan {}: {}", device["index"], device["name"].as_str().expect("a name"));
        assert!(table.contains(&line), "{table}");
    }
}
