//! Files that are not what they should be, and events at the edges of what can be.

use std::fs;

use fault_sim::trace::{Access, Event, EventKind, TraceError, TraceKind, TraceReader, TraceWriter};

use super::support::{Folder, fails, generated, metadata, play, read, reads, said, write};
use fault_sim::pattern::Pattern;

/// The last page of a 64-bit address space.
const LAST: u64 = u64::MAX >> 12;

#[test]
fn what_is_written_is_read() {
    let folder = Folder::new();
    let path = folder.file("t.parquet");
    let kinds =
        [(EventKind::Migration, 2), (EventKind::Advice, 6), (EventKind::Unmap, 0), (EventKind::Map, 0)];
    let mut events = vec![
        Event::access(u64::MAX, LAST, Access::Atomic, u16::MAX),
        Event::cpu(0, 0, Access::Write),
        Event::access(5, 7, Access::Prefetch, 3),
    ];
    events.extend(kinds.map(|(kind, detail)| Event { detail, ..Event::range(9, LAST - 8, 9, kind) }));
    events.push(Event { kind: EventKind::DeviceFault, ..Event::access(10, 1, Access::Read, 1) });
    write(&path, TraceKind::Accesses, &events);
    assert_eq!(read(&path), events);
    let reader = TraceReader::open(&path).expect("a trace");
    assert_eq!(reader.metadata(), &metadata(TraceKind::Accesses));
    let summary = reader.summary().expect("the writer counted");
    assert_eq!((summary.events, summary.footprint_pages), (8, 4));
    assert_eq!((summary.first_ns, summary.last_ns), (0, u64::MAX));
}

#[test]
fn many_row_groups_are_one_trace() {
    let folder = Folder::new();
    let path = folder.file("t.parquet");
    let events = generated(Pattern::Zipf, 5000, 1_200_000, 1);
    write(&path, TraceKind::Accesses, &events);
    assert!(read(&path) == events);
}

#[test]
fn an_empty_trace_is_a_trace() {
    let folder = Folder::new();
    write(&folder.file("t"), TraceKind::Faults, &[]);
    assert!(read(&folder.file("t")).is_empty());
    assert!(said(&folder, &["inspect", "t"]).contains("events"));
}

#[test]
fn files_that_are_no_traces() {
    let folder = Folder::new();
    fs::write(folder.file("empty"), []).expect("written");
    fs::write(folder.file("text"), "PAR0 and more text").expect("written");
    fs::write(folder.file("short"), "PA").expect("written");
    fs::write(folder.file("magic"), "PAR1").expect("written");
    fs::write(folder.file("magics"), "PAR1".repeat(1000)).expect("written");
    fs::create_dir(folder.file("folder")).expect("made");
    for command in ["inspect", "replay"] {
        fails(&folder, 2, &[command, "empty"], "is empty");
        fails(&folder, 2, &[command, "text"], "is no trace and of no format");
        fails(&folder, 2, &[command, "short"], "is no trace and of no format");
        fails(&folder, 2, &[command, "magic"], "is cut off");
        fails(&folder, 2, &[command, "magics"], "is cut off");
        fails(&folder, 2, &[command, "folder"], "not a plain file");
        fails(&folder, 2, &[command, "nothing"], "cannot be opened");
    }
}

/// Cut off anywhere, a trace is an error with a sentence, and never a panic or half of it.
#[test]
fn a_trace_that_is_cut_off_is_refused() {
    let folder = Folder::new();
    let path = folder.file("t");
    write(&path, TraceKind::Accesses, &generated(Pattern::Random, 100, 3000, 1));
    let whole = fs::read(&path).expect("just written");
    for length in (1..whole.len()).step_by(97).chain([whole.len() - 1]) {
        fs::write(&path, &whole[..length]).expect("written");
        match TraceReader::open(&path) {
            Err(TraceError::CutOff(_) | TraceError::NotParquet(_)) => {}
            Err(other) => panic!("{length} bytes: {other}"),
            Ok(_) => panic!("{length} of {} bytes are taken for a trace", whole.len()),
        }
    }
}

