//! Which mapping holds an address, and how it may be served.
//!
//! | mapping | kind |
//! |---|---|
//! | private anonymous, also `[heap]` and named ones | [`VmaKind::Movable`] |
//! | shared memory (memfd, System V, /dev/shm, shared anonymous) | [`VmaKind::LinkOnly`] |
//! | the main stack; a mapping that holds a thread's robust-list head (a thread stack with its thread-local storage) | [`VmaKind::LinkOnly`] |
//! | anonymous static data (.bss) of a loaded object | [`VmaKind::LinkOnly`] |
//! | private file mappings, other file systems, devices, `[vdso]` and the like, private memory of the service | [`VmaKind::Unfollowed`] |
//!
//! # Rules
//! 1. No heap: the kernel's answers land in buffers on the stack. The loader's list of objects is read, though,
//!    and lies on the heap: called outside gate and locks.
//! 2. Where .bss has merged with memory of the application, the answer is cut at the object's own bounds.
//! 3. A statically linked program keeps its main thread's storage in `[heap]`: there the heap is linked only.
#![allow(unsafe_code, reason = "ioctl, getdents64, get_robust_list and dl_iterate_phdr")]

use core::ffi::{CStr, c_int, c_void};
use std::os::fd::{AsRawFd, OwnedFd};

use super::abi::{self, Errno, ioctl};
use super::maps_text;
use super::private;
use super::robust_lists::RobustLists;
use crate::ports::{HostError, Lookup, Vma, VmaKind};
use crate::units::{Access, PAGE_BYTES, VirtAddr, VirtRange};

/// Longest name that is looked at; longer ones are cut and count as files.
pub(super) const NAME_BYTES: usize = 256;

/// What the kernel says about one mapping.
#[derive(Clone, Copy)]
pub(super) struct RawVma {
    pub(super) start: u64,
    pub(super) end: u64,
    pub(super) readable: bool,
    pub(super) writable: bool,
    pub(super) shared: bool,
    pub(super) dev: (u32, u32),
    pub(super) inode: u64,
    pub(super) name: [u8; NAME_BYTES],
}

impl RawVma {
    pub(super) const EMPTY: Self = Self {
        start: 0,
        end: 0,
        readable: false,
        writable: false,
        shared: false,
        dev: (0, 0),
        inode: 0,
        name: [0; NAME_BYTES],
    };

    fn name(&self) -> &[u8] {
        let end = self.name.iter().position(|&byte| byte == 0).unwrap_or(NAME_BYTES);
        &self.name[..end]
    }
}

/// Looks mappings up.
#[derive(Debug)]
pub struct Vmas {
    /// /proc/self/maps, for PROCMAP_QUERY; `None` where the kernel lacks it (before 6.11).
    query: Option<OwnedFd>,
    /// The devices of the kernel's own tmpfs and of /dev/shm.
    shared_devs: [(u32, u32); 2],
    robust_lists: RobustLists,
}

impl Vmas {
    /// Finds out how the kernel can be asked.
    ///
    /// # Errors
    /// What opening /proc/self/maps or making a memfd says.
    pub fn open() -> std::io::Result<Self> {
        let mut vmas = Self::open_text()?;
        let fd = OwnedFd::from(std::fs::File::open("/proc/self/maps")?);
        if query(&fd, &raw const vmas as u64).is_ok() {
            vmas.query = Some(fd);
        }
        Ok(vmas)
    }

    /// The same without PROCMAP_QUERY, whatever the kernel has.
    ///
    /// # Errors
    /// As [`Vmas::open`].
    pub fn open_text() -> std::io::Result<Self> {
        let memfd = memfd::MemfdOptions::new().create("granule-probe").map_err(std::io::Error::other)?;
        let shared_devs = [dev_of_fd(memfd.as_raw_fd())?, dev_of_path(c"/dev/shm").unwrap_or((0, 0))];
        Ok(Self { query: None, shared_devs, robust_lists: RobustLists::open() })
    }

