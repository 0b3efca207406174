//! The main job on real memory: plain allocations, a device that faults, a CPU that takes pages back.
#![cfg(not(granule_loom))]

use granule::ports::Count;
use granule::{Granularity, Svm};
use granule_backends::software::SoftwareDevice;

fn device(memory_bytes: u64) -> SoftwareDevice {
    SoftwareDevice::builder().memory_bytes(memory_bytes).engines(2).build().expect("a software device")
}

#[test]
fn a_device_increments_a_vector_that_nobody_registered() {
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
