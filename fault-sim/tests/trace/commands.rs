//! The commands as a person runs them.

use super::support::{Folder, fails, object, said};

#[test]
fn from_a_pattern_to_a_table() {
    let folder = Folder::new();
    let line = said(&folder, &["gen", "stream", "--size", "16MiB", "-o", "s.parquet"]);
    assert!(line.starts_with("s.parquet: 16386 events over 16.0 MiB, seed 1"), "{line}");
    let table = said(&folder, &["replay", "s.parquet"]);
    for word in
        ["nvidia", "gpusvm", "amd", "granule", "device memory 8.0 MiB (50.0%)", "profile a100-sxm", "commit "]
    {
        assert!(table.contains(word), "no {word:?} in\n{table}");
    }
    let inspected = object(&folder, &["inspect", "s.parquet", "--json"]);
    assert_eq!(inspected["footprint_bytes"], 16 << 20);
    assert_eq!(inspected["first_touches"], 4096);
    assert_eq!(inspected["metadata"]["kind"], "accesses");
}

#[test]
fn every_option_of_gen_has_a_default() {
    let folder = Folder::new();
    said(&folder, &["gen"]);
    assert!(folder.file("stream.parquet").exists());
    let patterns = object(&folder, &["list", "patterns", "--json"]);
    let patterns = patterns["patterns"].as_array().expect("a list").clone();
    assert_eq!(patterns.len(), 9);
    for pattern in patterns {
        let name = pattern["name"].as_str().expect("a name");
        assert!(!pattern["about"].as_str().expect("a sentence").is_empty(), "{name}");
        let made = object(&folder, &["gen", name, "--size", "4MiB", "--faults", "500", "--json"]);
        assert_eq!(made["metadata"]["origin"], format!("gen {name}"));
    }
}

#[test]
fn the_same_seed_gives_the_same_bytes() {
    let folder = Folder::new();
    let trace = |name: &str, seed: &str| {
        let words = ["gen", "zipf", "--size", "8MiB", "--faults", "20000", "--cpu", "5%", "--unmap", "0.5%"];
        said(&folder, &[&words[..], &["--seed", seed, "-o", name]].concat());
        std::fs::read(folder.file(name)).expect("just written")
    };
    assert!(trace("a", "7") == trace("b", "7"));
    assert!(trace("a", "7") != trace("c", "8"));
    let replay = |seed: &str| {
        said(&folder, &["replay", "a", "--policy", "nvidia,random-4k,belady-4k", "--seed", seed, "--json"])
    };
    assert_eq!(replay("3"), replay("3"));
    let other = replay("4").replace("\"seed\":4", "\"seed\":3");
    assert_ne!(replay("3"), other);
}

#[test]
fn results_are_tables_json_or_csv_on_screen_or_in_a_file() {
    let folder = Folder::new();
    said(&folder, &["gen", "random", "--size", "8MiB", "-o", "t"]);
    let words = ["replay", "t", "--policy", "nvidia,nvidia+lru-2m", "--device-memory", "4MiB"];
    let json = object(&folder, &[&words[..], &["--json"]].concat());
    for key in ["commit", "trace", "trace_kind", "trace_commit", "trace_seed", "seed", "profile", "rows"] {
        assert!(!json[key].is_null(), "{key} is missing: {json}");
    }
    assert_eq!(json["device_memory_bytes"], 4 << 20);
    assert_eq!(json["rows"][1]["parts"], "nvidia-tree+lru-2m+nvidia-residency-590+batch-nvidia");
    let csv = said(&folder, &[&words[..], &["--csv"]].concat());
    let rows: Vec<_> = csv.lines().map(|line| line.split(',').count()).collect();
    assert_eq!(rows.len(), 3);
    assert!(rows.iter().all(|count| *count == rows[0] && *count > 50), "{csv}");
    assert!(said(&folder, &[&words[..], &["-o", "r.json"]].concat()).is_empty());
    let file = std::fs::read_to_string(folder.file("r.json")).expect("written");
    assert_eq!(serde_json::from_str::<serde_json::Value>(&file).expect("JSON"), json);
}

