//! Comma-separated rows, and what holds for every format: the command, the trace it writes, and foreign files opened
//! directly.

use fault_sim::trace::{Access, Event, TraceKind};

use super::support::{Folder, fails, fault_sim, lenient, object, read, refused, said, text};

const GOOD: &str =
    "time_us,address,access,engine\n1,0x7000,read,3\n2.5,28672,W,4\n# three\n\n4,0xfff,atomic,0\n";

fn good() -> Vec<Event> {
    vec![
        Event::access(1000, 7, Access::Read, 3),
        Event::access(2500, 7, Access::Write, 4),
        Event::access(4000, 0, Access::Atomic, 0),
    ]
}

#[test]
fn rows_are_touches() {
    let folder = Folder::new();
    let (report, events) = text(&folder, GOOD);
    assert_eq!(events, good());
    assert_eq!((report.format, report.kind, report.times), ("csv", TraceKind::Accesses, "microseconds"));
    assert_eq!((report.lines, report.other, report.skipped, report.events), (6, 3, 0, 3));
    assert_eq!((report.first_ns, report.last_ns), (1000, 4000));
    // Without a header, with Windows line ends, and without an end to the last line.
    let (report, events) = text(&folder, "5,0x1000,p\r\n6,0x2000,2");
    assert_eq!(events, [Event::access(5, 1, Access::Prefetch, 0), Event::access(6, 2, Access::Write, 0)]);
    assert_eq!(report.times, "nanoseconds");
}

#[test]
fn rows_out_of_order_are_put_in_order() {
    let folder = Folder::new();
    let (report, events) = text(&folder, "time,address,access\n9,0x1000,r\n3,0x2000,r\n");
    assert_eq!(events.iter().map(|event| event.time_ns).collect::<Vec<_>>(), [3, 9]);
    assert_eq!(report.late, 0);
}

#[test]
fn bad_rows_are_errors_with_their_number() {
    let folder = Folder::new();
    let head = "time,address,access\n1,0x1000,r\n";
    for (row, why) in [
        ("1,0x1000\n", "2 fields instead of time,address,access"),
        ("1,0x1000,r,1\n", "4 fields instead of time,address,access"),
        ("x,0x1000,r\n", "time is \"x\""),
        ("-1,0x1000,r\n", "time is \"-1\""),
        ("18446744073709551616,0x1000,r\n", "time is"),
        ("1,1000z,r\n", "address is \"1000z\""),
        ("1,7f00,r\n", "address is \"7f00\""),
        ("1,0x10000000000000000,r\n", "address is"),
        ("1,0x1000,x\n", "access is \"x\""),
        ("1,0x1000,\u{fffd}\n", "access is"),
    ] {
        let sentence = refused(&folder, [head, row].concat());
        assert!(sentence.contains("line 3 of ") && sentence.contains(why), "{row:?}: {sentence}");
        let (report, events) = lenient(&folder, [head, row, "2,0x2000,w\n"].concat());
        assert_eq!((report.skipped, events.len()), (1, 2), "{row:?}");
        assert!(report.notes[0].contains("line 3: "), "{:?}", report.notes);
    }
    let long = format!("{head}1,0x{},r\n", "0".repeat(1 << 17));
    assert!(refused(&folder, long).contains("longer than 65536 bytes"));
    let engine = "time,address,access,engine\n1,0x1000,r,65536\n";
    assert!(refused(&folder, engine).contains("engine = 65536 cannot be"));
}

#[test]
fn files_without_anything() {
    let folder = Folder::new();
    assert!(refused(&folder, "").contains("is empty"));
    assert!(refused(&folder, "time,address,access\n").contains("holds no row below its header"));
    assert!(refused(&folder, "1,4096,1\n").contains("of no format that can be imported"));
    assert!(said(&folder, &["import", "text", "--format", "csv"]).contains("1 events"));
    assert!(refused(&folder, "a,b,c\n1,0x1000,r\n").contains("of no format that can be imported"));
    fails(&folder, 2, &["import", "text", "--format", "csv"], "line 1 of text is no line of csv: time is");
    assert!(refused(&folder, "a,b,c\n1,2,3,4\n").contains("of no format that can be imported"));
    assert!(refused(&folder, [0xff; 9000]).contains("of no format that can be imported"));
    fails(&folder, 2, &["import", "nothing"], "cannot be opened");
    fails(&folder, 2, &["import", "."], "has no name");
    fails(&folder, 2, &["import", ".", "-o", "t"], "not a plain file");
}

