//! Page requests of Intel's IOMMU. The fixture is typed from the description of the format.

use fault_sim::trace::Access;

use super::support::{Folder, each_is_bad, fault, fixture, refused, said, text};

#[test]
fn page_requests_count_pages() {
    let folder = Folder::new();
    let (report, events) = text(&folder, fixture("prq_report.txt"));
    assert_eq!((report.format, report.addresses), ("prq_report", "pages of 4 KiB"));
    let wanted = [
        fault(6_288_896_762_000, 0x7f12_a5c00, Access::Read, 0),
        fault(6_288_896_790_000, 0x7f12_a5c01, Access::Write, 0),
        fault(6_288_896_801_000, 0x7f12_a5c02, Access::Read, 1),
        fault(6_288_897_100_000, 0x7f12_a5d00, Access::Write, 0),
    ];
    assert_eq!(events, wanted);
    // One request only ends its group, and two numbers are missing before the last one.
    assert_eq!((report.dropped, report.lines), (2, 6));
    assert!(
        report.notes.iter().any(|note| note.contains("1 requests ask for nothing")),
        "{:?}",
        report.notes
    );
    assert!(said(&folder, &["replay", "text"]).contains("intel-xe"));
}

#[test]
fn bad_page_requests() {
    let line =
        |what: &str| format!("irq/24-dmar0-97 [002] d... 6289.0: prq_report: dmar0/0000:6a:01.0 {what}");
    let bad = [
        ("seq# 12: rid=0x6a08 addr=0x7f12a5c00000 rw--l pasid=0x1 index=0x3", "is it an address in bytes?"),
        ("seq# 12: rid=0x6a08 addr=0x7f12a rwxyl pasid=0x1 index=0x3", "flags is"),
        ("seq# 12: rid=0x6a08 addr=0x7f12a pasid=0x1 index=0x3", "the flags rwxpl is missing"),
        ("seq# 12: rid=0x6a08 addr=7f12a rw--l pasid=0x1 index=0x3", "begins with 0x"),
        ("seq# x: rid=0x6a08 addr=0x7f12a rw--l pasid=0x1 index=0x3", "seq# is"),
        ("rid=0x6a08 addr=0x7f12a rw--l pasid=0x1 index=0x3", "seq# is missing"),
        ("seq# 12: rid=0x6a08 addr=0x7f12a rw--l index=0x3", "pasid is missing"),
    ];
    let bad: Vec<_> = bad.iter().map(|(what, why)| (line(what), *why)).collect();
    let bad: Vec<_> = bad.iter().map(|(line, why)| (line.as_str(), *why)).collect();
    each_is_bad(&fixture("prq_report.txt"), &bad);
    let folder = Folder::new();
    let other = line("seq# 11: rid=0x6a08 addr=0x7f12a rw--l pasid=0x2 index=0x3");
    let both = [fixture("prq_report.txt"), other.into_bytes(), b"\n".to_vec()].concat();
    assert!(refused(&folder, both).contains("PASID 2 after PASID 1"));
}
