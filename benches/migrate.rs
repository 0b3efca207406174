//! Moving 256 MiB to the device and back in blocks of 2 MiB, against memcpy between the same two memories.

mod support;

use std::time::Instant;

use criterion::Criterion;
use granule::units::DeviceId;
use granule::{Granularity, Svm};
use granule_backends::software::SoftwareDevice;
use support::{Bound, DeviceView, Region, Report, Row, is_quick, paired};

fn timed(act: impl FnOnce()) -> f64 {
    let begin = Instant::now();
    act();
    begin.elapsed().as_nanos() as f64
}

fn measure(c: &mut Criterion, report: &mut Report, huge: bool, bound: f64) {
    let bytes: u64 = if is_quick() { 64 << 20 } else { 256 << 20 };
    let device = SoftwareDevice::builder().memory_bytes(bytes).engines(1).build().expect("a software device");
    let (region, local, view) =
        (Region::touched(bytes, huge), Region::touched(bytes, huge), DeviceView::new(bytes));
    let svm = Svm::builder()
        .device(device.clone())
        .window(region.whole())
        .granularity(Granularity::Mib2)
        .build()
        .expect("a space over a window");
    let to_device = || {
        let pages = svm.prefetch(region.whole(), DeviceId(0)).expect("a range inside of the window");
        assert_eq!(pages, bytes >> 12, "every page is on the device");
    };
    let to_ram = || {
        let pages = svm.to_ram(region.whole()).expect("a range inside of the window");
        assert_eq!(pages, bytes >> 12, "every page came home");
    };
    let kind = if huge { "huge pages" } else { "4 KiB pages" };
    let name = if huge { "huge" } else { "small" };
    let there = paired(
        c,
        &format!("migrate/to_device/{name}"),
        || timed(|| support::copy(view.base(), local.base(), bytes)),
        || {
            let ns = timed(to_device);
            to_ram();
            ns
        },
    );
    let back = paired(
        c,
        &format!("migrate/to_ram/{name}"),
        || timed(|| support::copy(local.base(), view.base(), bytes)),
        || {
            to_device();
            timed(to_ram)
        },
    );
    for (way, pairs) in [("to the device", there), ("to RAM", back)] {
        if !pairs.0.is_empty() {
            let question = format!("migration of {} MiB {way} in 2 MiB blocks, {kind}", bytes >> 20);
            let row = Row::speed(&question, bytes, &pairs, Bound::AtLeast(bound));
            let at_first = |word: usize| region.words()[word] == word as u64;
            assert!((0..region.words().len()).step_by(509).all(at_first), "what came back is what went");
            report.push(row.note("floor: memcpy by one thread; one thread of the service moves"));
        }
    }
}

fn main() {
    let mut c = Criterion::default().configure_from_args();
    let mut report = Report::new("migrate");
    measure(&mut c, &mut report, false, 0.6);
    measure(&mut c, &mut report, true, 0.8);
    c.final_summary();
}
