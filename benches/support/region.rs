#![allow(unsafe_code, reason = "maps memory of its own, to be moved by the library or by a floor")]

use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};

use granule::units::{BLOCK_BYTES, VirtAddr, VirtRange};

/// Private anonymous memory from a block boundary on, apart from every other mapping.
pub struct Region {
    base: *mut u8,
    bytes: usize,
    mapping: (*mut libc::c_void, usize),
}

// SAFETY: the memory belongs to the region; who shares it synchronises its accesses.
unsafe impl Sync for Region {}
// SAFETY: as above.
unsafe impl Send for Region {}

const GUARD: usize = BLOCK_BYTES as usize;

fn map(bytes: usize, protection: i32) -> *mut libc::c_void {
    let flags = libc::MAP_PRIVATE | libc::MAP_ANONYMOUS | libc::MAP_NORESERVE;
    // SAFETY: a new mapping wherever the kernel likes.
    let at = unsafe { libc::mmap(std::ptr::null_mut(), bytes, protection, flags, -1, 0) };
    assert_ne!(at, libc::MAP_FAILED, "{bytes} bytes of address space: {}", std::io::Error::last_os_error());
    at
}

impl Region {
    /// `bytes` bytes, a multiple of 2 MiB, never touched. With `huge`, the kernel backs it by huge pages where it can;
    /// without, never.
    pub fn new(bytes: u64, huge: bool) -> Self {
        let bytes = bytes as usize;
        assert!(bytes > 0 && bytes.is_multiple_of(GUARD), "a region consists of blocks");
        let all = bytes + 3 * GUARD;
        let mapping = map(all, libc::PROT_NONE);
        let base = ((mapping as usize + GUARD).next_multiple_of(GUARD)) as *mut u8;
        let advice = if huge { libc::MADV_HUGEPAGE } else { libc::MADV_NOHUGEPAGE };
        // SAFETY: inside of the mapping made above.
        unsafe {
            let rc = libc::mprotect(base.cast(), bytes, libc::PROT_READ | libc::PROT_WRITE);
            assert_eq!(rc, 0, "memory can be made accessible");
            // A kernel without huge pages has nothing to be advised.
            libc::madvise(base.cast(), bytes, advice);
        }
        Self { base, bytes, mapping: (mapping, all) }
    }

    /// The same, written once over its whole length.
    pub fn touched(bytes: u64, huge: bool) -> Self {
        let mut region = Self::new(bytes, huge);
        region.words_mut().iter_mut().enumerate().for_each(|(at, word)| *word = at as u64);
        region
    }

    pub fn base(&self) -> *mut u8 {
        self.base
    }

    pub fn bytes(&self) -> u64 {
        self.bytes as u64
    }

    /// A part of it, in bytes from the start.
    pub fn range(&self, from: u64, bytes: u64) -> VirtRange {
        VirtRange::covering(VirtAddr(self.base as u64 + from), bytes).expect("a range inside of a region")
    }

    pub fn whole(&self) -> VirtRange {
        self.range(0, self.bytes as u64)
    }

    pub fn words(&self) -> &[u64] {
        // SAFETY: mapped for the region's life; every bit pattern is a number.
        unsafe { std::slice::from_raw_parts(self.base.cast(), self.bytes / 8) }
    }

    pub fn words_mut(&mut self) -> &mut [u64] {
        // SAFETY: as above, and borrowed exclusively.
        unsafe { std::slice::from_raw_parts_mut(self.base.cast(), self.bytes / 8) }
    }

    /// Throws the contents away: the next touch of each page is its first.
    pub fn forget(&self) {
        // SAFETY: the region's own memory.
        let rc = unsafe { libc::madvise(self.base.cast(), self.bytes, libc::MADV_DONTNEED) };
        assert_eq!(rc, 0, "contents can be thrown away");
    }
}

impl Drop for Region {
    fn drop(&mut self) {
        // SAFETY: mapped by `new`, unmapped once.
        unsafe { libc::munmap(self.mapping.0, self.mapping.1) };
    }
}

/// Writes one word of a page.
pub fn touch(at: *mut u8) {
    // SAFETY: callers pass pages of a region.
    unsafe { at.cast::<u64>().write_volatile(1) };
}

/// Memory of the kind that the software device has, for floors: a memfd, mapped once, touched.
pub struct DeviceView {
    base: *mut u8,
    bytes: usize,
    _file: OwnedFd,
}

// SAFETY: as for `Region`.
unsafe impl Sync for DeviceView {}
// SAFETY: as for `Region`.
unsafe impl Send for DeviceView {}

impl DeviceView {
    pub fn new(bytes: u64) -> Self {
        // SAFETY: a C string; the descriptor is owned here; the mapping lies wherever the kernel likes.
        unsafe {
            let fd = libc::memfd_create(c"granule-bench".as_ptr(), libc::MFD_CLOEXEC);
            assert!(fd >= 0, "a memfd can be made");
            let file = OwnedFd::from_raw_fd(fd);
            assert_eq!(libc::ftruncate(file.as_raw_fd(), bytes as i64), 0, "a memfd can grow");
            let protection = libc::PROT_READ | libc::PROT_WRITE;
            let base = libc::mmap(std::ptr::null_mut(), bytes as usize, protection, libc::MAP_SHARED, fd, 0);
            assert_ne!(base, libc::MAP_FAILED, "a memfd can be mapped");
            std::ptr::write_bytes(base.cast::<u8>(), 1, bytes as usize);
            Self { base: base.cast(), bytes: bytes as usize, _file: file }
        }
    }

    pub fn base(&self) -> *mut u8 {
        self.base
    }

    /// Numbers in a part of it, `bytes` bytes from `from` on.
    pub fn part(&self, from: usize, bytes: usize) -> &[u64] {
        assert!(from.is_multiple_of(8) && from + bytes <= self.bytes, "a part of the view");
        // SAFETY: inside of the mapping, as just asserted; nobody writes while it is read.
        unsafe { std::slice::from_raw_parts(self.base.add(from).cast(), bytes / 8) }
    }
}

impl Drop for DeviceView {
    fn drop(&mut self) {
        // SAFETY: mapped by `new`, unmapped once.
        unsafe { libc::munmap(self.base.cast(), self.bytes) };
    }
}

/// memcpy.
pub fn copy(to: *mut u8, from: *const u8, bytes: u64) {
    // SAFETY: callers pass two regions, or parts of them, that do not overlap.
    unsafe { std::ptr::copy_nonoverlapping(from, to, bytes as usize) };
}

fn set_affinity(cores: impl IntoIterator<Item = usize>) {
    // SAFETY: a set on this stack; of this thread only.
    unsafe {
        let mut set: libc::cpu_set_t = std::mem::zeroed();
        cores.into_iter().for_each(|core| libc::CPU_SET(core, &mut set));
        let rc = libc::sched_setaffinity(0, size_of::<libc::cpu_set_t>(), &set);
        assert_eq!(rc, 0, "this process may run on the core");
    }
}

/// This thread, and those that it starts from now on, run on one core only.
pub fn pin_to_core(core: usize) {
    set_affinity([core]);
}

/// Ends `pin_to_core` for this thread.
pub fn unpin() {
    set_affinity(0..std::thread::available_parallelism().map_or(1, |n| n.get()).max(64));
}
