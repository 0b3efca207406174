//! One userfaultfd: opened by whatever door is open, its features probed at run time, its calls typed.
//!
//! # Rules
//! 1. A fresh descriptor is asked what there is, closed, and a second one is told what is wanted: the kernel
//!    answers the handshake once.
//! 2. Nothing here retries. A short [`Outcome::Done`] says how far a call came.
//! 3. A register call that asks for a subset of the present mode changes nothing and reports success; whoever
//!    switches modes never holds both of those he switches between.
#![allow(unsafe_code, reason = "ioctls that move and register memory")]

use core::fmt;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, OwnedFd};

use linux_raw_sys::general as raw;
use thiserror::Error;

use super::abi::{self, Errno, Message, Outcome, classify, ioctl};
use crate::ports::Word;
use crate::units::{VirtAddr, VirtRange};

/// Why there is no userfaultfd.
#[derive(Clone, PartialEq, Eq, Debug, Error)]
#[non_exhaustive]
pub enum UserfaultfdError {
    /// Every way to open one was refused.
    #[error(
        "this process may not open a userfaultfd (errno {errno}); allow it with `sysctl -w \
         vm.unprivileged_userfaultfd=1` or `chmod a+rw /dev/userfaultfd`, or run with CAP_SYS_PTRACE"
    )]
    NotPermitted {
        /// What the last way said.
        errno: i32,
    },
    /// The kernel was built without it.
    #[error("this kernel has no userfaultfd; use one built with CONFIG_USERFAULTFD")]
    NoKernelSupport,
    /// A feature that nothing works without.
    #[error("this kernel's userfaultfd lacks {0}; use Linux 5.14 or newer")]
    Lacks(&'static str),
    /// The handshake or a registration failed.
    #[error(
        "the kernel refused to set up a userfaultfd (errno {0}); check the limits on open files and memory"
    )]
    Refused(i32),
}

/// What the kernel and this process's rights offer.
#[derive(Clone, Copy, PartialEq, Eq, Default)]
pub struct Features {
    /// The kernel's feature bits.
    pub bits: u64,
    /// Only faults of user mode are served: a system call into a taken page gives EFAULT.
    pub user_mode_only: bool,
    /// Fork events may be asked for (CAP_SYS_PTRACE).
    pub fork_events: bool,
}

impl Features {
    const fn has(self, bit: u32) -> bool {
        self.bits & bit as u64 != 0
    }
    /// `UFFDIO_MOVE` (Linux 6.8): without it a take protects, copies and drops.
    pub const fn move_pages(self) -> bool {
        self.has(raw::UFFD_FEATURE_MOVE)
    }
    /// `UFFDIO_POISON` (Linux 6.6): without it a thread that needs a page which its device cannot give back waits on.
    pub const fn poison(self) -> bool {
        self.has(raw::UFFD_FEATURE_POISON)
    }
    /// Write protection of anonymous memory.
    pub const fn write_protect(self) -> bool {
        self.has(raw::UFFD_FEATURE_PAGEFAULT_FLAG_WP)
    }
    /// Write protection, and thereby mirroring, of shared memory (Linux 5.19).
    pub const fn write_protect_shared(self) -> bool {
        self.has(raw::UFFD_FEATURE_WP_HUGETLBFS_SHMEM)
    }
    /// Touches of pages of shared memory that the file has and the mapping lacks (Linux 5.14): what lets regions of the
    /// library move.
    pub const fn minor_shared(self) -> bool {
        self.has(raw::UFFD_FEATURE_MINOR_SHMEM)
    }
    /// Events of munmap, madvise and mremap.
    pub const fn events(self) -> bool {
        let all =
            raw::UFFD_FEATURE_EVENT_UNMAP | raw::UFFD_FEATURE_EVENT_REMOVE | raw::UFFD_FEATURE_EVENT_REMAP;
        self.bits & all as u64 == all as u64
    }

