//! What tests on real memory share: mappings by the raw calls, a space with a software device, a look at what the
//! CPU really holds, and a watchdog.
#![allow(dead_code, reason = "each test binary uses the part that it needs")]
#![allow(unsafe_code, reason = "maps and unmaps memory as an application does")]

use std::sync::{Mutex, MutexGuard, PoisonError};

use granule::os::Pagemap;
use granule::ports::Count;
use granule::units::{DeviceId, PAGE_BYTES, VirtAddr, VirtRange};
use granule::{Svm, SvmBuilder};
use granule_backends::software::{AccessError, Engine, SoftwareDevice};

pub const PAGE: usize = PAGE_BYTES as usize;
pub const MIB: usize = 1 << 20;
/// The one device of these spaces.
pub const DEVICE: DeviceId = DeviceId(0);

/// One test at a time: each has a space over the whole process. Ends the process, with a word, if it takes longer
/// than `seconds`.
pub fn alone(seconds: u32) -> Alone {
    static ONE: Mutex<()> = Mutex::new(());
    let one = ONE.lock().unwrap_or_else(PoisonError::into_inner);
    // SAFETY: the handler calls two functions that a handler may call.
    unsafe {
        let handler = on_alarm as extern "C" fn(i32) as *const () as libc::sighandler_t;
        assert_ne!(libc::signal(libc::SIGALRM, handler), libc::SIG_ERR);
        libc::alarm(seconds);
    }
    Alone { _one: one }
}

extern "C" fn on_alarm(_: i32) {
    let word = b"\nwatchdog: a test on real memory hangs\n";
    // SAFETY: both may be called in a signal handler; the word is static.
    unsafe {
        libc::write(2, word.as_ptr().cast(), word.len());
        libc::abort();
    }
}

/// This test is the only one that runs.
pub struct Alone {
    _one: MutexGuard<'static, ()>,
}

impl Drop for Alone {
    fn drop(&mut self) {
        // SAFETY: no pointers.
        unsafe { libc::alarm(0) };
    }
}

/// A device and a space over the whole process.
pub struct World {
    pub svm: Svm,
    pub device: SoftwareDevice,
}

impl World {
    pub fn new(memory_bytes: usize, with: impl FnOnce(SvmBuilder) -> SvmBuilder) -> Self {
        let device = SoftwareDevice::builder().memory_bytes(memory_bytes as u64).engines(2).build();
        Self::over(device.expect("a software device"), with)
    }

    pub fn over(device: SoftwareDevice, with: impl FnOnce(SvmBuilder) -> SvmBuilder) -> Self {
        let svm = with(Svm::builder().device(device.clone())).build().expect("an address space");
        Self { svm, device }
    }

    pub fn count(&self, what: Count) -> u64 {
        self.svm.stats().count(what)
    }

    /// Until the service has counted as much: a call goes on when its event was read, not when it was applied.
    pub fn await_count(&self, what: Count, at_least: u64) {
        while self.count(what) < at_least {
            std::thread::yield_now();
        }
    }

