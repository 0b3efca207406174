//! Debug lines of Intel's xe. The fixture is typed from the description of the format.

use fault_sim::trace::Access;

use super::support::{Folder, each_is_bad, fault, fixture, text};

#[test]
fn xe_names_chunks() {
    let folder = Folder::new();
    let (report, events) = text(&folder, fixture("xe.txt"));
    assert_eq!((report.format, report.clock), ("xe", "kernel"));
    let wanted = [
        fault(1_234_567_890_000, 0x7f12_a5c00, Access::Read, 0),
        fault(1_234_568_900_000, 0x7f12_a5c10, Access::Read, 0),
        fault(1_234_570_001_000, 0x7f12_a5e00, Access::Read, 0),
    ];
    assert_eq!(events, wanted);
    assert_eq!((report.lines, report.other), (7, 4));
    assert!(report.notes[0].contains("on its first page"), "{:?}", report.notes);
}

#[test]
fn bad_lines_of_xe() {
    let line = |fields: &str| format!("[ 1.5] xe 0000:03:00.0: [drm:f [xe]] PAGE FAULT: {fields}");
    let bad = [
        ("asid=1, gpusvm=0, vram=0,0, seqno=2, start=0x7000, end=0x9000, size=4096", "not what lies between"),
        ("asid=1, gpusvm=0, vram=0,0, seqno=2, start=0x7000, end=0x7000, size=0", "not what lies between"),
        ("asid=1, gpusvm=0, vram=0,0, seqno=2, start=0x9000, end=0x7000, size=8192", "not what lies between"),
        ("asid=1, gpusvm=0, vram=0,0, seqno=2, end=0x8000, size=4096", "start is missing"),
        ("asid=1, gpusvm=0, vram=0,0, seqno=2, start=7000, end=0x8000, size=4096", "begins with 0x"),
        ("asid=-1, gpusvm=0, vram=0,0, seqno=2, start=0x7000, end=0x8000, size=4096", "asid is \"-1\""),
    ];
    let bad: Vec<_> = bad.iter().map(|(what, why)| (line(what), *why)).collect();
    let mut bad: Vec<_> = bad.iter().map(|(line, why)| (line.as_str(), *why)).collect();
    bad.push(("xe: PAGE FAULT: asid=1, gpusvm=0, start=0x7000, end=0x8000, size=4096", "the kernel's time"));
    each_is_bad(&fixture("xe.txt"), &bad);
}
