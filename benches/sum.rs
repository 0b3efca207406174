//! A device that sums numbers in memory nobody told it of, against memcpy and the same sum over local memory.

mod support;

use std::hint::black_box;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Instant;

use criterion::Criterion;
use granule::{Granularity, Svm};
use granule_backends::software::SoftwareDevice;
use support::{Bound, DeviceView, Region, Report, Row, is_quick, paired};

/// Numbers that a kernel takes at once.
const CHUNK: usize = 4096;

fn sum(numbers: &[u64]) -> u64 {
    numbers.iter().fold(0, |sum: u64, number| sum.wrapping_add(*number))
}

fn measure(c: &mut Criterion, report: &mut Report, engines: usize, bound: Bound) {
    let bytes: u64 = if is_quick() { 64 << 20 } else { 256 << 20 };
    let device =
        SoftwareDevice::builder().memory_bytes(bytes).engines(engines).build().expect("a software device");
    let (region, local, view) =
        (Region::touched(bytes, false), Region::touched(bytes, false), DeviceView::new(bytes));
    let expected = sum(local.words());
    let svm = Svm::builder()
        .device(device.clone())
        .window(region.whole())
        .granularity(Granularity::Mib2)
        .build()
        .expect("a space over a window");
    let total = AtomicU64::new(0);
    let pairs = paired(
        c,
        &format!("sum/{engines}"),
        || {
            let begin = Instant::now();
            total.store(0, Ordering::Relaxed);
            std::thread::scope(|scope| {
                for thread in 0..engines as u64 {
                    let (local, view, total) = (&local, &view, &total);
                    let part = bytes / engines as u64;
                    scope.spawn(move || {
                        let at = (thread * part) as usize;
                        support::copy(view.base().wrapping_add(at), local.base().wrapping_add(at), part);
                        let copied = view.part(at, part as usize);
                        total.fetch_add(black_box(sum(copied)), Ordering::Relaxed);
                    });
                }
            });
            let ns = begin.elapsed().as_nanos() as f64;
            assert_eq!(total.load(Ordering::Relaxed), expected, "the floor sums the same numbers");
            ns
        },
        || {
            total.store(0, Ordering::Relaxed);
            let base = region.base() as u64;
            let begin = Instant::now();
            device
                .run(|engine| {
                    let mut buffer = [0u64; CHUNK];
                    let mut own = 0u64;
                    for chunk in engine.share(bytes as usize / 8 / CHUNK) {
                        engine.load_slice(base + (chunk * CHUNK * 8) as u64, &mut buffer)?;
                        own = own.wrapping_add(sum(&buffer));
                    }
                    total.fetch_add(own, Ordering::Relaxed);
                    Ok(())
                })
                .expect("every access is served");
            let ns = begin.elapsed().as_nanos() as f64;
            assert_eq!(total.load(Ordering::Relaxed), expected, "the device sums the same numbers");
            let home = svm.to_ram(region.whole()).expect("a range inside of the window");
            assert!(home * 10 >= (bytes >> 12) * 9, "the pages had moved, not been linked");
            ns
        },
    );
    if !pairs.0.is_empty() {
        let question =
            format!("sum over {} MiB by faults, {engines} engine(s) and floor thread(s)", bytes >> 20);
        let row = Row::speed(&question, bytes, &pairs, bound);
        report.push(row.note("floor: memcpy to memory of the device's kind, then the same sum over that"));
    }
}

fn main() {
    let mut c = Criterion::default().configure_from_args();
    let mut report = Report::new("sum");
    for engines in [1, 2] {
        measure(&mut c, &mut report, engines, Bound::AtLeast(0.5));
    }
    c.final_summary();
}
