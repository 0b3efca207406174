//! Ordinary memory in compute shaders, served by the whole library.
#![cfg(feature = "vulkan")]
#![allow(unsafe_code, reason = "an import that the validation layer must not like")]

mod vulkan_support;

use std::sync::atomic::{AtomicU64, Ordering};

use granule::os::private::PrivateBytes;
use granule::policy::LinkOnly;
use granule::ports::{Count, FaultCause};
use granule::service::{Granularity, Region, Svm};
use granule::units::{PAGE_BYTES, VirtRange};
use granule_backends::vulkan::{Builder, LaunchError, shaders};

use vulkan_support::{Aligned, builder, here, modes};

const SIZE: usize = 8 << 20;

/// A word at a position.
fn value(at: usize) -> u64 {
    (at as u64 + 1).wrapping_mul(0x9e37_79b9_7f4a_7c15)
}

/// What a sum cost.
struct Cost {
    /// Faults on different pages, and on pages that had left meanwhile.
    faults: u64,
    pages: u64,
    evictions: u64,
    /// Pages that the CPU took back.
    to_ram: u64,
}

/// Sums ordinary memory on a device with so much memory.
fn sum(builder: &Builder, device_bytes: u64, granularity: Granularity) -> Cost {
    let device = builder.clone().memory_bytes(device_bytes).validate(true).build().expect("a device");
    let svm = Svm::builder().device(device.clone()).granularity(granularity).build().expect("a space");
    let data: Vec<u64> = (0..SIZE / 8).map(value).collect();
    let kernel = device.kernel(shaders::SUM).expect("a kernel");
    let (at, len) = (data.as_ptr() as u64, data.len() as u64);
    let pages = ((at + SIZE as u64).div_ceil(PAGE_BYTES) - at / PAGE_BYTES) as u32;
    let sums = Aligned::of([0; 3]);
    device.launch(&kernel, pages, &[at, len, sums.address(), 3]).expect("the sum");
    let stats = svm.stats();
    for (part, seen) in sums.words()[..3].iter().enumerate() {
        let range = data.len() * part / 3..data.len() * (part + 1) / 3;
        assert_eq!(*seen, range.map(value).fold(0, u64::wrapping_add), "part {part}");
    }
    assert!(data.iter().enumerate().all(|(at, word)| *word == value(at)), "the data are what they were");
    drop(svm);
    let said = device.validation_messages();
    assert!(said.is_empty(), "the validation layer says:\n{}", said.join("\n"));
    Cost {
        faults: stats.count(Count::DeviceFaults) - stats.count(Count::DeviceFaultsDuplicate),
        pages: u64::from(pages),
        evictions: stats.count(Count::Evictions),
        to_ram: stats.count(Count::PagesToRam),
    }
}

#[test]
fn a_sum_over_memory_that_fits_faults_once_per_page() {
    let Some(_alone) = here() else { return };
    for (mode, builder) in modes() {
        let Cost { faults, pages, to_ram, .. } = sum(&builder, 4 * SIZE as u64, Granularity::Kib4);
        // Besides the data, the page of the sums. A page at the edge of the data may be shared with the allocator or the
        // driver, who take it back: it may fault again.
        assert!(
            (pages + 1..=pages + 1 + to_ram).contains(&faults),
            "{mode}: {faults} faults on {pages} pages"
        );
        assert!(to_ram < 10, "{mode}: {to_ram} pages were taken back");
    }
}

#[test]
fn a_sum_over_more_memory_than_the_device_has_evicts() {
    let Some(_alone) = here() else { return };
    for (mode, builder) in modes() {
        for granularity in [Granularity::Kib4, Granularity::Kib64, Granularity::Mib2] {
            for percent in [25, 50] {
                let cost = sum(&builder, SIZE as u64 * percent / 100, granularity);
                assert!(cost.evictions > 0 && cost.faults > 0, "{mode}");
            }
        }
    }
}

/// The driver itself allocates beside the page that is missed, and touches it at each call.
#[test]
fn a_page_that_the_driver_uses_too_is_served() {
    let Some(_alone) = here() else { return };
    let device = builder().validate(true).build().expect("a device");
    let svm = Svm::builder().device(device.clone()).build().expect("a space");
    let kernel = device.kernel(shaders::SUM).expect("a kernel");
    for round in 0..20 {
        let data: Box<[u64; 16]> = Box::new(std::array::from_fn(value));
        let sum = Box::new(AtomicU64::new(round));
        let at = data.as_ptr() as u64;
        let pages = (at + 128).div_ceil(PAGE_BYTES) - at / PAGE_BYTES;
        device.launch(&kernel, pages as u32, &[at, 16, sum.as_ptr() as u64, 1]).expect("the sum");
        let expected = data.iter().copied().fold(round, u64::wrapping_add);
        assert_eq!(sum.load(Ordering::SeqCst), expected);
    }
    drop(svm);
    let said = device.validation_messages();
    assert!(said.is_empty(), "the validation layer says:\n{}", said.join("\n"));
}

