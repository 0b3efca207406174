//! A page of system memory whose first access sleeps in a page fault of the CPU until the check says so: a
//! userfaultfd of the check's own, in user mode only (which needs no privilege).
#![allow(unsafe_code, reason = "a mapping and a userfaultfd")]

use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};
use std::sync::atomic::{AtomicU64, Ordering};

use granule::ports::{Device, MapTarget};
use granule::units::{Access, DevAddr, Iova, PAGE_BYTES, PhysAddr, VirtAddr, VirtRange};

use super::check::{RW, done, holds};

/// UFFD_USER_MODE_ONLY.
const USER_MODE_ONLY: i32 = 1;
const UFFDIO_API: u64 = 0xc018_aa3f;
const UFFDIO_REGISTER: u64 = 0xc020_aa00;
const UFFDIO_ZEROPAGE: u64 = 0xc020_aa04;
const REGISTER_MISSING: u64 = 1;

/// The page; unmapped when dropped.
pub(super) struct Sleeper {
    fd: OwnedFd,
    at: u64,
}

impl Sleeper {
    pub(super) fn new() -> Result<Self, String> {
        let last = || std::io::Error::last_os_error();
        let flags = libc::O_CLOEXEC | libc::O_NONBLOCK | USER_MODE_ONLY;
        // SAFETY: a fresh descriptor, or -1.
        let fd = unsafe { libc::syscall(libc::SYS_userfaultfd, flags) } as i32;
        holds(&format!("userfaultfd(2) in user mode works here ({}); allow it in seccomp", last()), fd >= 0)?;
        // SAFETY: open and owned by nobody else.
        let fd = unsafe { OwnedFd::from_raw_fd(fd) };
        let (protection, kind) =
            (libc::PROT_READ | libc::PROT_WRITE, libc::MAP_PRIVATE | libc::MAP_ANONYMOUS);
        // SAFETY: a fresh mapping.
        let at = unsafe { libc::mmap(std::ptr::null_mut(), PAGE_BYTES as usize, protection, kind, -1, 0) };
        holds("a page can be mapped", at != libc::MAP_FAILED)?;
        let page = Self { fd, at: at as u64 };
        page.call(UFFDIO_API, &mut [0xaa, 0, 0, 0])?;
        page.call(UFFDIO_REGISTER, &mut [page.at, PAGE_BYTES, REGISTER_MISSING, 0])?;
        Ok(page)
    }

    /// Where it lies.
    pub(super) fn range(&self) -> VirtRange {
        VirtRange::of_pages(VirtAddr(self.at), 1)
    }

    fn call(&self, request: u64, arguments: &mut [u64; 4]) -> Result<(), String> {
        // SAFETY: each of the three requests reads and writes at most four words at its argument.
        let result = unsafe { libc::ioctl(self.fd.as_raw_fd(), request as _, arguments.as_mut_ptr()) };
        if result == 0 { Ok(()) } else { Err(format!("userfaultfd: {}", std::io::Error::last_os_error())) }
    }

    /// Links the page at an IOVA and maps it at the same device address.
    pub(super) fn link(&self, device: &dyn Device, at: u64) -> Result<(), String> {
        done("iommu map", device.iommu().map(Iova(at), PhysAddr(self.at), PAGE_BYTES, RW))?;
        done("map", device.map(DevAddr(at), 1, MapTarget::System(Iova(at)), Access::Write))
    }

    /// Waits until somebody sleeps in a fault on the page.
    pub(super) fn wait_asleep(&self) -> Result<(), String> {
        let mut poll = libc::pollfd { fd: self.fd.as_raw_fd(), events: libc::POLLIN, revents: 0 };
        // SAFETY: one entry, on this stack.
        let ready = unsafe { libc::poll(&mut poll, 1, 10_000) };
        holds("an engine reaches linked memory", ready == 1 && poll.revents == libc::POLLIN)
    }

    /// Lets everybody go on, with a page of zeros.
    pub(super) fn fill(&self) -> Result<(), String> {
        self.call(UFFDIO_ZEROPAGE, &mut [self.at, PAGE_BYTES, 0, 0])
    }

    /// The first word. To be called after `fill`.
    pub(super) fn word(&self) -> u64 {
        // SAFETY: mapped while `self` lives, aligned; engines write it as a whole.
        unsafe { &*(self.at as *const AtomicU64) }.load(Ordering::SeqCst)
    }
}

impl Drop for Sleeper {
    fn drop(&mut self) {
        // SAFETY: mapped by `new`; no device reaches it any more, or none that survives it.
        unsafe { libc::munmap(self.at as *mut _, PAGE_BYTES as usize) };
    }
}
