//! Logs of NVIDIA's driver as uvm-eval patches it. The fixtures are typed from the description of the format.

use fault_sim::trace::{Access, TraceKind};

use super::support::{Folder, each_is_bad, fault, fixture, refused, text};

#[test]
fn uvm_eval_with_14_fields_and_with_15() {
    let folder = Folder::new();
    let (report, events) = text(&folder, fixture("uvm-eval-14.txt"));
    assert_eq!((report.format, report.clock, report.kind), ("uvm-eval", "device", TraceKind::Faults));
    let wanted = [
        fault(1_607_000_000_100, 0x7f12_a5c00, Access::Read, 0),
        fault(1_607_000_000_164, 0x7f12_a5c01, Access::Write, 1),
        fault(1_607_000_000_228, 0x7f12_a5c02, Access::Prefetch, 0),
        fault(1_607_000_000_292, 0x7f12_a5c03, Access::Atomic, 2),
    ];
    assert_eq!(events, wanted);
    // Two more instances of the second fault, one duplicate, one prefetched page, one eviction, one fatal fault.
    assert_eq!(report.merged, 3);
    for what in ["1 faults are fatal", "1 prefetched pages", "1 evictions"] {
        assert!(report.notes.iter().any(|note| note.contains(what)), "{what}: {:?}", report.notes);
    }
    let (report, events) = text(&folder, fixture("uvm-eval-15.txt"));
    assert_eq!(events, wanted[..2]);
    assert_eq!((report.lines, report.other), (6, 4));
}

#[test]
fn bad_lines_of_uvm_eval() {
    let bad = [
        ("f,7f12a5c00000,1607000000100,1,1,2,1,0,0,5,64,3,0,1", "13 fields"),
        ("f,7f12a5c00000,1607000000100,1,1,2,1,0,0,5,64,3,0,1,0,9,9", "16 fields"),
        ("f,7f12a5c0000x,1607000000100,1,1,2,1,0,0,5,64,3,0,1,0", "address is"),
        ("f,7f12a5c00000,16070000001e0,1,1,2,1,0,0,5,64,3,0,1,0", "time is"),
        ("f,7f12a5c00000,1607000000100,1,5,2,1,0,0,5,64,3,0,1,0", "access type = 5"),
        ("f,7f12a5c00000,1607000000100,1,1,2,1,0,0,5,64,3,0,1,", "ve is \"\""),
    ];
    let bad: Vec<_> = bad
        .iter()
        .map(|(line, why)| (*line, why.replace("13 fields", "14 fields").replace("16 fields", "17 fields")))
        .collect();
    let bad: Vec<_> = bad.iter().map(|(line, why)| (*line, why.as_str())).collect();
    each_is_bad(&fixture("uvm-eval-14.txt"), &bad);
    let folder = Folder::new();
    assert!(refused(&folder, "b,123,0\ns,1\n").contains("holds no fault line"));
}
