//! `perf script` of page faults.

use fault_sim::import::Settings;
use fault_sim::trace::{Access, Event, EventKind, TraceKind};

use super::ftrace::TINY;
use super::support::{Folder, fails, fixture, imported, lenient, refused, text};

#[test]
fn perf_script_with_addresses() {
    let folder = Folder::new();
    let (report, events) = text(&folder, fixture("perf-script.txt"));
    assert_eq!((report.format, report.kind, report.lines), ("perf-script", TraceKind::Faults, 10));
    // The kernel touches the new stack first, then the program runs.
    assert_eq!(events[1..].iter().map(|event| event.page).collect::<Vec<_>>(), TINY);
    assert_eq!(events[0].page >> 24, 0x7ff, "the stack of x86-64 lies at the end of what a process has");
    let reads = |event: &Event| event.access == Access::Read && event.kind == EventKind::DeviceFault;
    assert!(events.iter().all(reads) && events.is_sorted_by_key(|event| event.time_ns));
    assert!(report.notes[0].contains("all are reads"), "{:?}", report.notes);
}

#[test]
fn perf_script_without_addresses_is_refused_with_the_command() {
    let folder = Folder::new();
    let sentence = refused(&folder, fixture("perf-script-default.txt"));
    assert!(
        sentence.contains("line 1 of") && sentence.contains("-F comm,pid,tid,time,event,addr,ip"),
        "{sentence}"
    );
    // The third line has an address and a symbol that begins like a number.
    let one = "app 47/47 1.5: page-faults:  401000 add+0x1000 (/bin/app)\n";
    assert!(refused(&folder, one).contains("the address or the instruction"));
    assert!(refused(&folder, "app 47/47 1.5: page-faults: \n").contains("the address"));
}

#[test]
fn threads_are_engines_and_processes_are_apart() {
    let folder = Folder::new();
    folder.with("t", fixture("perf-script-processes.txt"));
    fails(&folder, 2, &["import", "t"], "it is of process 6020 after process 6005");
    let settings = Settings { pids: "6020".parse().expect("a number"), ..Settings::default() };
    let (report, events) = imported(&folder.file("t"), &settings).expect("a good file");
    assert_eq!((events.len(), report.elsewhere), (63, 72));
    let of = |engine| events.iter().filter(|event| event.engine == engine).count();
    assert_eq!((of(0), of(1)), (57, 6));
}

#[test]
fn perf_script_in_other_words() {
    let folder = Folder::new();
    let lines = "my app 47/48 [002] 12.345678: page-faults:u: 7f12a000 55d0a1b2c\n\
                 my app 47/49 [002] 12.345679:          1 minor-faults: 7f12b000 55d0a1b2c main+0x4 (/bin/app)\n\
                 app 47/49 12.345680: cycles: 55d0a1b2c\n";
    let (report, events) = text(&folder, lines);
    assert_eq!(
        events.iter().map(|event| (event.page, event.engine)).collect::<Vec<_>>(),
        [(0x7f12a, 0), (0x7f12b, 1)]
    );
    assert_eq!((events[0].time_ns, report.other), (12_345_678_000, 1));
    for bad in [
        "app 47/48 noon: page-faults: 7f12a000 55d0a1b2c\n",
        "app 12.5: page-faults: 7f12a000 55d0a1b2c\n",
        "12.5: page-faults: 7f12a000 55d0a1b2c\n",
        "page-faults: 7f12a000 55d0a1b2c\n",
        "app 47/48 1.5: page-faults: 7f12x000 55d0a1b2c\n",
    ] {
        assert!(refused(&folder, [lines, bad].concat()).contains("line 4 of"), "{bad}");
        assert_eq!(lenient(&folder, [lines, bad].concat()).0.skipped, 1, "{bad}");
    }
}
