//! Sweeps: on any number of threads, in any number of parts, interrupted or not, the bytes are the same.

use std::io::{BufRead, BufReader, Write};
use std::path::Path;
use std::process::{Command, Stdio};

use super::support::{Folder, fails, fault_sim, object, said};

const GRID: [&str; 7] = [
    "--policy",
    "nvidia,random-4k,belady-2m,lru-64k",
    "--device-memory",
    "25%,50%,100%",
    "--set",
    "tree-threshold=25,75",
    "--seed=7",
];

fn traced(folder: &Folder) {
    said(folder, &["gen", "zipf", "--size", "24MiB", "--faults", "30000", "--cpu", "3%", "-o", "t"]);
}

fn swept(folder: &Folder, more: &[&str]) -> String {
    said(folder, &[&["sweep", "t"], &GRID[..], more].concat())
}

#[test]
fn threads_and_shards_change_no_byte() {
    let folder = Folder::new();
    traced(&folder);
    for form in ["--json", "--csv"] {
        let whole = swept(&folder, &[form, "--threads", "1"]);
        let rows = whole.lines().count() - usize::from(form == "--csv");
        // NVIDIA's tree with two thresholds, the others without.
        assert_eq!(rows, 3 * (2 + 3));
        assert_eq!(swept(&folder, &[form, "--threads", "4"]), whole);
        for count in [2, 4, 20] {
            let part = |index: usize| swept(&folder, &[form, "--shard", &format!("{index}/{count}")]);
            assert_eq!((1..=count).map(part).collect::<String>(), whole, "{form} in {count} parts");
        }
        swept(&folder, &[form, "-o", "r"]);
        assert_eq!(std::fs::read_to_string(folder.file("r")).expect("just written"), whole);
        assert!(!folder.file("r.rows").exists(), "the journal goes with the end");
    }
}

/// Each row is what `replay` says of the same setting, so that it can be made again.
#[test]
fn a_row_is_a_replay() {
    let folder = Folder::new();
    traced(&folder);
    let rows = swept(&folder, &["--json", "--outstanding", "64,256"]);
    assert_eq!(rows.lines().count(), 30);
    for line in rows.lines().step_by(4) {
        let row: serde_json::Value = serde_json::from_str(line).expect("one object per line");
        let text = |value: &serde_json::Value| value.to_string().trim_matches('"').to_owned();
        let mut words: Vec<String> =
            ["replay", "t", "--json", "--seed=7", "--policy"].map(str::to_owned).to_vec();
        words.push(text(&row["rows"][0]["policy"]));
        words.push(format!("--device-memory={}", row["device_memory_bytes"]));
        words.push(format!("--outstanding={}", row["outstanding"]));
        words.push(format!("--cost={}", text(&row["profile"])));
        for (name, value) in row["rows"][0]["parameters"].as_object().expect("an object") {
            words.push(format!("--set={name}={value}"));
        }
        let words: Vec<_> = words.iter().map(String::as_str).collect();
        assert_eq!(said(&folder, &words).trim_end(), line);
    }
}

/// Lines of a journal behind its header.
fn kept(path: &Path) -> Vec<String> {
    let text = std::fs::read_to_string(path).unwrap_or_default();
    text.lines().skip(1).map(str::to_owned).collect()
}

#[test]
fn an_interrupted_sweep_goes_on_from_there() {
    let folder = Folder::new();
    traced(&folder);
    let whole = swept(&folder, &["--json"]);
    let words = [&["sweep", "t"], &GRID[..], &["-o", "r", "--threads", "1"]].concat();
    let mut child = Command::new(env!("CARGO_BIN_EXE_fault-sim"))
        .args(&words)
        .current_dir(folder.file("."))
        .stderr(Stdio::null())
        .spawn()
        .expect("the built program starts");
    let journal = folder.file("r.rows");
    while kept(&journal).len() < 2 {
        assert!(child.try_wait().expect("it is ours").is_none() || folder.file("r").exists());
        if folder.file("r").exists() {
            break;
        }
        std::thread::yield_now();
    }
    child.kill().expect("it is ours");
    child.wait().expect("it is ours");
    if !folder.file("r").exists() {
        let done = kept(&journal);
        assert!(done.len() >= 2);
        // A torn last row, and one that a crash garbled.
        let text = std::fs::read_to_string(&journal).expect("it is there");
        let garbled = text.replacen("\"hits\":", "\"hots\":", 1);
        std::fs::write(&journal, &garbled[..garbled.len() - 20]).expect("it can be written");
    }
    said(&folder, &words);
    assert_eq!(std::fs::read_to_string(folder.file("r")).expect("just written"), whole);
    assert!(!journal.exists());
}

/// The rows that are there are taken over, and only from a sweep of the same trace.
#[test]
fn what_is_done_is_not_played_again_unless_the_trace_changed() {
    let folder = Folder::new();
    traced(&folder);
    // The result cannot get its name, so the rows stay.
    std::fs::create_dir(folder.file("r.part")).expect("the folder can be written");
    let words = [&["sweep", "t"], &GRID[..], &["-o", "r"]].concat();
    fails(&folder, 1, &words, "cannot be written to r");
    let rows = kept(&folder.file("r.rows"));
    assert_eq!(rows.len(), 15);
    // A row with another number of hits and its checksum in order would be believed; so the sums are looked at.
    assert!(
        rows.iter().all(|row| row.len() > 34 && row.as_bytes()[16] == b' ' && row.as_bytes()[33] == b' ')
    );
    let before = std::fs::read(folder.file("r.rows")).expect("it is there");
    fails(&folder, 1, &words, "cannot be written to r");
    assert!(std::fs::read(folder.file("r.rows")).expect("it is there") == before, "nothing was played");
    let mut trace = std::fs::OpenOptions::new().append(true).open(folder.file("t")).expect("it is there");
    trace.write_all(b"torn").expect("it can be written");
    fails(&folder, 1, &words, "cannot be written to r");
    let after = std::fs::read(folder.file("r.rows")).expect("it is there");
    assert_ne!(after, before, "rows of another trace are not taken over");
    std::fs::remove_dir(folder.file("r.part")).expect("it is empty");
    said(&folder, &words);
    assert_eq!(swept(&folder, &["--json"]), std::fs::read_to_string(folder.file("r")).expect("written"));
}

