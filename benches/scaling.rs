//! Two threads that serve faults in different blocks of one space, against two spaces with one thread each: over ports
//! that do nothing, and live.

mod support;

use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Instant;

use criterion::Criterion;
use granule::Svm;
use granule::fault::{BlockFault, group, invalidate, serve};
use granule::policy::{Granularity, MigrateOnFault};
use granule::ports::DeviceFault;
use granule::units::{BLOCK_BYTES, DeviceId, Seat};
use granule_backends::software::SoftwareDevice;
use support::{
    AtomicProbe, Bound, NoopMemory, NoopSpace, Region, Report, Row, is_quick, median, paired, spread_faults,
};

const BLOCKS: usize = 128;
const UNITS_PER_BLOCK: usize = 32;
const PASSES: usize = 8;
const NO_FAULT: BlockFault = BlockFault::NONE;

fn serve_one_by_one(space: &NoopSpace<'_>, seat: Seat, faults: &[DeviceFault]) {
    let mut groups = [NO_FAULT; 1];
    for fault in faults {
        let (used, _) = group(&mut [*fault], DeviceId(0), &mut groups);
        let answer = serve(space, seat, &groups[0]);
        assert_eq!((used, answer.served), (1, groups[0].faulted), "the page was served");
    }
}

/// Each thread serves its faults in its space, both at once; nanoseconds until the last is done, the median of several
/// passes. They begin together to within a cache miss: a wake-up takes as long as many faults.
fn race(threads: [(&NoopSpace<'_>, Seat, &[DeviceFault]); 2], mut forget: impl FnMut()) -> f64 {
    let mut passes = Vec::with_capacity(PASSES);
    for _ in 0..PASSES {
        let here = AtomicUsize::new(0);
        passes.push(std::thread::scope(|scope| {
            let running = threads.map(|(space, seat, faults)| {
                let here = &here;
                scope.spawn(move || {
                    here.fetch_add(1, Ordering::SeqCst);
                    while here.load(Ordering::SeqCst) < 2 {
                        std::hint::spin_loop();
                    }
                    let begin = Instant::now();
                    serve_one_by_one(space, seat, faults);
                    begin.elapsed().as_nanos() as f64
                })
            });
            running.map(|thread| thread.join().expect("no server panics")).into_iter().fold(0.0, f64::max)
        }));
        forget();
    }
    median(&passes)
}

fn simulated(c: &mut Criterion, report: &mut Report) {
    let policy = MigrateOnFault { granularity: Granularity::Kib64 };
    let memories = [(); 3].map(|()| NoopMemory::new(2 * BLOCKS, 2));
    let probes = [(); 3].map(|()| AtomicProbe::default());
    let devices = memories.each_ref().map(|memory| [memory.device()]);
    let [shared, left, right]: [NoopSpace<'_>; 3] =
        std::array::from_fn(|at| memories[at].space(&devices[at], &policy, &probes[at]));
    let first = spread_faults(0, BLOCKS, UNITS_PER_BLOCK);
    let second = spread_faults(BLOCKS, BLOCKS, UNITS_PER_BLOCK);
    let pairs = paired(
        c,
        "scaling/simulated",
        || {
            race([(&left, Seat(0), &first), (&right, Seat(0), &second)], || {
                invalidate(&left, memories[1].range());
                invalidate(&right, memories[2].range());
            })
        },
        || {
            race([(&shared, Seat(0), &first), (&shared, Seat(1), &second)], || {
                invalidate(&shared, memories[0].range());
            })
        },
    );
    if !pairs.0.is_empty() {
        // A thousand per fault: then "GB/s" are millions of faults per second.
        let thousands = 1000 * (2 * BLOCKS * UNITS_PER_BLOCK) as u64;
        let mut row = Row::speed(
            "two threads in one space against two spaces, ports simulated",
            thousands,
            &pairs,
            Bound::AtLeast(0.9),
        );
        row.unit = "Mfaults/s";
        report.push(row.note("floor: two wholly separate spaces, one thread each, in the same rounds"));
    }
}

/// Both halves of a region are read by engines, one word per 64 KiB, on one device or on two.
fn live(c: &mut Criterion, report: &mut Report) {
    let blocks: u64 = if is_quick() { 8 } else { 32 };
    let half = blocks * BLOCK_BYTES;
    let device = |engines| {
        SoftwareDevice::builder().memory_bytes(4 * half).engines(engines).build().expect("a software device")
    };
    let build = |device: &SoftwareDevice, region: &Region| {
        let builder =
            Svm::builder().device(device.clone()).window(region.whole()).granularity(Granularity::Kib64);
        builder.build().expect("a space over a window")
    };
    let regions = [2 * half, half, half].map(|bytes| Region::touched(bytes, false));
    let devices = [device(2), device(1), device(1)];
    let spaces: [Svm; 3] = std::array::from_fn(|at| build(&devices[at], &regions[at]));
    let sweep = |at: usize| {
        let base = regions[at].base() as u64;
        devices[at]
            .run(|engine| {
                for unit in engine.share((regions[at].bytes() >> 16) as usize) {
                    engine.load::<u64>(base + ((unit as u64) << 16))?;
                }
                Ok(())
            })
            .expect("every page is served");
    };
    let home = |at: usize| {
        spaces[at].to_ram(regions[at].whole()).expect("a range inside of the window");
    };
    let pairs = paired(
        c,
        "scaling/live",
        || {
            let begin = Instant::now();
            std::thread::scope(|scope| {
                scope.spawn(|| sweep(1));
                sweep(2);
            });
            let ns = begin.elapsed().as_nanos() as f64;
            home(1);
            home(2);
            ns
        },
        || {
            let begin = Instant::now();
            sweep(0);
            let ns = begin.elapsed().as_nanos() as f64;
            home(0);
            ns
        },
    );
    if !pairs.0.is_empty() {
        let row =
            Row::speed("two engines in one space against two spaces, live", 2 * half, &pairs, Bound::None);
        report.push(row.note(
            "by the code, what holds one space back: its one device thread ends a batch before it fetches the next, \
             and wakes a thread of the pool for the second block of a batch of two; the kernel's lock of the address \
             space is shared in both cases",
        ));
    }
}

fn main() {
    let mut c = Criterion::default().configure_from_args();
    let mut report = Report::new("scaling");
    simulated(&mut c, &mut report);
    live(&mut c, &mut report);
    c.final_summary();
}
