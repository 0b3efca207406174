//! The heap is taken again and again, the driver's part of it too, while threads submit: the way to RAM needs no driver.
#![cfg(feature = "vulkan")]
#![allow(unsafe_code, reason = "an alarm as watchdog")]

mod vulkan_support;

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use granule::ports::Count;
use granule::service::Svm;
use granule::units::{DeviceId, PAGE_BYTES, VirtAddr, VirtRange};
use granule_backends::vulkan::{Builder, shaders};

use vulkan_support::{Aligned, here, modes};

/// Pages of the heap that must have gone to the device.
const LEAST_TAKEN: u64 = 2_000;
/// Sums that each thread must have made.
const LEAST_SUMS: u64 = 20;

fn seconds() -> u64 {
    std::env::var("GRANULE_HEAP_SECONDS").ok().and_then(|seconds| seconds.parse().ok()).unwrap_or(4)
}

/// The brk heap, the arenas of threads, and every other mapping that the C library or the driver may allocate from:
/// private, anonymous, writable, without a name.
fn heaps() -> Vec<VirtRange> {
    let maps = std::fs::read_to_string("/proc/self/maps").expect("/proc is mounted");
    let hex = |text| u64::from_str_radix(text, 16).expect("hex");
    maps.lines()
        .filter_map(|line| {
            let mut fields = line.split_whitespace();
            let (range, rights) = (fields.next()?, fields.next()?);
            let (start, end) = range.split_once('-')?;
            let name = fields.nth(3).unwrap_or("");
            let range = VirtRange::of_pages(VirtAddr(hex(start)), (hex(end) - hex(start)) / PAGE_BYTES);
            (rights == "rw-p" && (name.is_empty() || name == "[heap]")).then_some(range)
        })
        .collect()
}

#[test]
fn the_heap_leaves_while_threads_submit() {
    let Some(_alone) = here() else { return };
    // Translation, and sparse buffers with the driver's own unit.
    for (mode, builder) in modes().into_iter().take(2) {
        leaves(mode, builder);
    }
}

fn leaves(mode: &str, builder: Builder) {
    // SAFETY: no pointers. The default action of the signal ends the process.
    unsafe { libc::alarm(seconds() as u32 + 60) };
    let device = builder.memory_bytes(64 << 20).build().expect("a device");
    let svm = Svm::builder().device(device.clone()).build().expect("a space");
    let (stop, taken) = (AtomicBool::new(false), AtomicU64::new(0));
    let sums: Vec<u64> = std::thread::scope(|scope| {
        let submitters: Vec<_> = (0..2)
            .map(|thread| {
                let (device, stop) = (&device, &stop);
                scope.spawn(move || {
                    let kernel = device.kernel(shaders::SUM).expect("a kernel");
                    let mut made = 0;
                    while !stop.load(Ordering::Relaxed) || made < LEAST_SUMS {
                        let data: Vec<u64> = (0..40_000).map(|at| at * 3 + made + thread).collect();
                        let sum = Aligned::of([0]);
                        let at = data.as_ptr() as u64;
                        let pages = (at + 320_000).div_ceil(PAGE_BYTES) - at / PAGE_BYTES;
                        let arguments = [at, 40_000, sum.address(), 1];
                        device.launch(&kernel, pages as u32, &arguments).expect("a sum");
                        assert_eq!(sum.words()[0], data.iter().sum::<u64>());
                        made += 1;
                    }
                    made
                })
            })
            .collect();
        let begin = Instant::now();
        while begin.elapsed() < Duration::from_secs(seconds()) || taken.load(Ordering::Relaxed) < LEAST_TAKEN
        {
            for heap in heaps() {
                taken.fetch_add(svm.prefetch(heap, DeviceId(0)).unwrap_or(0), Ordering::Relaxed);
            }
        }
        stop.store(true, Ordering::Relaxed);
        submitters.into_iter().map(|thread| thread.join().expect("no panic")).collect()
    });
    let stats = svm.stats();
    let (there, back) = (stats.count(Count::PagesToDevice), stats.count(Count::PagesToRam));
    println!("{mode}: {there} pages to the device, {back} back; sums: {sums:?}");
    assert!(
        there >= LEAST_TAKEN && back >= LEAST_TAKEN / 2,
        "{mode}: {there} pages to the device, {back} back"
    );
    drop(svm);
    // SAFETY: no pointers.
    unsafe { libc::alarm(0) };
}
