#![allow(unsafe_code, reason = "perf_event_open and its ring buffers have no safe wrapper")]
//! Page faults of a program as samples of the kernel's software event, with addresses: one event and one ring buffer per
//! processor. Sources: perf_event_open(2); `include/uapi/linux/perf_event.h` of Linux 6.12.
//!
//! # Rules
//! 1. The events are opened by the thread that starts the program, inherited by it, and begin when it executes: nothing of
//!    this process is recorded.
//! 2. A fault is one sample (period 1). What did not fit into a ring is counted by the kernel and said.

use std::io;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd, RawFd};
use std::sync::atomic::{AtomicU64, Ordering};

/// `struct perf_event_attr` up to what Linux 4.1 added.
#[repr(C)]
#[derive(Default)]
struct Attr {
    kind: u32,
    size: u32,
    config: u64,
    sample_period: u64,
    sample_type: u64,
    read_format: u64,
    flags: u64,
    wakeup_bytes: u32,
    bp_type: u32,
    config1: u64,
    config2: u64,
    branch_sample_type: u64,
    sample_regs_user: u64,
    sample_stack_user: u32,
    clock: i32,
    sample_regs_intr: u64,
    aux_watermark: u32,
    sample_max_stack: u16,
    reserved: u16,
}

const _: () = assert!(size_of::<Attr>() == 112, "PERF_ATTR_SIZE_VER5");

const SOFTWARE: u32 = 1;
const PAGE_FAULTS: u64 = 2;
const SAMPLE_TID: u64 = 1 << 1;
const SAMPLE_TIME: u64 = 1 << 2;
const SAMPLE_ADDR: u64 = 1 << 3;
const SAMPLE_CPU: u64 = 1 << 7;
const DISABLED: u64 = 1;
const INHERIT: u64 = 1 << 1;
const EXCLUDE_KERNEL: u64 = 1 << 5;
const EXCLUDE_HYPERVISOR: u64 = 1 << 6;
const ENABLE_ON_EXEC: u64 = 1 << 12;
const WATERMARK: u64 = 1 << 14;
const USE_CLOCK: u64 = 1 << 25;
const CLOSE_ON_EXEC: u64 = 1 << 3;

const RECORD_LOST: u32 = 2;
const RECORD_SAMPLE: u32 = 9;

/// Where the ring's positions are in its first page.
const HEAD: usize = 1024 / 8;
const TAIL: usize = 1032 / 8;

/// One page fault.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Sample {
    /// CLOCK_BOOTTIME.
    pub time_ns: u64,
    /// The byte that was touched.
    pub address: u64,
    /// On which processor.
    pub cpu: u32,
}

/// Which faults are seen.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Way {
    /// Those of the program and those that the kernel takes for it, in system calls.
    Everything,
    /// Those of the program alone: more the kernel does not show to this user.
    UserOnly,
}

struct Ring {
    fd: OwnedFd,
    base: *mut u64,
    /// Bytes of data, a power of two, behind the first page.
    bytes: usize,
}

impl Drop for Ring {
    fn drop(&mut self) {
        // SAFETY: mapped by `open` with this length, and nobody has a reference into it.
        unsafe { libc::munmap(self.base.cast(), PAGE + self.bytes) };
    }
}

const PAGE: usize = 4096;

/// The events of every processor.
pub struct Samples {
    rings: Vec<Ring>,
    /// What was seen.
    pub way: Way,
    /// Faults for which a ring had no room.
    pub lost: u64,
}

