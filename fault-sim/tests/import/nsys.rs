//! The SQLite export of Nsight Systems. The fixture is typed from the description of the tables, as SQL.

use std::path::{Path, PathBuf};

use fault_sim::import::{ImportError, Settings};
use fault_sim::trace::{Access, Event, EventKind, MigrationCause, TraceKind};
use rusqlite::Connection;

use super::support::{Folder, fails, fault, fixture, imported, object, said};

/// A data base of the fixture, changed by more SQL.
fn changed(folder: &Folder, name: &str, change: &str) -> PathBuf {
    let path = folder.file(name);
    let base = Connection::open(&path).expect("a new data base");
    base.execute_batch(&String::from_utf8(fixture("nsys.sql")).expect("a text")).expect("good SQL");
    base.execute_batch(change).expect("good SQL");
    path
}

fn read(path: &Path) -> (fault_sim::import::Report, Vec<Event>) {
    imported(path, &Settings::default()).unwrap_or_else(|error| panic!("{error}"))
}

fn refused(path: &Path) -> String {
    match imported(path, &Settings::default()) {
        Ok((report, _)) => panic!("it is taken: {report:?}"),
        Err(error) => error.to_string(),
    }
}

fn moved(time: u64, page: u64, pages: u32, cause: MigrationCause, to: u16) -> Event {
    Event { detail: cause as u8, engine: to, ..Event::range(time, page, pages, EventKind::Migration) }
}

#[test]
fn copies_and_faults_in_the_order_of_time() {
    let folder = Folder::new();
    let (report, events) = read(&changed(&folder, "t", ""));
    let wanted = [
        fault(4_900, 0x7f12a5c10, Access::Write, 0),
        fault(4_900, 0x7f12a5c11, Access::Read, 0),
        moved(5_000, 0x7f12a5c10, 2, MigrationCause::Fault, 1),
        moved(6_000, 0x7f12a5c12, 14, MigrationCause::Prefetch, 1),
        fault(60_000, 0x7f12a6000, Access::Atomic, 0),
        moved(70_000, 0x7f12a5e00, 16, MigrationCause::User, 1),
        Event::cpu(79_000, 0x7f12a5c10, Access::Read),
        moved(80_000, 0x7f12a5c10, 1, MigrationCause::Fault, 0),
        moved(90_000, 0x7f12a5a00, 512, MigrationCause::Eviction, 0),
        moved(99_000, 0x7f12a5e00, 1, MigrationCause::AccessCounter, 2),
    ];
    assert_eq!(events, wanted);
    assert_eq!((report.format, report.kind), ("nsys", TraceKind::Faults));
    assert_eq!((report.lines, report.other, report.merged), (11, 1, 2));
    assert_eq!(report.origin, "nsys, NVIDIA A100-PCIE-40GB");
    let note = "copies: 3 to a device (128.0 KiB), 2 to system memory (2.0 MiB), 1 between devices (4.0 KiB); \
                because of the program 1, faults 2, prefetches 1, evictions 1, access counters 1";
    assert!(report.notes[0] == note && report.notes.len() == 1, "{:?}", report.notes);
}

#[test]
fn the_data_base_of_the_repository_is_the_text() {
    let folder = Folder::new();
    let path = folder.with("t", fixture("nsys.sqlite"));
    assert_eq!(read(&path).1, read(&changed(&folder, "u", "")).1);
}

/// One command from the file to the table.
#[test]
fn from_the_file_to_a_table() {
    let folder = Folder::new();
    folder.with("t.sqlite", fixture("nsys.sqlite"));
    let table = said(&folder, &["replay", "t.sqlite"]);
    assert!(
        table.contains("a100-pcie") && table.contains("biased: the trace holds only faults under nvidia"),
        "{table}"
    );
    let json = object(&folder, &["replay", "t.sqlite", "--policy", "nvidia", "--json"]);
    let metrics = &json["rows"][0]["metrics"];
    assert_eq!((metrics["not_replayed"].as_u64(), metrics["cpu_faults"].as_u64()), (Some(6), Some(1)));
}

/// Without the tables of faults, they are rebuilt from what moved because of faults.
#[test]
fn faults_that_were_not_recorded_are_rebuilt() {
    let folder = Folder::new();
    let none = "DROP TABLE CUDA_UM_GPU_PAGE_FAULT_EVENTS; DELETE FROM CUDA_UM_CPU_PAGE_FAULT_EVENTS;";
    let (report, events) = read(&changed(&folder, "t", none));
    let faults: Vec<_> = events.iter().filter(|event| event.kind != EventKind::Migration).copied().collect();
    let wanted = [
        fault(5_000, 0x7f12a5c10, Access::Read, 0),
        fault(5_000, 0x7f12a5c11, Access::Read, 0),
        Event::cpu(80_000, 0x7f12a5c10, Access::Read),
    ];
    assert_eq!(faults, wanted);
    let said = |what: &str| report.notes.iter().any(|note| note.contains(what));
    assert!(
        said("--cuda-um-gpu-page-faults=true") && said("--cuda-um-cpu-page-faults=true"),
        "{:?}",
        report.notes
    );
    assert!(said("3 faults are rebuilt") && said("pages that had no contents before"), "{:?}", report.notes);
    // Only copies that no fault caused: there is nothing to rebuild, and nothing is guessed.
    let copies = format!("{none} DELETE FROM CUPTI_ACTIVITY_KIND_MEMCPY WHERE migrationCause = 2;");
    let (report, events) = read(&changed(&folder, "u", &copies));
    assert_eq!((report.kind, events.len()), (TraceKind::Migrations, 4));
}