/// Without a file, rows come one by one and not at the end.
#[test]
fn rows_come_as_they_are_ready() {
    let folder = Folder::new();
    traced(&folder);
    let mut child = Command::new(env!("CARGO_BIN_EXE_fault-sim"))
        .args([&["sweep", "t"], &GRID[..], &["--json", "--threads", "1"]].concat())
        .current_dir(folder.file("."))
        .stdout(Stdio::piped())
        .spawn()
        .expect("the built program starts");
    let mut lines = BufReader::new(child.stdout.take().expect("it is piped")).lines();
    let first = lines.next().expect("a row").expect("text");
    child.kill().expect("it is ours");
    child.wait().expect("it is ours");
    assert!(whole_object(&first), "{first}");
}

fn whole_object(line: &str) -> bool {
    serde_json::from_str::<serde_json::Value>(line).is_ok()
}

#[test]
fn a_table_is_for_people_and_wrong_wishes_are_refused() {
    let folder = Folder::new();
    traced(&folder);
    let table = said(&folder, &["sweep", "t", "--policy", "nvidia", "--set", "batch-entries=64,256"]);
    assert_eq!(table.lines().count(), 1 + 4 * 2, "{table}");
    for word in ["policy", "device memory", "batch-entries=64", "17.1 MiB", "total_ns"] {
        assert!(table.contains(word), "no {word:?} in\n{table}");
    }
    fails(&folder, 2, &["sweep", "t", "--shard", "3/2"], "a shard is I/N");
    fails(&folder, 2, &["sweep", "t", "--device-memory", "50%,1MiB"], "too small");
    fails(&folder, 2, &["sweep", "t", "--outstanding", "0"], "at least one fault");
    fails(&folder, 2, &["sweep", "t", "--policy", "nothing"], "no policy");
    fails(&folder, 2, &["sweep", "t", "--set", "nothing=1"], "no parameter \"nothing\"");
    fails(&folder, 2, &["sweep", "t", "--cost", "nothing"], "no profile and no file");
    fails(&folder, 2, &["sweep", "absent"], "cannot be opened");
    fails(&folder, 2, &["sweep", "t", "-o", "no/such/folder"], "cannot be kept");
    fails(&folder, 2, &["replay", "t", "--set", "oracle-horizon=9"], "no policy of these looks at");
    fails(&folder, 2, &["replay", "t", "--set", "tree-threshold=1,2"], "one value");
    let out = fault_sim(&folder, &["sweep", "t", "--policy", "nvidia", "-o", "/dev/full"]);
    assert_eq!(out.status.code(), Some(1));
    let list = object(&folder, &["list", "parameters", "--json"]);
    assert_eq!(list["parameters"].as_array().map(Vec::len), Some(9));
}

/// The text between the fences of the page about sweeps, by number.
fn fence(number: usize) -> &'static str {
    include_str!("../../../docs/sweep.md").split("```").nth(2 * number + 1).expect("a fence")
}

/// GNU parallel's line and the job array, as they stand on the page, with a loop in the place of either.
#[test]
fn the_lines_for_clusters_work_as_written() {
    let folder = Folder::new();
    said(&folder, &["gen", "zipf", "--size", "8MiB", "--faults", "3000", "-o", "kv.parquet"]);
    let whole = said(&folder, &["sweep", "kv.parquet", "--csv"]);
    let parallel = fence(1).trim_start_matches("sh\n").to_owned();
    assert!(parallel.starts_with("parallel fault-sim sweep"), "{parallel}");
    let parallel = format!(
        "parallel() {{ words=(); while [ \"$1\" != ::: ]; do words+=(\"$1\"); shift; done; shift; \
         for value; do \"${{words[@]//\\{{\\}}/$value}}\"; done; }}\n{parallel}"
    );
    let array = fence(2).trim_start_matches("sh\n");
    assert!(array.contains("#SBATCH --array=1-16"), "{array}");
    std::fs::write(folder.file("sweep.sh"), array).expect("the folder can be written");
    let array = "srun() { \"$@\"; }; export -f srun; export SLURM_CPUS_PER_TASK=2; \
                 for SLURM_ARRAY_TASK_ID in $(seq 16); do export SLURM_ARRAY_TASK_ID; bash ./sweep.sh; done; \
                 cat $(seq -f part-%g.csv 16) > kv.csv";
    for script in [parallel.as_str(), array] {
        let program = Path::new(env!("CARGO_BIN_EXE_fault-sim")).parent().expect("a folder");
        let path = format!("{}:{}", program.display(), std::env::var("PATH").expect("a path"));
        let out = Command::new("bash")
            .args(["-euo", "pipefail", "-c", script])
            .env("PATH", path)
            .current_dir(folder.file("."))
            .output()
            .expect("bash starts");
        assert!(out.status.success(), "{script}: {}", String::from_utf8_lossy(&out.stderr));
        assert_eq!(std::fs::read_to_string(folder.file("kv.csv")).expect("just written"), whole);
        std::fs::remove_file(folder.file("kv.csv")).expect("it is there");
    }
}
