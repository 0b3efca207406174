//! Faults that must come to an end, on real memory.
#![cfg(not(granule_loom))]
#![allow(unsafe_code, reason = "cuts a memory file short")]

mod real;

use std::sync::Barrier;

use granule::Granularity;
use granule::ports::{Count, FaultCause};
use granule_backends::software::AccessError;
use real::*;

#[test]
fn a_linked_page_that_lost_its_file_is_an_error_and_not_a_loop() {
    let _alone = alone(60);
    let world = World::new(8 * MIB, |builder| builder);
    // SAFETY: a fresh memory file, mapped where the kernel likes; cut while nobody but the device touches it.
    let (file, at) = unsafe {
        let file = libc::memfd_create(c"cut".as_ptr(), 0);
        assert_eq!(libc::ftruncate(file, 2 * PAGE as i64), 0);
        let protection = libc::PROT_READ | libc::PROT_WRITE;
        let at = libc::mmap(std::ptr::null_mut(), 2 * PAGE, protection, libc::MAP_SHARED, file, 0);
        assert_ne!(at, libc::MAP_FAILED);
        (file, at as usize)
    };
    poke(at, 5);
    poke(at + PAGE, 6);
    assert_eq!((world.load(at), world.load(at + PAGE)), (Ok(5), Ok(6)));
    assert_eq!(world.count(Count::PagesToDevice), 0, "shared memory is linked");
    // SAFETY: as above.
    unsafe { assert_eq!(libc::ftruncate(file, PAGE as i64), 0) };
    assert!(
        matches!(world.load(at + PAGE), Err(AccessError::Fault { cause: FaultCause::NoAccess, .. })),
        "what is SIGBUS for the CPU is an error of that access"
    );
    assert_eq!(world.load(at), Ok(5), "everything else goes on");
    drop(world);
    unmap(at, 2 * PAGE);
    // SAFETY: opened above, closed once.
    unsafe { libc::close(file) };
}

/// More than the reader keeps at once.
const THREADS: usize = 400;
const ROUNDS: usize = 10;

#[test]
fn more_threads_wait_than_the_reader_keeps_while_events_wait_too() {
    let _alone = alone(120);
    let world = World::new(8 * MIB, |builder| builder.granularity(Granularity::Kib4));
    let at = map_aligned(2 * MIB);
    (0..THREADS).for_each(|page| poke(at + page * PAGE, page as u64));
    let scratch = map_aligned(2 * MIB);
    let start = Barrier::new(THREADS + 1);
    std::thread::scope(|scope| {
        for page in 0..THREADS {
            let start = &start;
            scope.spawn(move || {
                for _ in 0..ROUNDS {
                    start.wait();
                    assert_eq!(peek(at + page * PAGE), page as u64);
                    start.wait();
                }
            });
        }
        for _ in 0..ROUNDS {
            poke(scratch, 1);
            assert_eq!(world.prefetch(scratch, 1), 1);
            assert_eq!(world.prefetch(at, THREADS), THREADS as u64);
            assert_eq!(present(at, THREADS), 0, "all of them are away");
            start.wait();
            // Its event comes after the faults, and until it is read no page can come home.
            advise(scratch, PAGE, libc::MADV_DONTNEED);
            start.wait();
        }
    });
    assert!(world.count(Count::CpuFaults) >= (ROUNDS * THREADS) as u64 / 2, "they came home one by one");
    unmap(at, 2 * MIB);
    unmap(scratch, 2 * MIB);
}
