//! The kernel's own words: structs, request numbers, and what an errno means. Safe names for them are next door.
//!
//! # Rules
//! 1. Sizes are asserted at compile time, and the size inside a request number against the struct it carries.
//! 2. What a call reports as signed stays signed until [`classify`] has looked at it.
#![allow(unsafe_code, reason = "ioctl takes untyped pointers")]

pub(crate) use linux_raw_sys::general::{
    page_region, pm_scan_arg, procmap_query, uffdio_api, uffdio_continue, uffdio_copy, uffdio_move,
    uffdio_poison, uffdio_range, uffdio_register, uffdio_writeprotect, uffdio_zeropage,
};
pub(crate) use linux_raw_sys::ioctl::{
    UFFDIO_API, UFFDIO_CONTINUE, UFFDIO_COPY, UFFDIO_REGISTER, UFFDIO_UNREGISTER, UFFDIO_WAKE,
    UFFDIO_WRITEPROTECT, UFFDIO_ZEROPAGE,
};

use crate::ports::HostError;

/// `_IO(0xAA, 0)` on /dev/userfaultfd: makes a userfaultfd.
pub(crate) const USERFAULTFD_IOC_NEW: u32 = 0xAA00;
/// `_IOWR(0xAA, 5, uffdio_move)`, Linux 6.8.
pub(crate) const UFFDIO_MOVE: u32 = 0xC028_AA05;
/// `_IOWR(0xAA, 8, uffdio_poison)`, Linux 6.6.
pub(crate) const UFFDIO_POISON: u32 = 0xC020_AA08;
/// `_IOWR('f', 16, pm_scan_arg)` on /proc/self/pagemap, Linux 6.7.
pub(crate) const PAGEMAP_SCAN: u32 = 0xC060_6610;
/// `_IOWR('f', 17, procmap_query)` on /proc/self/maps, Linux 6.11.
pub(crate) const PROCMAP_QUERY: u32 = 0xC068_6611;

/// `uffdio_move.mode`: no waking of who waits at the destination.
pub(crate) const MOVE_MODE_DONTWAKE: u64 = 1;
/// `uffdio_move.mode`: absent source pages are skipped and counted.
pub(crate) const MOVE_MODE_ALLOW_SRC_HOLES: u64 = 2;
/// `uffdio_writeprotect.mode`: protect (without it: unprotect and wake).
pub(crate) const WRITEPROTECT_MODE_WP: u64 = 1;

const fn carried(request: u32) -> usize {
    (request >> 16) as usize & 0x3fff
}
const _: () = {
    assert!(size_of::<uffdio_api>() == 24 && carried(UFFDIO_API) == 24);
    assert!(size_of::<uffdio_register>() == 32 && carried(UFFDIO_REGISTER) == 32);
    assert!(
        size_of::<uffdio_range>() == 16 && carried(UFFDIO_UNREGISTER) == 16 && carried(UFFDIO_WAKE) == 16
    );
    assert!(size_of::<uffdio_copy>() == 40 && carried(UFFDIO_COPY) == 40);
    assert!(size_of::<uffdio_continue>() == 32 && carried(UFFDIO_CONTINUE) == 32);
    assert!(size_of::<uffdio_zeropage>() == 32 && carried(UFFDIO_ZEROPAGE) == 32);
    assert!(size_of::<uffdio_writeprotect>() == 24 && carried(UFFDIO_WRITEPROTECT) == 24);
    assert!(size_of::<uffdio_move>() == 40 && carried(UFFDIO_MOVE) == 40);
    assert!(size_of::<uffdio_poison>() == 32 && carried(UFFDIO_POISON) == 32);
    assert!(size_of::<pm_scan_arg>() == 96 && carried(PAGEMAP_SCAN) == 96);
    assert!(size_of::<procmap_query>() == 104 && carried(PROCMAP_QUERY) == 104);
    assert!(size_of::<Message>() == 32);
};

/// `struct uffd_msg` without its union: the meaning of `args` follows from `event`.
#[repr(C)]
#[derive(Clone, Copy, Default)]
pub(crate) struct Message {
    pub(crate) event: u8,
    reserved: [u8; 7],
    pub(crate) args: [u64; 3],
}

/// A positive error number.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct Errno(pub(crate) i32);

impl Errno {
    pub(crate) fn last() -> Self {
        Self(super::errno())
    }
}

/// What a userfaultfd call that works page by page did.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Outcome {
    /// So many bytes from the start on, at least a page; fewer than asked for if something stopped it, which the
    /// next call from there on tells.
    Done(u64),
    /// Nothing, because of this.
    Refused(Errno),
}

/// Merges the return value of the call with the signed field in which it reports progress.
pub(crate) fn classify(result: Result<i64, Errno>, field: i64, asked: u64) -> Outcome {
    match (result, field) {
        (Ok(_), _) => Outcome::Done(asked),
        (Err(_), done @ 1..) => Outcome::Done(done as u64),
        (Err(errno), 0) => Outcome::Refused(errno),
        (Err(_), minus) => Outcome::Refused(Errno(minus.unsigned_abs() as i32)),
    }
}

/// What the errno of a userfaultfd or madvise call means one layer up.
impl From<Errno> for HostError {
    fn from(errno: Errno) -> Self {
        match errno.0 {
            libc::EAGAIN => HostError::Changing,
            libc::EEXIST => HostError::Present,
            libc::ENOENT | libc::EFAULT => HostError::NoMapping,
            libc::EPERM | libc::EACCES => HostError::NotPermitted,
            libc::ENOMEM => HostError::OutOfMemory,
            libc::ESRCH => HostError::Gone,
            _ => HostError::NotSupported,
        }
    }
}

/// One ioctl whose argument is a struct.
///
/// # Safety
/// `arg` is what `request` expects; every address in it stays valid for what the kernel does with it.
pub(crate) unsafe fn ioctl<T>(fd: i32, request: u32, arg: &mut T) -> Result<i64, Errno> {
    debug_assert_eq!(carried(request), size_of::<T>(), "the request carries another struct");
    // SAFETY: the caller vouches for the contents; the borrow keeps the struct alive for the call.
    let rc = unsafe { libc::ioctl(fd, request as libc::Ioctl, &raw mut *arg) };
    if rc < 0 { Err(Errno::last()) } else { Ok(i64::from(rc)) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn progress_is_never_read_out_of_an_error() {
        let again = Err(Errno(libc::EAGAIN));
        assert_eq!(classify(Ok(0), 8192, 8192), Outcome::Done(8192));
        assert_eq!(classify(again, 4096, 8192), Outcome::Done(4096));
        assert_eq!(classify(again, 0, 8192), Outcome::Refused(Errno(libc::EAGAIN)));
        assert_eq!(classify(Err(Errno(libc::EBUSY)), -16, 8192), Outcome::Refused(Errno(libc::EBUSY)));
        assert_eq!(classify(again, -11, 8192), Outcome::Refused(Errno(libc::EAGAIN)));
    }
}