#[test]
fn files_without_unified_memory_are_answered_with_the_command() {
    let folder = Folder::new();
    let explicit = "DROP TABLE CUDA_UM_GPU_PAGE_FAULT_EVENTS; DROP TABLE CUDA_UM_CPU_PAGE_FAULT_EVENTS;
                    DELETE FROM CUPTI_ACTIVITY_KIND_MEMCPY WHERE copyKind > 10;";
    let view = "DROP TABLE CUDA_UM_GPU_PAGE_FAULT_EVENTS; DROP TABLE CUDA_UM_CPU_PAGE_FAULT_EVENTS;
                ALTER TABLE CUPTI_ACTIVITY_KIND_MEMCPY RENAME TO other;
                CREATE VIEW CUPTI_ACTIVITY_KIND_MEMCPY AS SELECT * FROM other;";
    for (name, change) in [("a", explicit), ("b", view)] {
        let sentence = refused(&changed(&folder, name, change));
        assert!(sentence.contains("holds no copy or fault of unified memory"), "{sentence}");
        assert!(sentence.contains("nsys profile --trace=cuda"), "{sentence}");
    }
    let other = folder.file("c");
    Connection::open(&other)
        .expect("new")
        .execute_batch("CREATE TABLE t (a); INSERT INTO t VALUES (1);")
        .expect("SQL");
    assert!(refused(&other).contains("nsys profile --trace=cuda"));
    // The recording itself is known by its name only.
    folder.with("run.nsys-rep", b"\x01\0\x02\0not a data base");
    fails(&folder, 2, &["replay", "run.nsys-rep"], "`nsys export --type sqlite run.nsys-rep`");
}

#[test]
fn bad_rows_are_named() {
    let folder = Folder::new();
    let copies = "CUPTI_ACTIVITY_KIND_MEMCPY";
    let cases = [
        (copies, "migrationCause = 9", "migrationCause = 9"),
        (copies, "migrationCause = NULL", "migrationCause is missing"),
        (copies, "bytes = 100", "whole pages"),
        (copies, "bytes = 0", "covers no byte"),
        (copies, "bytes = 1 << 40", "at most 1 GiB"),
        (copies, "bytes = -4096", "zero or more"),
        (copies, "bytes = 'many'", "not an integer"),
        (copies, "start = -1", "zero or more"),
        (copies, "start = 1.5", "not an integer"),
        (copies, "virtualAddress = NULL", "the address is missing"),
        (copies, "virtualAddress = 1", "whole pages"),
        (copies, "virtualAddress = -4096", "beyond the end of the address space"),
        (copies, "deviceId = 70000", "the number of a device"),
        ("CUDA_UM_GPU_PAGE_FAULT_EVENTS", "faultAccessType = 0", "faultAccessType = 0"),
        ("CUDA_UM_GPU_PAGE_FAULT_EVENTS", "numberOfPageFaults = 'x'", "not an integer"),
        ("CUDA_UM_GPU_PAGE_FAULT_EVENTS", "address = x'00'", "not an integer"),
    ];
    for (at, (table, change, why)) in cases.iter().enumerate() {
        let path =
            changed(&folder, &at.to_string(), &format!("UPDATE {table} SET {change} WHERE rowid = 2;"));
        let sentence = refused(&path);
        assert!(
            sentence.contains(&format!("row 2 of {table}")) && sentence.contains(why),
            "{change}: {sentence}"
        );
        let settings = Settings { lenient: true, ..Settings::default() };
        let (report, events) = imported(&path, &settings).unwrap_or_else(|error| panic!("{error}"));
        assert_eq!((report.skipped, events.len()), (1, 9), "{change}");
    }
    let gone = format!("ALTER TABLE {copies} DROP COLUMN migrationCause;");
    assert!(refused(&changed(&folder, "gone", &gone)).contains("has no column migrationCause"));
}

#[test]
fn a_second_process_must_be_asked_for() {
    let folder = Folder::new();
    let other = "UPDATE CUPTI_ACTIVITY_KIND_MEMCPY SET globalPid = 4322 << 24 WHERE copyKind = 13;";
    let path = changed(&folder, "t", other);
    assert!(refused(&path).contains("process 4322 after process 4321"));
    let settings = Settings { pids: "4321".parse().expect("a number"), ..Settings::default() };
    let (report, events) = imported(&path, &settings).expect("one process");
    assert_eq!((report.elsewhere, events.len()), (1, 9));
}

/// Cut off anywhere, a data base is refused before SQLite reads zeros for what is missing.
#[test]
fn a_data_base_that_is_cut_off_is_refused() {
    let folder = Folder::new();
    let whole = fixture("nsys.sqlite");
    for length in (16..whole.len()).step_by(251) {
        let path = folder.with("cut", &whole[..length]);
        match imported(&path, &Settings::default()) {
            Err(ImportError::CutOff { .. }) => {}
            Err(other) => panic!("{length} bytes: {other}"),
            Ok(_) => panic!("{length} of {} bytes are taken for the whole", whole.len()),
        }
    }
}

/// SQLite quotes what it cannot read: one line of it is said.
#[test]
fn a_schema_that_means_nothing_is_said_in_one_line() {
    let folder = Folder::new();
    let broken = "PRAGMA writable_schema = ON;
                  UPDATE sqlite_master SET sql = 'CREATE TABLE' || char(10) || '`' || char(10) || hex(zeroblob(500))
                  WHERE name = 'StringIds';";
    let sentence = refused(&changed(&folder, "t", broken));
    assert!(sentence.contains("malformed database schema") && !sentence.contains('\n'), "{sentence}");
    assert!(sentence.len() < 500, "{sentence}");
}
