//! Private memory: mappings of the service's own that are never mirrored, never taken and not inherited by a
//! child. Whoever serves CPU faults, holds a block lock or is inside the gate touches this memory and no other.
//!
//! # Roles
//! * The reservation is one range of addresses for the whole process; every private mapping is
//!   carved from it, so that [`contains`] is two compares.
//! * [`Slab`] is a lazily filled array, [`PrivateArc`] one shared value, [`PrivateBytes`] raw memory (its own, or
//!   a view of a memfd).
//!
//! # Rules
//! 1. Nothing here allocates from the heap, so it may be used anywhere; but making and dropping a mapping are
//!    system calls under a process-wide lock, so do neither on a hot path.
//! 2. A child after fork has none of these mappings. Dropping an inherited handle there does nothing; touching
//!    what it refers to is a segmentation fault. A child made by `fork` can make mappings of its own.

mod arc;
mod bytes;
pub(crate) mod reservation;
mod slab;

pub use arc::PrivateArc;
pub use bytes::PrivateBytes;
pub use slab::{Slab, ZeroValid};

use thiserror::Error;

use crate::units::VirtRange;

/// Why there is no private memory.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Error)]
#[non_exhaustive]
pub enum PrivateError {
    /// Not even the smallest reservation was granted.
    #[error("the kernel grants no 64 GiB of address space; raise RLIMIT_AS (ulimit -v)")]
    NoAddressSpace,
    /// The reservation is used up.
    #[error("no {bytes} bytes are left of the private address range; use smaller tables or drop some first")]
    Exhausted {
        /// What was asked for.
        bytes: u64,
    },
    /// The kernel refused the mapping.
    #[error(
        "the kernel refused a private mapping of {bytes} bytes (errno {errno}); free memory or raise vm.max_map_count"
    )]
    Refused {
        /// What was asked for.
        bytes: u64,
        /// What the kernel said.
        errno: i32,
    },
    /// A size of zero, or one that does not fit in an address.
    #[error("a private mapping needs a size between one byte and the address space")]
    BadSize,
    /// This process is a child made by a raw `clone`.
    #[error("this process was made by a raw clone and has no private memory; use fork")]
    Forked,
}

/// Whether every byte of a range is private memory (or reserved for it).
pub fn contains(range: VirtRange) -> bool {
    let (start, end) = reservation::bounds();
    start <= range.start().0 && range.end().0 <= end
}

/// Whether any byte of a range is private memory (or reserved for it).
pub fn overlaps(range: VirtRange) -> bool {
    let (start, end) = reservation::bounds();
    start < range.end().0 && range.start().0 < end
}