    /// Runs a kernel on one engine; the others have nothing to do.
    pub fn run<R: Send>(
        &self,
        kernel: impl Fn(&mut Engine<'_>) -> Result<R, AccessError> + Sync,
    ) -> Result<R, AccessError> {
        let result = Mutex::new(None);
        self.device.run(|engine| {
            if engine.index() == 0 {
                let done = kernel(engine)?;
                *result.lock().unwrap_or_else(PoisonError::into_inner) = Some(done);
            }
            Ok(())
        })?;
        Ok(result.into_inner().unwrap_or_else(PoisonError::into_inner).expect("the kernel ran"))
    }

    /// What the device reads at an address.
    pub fn load(&self, at: usize) -> Result<u64, AccessError> {
        self.run(|engine| engine.load(at as u64))
    }

    /// What the device reads at many addresses, in one run.
    pub fn load_all(&self, at: impl Iterator<Item = usize> + Clone + Sync) -> Vec<Result<u64, AccessError>> {
        let found = self.run(|engine| Ok(at.clone().map(|at| engine.load(at as u64)).collect()));
        found.expect("errors of single loads are among the results")
    }

    /// Has the device write.
    pub fn store(&self, at: usize, value: u64) -> Result<(), AccessError> {
        self.run(|engine| engine.store(at as u64, value))
    }

    pub fn prefetch(&self, at: usize, pages: usize) -> u64 {
        self.svm.prefetch(range(at, pages), DEVICE).expect("the device thread answers")
    }

    pub fn to_ram(&self, at: usize, pages: usize) -> u64 {
        self.svm.to_ram(range(at, pages)).expect("the device thread answers")
    }
}

pub fn range(at: usize, pages: usize) -> VirtRange {
    VirtRange::of_pages(VirtAddr(at as u64), pages as u64)
}

/// How many pages of a range the CPU's mapping holds.
pub fn present(at: usize, pages: usize) -> usize {
    present_pages(at, pages).iter().filter(|present| **present).count()
}

/// Which pages of a range the CPU's mapping holds.
pub fn present_pages(at: usize, pages: usize) -> Vec<bool> {
    let mut found = vec![false; pages];
    let pagemap = Pagemap::open().expect("/proc is mounted");
    let mark = |part: VirtRange| {
        let first = (part.start().0 as usize - at) / PAGE;
        found[first..first + part.pages() as usize].fill(true);
    };
    pagemap.for_each_present(range(at, pages), mark).expect("pagemap answers");
    found
}

/// Anonymous memory, private and writable.
pub fn map(bytes: usize) -> usize {
    map_as(0, bytes, libc::PROT_READ | libc::PROT_WRITE, libc::MAP_PRIVATE)
}

/// The same, from a multiple of 2 MiB on.
pub fn map_aligned(bytes: usize) -> usize {
    let whole = map(bytes + 2 * MIB);
    let start = whole.next_multiple_of(2 * MIB);
    unmap_quietly(whole, start - whole);
    unmap_quietly(start + bytes, whole + 2 * MIB - start);
    start
}

fn unmap_quietly(at: usize, bytes: usize) {
    if bytes > 0 {
        unmap(at, bytes);
    }
}

/// `mmap` of anonymous memory; with `at` not 0: there, over what stands there.
pub fn map_as(at: usize, bytes: usize, protection: i32, sharing: i32) -> usize {
    let fixed = if at == 0 { 0 } else { libc::MAP_FIXED };
    // SAFETY: the tests map over their own memory only.
    let got =
        unsafe { libc::mmap(at as *mut _, bytes, protection, sharing | libc::MAP_ANONYMOUS | fixed, -1, 0) };
    assert_ne!(got, libc::MAP_FAILED, "mmap: {}", std::io::Error::last_os_error());
    got as usize
}

pub fn unmap(at: usize, bytes: usize) {
    assert_eq!(
        // SAFETY: the tests unmap their own memory only, through addresses to which no reference points.
        unsafe { libc::munmap(at as *mut _, bytes) },
        0,
        "munmap: {}",
        std::io::Error::last_os_error()
    );
}

pub fn protect(at: usize, bytes: usize, protection: i32) {
    // SAFETY: as above.
    assert_eq!(unsafe { libc::mprotect(at as *mut _, bytes, protection) }, 0);
}

pub fn advise(at: usize, bytes: usize, advice: i32) {
    // SAFETY: as above.
    let rc = unsafe { libc::madvise(at as *mut _, bytes, advice) };
    assert_eq!(rc, 0, "madvise: {}", std::io::Error::last_os_error());
}

/// `mremap`; with `to` not 0: there.
pub fn remap(at: usize, bytes: usize, new_bytes: usize, flags: i32, to: usize) -> usize {
    let fixed = if to == 0 { 0 } else { libc::MREMAP_FIXED };
    // SAFETY: as above.
    let got = unsafe {
        libc::mremap(
            at as *mut _,
            bytes,
            new_bytes,
            flags | libc::MREMAP_MAYMOVE | fixed,
            to as *mut libc::c_void,
        )
    };
    assert_ne!(got, libc::MAP_FAILED, "mremap: {}", std::io::Error::last_os_error());
    got as usize
}

/// A word of memory that the tests map and unmap, read as a CPU does. The caller knows that it is mapped.
pub fn peek(at: usize) -> u64 {
    // SAFETY: mapped memory of the test, read in one piece; others write it in one piece only.
    unsafe { std::sync::atomic::AtomicU64::from_ptr(at as *mut u64) }
        .load(std::sync::atomic::Ordering::SeqCst)
}

/// The same, written.
pub fn poke(at: usize, value: u64) {
    // SAFETY: as in `peek`.
    unsafe { std::sync::atomic::AtomicU64::from_ptr(at as *mut u64) }
        .store(value, std::sync::atomic::Ordering::SeqCst);
}

/// A private mapping of a file's beginning.
pub fn map_file(file: &std::fs::File, bytes: usize) -> usize {
    let fd = std::os::fd::AsRawFd::as_raw_fd(file);
    // SAFETY: a fresh mapping.
    let got = unsafe { libc::mmap(std::ptr::null_mut(), bytes, libc::PROT_READ, libc::MAP_PRIVATE, fd, 0) };
    assert_ne!(got, libc::MAP_FAILED, "mmap: {}", std::io::Error::last_os_error());
    got as usize
}
