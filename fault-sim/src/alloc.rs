//! Where a workload's memory comes from.
//!
//! | kind | arrays | nodes of a list | the device learns of it |
//! |---|---|---|---|
//! | `malloc` | ordinary vectors | `malloc`, one by one | by its faults |
//! | `mmap` | private anonymous mappings | cut from such mappings | by its faults |
//! | `library` | regions of [`Svm::alloc`] | cut from such regions | by its faults |
//! | `userptr` | private anonymous mappings | cut from such mappings | by [`Svm::userptr`], before they are filled |

#![allow(
    unsafe_code,
    reason = "memory of the C library and of the kernel is handed out as slices of atomics"
)]

use std::cell::RefCell;
use std::marker::PhantomData;
use std::ptr::NonNull;
use std::slice;
use std::sync::atomic::{AtomicU32, AtomicU64, Ordering};

use granule::os::private::{PrivateError, Slab};
use granule::service::{Region, RegionError, Svm, Userptr, UserptrError, UserptrOptions};
use granule::units::{Access, PAGE_BYTES, VirtAddr};
use thiserror::Error;

/// Who is asked for memory.
#[derive(Clone, Copy, PartialEq, Eq, Debug, clap::ValueEnum, serde::Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Source {
    /// The C library, as any program does.
    Malloc,
    /// The kernel.
    Mmap,
    /// The library itself.
    Library,
    /// The kernel, and every mapping is registered in advance.
    Userptr,
}

/// Why there is no memory.
#[derive(Debug, Error)]
pub enum AllocError {
    /// The C library or the kernel has none.
    #[error("{0} bytes cannot be allocated: {1}; ask for a smaller size")]
    OutOfMemory(usize, std::io::Error),
    /// The library could not make a region.
    #[error("the library cannot allocate a region: {0}")]
    Region(#[from] RegionError),
    /// The library refused a userptr.
    #[error("a mapping cannot be registered: {0}")]
    Userptr(#[from] UserptrError),
}

/// Words of a node.
pub const NODE_WORDS: usize = 4;

/// What a list is made of: 32 bytes.
pub type Node = [AtomicU64; NODE_WORDS];

/// References to nodes, kept in private memory of the library: what they say stays true whatever happens to
/// the nodes.
pub struct Nodes<'a> {
    addresses: Slab<AtomicU64>,
    of: PhantomData<&'a Node>,
}

impl<'a> Nodes<'a> {
    /// Room for `len` references.
    ///
    /// # Errors
    /// [`PrivateError`] if `len` is zero or there is no memory for them.
    pub fn new(len: usize) -> Result<Self, PrivateError> {
        Ok(Self { addresses: Slab::new(len)?, of: PhantomData })
    }

    /// How many there is room for.
    pub fn count(&self) -> usize {
        self.addresses.len()
    }

    /// Keeps a reference.
    pub fn keep(&self, at: usize, node: &'a Node) {
        self.addresses[at].store(node.as_ptr().expose_provenance() as u64, Ordering::Relaxed);
    }

    /// The node's address.
    pub fn address(&self, at: usize) -> u64 {
        self.addresses[at].load(Ordering::Relaxed)
    }

    /// The node.
    ///
    /// # Panics
    /// If none was kept there.
    pub fn get(&self, at: usize) -> &'a Node {
        let address = self.address(at);
        assert!(address != 0, "no node was kept at {at}");
        // SAFETY: the address was taken from a `&'a Node` in `keep`, and nobody else writes addresses.
        unsafe { &*std::ptr::with_exposed_provenance::<Node>(address as usize) }
    }
}

/// Requests below this share a mapping.
const SMALL_BYTES: usize = 64 << 10;
/// The size of a mapping that is shared by small requests.
const SHARED_BYTES: usize = 2 << 20;

/// Hands out zeroed memory of one kind until it is dropped.
pub struct Arena<'a> {
    svm: &'a Svm,
    source: Source,
    held: RefCell<Held>,
}

#[derive(Default)]
struct Held {
    chunks: Vec<Chunk>,
    /// Memory of `malloc`.
    nodes: Vec<NonNull<libc::c_void>>,
    /// What is left of the mapping that small requests share.
    rest: Option<(NonNull<AtomicU64>, usize)>,
}

/// Memory that is given back on drop.
enum Chunk {
    Vector(NonNull<AtomicU64>, usize),
    Mapping { _mapping: Mapping },
    Region { _region: Region },
    // Fields are dropped in this order: the registration goes before the mapping.
    Registered { _userptr: Userptr, _mapping: Mapping },
}

struct Mapping {
    start: NonNull<libc::c_void>,
    bytes: usize,
}

impl<'a> Arena<'a> {
    /// Memory of one kind for devices of `svm`.
    pub fn new(source: Source, svm: &'a Svm) -> Self {
        Self { svm, source, held: RefCell::default() }
    }

    /// `len` words, all zero.
    ///
    /// # Errors
    /// [`AllocError`].
    pub fn words(&self, len: usize) -> Result<&[AtomicU64], AllocError> {
        let start = match self.source {
            Source::Malloc => self.vector(len),
            _ => self.cut(len)?,
        };
        // SAFETY: `start` leads to `len` zeroed words that nobody else was given. The chunk that holds them
        // stays in `held` until `self` is dropped, which the borrow outlives not. Atomics may be shared with a
        // device.
        Ok(unsafe { slice::from_raw_parts(start.as_ptr(), len) })
    }

