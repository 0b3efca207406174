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
        Ok(Self { query: None, shared_devs })
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
        if holds_robust_list(whole) {
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

/// Whether a thread of this process keeps its robust-list head in `range`. Unknown counts as yes.
fn holds_robust_list(range: VirtRange) -> bool {
    // SAFETY: a C string; the descriptor is closed below.
    let dir = unsafe {
        libc::open(c"/proc/self/task".as_ptr(), libc::O_RDONLY | libc::O_DIRECTORY | libc::O_CLOEXEC)
    };
    if dir < 0 {
        return true;
    }
    let mut holds = false;
    let mut entries = [0u64; 256];
    loop {
        // SAFETY: the buffer is writable for its whole size.
        let got =
            unsafe { libc::syscall(libc::SYS_getdents64, dir, entries.as_mut_ptr(), size_of_val(&entries)) };
        if got <= 0 {
            holds |= got < 0;
            break;
        }
        // SAFETY: the kernel wrote `got` bytes, which is at most the size of the buffer; bytes have no alignment.
        let bytes = unsafe { core::slice::from_raw_parts(entries.as_ptr().cast::<u8>(), got as usize) };
        let mut at = 0;
        while at + 19 <= bytes.len() {
            let record = usize::from(u16::from_ne_bytes([bytes[at + 16], bytes[at + 17]]));
            if record == 0 {
                break;
            }
            let name = &bytes[at + 19..(at + record).min(bytes.len())];
            if let Some(head) = tid_of(name).and_then(robust_list_head) {
                holds |= range.contains(head);
            }
            at += record;
        }
    }
    // SAFETY: opened above, closed once.
    unsafe { libc::close(dir) };
    holds
}

fn tid_of(name: &[u8]) -> Option<i32> {
    let digits = name.iter().take_while(|byte| byte.is_ascii_digit()).count();
    (digits > 0).then(|| {
        name[..digits].iter().fold(0i32, |tid, digit| tid.wrapping_mul(10) + i32::from(digit - b'0'))
    })
}

/// `None` for a thread that ended meanwhile or has none.
fn robust_list_head(tid: i32) -> Option<VirtAddr> {
    let (mut head, mut bytes) = (0u64, 0usize);
    // SAFETY: both targets live here for the call.
    let rc = unsafe { libc::syscall(libc::SYS_get_robust_list, tid, &mut head, &mut bytes) };
    (rc == 0 && head != 0).then_some(VirtAddr(head))
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