    /// Whether mappings hold all of a range. Touches no heap, unlike [`Vmas::lookup`]. A kernel that cannot be
    /// asked says no.
    pub(super) fn is_mapped(&self, range: VirtRange) -> bool {
        let mut at = range.start().0;
        while at < range.end().0 {
            let found = match &self.query {
                Some(fd) => query(fd, at),
                None => maps_text::find(at),
            };
            match found {
                Ok(Some(vma)) if vma.start <= at => at = vma.end,
                _ => return false,
            }
        }
        true
    }

    /// The mapping that holds an address, or the next one above it. Touches no heap.
    ///
    /// # Errors
    /// [`HostError`] if the kernel cannot be asked.
    pub(super) fn next_mapped(&self, at: VirtAddr) -> Result<Option<VirtRange>, HostError> {
        let found = self.find(at).map_err(|_| HostError::NotSupported)?;
        Ok(found.map(|vma| VirtRange::between(VirtAddr(vma.start), VirtAddr(vma.end))))
    }

    fn find(&self, at: VirtAddr) -> Result<Option<RawVma>, Errno> {
        match &self.query {
            Some(fd) => query(fd, at.0),
            None => maps_text::find(at.0),
        }
    }

    /// The mapping that holds an address, or how far there is none.
    ///
    /// # Errors
    /// [`HostError`] if the kernel cannot be asked.
    pub fn lookup(&self, at: VirtAddr) -> Result<Lookup, HostError> {
        let vma = match self.find(at).map_err(|_| HostError::NotSupported)? {
            None => return Ok(Lookup::Hole { until: VirtAddr(crate::units::SPACE_BYTES) }),
            Some(vma) if vma.start > at.0 => return Ok(Lookup::Hole { until: VirtAddr(vma.start) }),
            Some(vma) => vma,
        };
        let whole = VirtRange::between(VirtAddr(vma.start), VirtAddr(vma.end));
        let access = match (vma.readable, vma.writable) {
            (_, true) => Some(Access::Write),
            (true, false) => Some(Access::Read),
            (false, false) => None,
        };
        let (kind, range) = self.classify(&vma, whole, at);
        Ok(Lookup::Mapped(Vma { range, access, kind }))
    }

    fn classify(&self, vma: &RawVma, whole: VirtRange, at: VirtAddr) -> (VmaKind, VirtRange) {
        if private::overlaps(whole) {
            return (VmaKind::Unfollowed, whole);
        }
        if vma.shared {
            let follows = self.shared_devs.contains(&vma.dev) && vma.inode != 0;
            return (if follows { VmaKind::LinkOnly } else { VmaKind::Unfollowed }, whole);
        }
        let name = vma.name();
        if vma.inode != 0 || name.starts_with(b"/") {
            return (VmaKind::Unfollowed, whole);
        }
        if name.starts_with(b"[stack") {
            return (VmaKind::LinkOnly, whole);
        }
        if !(name.is_empty() || name == b"[heap]" || name.starts_with(b"[anon:")) {
            return (VmaKind::Unfollowed, whole);
        }
        if self.robust_lists.any_in(whole) {
            return (VmaKind::LinkOnly, whole);
        }
        let part = ObjectPart::of(whole, at);
        (if part.inside { VmaKind::LinkOnly } else { VmaKind::Movable }, part.range)
    }
}

fn dev_of(stat: &libc::stat) -> (u32, u32) {
    (libc::major(stat.st_dev), libc::minor(stat.st_dev))
}

fn dev_of_fd(fd: i32) -> std::io::Result<(u32, u32)> {
    // SAFETY: all-zero bytes are a valid stat; it lives here for the call.
    let mut stat = unsafe { core::mem::zeroed::<libc::stat>() };
    // SAFETY: as above.
    if unsafe { libc::fstat(fd, &mut stat) } == 0 {
        Ok(dev_of(&stat))
    } else {
        Err(std::io::Error::last_os_error())
    }
}

fn dev_of_path(path: &CStr) -> Option<(u32, u32)> {
    // SAFETY: all-zero bytes are a valid stat; path and stat live for the call.
    unsafe {
        let mut stat = core::mem::zeroed::<libc::stat>();
        (libc::stat(path.as_ptr(), &mut stat) == 0).then(|| dev_of(&stat))
    }
}