    /// `len` half words, all zero.
    ///
    /// # Errors
    /// [`AllocError`].
    pub fn halves(&self, len: usize) -> Result<&[AtomicU32], AllocError> {
        let words = self.words(len.div_ceil(2))?;
        // SAFETY: the words hold `len` half words, are aligned for them and are reached through this slice
        // only; they live as long as `self` is borrowed.
        Ok(unsafe { slice::from_raw_parts(words.as_ptr().cast(), len) })
    }

    /// A node, all zero, in an allocation of its own where the source has such.
    ///
    /// # Errors
    /// [`AllocError`].
    pub fn node(&self) -> Result<&Node, AllocError> {
        let start = match self.source {
            Source::Malloc => {
                // SAFETY: calloc has no preconditions.
                let node = NonNull::new(unsafe { libc::calloc(1, size_of::<Node>()) });
                let failed = || AllocError::OutOfMemory(size_of::<Node>(), std::io::Error::last_os_error());
                let node = node.ok_or_else(failed)?;
                self.held.borrow_mut().nodes.push(node);
                node.cast()
            }
            _ => self.cut(NODE_WORDS)?,
        };
        // SAFETY: `start` leads to zeroed memory of a node's size, aligned to 8 at least, that nobody else was
        // given; it is given back when `self` is dropped.
        Ok(unsafe { start.cast::<Node>().as_ref() })
    }

    /// An ordinary vector.
    fn vector(&self, len: usize) -> NonNull<AtomicU64> {
        // Zeroed by the allocator, and untouched if it is large: what programs get.
        let vector: Box<[u64]> = vec![0u64; len].into_boxed_slice();
        let start = NonNull::from(Box::leak(vector)).cast::<AtomicU64>();
        self.held.borrow_mut().chunks.push(Chunk::Vector(start, len));
        start
    }

    /// Words from a mapping or region: one of their own if they are many.
    fn cut(&self, len: usize) -> Result<NonNull<AtomicU64>, AllocError> {
        let bytes = len * 8;
        if bytes >= SMALL_BYTES {
            return self.chunk(bytes);
        }
        let rest = self.held.borrow_mut().rest.take().filter(|(_, left)| *left >= bytes);
        let (start, left) = match rest {
            Some(rest) => rest,
            None => (self.chunk(SHARED_BYTES)?, SHARED_BYTES),
        };
        // SAFETY: at least `bytes` are left behind `start` in its mapping.
        let behind = unsafe { start.add(len) };
        self.held.borrow_mut().rest = Some((behind, left - bytes));
        Ok(start)
    }

    fn chunk(&self, bytes: usize) -> Result<NonNull<AtomicU64>, AllocError> {
        let bytes = bytes.next_multiple_of(PAGE_BYTES as usize);
        let none = || AllocError::OutOfMemory(bytes, std::io::Error::last_os_error());
        let (start, chunk) = match self.source {
            Source::Library => {
                let region = self.svm.alloc(bytes as u64)?;
                let start = NonNull::new(region.as_ptr().cast()).ok_or_else(none)?;
                (start, Chunk::Region { _region: region })
            }
            Source::Userptr => {
                let mapping = Mapping::new(bytes)?;
                let at = VirtAddr(mapping.start.as_ptr() as u64);
                // It may move: what is registered is where it is, not where it stays.
                let options = UserptrOptions { access: Access::Write, movable: true, ..Default::default() };
                let userptr = self.svm.userptr(at, bytes as u64, options)?;
                (mapping.start.cast(), Chunk::Registered { _userptr: userptr, _mapping: mapping })
            }
            Source::Malloc | Source::Mmap => {
                let mapping = Mapping::new(bytes)?;
                (mapping.start.cast(), Chunk::Mapping { _mapping: mapping })
            }
        };
        self.held.borrow_mut().chunks.push(chunk);
        Ok(start)
    }
}

impl Drop for Arena<'_> {
    fn drop(&mut self) {
        for node in self.held.get_mut().nodes.drain(..) {
            // SAFETY: it came from calloc, is freed once, and every slice of it was borrowed from `self`.
            unsafe { libc::free(node.as_ptr()) };
        }
    }
}

impl Drop for Chunk {
    fn drop(&mut self) {
        if let Chunk::Vector(start, len) = *self {
            let vector = std::ptr::slice_from_raw_parts_mut(start.cast::<u64>().as_ptr(), len);
            // SAFETY: it was leaked from a box of `len` words, and every slice of it was borrowed from the
            // arena that is being dropped.
            drop(unsafe { Box::from_raw(vector) });
        }
    }
}

impl Mapping {
    fn new(bytes: usize) -> Result<Self, AllocError> {
        let (protection, flags) =
            (libc::PROT_READ | libc::PROT_WRITE, libc::MAP_PRIVATE | libc::MAP_ANONYMOUS);
        // SAFETY: a new mapping at an address of the kernel's choice.
        let start = unsafe { libc::mmap(std::ptr::null_mut(), bytes, protection, flags, -1, 0) };
        match NonNull::new(start) {
            Some(start) if start.as_ptr() != libc::MAP_FAILED => Ok(Self { start, bytes }),
            _ => Err(AllocError::OutOfMemory(bytes, std::io::Error::last_os_error())),
        }
    }
}

impl Drop for Mapping {
    fn drop(&mut self) {
        // SAFETY: the mapping is this value's own, and every slice of it was borrowed from the arena that is
        // being dropped.
        unsafe { libc::munmap(self.start.as_ptr(), self.bytes) };
    }
}