    /// One sentence for the first thing that is missing, with the command that grants it; `None` if all is there.
    pub fn explain(self) -> Option<&'static str> {
        if self.user_mode_only {
            Some(
                "only faults of user mode are served, so a system call into a page on a device gives EFAULT; \
                 grant the rest with `sysctl -w vm.unprivileged_userfaultfd=1` or `chmod a+rw /dev/userfaultfd`",
            )
        } else if !self.fork_events {
            Some(
                "children made by a raw clone see zeros for pages on a device; grant fork events with \
                 `setcap cap_sys_ptrace+ep` on the program",
            )
        } else if !self.move_pages() {
            Some(
                "this kernel has no UFFDIO_MOVE, so pages are protected, copied and dropped; use Linux 6.8 or newer",
            )
        } else if !self.write_protect_shared() {
            Some("this kernel cannot follow shared memory; use Linux 5.19 or newer")
        } else {
            None
        }
    }
}

impl fmt::Debug for Features {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:#x}", self.bits)?;
        f.write_str(if self.user_mode_only { " user-mode-only" } else { "" })?;
        f.write_str(if self.fork_events { "" } else { " no-fork-events" })
    }
}

/// What is asked of a userfaultfd.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Role {
    /// Events of all kinds: for mirrored memory.
    Main,
    /// As `Main`, but a trapped touch is SIGBUS for the thread that made it, and a child after fork is not followed.
    Sigbus,
    /// No events: for memory of the service's own.
    Staging,
    /// For regions of the library: as `Main`, but discarding what the application has mapped of them is no event, since
    /// that is how they are taken; nor is moving them, which is not allowed.
    Regions,
}

/// What a registered range traps.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Mode {
    /// Nothing, until pages are write-protected.
    WriteProtect,
    /// Touches of absent pages.
    Missing,
    /// Both.
    Both,
    /// Touches of pages that the file has and the mapping lacks.
    Minor,
}

/// An open userfaultfd after its handshake, non-blocking.
#[derive(Debug)]
pub(crate) struct Userfaultfd {
    fd: OwnedFd,
    features: Features,
}

impl Userfaultfd {
    /// Opens one for `role`, in user-mode-only mode if that is forced or all that is granted.
    pub(crate) fn open(role: Role, force_user_mode_only: bool) -> Result<Self, UserfaultfdError> {
        let (probe, user_mode_only) = open_fd(force_user_mode_only)?;
        let bits = handshake(&probe, 0).map_err(|errno| UserfaultfdError::Refused(errno.0))?;
        drop(probe);
        let mut features = Features { bits, user_mode_only, fork_events: false };
        if !features.write_protect() {
            return Err(UserfaultfdError::Lacks("write protection"));
        }
        if !features.events() {
            return Err(UserfaultfdError::Lacks("events"));
        }
        let mut want =
            raw::UFFD_FEATURE_PAGEFAULT_FLAG_WP | raw::UFFD_FEATURE_MOVE | raw::UFFD_FEATURE_POISON;
        if role == Role::Regions {
            if !features.minor_shared() {
                return Err(UserfaultfdError::Lacks("minor faults of shared memory"));
            }
            want |= raw::UFFD_FEATURE_EVENT_UNMAP | raw::UFFD_FEATURE_MINOR_SHMEM;
        } else if role != Role::Staging {
            want |= raw::UFFD_FEATURE_EVENT_UNMAP
                | raw::UFFD_FEATURE_EVENT_REMOVE
                | raw::UFFD_FEATURE_EVENT_REMAP;
            want |= raw::UFFD_FEATURE_MISSING_SHMEM | raw::UFFD_FEATURE_WP_HUGETLBFS_SHMEM;
            want |= raw::UFFD_FEATURE_EXACT_ADDRESS;
        }
        if role == Role::Sigbus {
            if bits & u64::from(raw::UFFD_FEATURE_SIGBUS) == 0 {
                return Err(UserfaultfdError::Lacks("faults as SIGBUS"));
            }
            want |= raw::UFFD_FEATURE_SIGBUS;
        }
        if matches!(role, Role::Main | Role::Regions) {
            let with_fork = (want | raw::UFFD_FEATURE_EVENT_FORK) as u64 & bits;
            let (fd, _) = open_fd(user_mode_only)?;
            // What is forced is what a program without rights gets.
            if !user_mode_only && handshake(&fd, with_fork).is_ok() {
                features.fork_events = with_fork & raw::UFFD_FEATURE_EVENT_FORK as u64 != 0;
                return Ok(Self { fd, features });
            }
        }
        let (fd, _) = open_fd(user_mode_only)?;
        handshake(&fd, want as u64 & bits).map_err(|errno| UserfaultfdError::Refused(errno.0))?;
        Ok(Self { fd, features })
    }

