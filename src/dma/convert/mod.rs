//! Ranges in the forms that other interfaces have. Nothing here maps, allocates or keeps anything.
//!
//! | form | from | |
//! |---|---|---|
//! | [`IoVec`] | pieces of the process's memory; physical ranges of a backend whose physical addresses are the process's | [`pin_vectors`](crate::dma::pin_vectors) makes ranges of them, [`iovecs`] makes them of ranges |
//! | [`VfioMap`] | physical ranges behind a VFIO container | one map request each |
//! | [`NvmePrp`], [`NvmeSgl`] | DMA ranges of one command | with the lists in memory that the caller gives |
//! | [`SparseBind`] | DMA ranges or ranges of device memory of a Vulkan resource | one bind each |

mod iovec;
mod nvme;
mod vfio;
mod vulkan;

use crate::units::{PhysAddr, PhysRange};

pub use iovec::{IoVec, iovecs};
pub use nvme::{NvmeError, NvmePrp, NvmeSgl, PrpList, prp, prp_list_entries, sgl, sgl_segment_entries};
pub use vfio::{VfioMap, vfio_maps};
pub use vulkan::{SparseBind, sparse_binds};

/// Why a range has no such form.
#[derive(Clone, Copy, PartialEq, Eq, Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ConvertError {
    /// The end of a range, or of the place that it is to have, lies beyond the last address.
    #[error("{bytes} bytes from {at:#x} wrap around the end of the address space; pass a shorter range")]
    Wraps {
        /// First address.
        at: u64,
        /// Length in bytes.
        bytes: u64,
    },
    /// The range begins before the memory object that it is said to lie in.
    #[error("{at:#x} lies before the memory object, which begins at {start:#x}; pass ranges of this object")]
    BeforeMemory {
        /// First address of the range.
        at: u64,
        /// First address of the object.
        start: u64,
    },
}

/// Physical ranges that touch, as runs of any length; nothing after a range that wraps.
fn runs(
    ranges: impl IntoIterator<Item = PhysRange>,
) -> impl Iterator<Item = Result<(PhysAddr, u64), ConvertError>> {
    let mut ranges = ranges.into_iter().filter(|range| range.len > 0).peekable();
    let mut is_over = false;
    core::iter::from_fn(move || {
        let first = ranges.next().filter(|_| !is_over)?;
        let mut bytes = u64::from(first.len);
        while let Some(next) = ranges.next_if(|next| first.addr.checked_add(bytes) == Some(next.addr)) {
            bytes += u64::from(next.len);
        }
        if first.addr.checked_add(bytes).is_none() {
            is_over = true;
            return Some(Err(ConvertError::Wraps { at: first.addr.0, bytes }));
        }
        Some(Ok((first.addr, bytes)))
    })
}
