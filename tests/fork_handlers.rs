//! fork and raw clone while pages are on the device: parent and child have exact copies, and go their own ways.
#![cfg(not(granule_loom))]
#![allow(unsafe_code, reason = "forks, and reads memory as both sides do")]

use granule::ports::Count;
use granule::{Granularity, Svm};
use granule_backends::software::SoftwareDevice;

const WORDS: usize = 1 << 17;

/// Runs `fork` with a megabyte on the device; the child checks its copy and writes to it.
fn child_sees_the_parents_pages(fork: impl Fn() -> i32) -> (u64, u64) {
    let device = SoftwareDevice::builder().memory_bytes(16 << 20).engines(2).build().unwrap();
    let svm = Svm::builder().device(device.clone()).granularity(Granularity::Kib64).build().unwrap();
    let mut numbers = vec![0u64; WORDS];
    let at = numbers.as_mut_ptr();
    let add = |n: u64| {
        let at = at as u64;
        device
            .run(|engine| {
                for index in engine.share(WORDS) {
                    let here = at + index as u64 * 8;
                    let old: u64 = engine.load(here)?;
                    engine.store(here, old + n + index as u64)?;
                }
                Ok(())
            })
            .unwrap();
    };
    add(1);
    let before = svm.stats();
    assert!(before.count(Count::PagesToDevice) >= 240, "{before:?}");
    let child = fork();
    assert!(child >= 0);
    if child == 0 {
        // SAFETY: the vector is the child's own copy; only plain reads and writes, then the end.
        let right = (0..WORDS).all(|index| unsafe {
            let here = at.add(index);
            let value = here.read_volatile();
            here.write_volatile(7);
            value == index as u64 + 1 && here.read_volatile() == 7
        });
        // SAFETY: ends the child without running the parent's destructors.
        unsafe { libc::_exit(if right { 0 } else { 1 }) };
    }
    add(100);
    let mut status = 0;
    // SAFETY: waits for our child.
    assert_eq!(unsafe { libc::waitpid(child, &mut status, 0) }, child);
    assert!(libc::WIFEXITED(status), "the child was killed: {status:#x}");
    assert_eq!(libc::WEXITSTATUS(status), 0, "the child saw other data than its parent had");
    for index in 0..WORDS {
        // SAFETY: inside of the vector; volatile, since a device writes it.
        let value = unsafe { at.add(index).read_volatile() };
        assert_eq!(value, 2 * index as u64 + 101, "the parent's word {index}");
    }
    let after = svm.stats();
    drop(svm);
    assert_eq!(numbers[5], 111);
    (before.count(Count::PagesToRam), after.count(Count::PagesToRam))
}

#[test]
fn fork_brings_everything_to_ram_first() {
    // SAFETY: the child only touches memory and exits.
    let (before, after) = child_sees_the_parents_pages(|| unsafe { libc::fork() });
    assert!(after - before >= 480, "before the fork and after it: {before} {after}");
}

#[test]
fn a_raw_clone_is_served_by_its_event() {
    // SAFETY: a fork without the C library's handlers; the child only touches memory and exits.
    child_sees_the_parents_pages(|| unsafe {
        libc::syscall(libc::SYS_clone, libc::SIGCHLD, 0, 0, 0, 0) as i32
    });
}

#[test]
fn dropping_a_space_in_a_child_does_nothing() {
    let device = SoftwareDevice::builder().memory_bytes(4 << 20).engines(1).build().unwrap();
    let svm = Svm::builder().device(device.clone()).build().unwrap();
    let numbers = vec![3u64; 4096];
    let at = numbers.as_ptr() as u64;
    device.run(|engine| engine.store(at, 4u64)).unwrap();
    // SAFETY: the child drops its handles and exits.
    let child = unsafe { libc::fork() };
    assert!(child >= 0);
    if child == 0 {
        let refused = svm.to_ram(granule::units::VirtRange::default()).is_err();
        let empty = svm.stats().count(Count::DeviceFaults) == 0;
        drop(svm);
        drop(device);
        // SAFETY: as above.
        unsafe { libc::_exit(if refused && empty { 0 } else { 1 }) };
    }
    let mut status = 0;
    // SAFETY: waits for our child.
    assert_eq!(unsafe { libc::waitpid(child, &mut status, 0) }, child);
    assert_eq!(status, 0, "the child ended badly");
    device.run(|engine| engine.fetch_add_u64(at, 1).map(drop)).unwrap();
    drop(svm);
    assert_eq!(numbers[0], 5);
}
