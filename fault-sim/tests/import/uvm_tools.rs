//! The event queue of NVIDIA's UVM tools. The fixtures are typed as hexadecimal words from the description of the
//! entries, one entry to a line.

use fault_sim::import::{Format, Settings};
use fault_sim::trace::{Access, Event, EventKind, MigrationCause, TraceKind};

use super::support::{Folder, fails, fault, fixture, imported, lenient, object, refused};

/// The bytes of a fixture: words of eight bytes in hexadecimal, the first byte first.
pub fn queue(name: &str) -> Vec<u8> {
    let text = String::from_utf8(fixture(name)).expect("a text");
    let lines = text.lines().filter(|line| !line.starts_with('#'));
    let digits: String = lines.flat_map(str::chars).filter(char::is_ascii_hexdigit).collect();
    let byte = |at: usize| u8::from_str_radix(&digits[at..at + 2], 16).expect("two digits");
    (0..digits.len()).step_by(2).map(byte).collect()
}

fn wanted() -> Vec<Event> {
    let moved = |time, page, pages, cause: MigrationCause, engine| Event {
        detail: cause as u8,
        engine,
        ..Event::range(time, page, pages, EventKind::Migration)
    };
    vec![
        fault(1000, 0x7f12a5c10, Access::Write, 0),
        fault(1000, 0x7f12a5c11, Access::Read, 1),
        moved(1500, 0x7f12a5c10, 2, MigrationCause::Fault, 1),
        moved(1600, 0x7f12a5c12, 14, MigrationCause::Prefetch, 1),
        Event::cpu(9000, 0x7f12a5c10, Access::Read),
        moved(9500, 0x7f12a5c10, 1, MigrationCause::Fault, 0),
    ]
}

#[test]
fn both_versions_say_the_same() {
    let folder = Folder::new();
    for (name, format, bytes) in
        [("uvm-tools-v1.hex", "uvm-tools-v1", 64), ("uvm-tools-v2.hex", "uvm-tools-v2", 72)]
    {
        let path = folder.with(name, queue(name));
        let (report, events) =
            imported(&path, &Settings::default()).unwrap_or_else(|error| panic!("{error}"));
        assert_eq!(events, wanted(), "{name}");
        assert_eq!((report.format, report.kind, report.bytes), (format, TraceKind::Faults, 10 * bytes));
        assert_eq!(
            (report.lines, report.other),
            (10, 4),
            "a replay, a fatal fault, an eviction, an empty place"
        );
        let said = |what: &str| report.notes.iter().any(|note| note.contains(what));
        assert!(said("1 replays, 1 evictions") && said("1 faults are fatal"), "{:?}", report.notes);
    }
    let json = object(&folder, &["replay", "uvm-tools-v2.hex", "--policy", "nvidia", "--json"]);
    assert_eq!(json["rows"][0]["metrics"]["cpu_faults"], 1);
}

#[test]
fn bad_entries() {
    let folder = Folder::new();
    for (name, bytes, access) in [("uvm-tools-v1.hex", 64, 2), ("uvm-tools-v2.hex", 72, 37)] {
        let good = queue(name);
        let events = wanted().len();
        for (at, value, why) in
            [(0, 99, "event type = 99"), (access, 9, "access type = 9"), (2 * bytes + 1, 0, "cause = 0")]
        {
            let mut bad = good.clone();
            bad[at] = value;
            let sentence = refused(&folder, &bad);
            assert!(
                sentence.contains(&format!("entry {} of", at / bytes)) && sentence.contains(why),
                "{sentence}"
            );
            let (report, left) = lenient(&folder, &bad);
            assert_eq!((report.skipped, left.len()), (1, events - 1));
        }
        // A migration of nothing, and one beyond the end of the address space.
        let size = if bytes == 64 { 16 } else { 24 };
        let mut bad = good.clone();
        bad[2 * bytes + size..][..8].fill(0);
        assert!(refused(&folder, &bad).contains("covers no byte"));
        bad[2 * bytes + size..][..8].fill(0xff);
        assert!(refused(&folder, &bad).contains("beyond the end of the address space"));
        // Cut off anywhere.
        for length in 1..good.len() {
            folder.with("cut", &good[..length]);
            match imported(&folder.file("cut"), &Settings::default()) {
                Ok((report, _)) => assert!(length % bytes == 0 && report.lines as usize == length / bytes),
                Err(error) => assert!(length % bytes != 0, "{length} bytes: {error}"),
            }
        }
    }
}

#[test]
fn a_queue_without_what_is_wanted() {
    let folder = Folder::new();
    let replay = &queue("uvm-tools-v2.hex")[4 * 72..5 * 72];
    assert!(refused(&folder, replay).contains("enable the events UvmEventTypeGpuFault"));
    assert!(refused(&folder, vec![0; 1152]).contains("of no format that can be imported"));
    let settings = Settings { format: Some(Format::UvmToolsV1), ..Settings::default() };
    let error = imported(&folder.file("text"), &settings).expect_err("empty places only");
    assert!(error.to_string().contains("holds no fault or migration"));
}

/// Recordings that their own tools must print first are answered with the command.
#[test]
fn binary_recordings_are_answered_with_a_command() {
    let folder = Folder::new();
    for (head, command) in [
        (&b"PERFILE2\x68\0\0\0"[..], "`perf script -F comm,pid,tid,time,event,addr,ip -i text`"),
        (b"\x17\x08\x44tracing6\0", "`trace-cmd report -i text`"),
        (b"\x1f\x8b\x08\0", "`gunzip --keep text`"),
        (b"\xfd7zXZ\0", "`unxz --keep text`"),
        (b"\x28\xb5\x2f\xfd\0", "`unzstd text`"),
    ] {
        folder.with("text", head);
        fails(&folder, 2, &["import", "text"], command);
        fails(&folder, 2, &["replay", "text"], command);
    }
}
