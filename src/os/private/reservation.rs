//! The one reservation of address space, and the allocator of its parts.
//!
//! # Layout
//! ```text
//! base                base + HEADER_BYTES                                        end
//! | Header: lock, free extents | mapping | free | mapping | ...  free (PROT_NONE) |
//! ```
//!
//! # Rules
//! 1. `BASE` goes from 0 to the address once (compare and swap; who loses unmaps its own try), and back to 0 only
//!    in a child after fork, by the `pthread_atfork` hook, while that child has one thread.
//! 2. Free extents are sorted, disjoint and never adjacent. An extent that does not fit into the full table is
//!    leaked: addresses only, its memory is given back.
//! 3. The whole reservation has MADV_DONTFORK and MADV_NOHUGEPAGE; carving changes the protection, so that
//!    neighbouring mappings merge. Giving back replaces the part by a fresh reserved one.
#![allow(unsafe_code, reason = "mappings are made and unmade here")]

use core::ptr;
use core::sync::atomic::{AtomicI32, AtomicU64, Ordering};

use super::PrivateError;
use crate::os::park::FutexPark;
use crate::sync::WordLock;
use crate::units::PAGE_BYTES;

const WANTED_BYTES: u64 = 1 << 40;
const LEAST_BYTES: u64 = 64 << 30;
const EXTENTS: usize = 32_768;
const HEADER_BYTES: u64 = (size_of::<Header>() as u64).next_multiple_of(PAGE_BYTES);

static BASE: AtomicU64 = AtomicU64::new(0);
static END: AtomicU64 = AtomicU64::new(0);
static OWNER_PID: AtomicI32 = AtomicI32::new(0);
static HOOKED: AtomicI32 = AtomicI32::new(0);

/// The allocator's state. All-zero bytes are a free lock and no extents.
#[repr(C)]
struct Header {
    lock: WordLock,
    // Everything below is read and written under `lock` only.
    count: AtomicU64,
    extents: [Extent; EXTENTS],
}

#[repr(C)]
struct Extent {
    start: AtomicU64,
    end: AtomicU64,
}

impl Extent {
    fn get(&self) -> (u64, u64) {
        (self.start.load(Ordering::Relaxed), self.end.load(Ordering::Relaxed))
    }
    fn set(&self, (start, end): (u64, u64)) {
        self.start.store(start, Ordering::Relaxed);
        self.end.store(end, Ordering::Relaxed);
    }
}

/// First address and end of the reservation; both 0 before it was made.
pub(crate) fn bounds() -> (u64, u64) {
    // `END` is stored before `BASE`; acquire pairs with the release in `header`.
    let base = BASE.load(Ordering::Acquire);
    (base, if base == 0 { 0 } else { END.load(Ordering::Relaxed) })
}

/// A carved part. Plain data: whoever holds it gives it back once with [`release`].
#[derive(Debug)]
pub(crate) struct Mapping {
    /// First usable byte.
    pub(crate) start: u64,
    /// Usable bytes, whole pages.
    pub(crate) bytes: u64,
    guard_bytes: u64,
    pid: i32,
}

impl Mapping {
    /// Bytes of it that are backed by memory now, in whole pages: asked from the kernel, a call per 16 MiB.
    pub(crate) fn resident_bytes(&self) -> u64 {
        let mut pages = 0;
        let mut present = [0u8; 4096];
        let (mut at, end) = (self.start, self.start + self.bytes);
        while at < end {
            let part = (end - at).min(present.len() as u64 * PAGE_BYTES);
            // SAFETY: the mapping is its owner's as long as this exists; `present` has a byte for each page of the part.
            let rc = unsafe { libc::mincore(at as *mut _, part as usize, present.as_mut_ptr()) };
            if rc == 0 {
                let seen = &present[..(part / PAGE_BYTES) as usize];
                pages += seen.iter().filter(|&&page| page & 1 != 0).count() as u64;
            }
            at += part;
        }
        pages * PAGE_BYTES
    }
}

/// How a part is carved.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Carve {
    pub(crate) bytes: u64,
    /// A power of two, at least a page: alignment of the usable part.
    pub(crate) align: u64,
    /// Bytes below the usable part that stay inaccessible, whole pages.
    pub(crate) guard_bytes: u64,
    /// A memfd to map shared instead of fresh zero pages.
    pub(crate) memfd: Option<i32>,
}

impl Carve {
    pub(crate) const fn zeroed(bytes: u64) -> Self {
        Self { bytes, align: PAGE_BYTES, guard_bytes: 0, memfd: None }
    }
}

