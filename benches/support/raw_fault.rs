#![allow(unsafe_code, reason = "the raw calls that are the floor")]

use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use linux_raw_sys::general::{
    UFFD_API, UFFD_EVENT_PAGEFAULT, UFFDIO_REGISTER_MODE_MISSING, uffd_msg, uffdio_api, uffdio_copy,
    uffdio_range, uffdio_register,
};
use linux_raw_sys::ioctl::{UFFDIO_API, UFFDIO_COPY, UFFDIO_REGISTER};

use super::{DeviceView, Region};

const PAGE: usize = 4096;

/// The floor of a CPU fault: a userfaultfd over a region and a thread that sleeps in `read` and answers each fault by
/// one `UFFDIO_COPY` of the page's place in memory of the device's kind.
pub struct RawFaults {
    region: Region,
    stopping: Arc<AtomicBool>,
    handler: Option<std::thread::JoinHandle<()>>,
}

fn ioctl<T>(fd: i32, request: u32, argument: &mut T) {
    // SAFETY: each request is used with the struct that it carries.
    let rc = unsafe { libc::ioctl(fd, request as libc::Ioctl, std::ptr::from_mut(argument)) };
    assert_eq!(rc, 0, "userfaultfd: {}", std::io::Error::last_os_error());
}

impl RawFaults {
    /// Faults over `bytes` bytes. The handler runs where the calling thread may run.
    pub fn start(bytes: u64) -> Self {
        let region = Region::new(bytes, false);
        let source = DeviceView::new(bytes);
        // SAFETY: a system call without pointers; a fresh descriptor is owned here.
        let fd = unsafe {
            let fd = libc::syscall(libc::SYS_userfaultfd, libc::O_CLOEXEC) as i32;
            assert!(fd >= 0, "userfaultfd: {}", std::io::Error::last_os_error());
            OwnedFd::from_raw_fd(fd)
        };
        ioctl(fd.as_raw_fd(), UFFDIO_API, &mut uffdio_api { api: UFFD_API.into(), features: 0, ioctls: 0 });
        let range = uffdio_range { start: region.base() as u64, len: bytes };
        let mode = UFFDIO_REGISTER_MODE_MISSING.into();
        ioctl(fd.as_raw_fd(), UFFDIO_REGISTER, &mut uffdio_register { range, mode, ioctls: 0 });
        let stopping = Arc::new(AtomicBool::new(false));
        let (stop, base) = (stopping.clone(), region.base() as u64);
        let handler = std::thread::spawn(move || serve(&fd, base, &source, &stop));
        Self { region, stopping, handler: Some(handler) }
    }

    pub fn region(&self) -> &Region {
        &self.region
    }
}

fn serve(fd: &OwnedFd, base: u64, source: &DeviceView, stopping: &AtomicBool) {
    // SAFETY: all-zero bytes are a valid message.
    let mut message: uffd_msg = unsafe { std::mem::zeroed() };
    while !stopping.load(Ordering::Acquire) {
        // SAFETY: the message is writable for its size.
        let got = unsafe { libc::read(fd.as_raw_fd(), (&raw mut message).cast(), size_of::<uffd_msg>()) };
        if got != size_of::<uffd_msg>() as isize || u32::from(message.event) != UFFD_EVENT_PAGEFAULT {
            continue;
        }
        // SAFETY: the event says which member is valid.
        let at = unsafe { message.arg.pagefault.address } & !(PAGE as u64 - 1);
        let src = source.base() as u64 + (at - base);
        let mut copy = uffdio_copy { dst: at, src, len: PAGE as u64, mode: 0, copy: 0 };
        ioctl(fd.as_raw_fd(), UFFDIO_COPY, &mut copy);
    }
}

impl Drop for RawFaults {
    fn drop(&mut self) {
        self.region.forget();
        self.stopping.store(true, Ordering::Release);
        // Its last fault, after which the handler looks at the flag.
        super::touch(self.region.base());
        if let Some(handler) = self.handler.take() {
            handler.join().expect("the raw handler ends in good order");
        }
    }
}