/// With any byte changed, reading ends: with events or with an error.
#[test]
fn a_trace_with_changed_bytes_does_no_harm() {
    let folder = Folder::new();
    let path = folder.file("t");
    write(&path, TraceKind::Accesses, &generated(Pattern::Random, 100, 500, 1));
    let whole = fs::read(&path).expect("just written");
    let mut refused = 0;
    for at in (0..whole.len()).step_by(7) {
        let mut changed = whole.clone();
        changed[at] ^= 0xff;
        fs::write(&path, &changed).expect("written");
        let outcome = TraceReader::open(&path).and_then(|mut reader| {
            let mut events = Vec::new();
            while reader.read(&mut events)? {}
            Ok(())
        });
        refused += usize::from(outcome.is_err());
    }
    assert!(refused > 10, "only {refused} changes were noticed");
}

#[test]
fn what_was_checkpointed_survives_a_crash() {
    let folder = Folder::new();
    let path = folder.file("t");
    let events = generated(Pattern::Stream, 1000, 3000, 1);
    let mut writer = TraceWriter::create(&path, &metadata(TraceKind::Faults)).expect("created");
    for event in &events[..2000] {
        writer.push(*event).expect("written");
    }
    writer.checkpoint().expect("written");
    let part = folder.file("t.part");
    assert!(!path.exists(), "its name is given to a whole trace only");
    assert_eq!(read(&part), &events[..2000]);
    let kept = fs::read(&part).expect("there").len();
    for event in &events[2000..] {
        writer.push(*event).expect("written");
    }
    writer.checkpoint().expect("written");
    let all = fs::read(&part).expect("there");
    assert_eq!(read(&part), events);
    // Anything short of the second footer falls back to the first checkpoint.
    for length in [kept, kept + 1, (kept + all.len()) / 2, all.len() - 1] {
        fs::write(folder.file("torn"), &all[..length]).expect("written");
        assert_eq!(read(&folder.file("torn")), &events[..2000], "{length} of {}", all.len());
        let reader = TraceReader::open(&folder.file("torn")).expect("a trace");
        assert_eq!(reader.lost_bytes(), (length - kept) as u64);
    }
    writer.finish().expect("finished");
    assert!(path.exists() && !part.exists());
    assert_eq!(read(&path), events);
}

#[test]
fn time_that_goes_backwards_is_played_and_said() {
    let folder = Folder::new();
    let mut events = reads(&[0, 1, 2, 3]);
    events[2].time_ns = 5;
    let metrics = play("on-demand-4k", 1024, &events);
    assert_eq!((metrics.time_backwards, metrics.faults_unique, metrics.total_ns), (1, 4, 3000));
    write(&folder.file("t"), TraceKind::Accesses, &events);
    let table = said(&folder, &["replay", "t", "--device-memory", "4MiB", "--policy", "nvidia"]);
    assert!(table.contains("1 events lie before earlier ones"), "{table}");
}

#[test]
fn the_last_page_of_the_address_space_is_a_page() {
    for policy in ["nvidia", "gpusvm", "amd", "granule", "belady-4k", "whole-2m", "stride", "sequential-64k"]
    {
        let events = [
            Event::range(0, LAST - 511, 512, EventKind::Map),
            Event::access(1, LAST, Access::Write, 0),
            Event::cpu(u64::MAX - 1, LAST, Access::Read),
            Event::access(u64::MAX, LAST, Access::Read, 0),
            Event::range(u64::MAX, LAST, 1, EventKind::Unmap),
        ];
        let metrics = play(policy, 1024, &events);
        assert_eq!((metrics.events, metrics.cpu_faults, metrics.unmapped_pages), (5, 1, 1), "{policy}");
    }
}

/// A fault trace says what it cannot answer.
#[test]
fn a_trace_of_faults_is_marked_or_refused() {
    let folder = Folder::new();
    write(&folder.file("t"), TraceKind::Faults, &reads(&[0, 1, 2]));
    fails(
        &folder,
        2,
        &["replay", "t", "--device-memory", "4MiB", "--policy", "belady-4k"],
        "must know all touches",
    );
    let table = said(&folder, &["replay", "t", "--device-memory", "4MiB", "--policy", "nvidia,lru-4k"]);
    assert_eq!(table.matches("biased: the trace holds only faults").count(), 2, "{table}");
    assert_eq!(table.matches("lru-4k sees no hits").count(), 1, "{table}");
    let json = said(&folder, &["replay", "t", "--device-memory", "4MiB", "--policy", "nvidia", "--json"]);
    assert!(json.contains("biased"), "{json}");
}
