//! Every access of a program, by valgrind.

use fault_sim::import::{Settings, Side};
use fault_sim::trace::{Access, Event, EventKind, TraceKind};

use super::support::{Folder, fixture, imported, lenient, refused, text};

/// `tiny` adds to one byte of each of eight pages, reads all eight, then writes 64 bytes of its stack and eight bytes
/// over the edge between the first two pages.
#[test]
fn every_page_that_a_program_touches() {
    let folder = Folder::new();
    let (report, events) = text(&folder, fixture("lackey.txt"));
    assert_eq!((report.format, report.kind, report.clock), ("lackey", TraceKind::Accesses, "instructions"));
    let first = 0x403;
    let adds = (0..8).map(|i| (first + i * 3 % 8, Access::Write));
    let reads = (0..8).map(|i| (first + i, Access::Read));
    let all: Vec<_> = events.iter().map(|event| (event.page, event.access)).collect();
    assert_eq!(all[..8], adds.collect::<Vec<_>>());
    assert_eq!(all[8..16], reads.collect::<Vec<_>>());
    // The 64 bytes of the stack are one page, touched once more than merged.
    assert_eq!(all.len(), 19, "{all:?}");
    assert_eq!(all[16].1, Access::Write);
    assert_eq!(all[17..], [(first, Access::Write), (first + 1, Access::Write)]);
    assert!(report.merged >= 63, "{report:?}");
    // The eleventh instruction is the first that touches data.
    assert_eq!((events[0].time_ns, events[0].kind), (11, EventKind::Access));
    let settings = Settings { side: Side::Cpu, ..Settings::default() };
    let (_, events) = imported(&folder.file("text"), &settings).expect("a good file");
    assert_eq!(events[0], Event::cpu(11, first, Access::Write));
}

#[test]
fn repetitions_are_merged_but_not_what_asks_for_more() {
    let folder = Folder::new();
    let (report, events) =
        text(&folder, "I  1000,4\n L 7000,8\n L 7ff8,8\n S 7000,8\n L 7000,8\n L 9000,8\n L 7000,1\n");
    let all: Vec<_> = events.iter().map(|event| (event.page, event.access)).collect();
    assert_eq!(all, [(7, Access::Read), (7, Access::Write), (9, Access::Read), (7, Access::Read)]);
    assert_eq!(report.merged, 2);
}

#[test]
fn bad_lines() {
    let folder = Folder::new();
    for bad in [
        " L 7000\n",
        " L ,8\n",
        " S 7000,\n",
        " M 7g00,8\n",
        " L 7000,0\n",
        " L 7000,65537\n",
        " L ffffffffffffffff,2\n",
        "I  x,1\n",
    ] {
        let lines = ["I  1000,4\n L 7000,8\n", bad].concat();
        assert!(refused(&folder, &lines).contains("line 3 of"), "{bad}");
        assert_eq!(lenient(&folder, &lines).0.skipped, 1, "{bad}");
    }
    assert!(refused(&folder, "I  1000,4\n L 7000,1").contains("the file ends in the middle of it"));
    assert!(refused(&folder, "I  1000,4\n").contains("holds no load or store"));
    assert!(refused(&folder, "==1== Lackey, an example Valgrind tool\n").contains("--trace-mem=yes"));
}
