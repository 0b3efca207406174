//! Events of AMD's KFD. The fixture is typed from the description of the format.

use fault_sim::trace::{Access, Event, EventKind, MigrationCause, TraceKind};

use super::support::{Folder, each_is_bad, fault, fixture, refused, text};

#[test]
fn kfd_counts_pages_too() {
    let folder = Folder::new();
    let (report, events) = text(&folder, fixture("kfd.txt"));
    assert_eq!((report.format, report.kind, report.clock), ("kfd", TraceKind::Faults, "boottime"));
    let moved = |time, page, pages, cause: MigrationCause, engine| Event {
        detail: cause as u8,
        engine,
        ..Event::range(time, page, pages, EventKind::Migration)
    };
    let wanted = [
        moved(1_000, 0x7f12a5a00, 0x200, MigrationCause::User, 1),
        fault(5_000, 0x7f12a5c10, Access::Write, 0),
        moved(6_000, 0x7f12a5c00, 0x200, MigrationCause::Fault, 1),
        fault(40_000, 0x7f12a5e00, Access::Read, 1),
        moved(60_000, 0x7f12a5c00, 0x10, MigrationCause::Fault, 0),
        moved(80_000, 0x7f12a5c00, 0x200, MigrationCause::Eviction, 0),
        Event::range(90_000, 0x7f12a5c00, 0x200, EventKind::Unmap),
    ];
    assert_eq!(events, wanted);
    assert_eq!((report.lines, report.other), (16, 2));
    let said = |what: &str| report.notes.iter().any(|note| note.contains(what));
    assert!(
        said("1 migrations were caused by faults of the CPU") && said("restarted 2 times"),
        "{:?}",
        report.notes
    );
}

#[test]
fn bad_lines_of_kfd() {
    let bad = [
        ("7 1000 -4321 @7f12a5c10000(6501) W", "is it an address in bytes?"),
        ("5 1000 -4321 @7f12a5c00(40000000000) 0->6501 0:0 1", "are these bytes?"),
        ("5 1000 -4321 @7f12a5c00(0) 0->6501 0:0 1", "it covers no page"),
        ("5 1000 -4321 @7f12a5c00(200) 0-6501 0:0 1", "from->to"),
        ("5 1000 -4321 @7f12a5c00(200) 0->6501 0:0 7", "trigger = 7"),
        ("5 1000 -4321 @7f12a5c00(200) 0->6501 0:0", "trigger is missing"),
        ("7 1000 -4321 @7f12a5c10(6501) X", "access is \"X\""),
        ("7 1000 -4321 7f12a5c10(6501) W", "@address(...)"),
        ("7 1000 -4321", "@address(...) is missing"),
        ("8 1000 -4321 @7f12a5c10(6501) W", "result is"),
        ("b 1000 -4321 @7f12a5c10(1) 6501", "trigger is missing"),
    ];
    each_is_bad(&fixture("kfd.txt"), &bad);
    let folder = Folder::new();
    let both = [fixture("kfd.txt"), b"7 1000 -4322 @7f12a5c10(6501) W\n".to_vec()].concat();
    assert!(refused(&folder, both).contains("process 4322 after process 4321"));
    assert!(refused(&folder, "9 1000 -4321 6501 0\n").contains("AMDKFD_IOC_SMI_EVENTS"));
}
