//! `perf trace -F all`.

use super::support::{Folder, fixture, refused, text};

#[test]
fn perf_trace_has_addresses_where_there_is_no_file() {
    let folder = Folder::new();
    let (report, events) = text(&folder, fixture("perf-trace.txt"));
    assert_eq!((report.format, report.lines, report.other), ("perf-trace", 68, 0));
    assert_eq!((events[0].time_ns, events[0].page), (0, 0x55a39aba1));
    assert_eq!(events[1].time_ns, 38_000);
    // Of its heap, `touch` touches 16 pages once.
    let heap = 0x5_5000_0000..0x5_6000_0000;
    assert!(events.iter().filter(|event| heap.contains(&event.page)).count() >= 16, "{events:?}");
    let in_files = 68 - events.len();
    let note = format!("{in_files} faults have an offset in a file");
    assert!(in_files > 20 && report.notes.iter().any(|said| said.contains(&note)), "{:?}", report.notes);
}

#[test]
fn perf_trace_in_other_words() {
    let folder = Folder::new();
    let heap = "     1.500 ( 0.000 ms): my app/47 majfault [f+0x1] => [heap]@0x7000 (d.)\n";
    let call = "     1.600 ( 0.001 ms): my app/47 write(fd: 1, buf: 0x7000, count: 4) = 4\n";
    let file = "     1.700 ( 0.000 ms): my app/47 minfault [f+0x1] => /bin/a@b@0x7000 (d.)\n";
    let symbol = "     1.800 ( 0.000 ms): my app/47 minfault [f+0x1] => libc.so.6@environ+0x0 (d.)\n";
    let (report, events) = text(&folder, [heap, call, file, symbol].concat());
    assert_eq!(events.iter().map(|event| (event.time_ns, event.page)).collect::<Vec<_>>(), [(1_500_000, 7)]);
    assert_eq!((report.lines, report.other), (4, 1));
    let sentence = refused(&folder, [file, symbol].concat());
    assert!(
        sentence.contains("holds no page fault with an address") && sentence.contains("perf record"),
        "{sentence}"
    );
    for bad in [
        " x ( 0.000 ms): app/47 minfault [f+0x1] => 0x7000 (d.)\n",
        " 1.5 ( 0.000 ms): app/4x minfault [f+0x1] => 0x7000 (d.)\n",
        " 1.5 ( 0.000 ms): app/47 minfault [f+0x1] => 0x70x0 (d.)\n",
        " 1.5 ( 0.000 ms): app/47 minfault [f+0x1] 0x7000 (d.)\n",
        " 1.5 ( 0.000 ms): app/47 minfault [f+0x1] => 0x7000\n",
    ] {
        assert!(refused(&folder, [heap, bad].concat()).contains("line 2 of"), "{bad}");
    }
    let other = "     1.900 ( 0.000 ms): my app/48 minfault [f+0x1] => 0x7000 (?k)\n";
    assert!(refused(&folder, [heap, other].concat()).contains("thread 48 after thread 47"));
}
