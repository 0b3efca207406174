//! Failures on demand, and the bounds of the software device.

use std::sync::atomic::Ordering;

use granule::os::private::PrivateBytes;
use granule::ports::{Device, DeviceError, DeviceFault, FaultCause, IommuError, MapTarget};
use granule::units::{Access, BLOCK_BYTES, DevAddr, DevMemAddr, Iova, PAGE_BYTES, PhysAddr};
use granule_backends::software::{AccessError, BuildError, Builder, Inject, SoftwareDevice};

const RW: Access = Access::Write;

fn page(word: u64) -> PrivateBytes {
    let page = PrivateBytes::new(PAGE_BYTES).expect("memory");
    page.as_words().iter().for_each(|at| at.store(word, Ordering::Relaxed));
    page
}

fn words(page: &PrivateBytes) -> Vec<u64> {
    page.as_words().iter().map(|word| word.load(Ordering::Relaxed)).collect()
}

#[test]
fn one_flipped_byte_is_one_flipped_bit_at_a_place_that_the_seed_chooses() {
    let flipped = |seed| {
        let inject = Inject { flip_byte_at_copy_in: Some(1), ..Inject::default() };
        let device = SoftwareDevice::builder().seed(seed).inject(inject).build().expect("a device");
        let (source, back) = (page(0), page(0));
        let mut found = Vec::new();
        for copy in 0..3 {
            device.copy_in(DevMemAddr(copy * PAGE_BYTES), source.as_words()).expect("copies");
            device.copy_out(DevMemAddr(copy * PAGE_BYTES), back.as_words()).expect("copies");
            let differing = words(&back).into_iter().enumerate().filter(|&(_, word)| word != 0);
            found.extend(differing.map(|(at, word)| (copy, at, word)));
        }
        found
    };
    let (first, again, other) = (flipped(1), flipped(1), flipped(2));
    assert_eq!(first.len(), 1);
    assert_eq!((first[0].0, first[0].2.count_ones()), (1, 1));
    assert_eq!(first, again);
    assert_ne!(first, other);
    let device = SoftwareDevice::builder().build().expect("a device");
    device.flip_byte(DevMemAddr(13));
    let window = device.window(DevMemAddr(8), 8).expect("a window");
    assert_eq!(window[0].load(Ordering::SeqCst), 0x10 << 40);
}

#[test]
fn a_failed_copy_keeps_the_only_copy() {
    let inject = Inject { copies_fail_after: Some(1), ..Inject::default() };
    let device = SoftwareDevice::builder().inject(inject).build().expect("a device");
    device.copy_in(DevMemAddr(0), page(5).as_words()).expect("the first");
    let back = page(9);
    assert_eq!(device.copy_out(DevMemAddr(0), back.as_words()), Err(DeviceError::CopyFailed));
    assert_eq!(device.copy_in(DevMemAddr(0), page(6).as_words()), Err(DeviceError::CopyFailed));
    let window = device.window(DevMemAddr(0), PAGE_BYTES).expect("a window");
    assert!(window.iter().all(|word| word.load(Ordering::SeqCst) == 5));
}

#[test]
fn without_tables_nothing_is_mapped() {
    let device = SoftwareDevice::builder().table_bytes(64 << 10).build().expect("a device");
    let memory = page(3);
    let far = |n: u64| DevAddr((n + 1) << 39);
    let mapped = (0..).take_while(|&n| {
        let done = device.map(far(n), 1, MapTarget::DeviceMemory(DevMemAddr(0)), RW);
        assert!(matches!(done, Ok(()) | Err(DeviceError::OutOfTables)));
        done.is_ok()
    });
    let mapped = mapped.count() as u64;
    assert_eq!(mapped, 5, "15 nodes beside the root, 3 for each page far from the others");
    assert_eq!(device.counters().leaves.small, mapped);
    let iommu = device.iommu();
    let mut refused = (0..).map(|n| iommu.map(Iova(far(n).0), PhysAddr(memory.base().0), PAGE_BYTES, RW));
    assert_eq!(refused.find(Result::is_err), Some(Err(IommuError::OutOfTables)));
    device.unmap(far(0), 1);
    device.map(far(9), 1, MapTarget::DeviceMemory(DevMemAddr(0)), RW).expect("tables are used again");
    let inject = Inject { maps_fail_after: Some(0), ..Inject::default() };
    let device = SoftwareDevice::builder().inject(inject).build().expect("a device");
    let refused = device.map(far(0), 1, MapTarget::DeviceMemory(DevMemAddr(0)), RW);
    assert_eq!(refused, Err(DeviceError::OutOfTables));
}

#[test]
fn engines_wait_for_room_in_the_fault_buffer() {
    let device = SoftwareDevice::builder().engines(3).fault_buffer_entries(1).build().expect("a device");
    device.attach();
    std::thread::scope(|scope| {
        let kernel = scope
            .spawn(|| device.run(|engine| engine.load::<u8>(BLOCK_BYTES + engine.index() as u64).map(drop)));
        while device.counters().overflows < 2 {
            std::thread::yield_now();
        }
        let mut seen = Vec::new();
        while seen.len() < 3 {
            device.wait_fault();
            let mut faults = [DeviceFault::default(); 8];
            let taken = device.fetch(&mut faults);
            assert!(taken <= 1, "a buffer of one entry held {taken}");
            for fault in &faults[..taken] {
                seen.push(fault.at.0 - BLOCK_BYTES);
                device.cancel(fault, FaultCause::NoMapping);
            }
        }
        seen.sort_unstable();
        assert_eq!(seen, [0, 1, 2], "each engine's fault, once");
        let (access, cause) = (Access::Read, FaultCause::NoMapping);
        let first = AccessError::Fault { at: BLOCK_BYTES, access, cause };
        assert_eq!(kernel.join().expect("no panic"), Err(first));
    });
}

#[test]
fn settings_that_make_no_device_are_refused_in_one_sentence() {
    let refused = |builder: Builder| builder.build().err().expect("refused");
    let new = SoftwareDevice::builder;
    assert_eq!(refused(new().memory_bytes(0)), BuildError::MemorySize(0));
    assert_eq!(refused(new().memory_bytes(BLOCK_BYTES + 1)), BuildError::MemorySize(BLOCK_BYTES + 1));
    assert_eq!(refused(new().engines(0)), BuildError::Engines { asked: 0 });
    assert_eq!(refused(new().engines(257)), BuildError::Engines { asked: 257 });
    assert_eq!(refused(new().fault_buffer_entries(0)), BuildError::FaultEntries { asked: 0 });
    assert_eq!(refused(new().table_bytes(4096)), BuildError::TableBytes(4096));
    assert!(matches!(refused(new().memory_bytes(1 << 60)), BuildError::Private(_) | BuildError::Memfd(_)));
    let populated = new().memory_bytes(4 << 20).populate(true).build().expect("a device");
    assert_eq!(populated.caps().memory_bytes, 4 << 20);
}