/// The mapping that holds `at`, or the next one above it.
fn query(fd: &OwnedFd, at: u64) -> Result<Option<RawVma>, Errno> {
    const READABLE: u64 = 1;
    const WRITABLE: u64 = 2;
    const SHARED: u64 = 8;
    const COVERING_OR_NEXT: u64 = 16;
    let mut vma = RawVma::EMPTY;
    let mut ask = |name_bytes: usize| {
        let mut arg = abi::procmap_query {
            size: size_of::<abi::procmap_query>() as u64,
            query_flags: COVERING_OR_NEXT,
            query_addr: at,
            vma_start: 0,
            vma_end: 0,
            vma_flags: 0,
            vma_page_size: 0,
            vma_offset: 0,
            inode: 0,
            dev_major: 0,
            dev_minor: 0,
            vma_name_size: name_bytes as u32,
            build_id_size: 0,
            vma_name_addr: if name_bytes == 0 { 0 } else { vma.name.as_mut_ptr() as u64 },
            build_id_addr: 0,
        };
        // SAFETY: the name buffer is writable for the stated size and outlives the call.
        unsafe { ioctl(fd.as_raw_fd(), abi::PROCMAP_QUERY, &mut arg) }.map(|_| arg)
    };
    let (answer, named) = match ask(NAME_BYTES) {
        Err(Errno(libc::ENOENT)) => return Ok(None),
        Err(Errno(libc::ENAMETOOLONG)) => (ask(0)?, false),
        answer => (answer?, true),
    };
    if !named {
        vma.name[0] = b'/';
    }
    Ok(Some(RawVma {
        start: answer.vma_start,
        end: answer.vma_end,
        readable: answer.vma_flags & READABLE != 0,
        writable: answer.vma_flags & WRITABLE != 0,
        shared: answer.vma_flags & SHARED != 0,
        dev: (answer.dev_major, answer.dev_minor),
        inode: answer.inode,
        name: vma.name,
    }))
}

/// The largest part of a mapping around an address that lies wholly inside, or wholly outside, the writable
/// segments of loaded objects.
struct ObjectPart {
    at: VirtAddr,
    range: VirtRange,
    inside: bool,
}

impl ObjectPart {
    fn of(whole: VirtRange, at: VirtAddr) -> Self {
        let mut part = Self { at, range: whole, inside: false };
        // SAFETY: the callback gets back the pointer given here, which lives until the call returns.
        unsafe { libc::dl_iterate_phdr(Some(visit_object), (&raw mut part).cast()) };
        part
    }

    fn visit(&mut self, segment: VirtRange) {
        let hit = segment.intersection(self.range);
        if hit.is_empty() || self.inside {
            return;
        }
        if hit.contains(self.at) {
            (self.range, self.inside) = (hit, true);
        } else if hit.start() > self.at {
            self.range = VirtRange::between(self.range.start(), hit.start());
        } else {
            self.range = VirtRange::between(hit.end(), self.range.end());
        }
    }
}

unsafe extern "C" fn visit_object(info: *mut libc::dl_phdr_info, _: usize, part: *mut c_void) -> c_int {
    // SAFETY: the loader passes a valid object whose headers stay while it holds its lock, and the pointer that
    // `ObjectPart::of` gave it.
    let (info, part) = unsafe { (&*info, &mut *part.cast::<ObjectPart>()) };
    // SAFETY: as above.
    let headers = unsafe { core::slice::from_raw_parts(info.dlpi_phdr, usize::from(info.dlpi_phnum)) };
    for header in headers {
        if header.p_type != libc::PT_LOAD || header.p_flags & libc::PF_W == 0 {
            continue;
        }
        let start = info.dlpi_addr.wrapping_add(header.p_vaddr);
        let from = start & !(PAGE_BYTES - 1);
        if let Ok(segment) =
            VirtRange::covering(VirtAddr(from), start.wrapping_add(header.p_memsz).wrapping_sub(from))
        {
            part.visit(segment);
        }
    }
    0
}
