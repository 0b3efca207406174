//! Pages that the kernel itself holds on to while the program goes on: they are refused and linked, or they move, but
//! nothing that was written to them is lost. On real memory.
#![cfg(not(granule_loom))]
#![allow(unsafe_code, reason = "pins pages by system calls, as an application does")]

mod real;

use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};

use granule::Granularity;
use granule::ports::Count;
use real::*;

/// `struct io_uring_params`: zero is a ring without options.
type Params = [u8; 120];
const IORING_REGISTER_BUFFERS: libc::c_uint = 0;

/// Registers a buffer with a fresh ring: its pages are pinned until the ring is closed. `None` where the system does not
/// let this process have one.
fn pin(at: usize, bytes: usize) -> Option<OwnedFd> {
    let mut params: Params = [0; 120];
    // SAFETY: the kernel fills the parameters; a fresh descriptor belongs to who opened it; the buffer is mapped.
    unsafe {
        let ring = libc::syscall(libc::SYS_io_uring_setup, 1, params.as_mut_ptr());
        if ring < 0 {
            let error = std::io::Error::last_os_error();
            assert!(matches!(error.raw_os_error(), Some(libc::ENOSYS | libc::EPERM)), "{error}");
            println!("nothing is tried: this process may not have an io_uring ({error})");
            return None;
        }
        let ring = OwnedFd::from_raw_fd(ring as i32);
        let buffer = libc::iovec { iov_base: at as *mut _, iov_len: bytes };
        let done =
            libc::syscall(libc::SYS_io_uring_register, ring.as_raw_fd(), IORING_REGISTER_BUFFERS, &buffer, 1);
        assert_eq!(done, 0, "{}", std::io::Error::last_os_error());
        Some(ring)
    }
}

#[test]
fn a_page_pinned_for_input_and_output_is_linked_until_it_is_let_go() {
    let _alone = alone(60);
    let world = World::new(8 * MIB, |builder| builder.granularity(Granularity::Kib4));
    let at = map_aligned(2 * MIB);
    (0..8).for_each(|page| poke(at + page * PAGE, page as u64));
    let Some(ring) = pin(at + 2 * PAGE, 3 * PAGE) else { return };
    assert_eq!(world.prefetch(at, 8), 8);
    assert_eq!(
        present_pages(at, 8),
        [false, false, true, true, true, false, false, false],
        "three are linked"
    );
    for page in 0..8 {
        world.store(at + page * PAGE + 8, 100 + page as u64).expect("all can be written");
    }
    assert_eq!(present(at + 2 * PAGE, 3), 3);
    for page in 0..8 {
        assert_eq!((peek(at + page * PAGE), peek(at + page * PAGE + 8)), (page as u64, 100 + page as u64));
    }
    drop(ring);
    // The kernel lets go of the pages when it gets to it.
    while present(at, 8) != 0 {
        assert_eq!(world.prefetch(at, 8), 8);
    }
    for page in 0..8 {
        assert_eq!((peek(at + page * PAGE), peek(at + page * PAGE + 8)), (page as u64, 100 + page as u64));
    }
    assert!(world.count(Count::PagesRefused) >= 3);
    assert_eq!(world.device.counters().iommu_errors, 0);
    unmap(at, 2 * MIB);
}

#[test]
fn a_page_lent_to_a_pipe_keeps_what_is_written_to_it() {
    let _alone = alone(60);
    let world = World::new(8 * MIB, |builder| builder.granularity(Granularity::Kib4));
    let at = map_aligned(2 * MIB);
    for round in 0..50u64 {
        for page in 0..8 {
            poke(at + page * PAGE, round + page as u64);
        }
        // SAFETY: a fresh pipe; the pages are mapped until the end of the test.
        let (reader, writer) = unsafe {
            let mut ends = [0; 2];
            assert_eq!(libc::pipe2(ends.as_mut_ptr(), libc::O_NONBLOCK), 0);
            let lent = libc::iovec { iov_base: at as *mut _, iov_len: 8 * PAGE };
            assert_eq!(libc::vmsplice(ends[1], &lent, 1, 0), 8 * PAGE as isize);
            (OwnedFd::from_raw_fd(ends[0]), OwnedFd::from_raw_fd(ends[1]))
        };
        assert_eq!(world.prefetch(at, 8), 8, "moved or linked: the kernel decides");
        for page in 0..8 {
            world.store(at + page * PAGE + 8, round + 1000).expect("writable");
        }
        for page in 0..8 {
            assert_eq!(
                (peek(at + page * PAGE), peek(at + page * PAGE + 8)),
                (round + page as u64, round + 1000)
            );
        }
        drop((reader, writer));
        assert_eq!(world.prefetch(at, 8), 8);
    }
    unmap(at, 2 * MIB);
}
