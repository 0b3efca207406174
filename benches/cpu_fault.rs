//! A touch by the CPU of a page that is on the device, against a raw userfaultfd round trip with the same copy.

mod support;

use std::time::Instant;

use criterion::Criterion;
use granule::units::{BLOCK_BYTES, DeviceId};
use granule::{Granularity, Svm};
use granule_backends::software::SoftwareDevice;
use support::{Bound, RawFaults, Region, Report, Row, median, paired};

const PAGES: usize = 256;
const PAGE: usize = 4096;

/// Touches every page once; the median of the touches in nanoseconds.
fn touch_all(region: &Region) -> f64 {
    let each: Vec<f64> = (0..PAGES)
        .map(|page| {
            // Inside of the region: it has more pages.
            let at = region.base().wrapping_add(page * PAGE);
            let begin = Instant::now();
            support::touch(at);
            begin.elapsed().as_nanos() as f64
        })
        .collect();
    median(&each)
}

fn measure(c: &mut Criterion, report: &mut Report, name: &str, placement: &str) {
    let raw = RawFaults::start(BLOCK_BYTES);
    let device =
        SoftwareDevice::builder().memory_bytes(8 << 20).engines(1).build().expect("a software device");
    let region = Region::touched(BLOCK_BYTES, false);
    let svm = Svm::builder()
        .device(device.clone())
        .window(region.whole())
        .granularity(Granularity::Kib4)
        .build()
        .expect("a space over a window");
    let pairs = paired(
        c,
        &format!("cpu_fault/{name}"),
        || {
            raw.region().forget();
            touch_all(raw.region())
        },
        || {
            let moved = svm.prefetch(region.whole(), DeviceId(0)).expect("a range inside of the window");
            assert_eq!(moved, region.bytes() / PAGE as u64, "every page is on the device");
            touch_all(&region)
        },
    );
    if !pairs.0.is_empty() {
        let question = format!("CPU fault on a device-private page of 4 KiB, {placement}");
        report.push(Row::slower_by(&question, "us", 1e-3, &pairs, Bound::AtMost(1.3)));
    }
}

fn main() {
    let mut c = Criterion::default().configure_from_args();
    let mut report = Report::new("cpu_fault");
    // Threads run where the thread that starts them may run: the service's and the raw handler's, too.
    support::pin_to_core(0);
    measure(&mut c, &mut report, "same_core", "all threads on one core");
    support::unpin();
    measure(&mut c, &mut report, "default", "default placement");
    c.final_summary();
}