#[test]
fn the_command_writes_a_trace_and_says_what_was_found() {
    let folder = Folder::new();
    folder.with("rows", GOOD);
    let table = said(&folder, &["import", "rows"]);
    assert!(
        table.contains("microseconds") && table.contains("rows.parquet: 3 events over 8.0 KiB"),
        "{table}"
    );
    assert_eq!(read(&folder.file("rows.parquet")), good());
    let json = object(&folder, &["import", "rows", "-o", "t", "--json"]);
    assert_eq!(
        (json["report"]["format"].as_str(), json["summary"]["events"].as_u64()),
        (Some("csv"), Some(3))
    );
    let inside = object(&folder, &["inspect", "t", "--json"]);
    assert_eq!((inside["metadata"]["origin"].as_str(), inside["notes"][0].as_str()), (Some("csv"), None));
    fails(&folder, 2, &["import", "t"], "is a trace already");
    fails(&folder, 2, &["import", "rows", "-o", "rows"], "over itself");
    fails(&folder, 2, &["import", "rows", "--format", "morse"], "possible values");
    fails(&folder, 1, &["import", "rows", "-o", "no/such/folder"], "cannot be created");
    assert!(said(&folder, &["list", "formats"]).contains("csv"));
}

/// A file that cannot be imported leaves no trace behind, neither whole nor in part.
#[test]
fn a_bad_file_leaves_nothing_behind() {
    let folder = Folder::new();
    folder.with("rows", format!("{GOOD}x\n"));
    folder.with("other", "nothing of this is known\n");
    fails(&folder, 2, &["import", "rows"], "line 7 of rows is no line of csv");
    fails(&folder, 2, &["import", "other"], "of no format that can be imported");
    assert_eq!(folder.names(), ["other", "rows"]);
    assert!(said(&folder, &["import", "rows", "--lenient"]).contains("bad and left out"));
}

/// `inspect` and `replay` take the file itself, and come to the same numbers as by way of a trace.
#[test]
fn a_foreign_file_is_opened_directly() {
    let folder = Folder::new();
    let rows: String =
        (0..5000u64).map(|at| format!("{},{:#x},w\n", at * 100, (at * 7919 % 3000) << 12)).collect();
    folder.with("rows", format!("time,address,access\n{rows}"));
    said(&folder, &["import", "rows", "-o", "t"]);
    let words = ["--policy", "nvidia,lru-4k", "--json"];
    let direct = object(&folder, &[&["replay", "rows"], &words[..]].concat());
    let through = object(&folder, &[&["replay", "t"], &words[..]].concat());
    for at in 0..2 {
        assert_eq!(direct["rows"][at]["metrics"], through["rows"][at]["metrics"]);
    }
    assert!(direct["rows"][0]["notes"][0].as_str().is_some_and(|note| note.contains("imported from csv")));
    assert_eq!(object(&folder, &["inspect", "rows", "--json"])["events"], 5000);
    // Strictly: what is left out is only left out where that can be said.
    folder.with("bad", "time,address,access\n1,0x1000,r\n1\n");
    fails(&folder, 2, &["replay", "bad"], "line 3 of bad");
    assert_eq!(folder.names(), ["bad", "rows", "t"]);
}

#[test]
fn where_the_trace_of_a_foreign_file_is_kept() {
    let folder = Folder::new();
    folder.with("rows", GOOD);
    let mut command = std::process::Command::new(env!("CARGO_BIN_EXE_fault-sim"));
    let command = command.args(["inspect", "rows"]).current_dir(folder.file(""));
    let out = command.env("TMPDIR", "/no/such/folder").output().expect("the built program starts");
    let sentence = String::from_utf8_lossy(&out.stderr);
    assert!(out.status.code() == Some(1) && sentence.contains("name another folder by TMPDIR"), "{sentence}");
    assert_eq!(fault_sim(&folder, &["inspect", "rows"]).status.code(), Some(0));
}

/// Who reads what is said may stop reading.
#[test]
fn a_closed_pipe_is_no_panic() {
    let folder = Folder::new();
    folder.with("rows", GOOD);
    let (read, write) = std::io::pipe().expect("a pipe");
    drop(read);
    let mut command = std::process::Command::new(env!("CARGO_BIN_EXE_fault-sim"));
    let command = command.args(["import", "rows", "-o", "t"]).current_dir(folder.file("")).stdout(write);
    let out = command.output().expect("the built program starts");
    let sentence = String::from_utf8_lossy(&out.stderr);
    assert!(out.status.code() != Some(101) && !sentence.contains("panicked"), "{sentence}");
    assert_eq!(super::support::read(&folder.file("t")), good(), "the trace is whole");
}
