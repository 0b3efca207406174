//! The main job on real memory: plain allocations, a device that faults, a CPU that takes pages back.
#![cfg(not(granule_loom))]

mod real;

use granule::ports::Count;
use granule::{Granularity, Svm};
use granule_backends::software::SoftwareDevice;
use real::{MIB, PAGE, World, advise, alone, map_aligned, peek, poke, unmap};

fn device(memory_bytes: u64) -> SoftwareDevice {
    SoftwareDevice::builder().memory_bytes(memory_bytes).engines(2).build().expect("a software device")
}

/// Pages beside one on a device are filled in runs, also where the mapping ends before the unit of filling does.
#[test]
fn a_small_mapping_is_not_filled_page_by_page() {
    let _alone = alone(60);
    let world = World::new(64 * MIB, |builder| builder.granularity(Granularity::Kib4));
    let base = map_aligned(2 * MIB);
    unmap(base + 64 * PAGE, 2 * MIB - 64 * PAGE);
    world.store(base, 7).expect("writable memory");
    let before = world.count(Count::CpuFaults);
    for page in 1..64 {
        poke(base + page * PAGE, page as u64);
    }
    let faults = world.count(Count::CpuFaults) - before;
    assert!((1..=8).contains(&faults), "63 pages took {faults} faults");
    assert!((1..64).all(|page| peek(base + page * PAGE) == page as u64));
    assert_eq!(peek(base), 7);
    unmap(base, 64 * PAGE);
}

/// A block of which nothing is on a device any more is the kernel's own business again: were it trapped on, each of its
/// four units of filling would be a fault.
#[test]
fn what_was_discarded_is_not_trapped_for_longer_than_a_touch() {
    const BLOCKS: usize = 16;
    const PAGES: usize = 512;
    let _alone = alone(60);
    let world = World::new(64 * MIB, |builder| builder.granularity(Granularity::Kib64));
    let base = map_aligned(BLOCKS * 2 * MIB);
    for page in 0..BLOCKS * PAGES {
        poke(base + page * PAGE, 1);
    }
    assert_eq!(world.prefetch(base, BLOCKS * PAGES), (BLOCKS * PAGES) as u64);
    advise(base, BLOCKS * 2 * MIB, libc::MADV_DONTNEED);
    let before = world.count(Count::CpuFaults);
    for page in 0..BLOCKS * PAGES {
        assert_eq!(peek(base + page * PAGE), 0);
        poke(base + page * PAGE, page as u64);
    }
    let faults = world.count(Count::CpuFaults) - before;
    assert!(faults <= 2 * BLOCKS as u64, "{faults} faults for {BLOCKS} blocks");
    assert!((0..BLOCKS * PAGES).all(|page| peek(base + page * PAGE) == page as u64));
    unmap(base, BLOCKS * 2 * MIB);
}

#[test]
fn a_device_increments_a_vector_that_nobody_registered() {
    let _alone = alone(60);
    let device = device(64 << 20);
    let svm = Svm::builder().device(device.clone()).granularity(Granularity::Kib64).build().unwrap();
    let numbers: Vec<u64> = (0..1 << 20).collect();
    let base = numbers.as_ptr() as u64;
    device
        .run(|engine| {
            let (index, count) = (engine.index() as u64, engine.count() as u64);
            let share = (1 << 20) / count;
            let mut buffer = vec![0u64; 4096];
            for chunk in (index * share..(index + 1) * share).step_by(4096) {
                engine.load_slice(base + chunk * 8, &mut buffer)?;
                buffer.iter_mut().for_each(|number| *number += 5);
                engine.store_slice(base + chunk * 8, &buffer)?;
            }
            Ok(())
        })
        .unwrap();
    assert!(numbers.iter().enumerate().all(|(at, number)| *number == at as u64 + 5));
    let stats = svm.stats();
    assert!(stats.count(Count::PagesToDevice) >= 2048 - 32, "{stats:#?}");
    assert!(stats.count(Count::PagesToRam) >= 2048 - 32, "{stats:#?}");
    assert!(stats.count(Count::CpuFaults) > 0 && stats.count(Count::DeviceFaults) > 0, "{stats:#?}");
    drop(svm);
    assert!(numbers.iter().enumerate().all(|(at, number)| *number == at as u64 + 5));
}
