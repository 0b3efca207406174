//! Memory does not grow with the file. Measured in a process of its own: this test program, started again.

use std::io::Write;
use std::path::Path;
use std::process::Command;

use fault_sim::import::{Settings, import_to};
use fault_sim::progress::Progress;
use fault_sim::seed::word;

use super::support::Folder;

/// Names the file to import, in the process that is measured.
const FILE: &str = "FAULT_SIM_TEST_HUGE";
/// So much more may the larger file take: what the allocator keeps, not what the file holds.
const GROWTH_KIB: u64 = 24 << 10;
/// So much may it take in all: a row group of the writer, the window, the program.
const MOST_KIB: u64 = 192 << 10;

/// The most memory that this process had, in KiB.
fn peak_kib() -> u64 {
    let status = std::fs::read_to_string("/proc/self/status").expect("Linux");
    let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:")).expect("the peak");
    line.trim().trim_end_matches("kB").trim().parse().expect("a number")
}

/// The other end: does nothing unless it is started by [`peak_of`].
#[test]
fn import_and_say_the_peak() {
    let Some(path) = std::env::var_os(FILE) else { return };
    let path = Path::new(&path);
    let trace = path.with_extension("parquet");
    let (report, _) = import_to(path, &Settings::default(), &trace, &Progress::new()).expect("a good file");
    println!("events {} peak {}", report.events, peak_kib());
}

/// Events and peak of an import in a process of its own.
fn peak_of(path: &Path) -> (u64, u64) {
    let this = std::env::current_exe().expect("this program");
    let mut command = Command::new(this);
    command.args(["--exact", "huge::import_and_say_the_peak", "--nocapture"]).env(FILE, path);
    let out = command.output().expect("it starts");
    let text = String::from_utf8_lossy(&out.stdout);
    let words: Vec<_> = text.split_whitespace().collect();
    let number = |name: &str| {
        let at = words.iter().position(|word| *word == name)?;
        words.get(at + 1)?.parse().ok()
    };
    match (number("events"), number("peak")) {
        (Some(events), Some(peak)) => (events, peak),
        _ => panic!("{text}{}", String::from_utf8_lossy(&out.stderr)),
    }
}

fn bounded(small: &Path, large: &Path, least_events: u64) {
    let (few, small_kib) = peak_of(small);
    let (many, large_kib) = peak_of(large);
    assert!(many >= least_events && few * 4 <= many, "{few} and {many} events");
    assert!(
        large_kib < small_kib + GROWTH_KIB,
        "{few} events: {small_kib} KiB; {many} events: {large_kib} KiB"
    );
    assert!(large_kib < MOST_KIB, "{large_kib} KiB");
}

#[test]
fn a_long_text() {
    let folder = Folder::new();
    let write = |name: &str, loads: u64| {
        let path = folder.file(name);
        let mut file =
            std::io::BufWriter::new(std::fs::File::create(&path).expect("the folder can be written"));
        for at in 0..loads {
            let address = (word(1, at) % 4096) << 12;
            writeln!(file, "I  401000,4\n L {address:x},8").expect("the disk has room");
        }
        file.flush().expect("the disk has room");
        path
    };
    // Both fill a row group of the writer, which is what it holds.
    bounded(&write("small", 600_000), &write("large", 3_000_000), 2_900_000);
}

#[test]
fn a_large_data_base() {
    let folder = Folder::new();
    let write = |name: &str, rows: u64| {
        let path = folder.file(name);
        let mut base = rusqlite::Connection::open(&path).expect("a new data base");
        let all = base.transaction().expect("a transaction");
        all.execute_batch(
            "CREATE TABLE CUPTI_ACTIVITY_KIND_MEMCPY (start INTEGER, bytes INTEGER, copyKind INTEGER,
             migrationCause INTEGER, virtualAddress INTEGER, globalPid INTEGER)",
        )
        .expect("good SQL");
        {
            let insert = "INSERT INTO CUPTI_ACTIVITY_KIND_MEMCPY VALUES (?1, 4096, 11, 2, ?2, 0)";
            let mut insert = all.prepare(insert).expect("good SQL");
            for at in 0..rows {
                // Far from the order of time, so that all must be sorted.
                let time = (word(2, at) >> 1) as i64;
                let address = ((word(1, at) % 4096) << 12) as i64;
                insert.execute([time, address]).expect("a row");
            }
        }
        all.commit().expect("the disk has room");
        path
    };
    // A fault and a migration of each row.
    bounded(&write("small", 300_000), &write("large", 1_200_000), 2_400_000);
}