#[test]
fn an_address_without_a_mapping_ends_its_item_and_no_other() {
    let Some(_alone) = here() else { return };
    let device = builder().build().expect("a device");
    let _svm = Svm::builder().device(device.clone()).build().expect("a space");
    let kernel = device.kernel(shaders::PING_PONG).expect("a kernel");
    let page = Aligned::of([5; 512]);
    // The page and its neighbour above the end of the address space's window: one item each.
    let refused = device.launch(&kernel, 1, &[8 << 12, 512]);
    let Err(LaunchError::Fault { item: 0, at, cause, .. }) = refused else { panic!("{refused:?}") };
    assert_eq!((at, cause), (8 << 12, FaultCause::NoMapping));
    device.launch(&kernel, 1, &[page.address(), 512]).expect("a turn");
    assert!(page.words().iter().all(|word| *word == 5u64.wrapping_mul(0x2545_f491_4f6c_dd1d) + 1));
}

#[test]
fn the_validation_layer_is_listening() {
    let Some(_alone) = here() else { return };
    let device = builder().validate(true).build().expect("a device");
    assert_eq!(device.validation_messages(), [""; 0]);
    // A buffer of no bytes.
    let nothing = PrivateBytes::new(PAGE_BYTES).expect("a page");
    // SAFETY: nothing can be reached through a range without bytes.
    let _ = unsafe { device.import(VirtRange::of_pages(nothing.base(), 0)) };
    assert!(!device.validation_messages().is_empty(), "a buffer of no bytes went unnoticed");
}

fn turn(word: u64) -> u64 {
    word.wrapping_mul(0x2545_f491_4f6c_dd1d).wrapping_add(1)
}

/// Regions come and go, linked or moved, while another thread launches.
#[test]
fn regions_are_reached_and_go_away_while_others_launch() {
    let Some(_alone) = here() else { return };
    for links in [true, false] {
        let device = builder().validate(true).build().expect("a device");
        let builder = Svm::builder().device(device.clone());
        let builder = if links { builder.policy(LinkOnly) } else { builder };
        let svm = builder.build().expect("a space");
        let kernel = device.kernel(shaders::PING_PONG).expect("a kernel");
        std::thread::scope(|scope| {
            let other = scope.spawn(|| {
                let own = svm.alloc(PAGE_BYTES).expect("a region");
                for round in 1..100 {
                    device.launch(&kernel, 1, &[own.as_ptr() as u64, 512]).expect("a turn");
                    let expected = (0..round).fold(0, |word, _| turn(word));
                    assert!(words(&own).iter().all(|word| word.load(Ordering::SeqCst) == expected));
                }
            });
            for round in 0..60 {
                let region = svm.alloc(64 << 10).expect("a region");
                words(&region).iter().for_each(|word| word.store(round, Ordering::SeqCst));
                device.launch(&kernel, 16, &[region.as_ptr() as u64, 8192]).expect("a turn");
                assert!(words(&region).iter().all(|word| word.load(Ordering::SeqCst) == turn(round)));
            }
            other.join().expect("no panic");
        });
        let stats = svm.stats();
        if links {
            assert!(
                stats.count(Count::PagesLinked) >= 61 * 16 - 15 && stats.count(Count::PagesToDevice) == 0
            );
        }
        drop(svm);
        let said = device.validation_messages();
        assert!(said.is_empty(), "the validation layer says:\n{}", said.join("\n"));
    }
}

/// The application's view of a region.
fn words(region: &Region) -> &[AtomicU64] {
    // SAFETY: mapped as long as the region lives, aligned; any bytes are words, and devices change them atomically.
    unsafe { std::slice::from_raw_parts(region.as_ptr().cast(), region.len() / 8) }
}

/// A CPU driver pins nothing, so memory of the application is never linked: a typed fault says so.
#[test]
fn memory_without_a_view_is_not_linked() {
    let Some(_alone) = here() else { return };
    let device = builder().build().expect("a device");
    let svm = Svm::builder().device(device.clone()).policy(LinkOnly).build().expect("a space");
    let kernel = device.kernel(shaders::PING_PONG).expect("a kernel");
    let page = Aligned::of([7; 512]);
    let refused = device.launch(&kernel, 1, &[page.address(), 512]);
    let Err(LaunchError::Fault { cause, .. }) = refused else { panic!("{refused:?}") };
    assert_eq!(cause, FaultCause::NotReachable);
    assert_eq!(page.words(), [7; 512]);
    drop(svm);
}