pub(crate) fn pid() -> i32 {
    // SAFETY: no arguments, no memory.
    unsafe { libc::getpid() }
}

extern "C" fn in_child() {
    // The mappings are gone (MADV_DONTFORK), a lock in them with them; handles of the parent know its pid.
    BASE.store(0, Ordering::Relaxed);
    END.store(0, Ordering::Relaxed);
    OWNER_PID.store(0, Ordering::Relaxed);
}

/// Makes the reservation on first use.
fn header() -> Result<&'static Header, PrivateError> {
    let mut base = BASE.load(Ordering::Acquire);
    if base == 0 {
        base = reserve()?;
    }
    if OWNER_PID.load(Ordering::Relaxed) != pid() {
        return Err(PrivateError::Forked);
    }
    // SAFETY: `base` starts a readable and writable mapping of HEADER_BYTES that this process never unmaps; zero
    // bytes are a valid Header, and it has interior mutability only.
    Ok(unsafe { &*(base as *const Header) })
}

#[cold]
fn reserve() -> Result<u64, PrivateError> {
    let mut bytes = WANTED_BYTES;
    let base = loop {
        let flags = libc::MAP_PRIVATE | libc::MAP_ANONYMOUS | libc::MAP_NORESERVE;
        // SAFETY: a new mapping at an address of the kernel's choice hurts nobody.
        let at = unsafe { libc::mmap(ptr::null_mut(), bytes as usize, libc::PROT_NONE, flags, -1, 0) };
        if at != libc::MAP_FAILED {
            break at as u64;
        }
        bytes /= 2;
        if bytes < LEAST_BYTES {
            return Err(PrivateError::NoAddressSpace);
        }
    };
    keep_apart(base, bytes);
    let end = base + bytes;
    open(base, HEADER_BYTES)?;
    // SAFETY: as in `header`; nobody else knows this mapping yet.
    let header = unsafe { &*(base as *const Header) };
    header.extents[0].set((base + HEADER_BYTES, end));
    header.count.store(1, Ordering::Relaxed);
    // Two threads may come here at once: the one that finds END at 0 goes on, the other waits for its BASE.
    if END.compare_exchange(0, end, Ordering::Relaxed, Ordering::Relaxed).is_err() {
        // SAFETY: this thread made the mapping and told nobody.
        unsafe { libc::munmap(base as *mut _, bytes as usize) };
        loop {
            // Acquire pairs with the release below.
            let winner = BASE.load(Ordering::Acquire);
            if winner != 0 {
                return Ok(winner);
            }
            std::thread::yield_now();
        }
    }
    if HOOKED.swap(1, Ordering::Relaxed) == 0 {
        // SAFETY: the hook is a static function that touches statics only.
        unsafe { libc::pthread_atfork(None, None, Some(in_child)) };
    }
    OWNER_PID.store(pid(), Ordering::Relaxed);
    // Release publishes the header's contents, END and OWNER_PID.
    BASE.store(base, Ordering::Release);
    Ok(base)
}

/// Not inherited by children and thereby never merged with a mapping of the application; filled page by page.
fn keep_apart(start: u64, bytes: u64) {
    for advice in [libc::MADV_DONTFORK, libc::MADV_NOHUGEPAGE] {
        // SAFETY: the range is the service's own; both kinds of advice keep contents. A kernel without huge
        // pages refuses the second, which is as good.
        unsafe { libc::madvise(start as *mut _, bytes as usize, advice) };
    }
}

fn open(start: u64, bytes: u64) -> Result<(), PrivateError> {
    // SAFETY: the range is reserved and belongs to the caller; it held nothing.
    let rc = unsafe { libc::mprotect(start as *mut _, bytes as usize, libc::PROT_READ | libc::PROT_WRITE) };
    if rc == 0 { Ok(()) } else { Err(PrivateError::Refused { bytes, errno: crate::os::errno() }) }
}