fn open_one(cpu: i32, exclude: u64, bytes: usize) -> io::Result<Ring> {
    let attr = Attr {
        kind: SOFTWARE,
        size: size_of::<Attr>() as u32,
        config: PAGE_FAULTS,
        sample_period: 1,
        sample_type: SAMPLE_TID | SAMPLE_TIME | SAMPLE_ADDR | SAMPLE_CPU,
        flags: DISABLED | INHERIT | ENABLE_ON_EXEC | WATERMARK | USE_CLOCK | EXCLUDE_HYPERVISOR | exclude,
        wakeup_bytes: bytes as u32 / 4,
        clock: libc::CLOCK_BOOTTIME,
        ..Attr::default()
    };
    // SAFETY: `attr` is a whole perf_event_attr that says its own size. This thread, one processor, no group.
    let fd = unsafe { libc::syscall(libc::SYS_perf_event_open, &raw const attr, 0, cpu, -1, CLOSE_ON_EXEC) };
    if fd < 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: the kernel has just made this descriptor, and nobody else has it.
    let fd = unsafe { OwnedFd::from_raw_fd(fd as RawFd) };
    let protection = libc::PROT_READ | libc::PROT_WRITE;
    // SAFETY: a fresh mapping.
    let base = unsafe {
        libc::mmap(std::ptr::null_mut(), PAGE + bytes, protection, libc::MAP_SHARED, fd.as_raw_fd(), 0)
    };
    if base == libc::MAP_FAILED {
        return Err(io::Error::last_os_error());
    }
    Ok(Ring { fd, base: base.cast(), bytes })
}

impl Samples {
    /// Opens an event on every processor, for the programs that this thread starts from now on.
    ///
    /// # Errors
    /// What the kernel answered to the most modest wish.
    pub fn open() -> io::Result<Self> {
        // SAFETY: asks for a number.
        let cpus = unsafe { libc::sysconf(libc::_SC_NPROCESSORS_CONF) }.max(1) as i32;
        let mut refused = io::Error::from(io::ErrorKind::Unsupported);
        for (way, exclude) in [(Way::Everything, 0), (Way::UserOnly, EXCLUDE_KERNEL)] {
            // As large as this user may lock: 512 KiB per processor without rights.
            for bytes in [4 << 20, 256 << 10, 64 << 10] {
                let opened = (0..cpus)
                    .map(|cpu| open_one(cpu, exclude, bytes))
                    // A processor that is not there now has no faults.
                    .filter(|ring| {
                        ring.as_ref().err().and_then(io::Error::raw_os_error) != Some(libc::ENODEV)
                    })
                    .collect::<io::Result<Vec<_>>>();
                match opened {
                    Ok(rings) => return Ok(Self { rings, way, lost: 0 }),
                    Err(error) => refused = error,
                }
            }
        }
        Err(refused)
    }

    /// The descriptors to wait on for samples.
    pub fn fds(&self) -> impl Iterator<Item = RawFd> + '_ {
        self.rings.iter().map(|ring| ring.fd.as_raw_fd())
    }

    /// Takes every sample that is there, ordered by time among themselves.
    pub fn drain(&mut self, out: &mut Vec<Sample>) {
        let first = out.len();
        for ring in &self.rings {
            self.lost += ring.drain(out);
        }
        out[first..].sort_by_key(|sample| sample.time_ns);
    }
}

impl Ring {
    fn position(&self, at: usize) -> &AtomicU64 {
        // SAFETY: the ring's first page, mapped as long as this lives; the kernel writes these words in one piece.
        unsafe { AtomicU64::from_ptr(self.base.add(at)) }
    }

    /// The word at a position of the data; records are multiples of 8 bytes.
    fn word(&self, at: u64) -> u64 {
        let offset = at as usize & (self.bytes - 1);
        // SAFETY: within the data behind the first page; between tail and head the kernel does not write.
        unsafe { self.base.byte_add(PAGE + offset).read_volatile() }
    }

    /// Returns how many faults found no room.
    fn drain(&self, out: &mut Vec<Sample>) -> u64 {
        // Acquire pairs with the kernel's release of the head: what is before it is written.
        let head = self.position(HEAD).load(Ordering::Acquire);
        let mut at = self.position(TAIL).load(Ordering::Relaxed);
        let mut lost = 0;
        while at < head {
            let header = self.word(at);
            let (kind, bytes) = (header as u32, header >> 48);
            match kind {
                RECORD_SAMPLE => out.push(Sample {
                    time_ns: self.word(at + 16),
                    address: self.word(at + 24),
                    cpu: self.word(at + 32) as u32,
                }),
                RECORD_LOST => lost += self.word(at + 16),
                _ => {}
            }
            at += bytes.max(8);
        }
        // Release: the kernel writes there once it sees this.
        self.position(TAIL).store(at, Ordering::Release);
        lost
    }
}