    /// Another descriptor of the same userfaultfd.
    pub(crate) fn duplicate(&self) -> Result<Self, Errno> {
        let fd = self.fd.try_clone().map_err(|error| Errno(error.raw_os_error().unwrap_or(libc::EMFILE)))?;
        Ok(Self { fd, features: self.features })
    }

    /// Ends this userfaultfd, if no other descriptor is one: every registration is gone, whoever waits goes on. The
    /// number stays taken, and names what `instead` names from now on.
    pub(crate) fn retire(&self, instead: &impl AsFd) {
        // SAFETY: both are open. What the number names is replaced in one step: a call that is under way in another
        // thread keeps what it began with, a later one is refused by the file that it finds.
        while unsafe { libc::dup3(instead.as_fd().as_raw_fd(), self.raw(), libc::O_CLOEXEC) } < 0 {
            if !matches!(Errno::last().0, libc::EINTR | libc::EBUSY) {
                return;
            }
        }
    }

    pub(crate) fn features(&self) -> Features {
        self.features
    }

    fn raw(&self) -> i32 {
        self.fd.as_raw_fd()
    }

    /// # Safety
    /// Somebody serves what the range traps from now on, or unregisters it.
    pub(crate) unsafe fn register(&self, range: VirtRange, mode: Mode) -> Result<(), Errno> {
        let mode = match mode {
            Mode::WriteProtect => raw::UFFDIO_REGISTER_MODE_WP,
            Mode::Missing => raw::UFFDIO_REGISTER_MODE_MISSING,
            Mode::Both => raw::UFFDIO_REGISTER_MODE_WP | raw::UFFDIO_REGISTER_MODE_MISSING,
            Mode::Minor => raw::UFFDIO_REGISTER_MODE_MINOR,
        };
        let mut arg = abi::uffdio_register { range: range_arg(range), mode: u64::from(mode), ioctls: 0 };
        // SAFETY: the kernel stores no pointer; what registering does to the range is the caller's promise.
        unsafe { ioctl(self.raw(), abi::UFFDIO_REGISTER, &mut arg) }.map(drop)
    }

    /// Ends every trap in the range and wakes who waits there.
    pub(crate) fn unregister(&self, range: VirtRange) -> Result<(), Errno> {
        // SAFETY: as above; an unregistered range is ordinary memory.
        unsafe { ioctl(self.raw(), abi::UFFDIO_UNREGISTER, &mut range_arg(range)) }.map(drop)
    }

    /// Moves pages from `src` to absent pages at `dst`, which is registered here.
    ///
    /// # Safety
    /// Nobody expects to find the pages at `src`, or touches there are trapped.
    pub(crate) unsafe fn move_pages(&self, dst: VirtAddr, src: VirtAddr, bytes: u64, mode: u64) -> Outcome {
        let mut arg = abi::uffdio_move { dst: dst.0, src: src.0, len: bytes, mode, move_: 0 };
        // SAFETY: the kernel checks both ranges and changes the destination only where nothing is; the source is
        // the caller's promise.
        let result = unsafe { ioctl(self.raw(), abi::UFFDIO_MOVE, &mut arg) };
        classify(result, arg.move_, bytes)
    }

