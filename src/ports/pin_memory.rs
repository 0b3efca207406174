use thiserror::Error;

use crate::units::{Access, PhysRange, VirtAddr};

/// Holds pages of the process in place and says where they are.
///
/// Not called under locks or inside the gate: it may populate memory, wait and allocate.
pub trait PinMemory: Sync {
    /// Makes `bytes` bytes from `at` present with the right to do `access`, holds their pages, and hands the physical
    /// ranges to `each`, in order, byte-exact at both ends, flagged [`PhysRange::PINNED`].
    ///
    /// # Errors
    /// [`PinError`]; nothing is held then, and what `each` was given is void.
    fn pin(
        &self,
        at: VirtAddr,
        bytes: u64,
        access: Access,
        each: &mut dyn FnMut(PhysRange),
    ) -> Result<(), PinError>;

    /// Ends one `pin` of exactly this range.
    fn unpin(&self, at: VirtAddr, bytes: u64);
}

/// Why memory could not be pinned.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Error)]
#[non_exhaustive]
pub enum PinError {
    /// Nothing to pin, or the range wraps.
    #[error("{bytes} bytes at {at} are no range of memory; pass at least one byte that does not wrap")]
    BadRange {
        /// The range's start.
        at: VirtAddr,
        /// Its length.
        bytes: u64,
    },
    /// Something in the range is not mapped, or does not allow the access.
    #[error("the memory at {0} is not mapped or does not allow this access; map it first")]
    NoAccess(VirtAddr),
    /// The limit on pinned memory is reached.
    #[error("the limit on pinned memory is reached; raise it (ulimit -l) or pin less")]
    OverLimit,
    /// No memory is left.
    #[error("no memory is left to make {0} present; free memory")]
    OutOfMemory(VirtAddr),
}
