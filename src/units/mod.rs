//! Addresses, page counts, ranges, masks and ids: distinct types with checked arithmetic.
//!
//! May import nothing of this crate. Everything here is plain data: no state, no effects.
//!
//! | type | is |
//! |---|---|
//! | [`VirtAddr`] | an address of the process (what a pointer holds) |
//! | [`DevAddr`] | an address that a device kernel uses; equal to the process's, but for a userptr placed elsewhere |
//! | [`Iova`] | an address on the far side of an IOMMU: what a device puts on the bus for system memory |
//! | [`PhysAddr`] | whatever names a page to the layer below the IOMMU; said once, at the type |
//! | [`BusAddr`] | an address between two devices, past the IOMMU: peer-to-peer below one switch |
//! | [`DevMemAddr`] | a byte offset in one device's own memory |

mod access;
mod addr;
mod direction;
mod geometry;
mod id;
mod mask;
mod phys_range;
mod range;

pub use access::Access;
pub use addr::{BusAddr, DevAddr, DevMemAddr, Iova, PhysAddr, VirtAddr};
pub use direction::Direction;
pub use geometry::{
    BLOCK_BYTES, BLOCK_SHIFT, BLOCKS_PER_GRANULE, GRANULE_BYTES, GRANULE_SHIFT, MASK_WORDS, PAGE_BYTES,
    PAGE_SHIFT, PAGES_PER_BLOCK, PAGES_PER_GRANULE, PAGES_PER_SLOT_64K, SLOTS_64K_PER_BLOCK, SPACE_BYTES,
};
pub use id::{BlockNo, DeviceId, GranuleNo, PageIndex, Pasid, PeerNo, Seat};
pub use mask::{PageMask, Runs};
pub use phys_range::PhysRange;
pub use range::{VirtRange, WrapError};
