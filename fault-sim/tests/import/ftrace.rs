//! Faults as ftrace and `perf script` print the tracepoint.

use fault_sim::import::Settings;
use fault_sim::trace::{Access, Event, TraceKind};

use super::support::{Folder, fails, fault, fixture, imported, lenient, object, refused, said, text};

/// The pages that `tiny` touches, in this order: its code, and its eight pages of data.
pub const TINY: [u64; 9] = [0x401, 0x403, 0x406, 0x409, 0x404, 0x407, 0x40a, 0x405, 0x408];

fn line(what: &str) -> String {
    format!("            tiny-4866    (   4866) [000] d.... 24803.029139: page_fault_user: {what}\n")
}

#[test]
fn the_faults_of_one_process() {
    let folder = Folder::new();
    folder.with("t", fixture("ftrace.txt"));
    fails(
        &folder,
        2,
        &["import", "t"],
        "line 42 of t is no line of ftrace: it is of process 4191 after process 4860",
    );
    fails(&folder, 2, &["import", "t", "--lenient"], "--pid 4860,4191, or --pid all");
    let settings = Settings { pids: "4866".parse().expect("a number"), ..Settings::default() };
    let (report, events) = imported(&folder.file("t"), &settings).expect("a good file");
    assert_eq!((report.format, report.kind, report.clock), ("ftrace", TraceKind::Faults, "ftrace"));
    assert_eq!((report.lines, report.other, report.elsewhere, report.dropped), (181, 12, 74, 0));
    assert_eq!(events.len() as u64, 181 - 12 - 74);
    let last = &events[events.len() - 9..];
    assert_eq!(last.iter().map(|event| event.page).collect::<Vec<_>>(), TINY);
    assert_eq!(last[0], fault(24_803_029_139_000, 0x401, Access::Read, 0));
    assert_eq!(last[1], fault(24_803_029_143_000, 0x403, Access::Write, 0));
    let all = object(&folder, &["import", "t", "--pid", "all", "--json"]);
    assert_eq!((all["report"]["events"].as_u64(), all["report"]["elsewhere"].as_u64()), (Some(169), Some(0)));
    assert!(said(&folder, &["replay", "t.parquet"]).contains("biased: the trace holds only faults"));
}

#[test]
fn the_cpu_keeps_its_faults_if_asked_to() {
    let folder = Folder::new();
    folder.with("t", line("address=0x7000 ip=0x1 error_code=0x6"));
    let settings = Settings { side: fault_sim::import::Side::Cpu, ..Settings::default() };
    let (report, events) = imported(&folder.file("t"), &settings).expect("a good file");
    assert_eq!(events, [Event::cpu(24_803_029_139_000, 7, Access::Write)]);
    assert!(report.notes.is_empty(), "{:?}", report.notes);
    assert!(text(&folder, line("address=0x7000 ip=0x1 error_code=0x6")).0.notes[0].contains("--side cpu"));
}

#[test]
fn the_tracepoint_by_perf() {
    let folder = Folder::new();
    let (report, events) = text(&folder, fixture("perf-script-tracepoint.txt"));
    assert_eq!((report.format, events.len()), ("ftrace", 9));
    assert_eq!(events.iter().map(|event| event.page).collect::<Vec<_>>(), TINY);
    let writes = |event: &Event| event.access == Access::Write;
    assert!(events[0].access == Access::Read && events[1..].iter().all(writes));
}

#[test]
fn what_ftrace_lost_is_said() {
    let folder = Folder::new();
    let good = line("address=0x7000 ip=0x1 error_code=0x4");
    let marked = format!("CPU:1 [LOST 123 EVENTS]\n{good}");
    assert_eq!(text(&folder, marked).0.dropped, 123);
    let header = format!("# entries-in-buffer/entries-written: 1/50   #P:2\n{good}");
    let (report, _) = text(&folder, header);
    assert!(report.dropped == 49 && report.notes.iter().any(|note| note.contains("lost 49 events")));
}

#[test]
fn a_process_that_becomes_another_program_is_noticed() {
    let folder = Folder::new();
    let of = |name: &str, time| {
        format!(
            "{name}  47/47 [000] {time}: exceptions:page_fault_user: address=0x7000 ip=0x1 error_code=0x4\n"
        )
    };
    let (report, _) = text(&folder, [of("sh", "1.0"), of("app", "2.0")].concat());
    assert!(report.notes[0].contains("process 47 was sh and became app"), "{:?}", report.notes);
}

#[test]
fn bad_lines_and_missing_events() {
    let folder = Folder::new();
    for (what, why) in [
        ("ip=0x1 error_code=0x4", "address is missing"),
        ("address=0x7000 ip=0x1", "error_code is missing"),
        ("address=7000 ip=0x1 error_code=0x4", "begins with 0x"),
        ("address=0x10000000000000000 ip=0x1 error_code=0x4", "at most 64 bits"),
        ("address=0xzz ip=0x1 error_code=0x4", "address is \"0xzz\""),
    ] {
        let bad = [line("address=0x7000 ip=0x1 error_code=0x4"), line(what)].concat();
        let sentence = refused(&folder, &bad);
        assert!(sentence.contains("line 2 of") && sentence.contains(why), "{what}: {sentence}");
        assert_eq!(lenient(&folder, &bad).0.skipped, 1);
    }
    let head = "tiny-4866 [000] d.... later: page_fault_user: address=0x1000 ip=0x1 error_code=0x4\n";
    assert!(refused(&folder, head).contains("time is \"later\""));
    assert!(refused(&folder, "# tracer: nop\n#\n").contains("holds no page_fault_user event; record with"));
    // Cut in the middle of a number, a line still reads well: it is refused for having no end.
    let whole = line("address=0x7000 ip=0x1 error_code=0x14");
    let cut = &whole[..whole.len() - 2];
    assert!(refused(&folder, [&whole, cut].concat()).contains("line 2 of"));
    assert_eq!(lenient(&folder, [&whole, cut].concat()).1.len(), 1);
}
