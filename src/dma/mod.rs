//! Two-step DMA. Step one reserves an IOVA range for a whole granule; step two links pages into it later, one run
//! at a time, each at its own position: the DMA address of page *i* is `base + i * 4096`, so no address is stored
//! per page.
//!
//! The reservation is kept by [`IovaSpace`]; linking and unlinking go straight to the
//! [`Iommu`](crate::ports::Iommu), since position says everything.
//!
//! # Rules
//! 1. A range is linked only inside a reservation, and unlinked before the reservation is freed.
//! 2. After `unmap` of a range comes one `flush` of it, before its pages are used for anything else.

mod iova_space;
mod page_list;
mod range;

pub use iova_space::{IovaError, IovaSpace, ReserveIova};
pub use page_list::PageList;
pub use range::DmaRange;

use crate::units::{BlockNo, GranuleNo, Iova, PAGE_SHIFT};

/// The DMA address of a block's page: its position in the granule's reservation.
pub fn position(granule_base: Iova, block: BlockNo, page: usize) -> Iova {
    let granule = GranuleNo::of(block.base());
    granule_base + block.base().bytes_since(granule.base()) + ((page as u64) << PAGE_SHIFT)
}