#[test]
fn two_results_are_compared() {
    let folder = Folder::new();
    said(&folder, &["gen", "random", "--size", "8MiB", "-o", "t"]);
    for (share, name) in [("50%", "a"), ("100%", "b")] {
        said(&folder, &["replay", "t", "--policy", "nvidia", "--device-memory", share, "-o", name]);
    }
    let table = said(&folder, &["compare", "a", "b"]);
    assert!(table.contains("device memory: 4194304 -> 8388608"), "{table}");
    assert!(table.contains("evictions") && table.contains("-100.0%"), "{table}");
    assert!(said(&folder, &["compare", "a", "a"]).contains("every number is the same"));
    let json = object(&folder, &["compare", "a", "b", "--json", "--all"]);
    assert!(json["differences"].as_array().expect("a list").len() > 50);
    std::fs::write(folder.file("c"), "{}").expect("written");
    fails(&folder, 2, &["compare", "a", "c"], "is no result");
    fails(&folder, 2, &["compare", "a", "d"], "cannot be read");
    said(&folder, &["replay", "t", "--policy", "lru-4k,lru-2m", "-o", "e"]);
    fails(&folder, 2, &["compare", "a", "e"], "no policy in common");
}

#[test]
fn every_policy_and_profile_of_the_list_can_be_played() {
    let folder = Folder::new();
    said(
        &folder,
        &["gen", "bfs", "--size", "8MiB", "--faults", "3000", "--cpu", "2%", "--unmap", "1%", "-o", "t"],
    );
    let names = |what: &str| -> Vec<String> {
        let list = object(&folder, &["list", what, "--json"]);
        let list = list[what].as_array().expect("a list").clone();
        list.iter().map(|row| row["name"].as_str().expect("a name").to_owned()).collect()
    };
    let policies = names("policies");
    assert!(policies.len() > 60, "{policies:?}");
    for profile in names("profiles") {
        let all = policies.join(",");
        let json = object(&folder, &["replay", "t", "--policy", &all, "--cost", &profile, "--json"]);
        assert_eq!(json["rows"].as_array().expect("rows").len(), policies.len());
    }
    // Every figure says where it comes from.
    let profiles = object(&folder, &["list", "profiles", "--json"]);
    for profile in profiles["profiles"].as_array().expect("a list") {
        let figures = profile["figures"].as_array().expect("figures");
        assert!(profile["name"] == "ideal" || !figures.is_empty(), "{profile}");
    }
}

#[test]
fn what_cannot_be_done_is_refused_in_one_sentence() {
    let folder = Folder::new();
    said(&folder, &["gen", "random", "--size", "8MiB", "-o", "t"]);
    fails(&folder, 2, &["replay", "t", "--policy", "nvidia+nothing"], "there is no policy \"nothing\"");
    fails(&folder, 2, &["replay", "t", "--cost", "free"], "there is no profile and no file \"free\"");
    fails(&folder, 2, &["replay", "t", "--device-memory", "1MiB"], "too small");
    assert_eq!(
        object(&folder, &["replay", "t", "--device-memory", "1%", "--json"])["device_memory_bytes"],
        4 << 20
    );
    fails(&folder, 2, &["replay", "t", "--device-memory", "half"], "such as 50%");
    fails(&folder, 2, &["replay", "t", "--outstanding", "0"], "at least one fault");
    fails(&folder, 2, &["replay", "t", "--json", "--csv"], "cannot be used with");
    fails(&folder, 1, &["replay", "t", "--policy", "nvidia", "-o", "no/such/folder"], "cannot be written");
    fails(&folder, 2, &["gen", "stream", "--size", "4KiB"], "at least 64KiB");
    fails(&folder, 2, &["gen", "stream", "--cpu", "60%", "--unmap", "60%"], "at most 100");
    fails(&folder, 2, &["gen", "spiral"], "possible values: stream, stride");
    fails(&folder, 1, &["gen", "stream", "-o", "no/such/folder"], "cannot be created");
}