    /// Copies words to absent pages at `dst`, which is registered here, and wakes who waits.
    pub(crate) fn copy(&self, dst: VirtAddr, src: &[Word]) -> Outcome {
        let bytes = size_of_val(src) as u64;
        let mut arg = abi::uffdio_copy { dst: dst.0, src: src.as_ptr() as u64, len: bytes, mode: 0, copy: 0 };
        // SAFETY: the source is borrowed for the call; the destination changes only where nothing is.
        let result = unsafe { ioctl(self.raw(), abi::UFFDIO_COPY, &mut arg) };
        classify(result, arg.copy, bytes)
    }

    /// Maps zeros at absent pages and wakes who waits.
    pub(crate) fn fill_zero(&self, range: VirtRange) -> Outcome {
        let mut arg = abi::uffdio_zeropage { range: range_arg(range), mode: 0, zeropage: 0 };
        // SAFETY: no pointer is stored; only absent pages change.
        let result = unsafe { ioctl(self.raw(), abi::UFFDIO_ZEROPAGE, &mut arg) };
        classify(result, arg.zeropage, range.bytes())
    }

    /// Makes touches of absent pages SIGBUS and wakes who waits.
    pub(crate) fn poison(&self, range: VirtRange) -> Outcome {
        let mut arg = abi::uffdio_poison { range: range_arg(range), mode: 0, updated: 0 };
        // SAFETY: no pointer is stored; only absent pages change.
        let result = unsafe { ioctl(self.raw(), abi::UFFDIO_POISON, &mut arg) };
        classify(result, arg.updated, range.bytes())
    }

    /// Maps the pages that the file behind a range has, and wakes who waits. A page that the file lacks is refused
    /// with EFAULT.
    pub(crate) fn map_file_pages(&self, range: VirtRange) -> Outcome {
        let mut arg = abi::uffdio_continue { range: range_arg(range), mode: 0, mapped: 0 };
        // SAFETY: no pointer is stored; contents stay, only absent pages are mapped.
        let result = unsafe { ioctl(self.raw(), abi::UFFDIO_CONTINUE, &mut arg) };
        classify(result, arg.mapped, range.bytes())
    }

    /// Protects the present pages of a range against writing, or ends that and wakes who waits.
    pub(crate) fn write_protect(&self, range: VirtRange, protect: bool) -> Result<(), Errno> {
        let mode = if protect { abi::WRITEPROTECT_MODE_WP } else { 0 };
        let mut arg = abi::uffdio_writeprotect { range: range_arg(range), mode };
        // SAFETY: no pointer is stored; contents stay.
        unsafe { ioctl(self.raw(), abi::UFFDIO_WRITEPROTECT, &mut arg) }.map(drop)
    }

    /// Whether a change of memory that is registered here is under way: its caller is inside the kernel, or has not
    /// run since its event was read. The kernel answers this before it looks at the (empty) range.
    pub(crate) fn is_changing(&self) -> bool {
        let nothing = VirtRange::default();
        self.write_protect(nothing, false).is_err_and(|errno| errno.0 == libc::EAGAIN)
    }

    pub(crate) fn wake(&self, range: VirtRange) {
        // SAFETY: waking harms nobody: who wakes touches his page again. Fails for an empty range only.
        let _ = unsafe { ioctl(self.raw(), abi::UFFDIO_WAKE, &mut range_arg(range)) };
    }

    /// Reads what waits, faults first, without waiting. Reading an event lets its caller go on.
    pub(crate) fn read(&self, out: &mut [Message]) -> usize {
        // SAFETY: `out` is writable for its whole length; any bytes are a valid Message.
        let got = unsafe { libc::read(self.raw(), out.as_mut_ptr().cast(), size_of_val(out)) };
        usize::try_from(got).unwrap_or(0) / size_of::<Message>()
    }
}

impl AsFd for Userfaultfd {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.fd.as_fd()
    }
}

/// The child's side of a fork, as an event handed it out. Closing it ends the child's waiting.
#[derive(Debug)]
pub(crate) struct ChildFd(OwnedFd);

