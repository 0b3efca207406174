//! One space, two devices: both use the same pointers, and a page is in one place at a time.
#![cfg(not(granule_loom))]
#![allow(unsafe_code, reason = "reads memory that devices write")]

use std::sync::{Mutex, PoisonError};

use granule::ports::{Count, FaultCause};
use granule::service::RequestError;
use granule::units::{DeviceId, VirtAddr, VirtRange};
use granule::{Granularity, Svm};
use granule_backends::software::{AccessError, Inject, SoftwareDevice};

const WORDS: usize = 1 << 15;

/// One test at a time: each has a space over the whole process.
static ONE: Mutex<()> = Mutex::new(());

fn device() -> SoftwareDevice {
    SoftwareDevice::builder().memory_bytes(8 << 20).engines(1).build().unwrap()
}

/// A page that one device does not give back is an error for the other one, at once; what else lies in its block is not.
#[test]
fn a_device_that_keeps_a_page_does_not_hold_the_other_one_up() {
    let _one = ONE.lock().unwrap_or_else(PoisonError::into_inner);
    let inject = Inject { first_copy_outs_fail: u64::MAX, no_window: true, ..Inject::default() };
    let bad = SoftwareDevice::builder().memory_bytes(8 << 20).engines(1).inject(inject).build().unwrap();
    let good = device();
    let svm = Svm::builder()
        .device(bad.clone())
        .device(good.clone())
        .granularity(Granularity::Kib4)
        .build()
        .unwrap();
    let mut numbers = vec![7u64; WORDS];
    // Two pages of one block, wholly inside of the vector.
    let first = (numbers.as_mut_ptr() as u64).next_multiple_of(2 << 13);
    assert_eq!(svm.prefetch(VirtRange::of_pages(VirtAddr(first), 1), DeviceId(0)), Ok(1));
    let begin = std::time::Instant::now();
    good.run(|engine| {
        assert!(matches!(
            engine.load::<u64>(first),
            Err(AccessError::Fault { cause: FaultCause::DeviceFailed, .. })
        ));
        assert_eq!(engine.load::<u64>(first + 4096), Ok(7), "linked beside the page that is stuck");
        Ok(())
    })
    .unwrap();
    println!("told after {:?}", begin.elapsed());
    bad.run(|engine| engine.load::<u64>(first).map(|found| assert_eq!(found, 7))).unwrap();
    assert_eq!(svm.close().expect_err("it is still there").pages, 1);
    // The page is lost and a touch of it is an error: not to be freed with its neighbours' memory in one piece.
    std::mem::forget(numbers);
}

#[test]
fn two_devices_and_the_cpu_take_turns_on_the_same_pages() {
    let _one = ONE.lock().unwrap_or_else(PoisonError::into_inner);
    let (first, second) = (device(), device());
    let svm = Svm::builder()
        .device(first.clone())
        .device(second.clone())
        .granularity(Granularity::Kib64)
        .build()
        .unwrap();
    let mut numbers = vec![0u64; WORDS];
    let at = numbers.as_mut_ptr();
    let base = at as u64;
    let add = |device: &SoftwareDevice, n: u64| {
        device
            .run(|engine| {
                for index in engine.share(WORDS) {
                    let here = base + 8 * index as u64;
                    let old: u64 = engine.load(here)?;
                    engine.store(here, old + n)?;
                }
                Ok(())
            })
            .unwrap();
    };
    for round in 0..5u64 {
        add(&first, 1);
        add(&second, 10);
        for index in (0..WORDS).step_by(997) {
            // SAFETY: inside of the vector; volatile, since devices write it.
            let value = unsafe { at.add(index).read_volatile() };
            assert_eq!(value, 11 * (round + 1), "word {index} in round {round}");
        }
    }
    let stats = svm.stats();
    assert!(stats.count(Count::RetryTakenBack) > 0, "pages went from one device to the other: {stats:?}");
    assert!(stats.count(Count::PagesToDevice) >= 10 * 60, "{stats:?}");

    // Both at once on the same pages: atomics of both sides all count.
    std::thread::scope(|scope| {
        for device in [&first, &second] {
            scope.spawn(move || {
                device
                    .run(|engine| {
                        for index in 0..2_000u64 {
                            engine.fetch_add_u64(base + index % 64 * 4096, 1)?;
                        }
                        Ok(())
                    })
                    .unwrap();
            });
        }
    });
    // SAFETY: as above.
    let sum: u64 = (0..64).map(|page| unsafe { at.add(page * 512).read_volatile() } - 55).sum();
    assert_eq!(sum, 4_000, "an addition was lost between the devices");

    let range = VirtRange::covering(VirtAddr(base), 8 * WORDS as u64).unwrap();
    assert_eq!(svm.prefetch(range, DeviceId(1)).unwrap(), range.pages());
    assert!(svm.to_ram(range).unwrap() > 0);
    assert_eq!(svm.prefetch(range, DeviceId(2)), Err(RequestError::NoDevice(DeviceId(2))));
    drop(svm);
    assert_eq!(numbers[1], 55);
}
