//! Several spaces in one process, each with a window of its own.
#![cfg(not(granule_loom))]
#![allow(unsafe_code, reason = "reads memory that devices write")]

use granule::ports::{Count, FaultCause};
use granule::service::BuildError;
use granule::units::{PAGE_BYTES, VirtAddr, VirtRange};
use granule::{Granularity, Svm};
use granule_backends::software::{AccessError, SoftwareDevice};

const MIB: u64 = 1 << 20;

fn device() -> SoftwareDevice {
    SoftwareDevice::builder().memory_bytes(8 << 20).engines(1).build().unwrap()
}

/// 8 MiB of private memory; the whole blocks in its middle.
fn blocks() -> VirtRange {
    let bytes = 8 * MIB;
    // SAFETY: a fresh mapping that the test keeps to its end.
    let at = unsafe {
        libc::mmap(
            std::ptr::null_mut(),
            bytes as usize,
            libc::PROT_READ | libc::PROT_WRITE,
            libc::MAP_PRIVATE | libc::MAP_ANONYMOUS,
            -1,
            0,
        )
    };
    assert_ne!(at, libc::MAP_FAILED);
    let first = VirtAddr((at as u64).next_multiple_of(2 * MIB));
    VirtRange::of_pages(first, 4 * MIB / PAGE_BYTES)
}

#[test]
fn two_spaces_serve_their_own_windows_and_overlapping_ones_are_refused() {
    let (one, two) = (blocks(), blocks());
    let (first, second) = (device(), device());
    let build = |device: &SoftwareDevice, window| {
        Svm::builder().device(device.clone()).window(window).granularity(Granularity::Kib64).build()
    };
    let left = build(&first, one).unwrap();
    let right = build(&second, two).unwrap();
    assert!(matches!(build(&device(), two), Err(BuildError::WindowTaken(taken)) if taken == two));
    assert!(matches!(Svm::builder().device(device()).build(), Err(BuildError::WindowTaken(_))));

    for (device, svm, range) in [(&first, &left, one), (&second, &right, two)] {
        let at = range.start().0;
        device.run(|engine| engine.store(at + 8, at)).unwrap();
        assert_eq!(svm.stats().count(Count::PagesToDevice), 16);
        // SAFETY: inside of the mapping; volatile, since a device wrote it.
        assert_eq!(unsafe { ((at + 8) as *const u64).read_volatile() }, at);
    }
    match first.run(|engine| engine.load::<u64>(two.start().0).map(drop)) {
        Err(AccessError::Fault { cause, .. }) => assert_eq!(cause, FaultCause::OutsideWindow),
        other => panic!("an access outside of the window is refused, not {other:?}"),
    }
    drop(left);
    // The window is free again.
    let again = device();
    let svm = build(&again, one).unwrap();
    again.run(|engine| engine.store(one.start().0, 1u64)).unwrap();
    drop(svm);
    drop(right);
}

#[test]
fn bad_windows_and_budgets_are_refused() {
    let window = VirtRange::of_pages(VirtAddr(PAGE_BYTES), 1);
    assert!(matches!(Svm::builder().device(device()).window(window).build(), Err(BuildError::Window(_))));
    assert!(matches!(Svm::builder().build(), Err(BuildError::DeviceCount(0))));
    let budget = Svm::builder().device(device()).device_memory_budget_bytes(4096).build();
    assert!(matches!(budget, Err(BuildError::Budget(4096))));
    assert!(matches!(Svm::builder().device(device()).workers(0).build(), Err(BuildError::Workers)));
}