/// The full disk: what was written stays, and the sentence says which file.
#[test]
fn a_full_disk_is_an_error() {
    let folder = Folder::new();
    if !std::path::Path::new("/dev/full").exists() {
        return;
    }
    std::os::unix::fs::symlink("/dev/full", folder.file("t.part")).expect("a link");
    fails(&folder, 1, &["gen", "stream", "--size", "8MiB", "-o", "t"], "t.part cannot be written");
    assert!(!folder.file("t").exists());
}

/// A result or a trace goes into a pipe or a device, never in its place.
#[test]
fn what_is_no_plain_file_is_not_replaced() {
    let folder = Folder::new();
    std::os::unix::fs::symlink("/dev/full", folder.file("full")).expect("a link");
    fails(&folder, 1, &["gen", "stream", "--size", "8MiB", "-o", "full"], "full cannot be written");
    said(&folder, &["gen", "stream", "--size", "8MiB", "-o", "t"]);
    fails(&folder, 1, &["inspect", "t", "-o", "full"], "cannot be written to full");
    let there = std::fs::metadata(folder.file("full")).expect("it is still there");
    assert!(!there.is_file(), "the device stands where it stood");
    let through = object(&folder, &["inspect", "t", "-o", "/dev/stdout"]);
    assert_eq!(through, object(&folder, &["inspect", "t", "--json"]));
    std::os::unix::fs::symlink("t", folder.file("link")).expect("a link");
    said(&folder, &["gen", "stream", "--size", "16MiB", "-o", "link"]);
    let link = std::fs::symlink_metadata(folder.file("link")).expect("it is still there");
    assert!(link.is_symlink(), "what is behind a link is replaced, not the link");
    assert!(!folder.file("t.part").exists());
}

/// Every number that `replay` prints is explained.
#[test]
fn the_page_about_replay_is_complete() {
    let folder = Folder::new();
    said(&folder, &["gen", "stream", "--size", "8MiB", "--faults", "100", "-o", "t"]);
    let json = object(&folder, &["replay", "t", "--policy", "nvidia", "--json"]);
    let page = include_str!("../../../docs/replay.md");
    let metrics = json["rows"][0]["metrics"].as_object().expect("numbers").keys();
    for key in json.as_object().expect("an object").keys().chain(metrics) {
        assert!(page.contains(&format!("`{key}`")), "docs/replay.md does not explain `{key}`");
    }
    let policies = include_str!("../../../docs/policies.md");
    let list = object(&folder, &["list", "policies", "--json"]);
    for row in list["policies"].as_array().expect("a list") {
        let name = row["name"].as_str().expect("a name");
        assert!(policies.contains(&format!("`{name}`")), "docs/policies.md does not describe `{name}`");
    }
}

/// What is listed adds up to what is counted.
#[test]
fn allocations_and_blocks_are_listed() {
    let folder = Folder::new();
    said(&folder, &["gen", "gemm", "--size", "24MiB", "--faults", "30000", "-o", "t"]);
    let words = ["replay", "t", "--policy", "nvidia,lru-4k", "--allocations", "9", "--blocks", "99"];
    let result = object(&folder, &[&words[..], &["--json"]].concat());
    for row in result["rows"].as_array().expect("rows") {
        let sum = |list: &str, key: &str| -> u64 {
            let places = row[list].as_array().expect("a list").iter();
            places.map(|place| place[key].as_u64().expect("a number")).sum()
        };
        for list in ["allocations", "blocks"] {
            for (key, metric) in [
                ("faults", "faults_unique"),
                ("demand_bytes", "demand_bytes"),
                ("prefetch_bytes", "prefetch_bytes"),
                ("evictions", "evictions"),
            ] {
                assert_eq!(
                    sum(list, key),
                    row["metrics"][metric].as_u64().expect("a number"),
                    "{list} {key}"
                );
            }
        }
        assert_eq!(row["allocations"].as_array().map(Vec::len), Some(3), "two factors and a product");
    }
    let table = said(&folder, &words);
    assert!(table.contains("allocation  ") && table.contains("0x400000000000"), "{table}");
    let page = include_str!("../../../docs/replay.md");
    for key in result["rows"][0]["blocks"][0].as_object().expect("an object").keys() {
        assert!(page.contains(&format!("`{key}`")), "docs/replay.md does not explain `{key}`");
    }
}
