use thiserror::Error;

use super::{IovaError, P2pKind};
use crate::ports::IommuError;
use crate::units::{Iova, PeerNo, PhysAddr};

/// Why a DMA call was refused. Nothing is changed then.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Error)]
#[non_exhaustive]
pub enum DmaError {
    /// No range, or one of length 0.
    #[error("range {0} of the call is empty (or there is none); pass at least one byte")]
    Empty(usize),
    /// A range whose end lies beyond the last address.
    #[error("the range at {0} wraps around the end of the address space; pass a shorter one")]
    Wraps(PhysAddr),
    /// A joint between two ranges of one call lies inside of a page.
    #[error(
        "range {index} at {addr} does not join the one before at a page of the IOMMU; link it in a call of its own"
    )]
    Misaligned {
        /// Which range, from 0.
        index: usize,
        /// Where it begins.
        addr: PhysAddr,
    },
    /// Offset and physical address differ inside of a page.
    #[error(
        "offset {offset:#x} and address {addr} differ modulo the IOMMU's page; link at a matching offset"
    )]
    OffsetMismatch {
        /// Offset in the reservation, in bytes.
        offset: u64,
        /// What was to be linked there.
        addr: PhysAddr,
    },
    /// The span does not lie inside of the reservation, or is empty.
    #[error("{bytes} bytes at offset {offset:#x} are no part of a reservation of {reserved} bytes")]
    OutsideReservation {
        /// Offset in bytes.
        offset: u64,
        /// Length in bytes.
        bytes: u64,
        /// Length of the reservation in bytes.
        reserved: u64,
    },
    /// The reservation, span or PASID is another domain's.
    #[error("this was made by another domain; give it back to the domain that made it")]
    OtherDomain,
    /// A page of the span is linked already.
    #[error("a page is linked at {0} already; unlink it first, or use replace")]
    AlreadyLinked(Iova),
    /// A page of the span is not linked.
    #[error("no page is linked at {0}; unlink only what was linked")]
    NotLinked(Iova),
    /// The reservation still has links.
    #[error("{0} pages are still linked; unlink them first, or use destroy")]
    LinksLeft(u64),
    /// No `map` made this range.
    #[error("no map call made the range at {0}; unmap what map returned, once and whole")]
    NotMapped(Iova),
    /// There is no IOMMU in front of this domain, so there is nothing to reserve.
    #[error("this domain has no IOMMU; use map, which costs nothing to unmap here")]
    Direct,
    /// The IOVA space refused.
    #[error(transparent)]
    Iova(#[from] IovaError),
    /// No memory for I/O page tables.
    #[error(
        "no memory is left for I/O page tables; unmap something or give the device a larger table budget"
    )]
    OutOfTables,
    /// The IOMMU cannot map the address.
    #[error("{0} lies outside of the IOMMU's aperture; make the IOVA space from the same aperture")]
    OutsideAperture(Iova),
    /// The IOMMU cannot exchange pages in place.
    #[error("this IOMMU cannot replace pages in place; stop the device, unlink and link")]
    CannotReplace,
    /// The device has no way to the memory.
    #[error(
        "the device cannot reach system memory at {0}; only memory that moves, or that the library allocated"
    )]
    NotReachable(PhysAddr),
    /// A bounce page would be needed and the attributes forbid it.
    #[error("the memory at {0} would need a bounce page, which these attributes forbid; align it to a page")]
    MustNotBounce(PhysAddr),
    /// Coherent memory is required and the device is not coherent.
    #[error("the device is not coherent; map without require_coherent and sync, or use another device")]
    NotCoherent,
    /// Memory of a device is said to be so by its range only, and the unlink would maintain caches of it.
    #[error(
        "the range at {0} is MMIO and the devices are not coherent; say so with Attributes::mmio, at its end too"
    )]
    UnnamedMmio(PhysAddr),
    /// A page list needs an IOMMU with pages of 4096 bytes.
    #[error(
        "a page list counts pages of 4096 bytes and this IOMMU's are of {0}; link whole pages of it by hand"
    )]
    PageSize(u64),
    /// Coherent memory is required in a reservation that has bounce pages already.
    #[error("the reservation at {0} has bounce pages; reserve another one for coherent memory")]
    AlreadyBounced(Iova),
    /// A bounce page would be needed and there are none, or none are free (in one piece, in direct mode).
    #[error(
        "no bounce pages are left for the memory at {0}; unmap something or give the domain more of them"
    )]
    NoBouncePages(PhysAddr),
    /// The memory that was to be copied into a bounce page is gone.
    #[error("the memory at {0} that was to be copied is gone; keep it mapped while it is linked")]
    MemoryGone(PhysAddr),
    /// The range is said to be memory of a device that the domain was not told of.
    #[error("the domain knows no {0}; name it with DomainBuilder::peer")]
    UnknownPeer(PeerNo),
    /// The range does not lie in the window of the device whose memory it is said to be.
    #[error("{addr} does not lie in the memory of {peer}; take addresses from its window")]
    OutsidePeer {
        /// The device.
        peer: PeerNo,
        /// The range's start.
        addr: PhysAddr,
    },
    /// The two devices cannot talk to one another.
    #[error("the devices cannot reach each other ({kind:?} to {peer}); copy through system memory")]
    PeerUnreachable {
        /// The device whose memory it is.
        peer: PeerNo,
        /// What the topology says.
        kind: P2pKind,
    },
    /// Memory that is reached by bus address cannot be linked.
    #[error("{0} is reached by bus address and never through the IOMMU; use map, or bus_range")]
    BusAddress(PeerNo),
    /// The device cannot address the memory.
    #[error("the device reaches addresses up to {last} only, not {addr}; give the domain bounce pages there")]
    BeyondReach {
        /// What was to be mapped.
        addr: PhysAddr,
        /// The last address that the device reaches.
        last: Iova,
    },
}

impl DmaError {
    /// What the IOMMU said, as the caller of a link or unlink understands it.
    pub(super) fn of_iommu(error: IommuError) -> Self {
        match error {
            IommuError::AlreadyMapped(at) => Self::AlreadyLinked(at),
            IommuError::NotMapped(at) => Self::NotLinked(at),
            IommuError::OutOfTables => Self::OutOfTables,
            IommuError::OutsideAperture(at) => Self::OutsideAperture(at),
            IommuError::CannotReplace(_) => Self::CannotReplace,
            IommuError::NotReachable(phys) => Self::NotReachable(phys),
        }
    }
}