impl ChildFd {
    /// # Safety
    /// `fd` came out of a fork event and is owned by nobody else.
    pub(crate) unsafe fn from_event(fd: i32) -> Self {
        // SAFETY: the caller says so.
        Self(unsafe { OwnedFd::from_raw_fd(fd) })
    }
    pub(crate) fn into_raw(self) -> i32 {
        std::os::fd::IntoRawFd::into_raw_fd(self.0)
    }
}

/// Copies words into a child's absent pages through the descriptor that a fork event handed out.
pub(crate) fn copy_to_child(fd: i32, dst: VirtAddr, src: &[Word]) -> Outcome {
    let bytes = size_of_val(src) as u64;
    let mut arg = abi::uffdio_copy { dst: dst.0, src: src.as_ptr() as u64, len: bytes, mode: 0, copy: 0 };
    // SAFETY: the source is borrowed for the call; the destination is in another process.
    let result = unsafe { ioctl(fd, abi::UFFDIO_COPY, &mut arg) };
    classify(result, arg.copy, bytes)
}

/// Reads what waits at a child's descriptor, so that the child goes on.
pub(crate) fn discard_messages(fd: i32) {
    let mut messages = [Message::default(); 8];
    // SAFETY: the buffer is writable for its whole length.
    while unsafe { libc::read(fd, messages.as_mut_ptr().cast(), size_of_val(&messages)) } > 0 {}
}

fn range_arg(range: VirtRange) -> abi::uffdio_range {
    abi::uffdio_range { start: range.start().0, len: range.bytes() }
}

/// A descriptor before its handshake, and whether it is user-mode-only.
fn open_fd(force_user_mode_only: bool) -> Result<(OwnedFd, bool), UserfaultfdError> {
    let flags = libc::O_CLOEXEC | libc::O_NONBLOCK;
    let restricted = flags | raw::UFFD_USER_MODE_ONLY as i32;
    let open = |flags: i32| {
        // SAFETY: no pointers.
        own(unsafe { libc::syscall(libc::SYS_userfaultfd, flags) } as i32)
    };
    let tries: [&dyn Fn() -> Result<OwnedFd, Errno>; 3] =
        [&|| open_device(flags), &|| open(flags), &|| open(restricted)];
    let mut last = Errno(libc::EPERM);
    for (index, attempt) in tries.iter().enumerate().skip(if force_user_mode_only { 2 } else { 0 }) {
        match attempt() {
            Ok(fd) => return Ok((fd, index == 2)),
            Err(errno) => last = errno,
        }
    }
    Err(match last.0 {
        libc::ENOSYS => UserfaultfdError::NoKernelSupport,
        libc::EPERM | libc::EACCES => UserfaultfdError::NotPermitted { errno: last.0 },
        errno => UserfaultfdError::Refused(errno),
    })
}

fn open_device(flags: i32) -> Result<OwnedFd, Errno> {
    // SAFETY: the path is a C string; the ioctl takes flags by value.
    unsafe {
        let device = own(libc::open(c"/dev/userfaultfd".as_ptr(), libc::O_RDWR | libc::O_CLOEXEC))?;
        own(libc::ioctl(device.as_raw_fd(), abi::USERFAULTFD_IOC_NEW as libc::Ioctl, flags))
    }
}

fn own(fd: i32) -> Result<OwnedFd, Errno> {
    // SAFETY: a fresh descriptor belongs to who opened it.
    if fd < 0 { Err(Errno::last()) } else { Ok(unsafe { OwnedFd::from_raw_fd(fd) }) }
}

/// Asks for features and returns those that the kernel has.
fn handshake(fd: &OwnedFd, features: u64) -> Result<u64, Errno> {
    let mut arg = abi::uffdio_api { api: u64::from(raw::UFFD_API), features, ioctls: 0 };
    // SAFETY: no pointer is stored.
    unsafe { ioctl(fd.as_raw_fd(), abi::UFFDIO_API, &mut arg) }.map(|_| arg.features)
}