/// Carves a part; its pages are zero (or the memfd's).
pub(crate) fn carve(want: Carve) -> Result<Mapping, PrivateError> {
    debug_assert!(
        want.align.is_power_of_two()
            && want.align >= PAGE_BYTES
            && want.guard_bytes.is_multiple_of(PAGE_BYTES)
    );
    let bytes = want.bytes.checked_next_multiple_of(PAGE_BYTES).filter(|&bytes| bytes != 0);
    let bytes = bytes.filter(|&bytes| bytes <= WANTED_BYTES).ok_or(PrivateError::BadSize)?;
    let header = header()?;
    let start = {
        let _guard = header.lock.lock(&FutexPark);
        header.find(want.guard_bytes, bytes, want.align).ok_or(PrivateError::Exhausted { bytes })?
    };
    let made = match want.memfd {
        None => open(start, bytes),
        Some(fd) => {
            let (prot, flags) = (libc::PROT_READ | libc::PROT_WRITE, libc::MAP_SHARED | libc::MAP_FIXED);
            // SAFETY: MAP_FIXED replaces reserved pages that belong to this call alone.
            let at = unsafe { libc::mmap(start as *mut _, bytes as usize, prot, flags, fd, 0) };
            if at == libc::MAP_FAILED {
                Err(PrivateError::Refused { bytes, errno: crate::os::errno() })
            } else {
                keep_apart(start, bytes);
                Ok(())
            }
        }
    };
    let mapping = Mapping { start, bytes, guard_bytes: want.guard_bytes, pid: pid() };
    made.inspect_err(|_| {
        let _guard = header.lock.lock(&FutexPark);
        header.put(start - mapping.guard_bytes, start + bytes);
    })?;
    Ok(mapping)
}

/// Gives a part back. In another process than the one that carved it, nothing happens.
///
/// # Safety
/// Nobody refers to the part any more, and it is given back once.
pub(crate) unsafe fn release(mapping: &Mapping) {
    if mapping.pid != pid() {
        return;
    }
    let Ok(header) = header() else { return };
    let flags = libc::MAP_PRIVATE | libc::MAP_ANONYMOUS | libc::MAP_NORESERVE | libc::MAP_FIXED;
    let (at, bytes) = (mapping.start as *mut libc::c_void, mapping.bytes as usize);
    // SAFETY: the caller vouches that nobody refers to the part; a fresh reserved one takes its place.
    let fresh = unsafe { libc::mmap(at, bytes, libc::PROT_NONE, flags, -1, 0) };
    if fresh == libc::MAP_FAILED {
        // At the limit on mappings: the memory goes back, the addresses are leaked.
        // SAFETY: as above.
        unsafe { libc::madvise(at, bytes, libc::MADV_DONTNEED) };
        return;
    }
    keep_apart(mapping.start, mapping.bytes);
    let _guard = header.lock.lock(&FutexPark);
    header.put(mapping.start - mapping.guard_bytes, mapping.start + mapping.bytes);
}

impl Header {
    /// First fit. Returns the start of the usable part; what is cut off on either side stays free.
    fn find(&self, guard: u64, bytes: u64, align: u64) -> Option<u64> {
        let count = self.count.load(Ordering::Relaxed) as usize;
        for (index, extent) in self.extents[..count].iter().enumerate() {
            let (from, end) = extent.get();
            let Some(start) = (from + guard).checked_next_multiple_of(align) else { continue };
            if end < start || end - start < bytes {
                continue;
            }
            let (low, high) = ((from, start - guard), (start + bytes, end));
            match (low.0 < low.1, high.0 < high.1) {
                (false, false) => self.remove(index),
                (true, false) => extent.set(low),
                (false, true) => extent.set(high),
                (true, true) => {
                    extent.set(low);
                    self.insert(index + 1, high);
                }
            }
            return Some(start);
        }
        None
    }

    fn put(&self, start: u64, end: u64) {
        let count = self.count.load(Ordering::Relaxed) as usize;
        let index = self.extents[..count].partition_point(|extent| extent.get().0 < start);
        let joins_low = index > 0 && self.extents[index - 1].get().1 == start;
        let joins_high = index < count && self.extents[index].get().0 == end;
        match (joins_low, joins_high) {
            (true, true) => {
                let low = self.extents[index - 1].get().0;
                self.extents[index - 1].set((low, self.extents[index].get().1));
                self.remove(index);
            }
            (true, false) => self.extents[index - 1].set((self.extents[index - 1].get().0, end)),
            (false, true) => self.extents[index].set((start, self.extents[index].get().1)),
            (false, false) => self.insert(index, (start, end)),
        }
    }

    fn insert(&self, index: usize, extent: (u64, u64)) {
        let count = self.count.load(Ordering::Relaxed) as usize;
        if count == EXTENTS {
            return;
        }
        for at in (index..count).rev() {
            self.extents[at + 1].set(self.extents[at].get());
        }
        self.extents[index].set(extent);
        self.count.store(count as u64 + 1, Ordering::Relaxed);
    }

    fn remove(&self, index: usize) {
        let count = self.count.load(Ordering::Relaxed) as usize;
        for at in index + 1..count {
            self.extents[at - 1].set(self.extents[at].get());
        }
        self.count.store(count as u64 - 1, Ordering::Relaxed);
    }
}
