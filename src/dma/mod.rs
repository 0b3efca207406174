//! Two-step DMA, for the fault service and for drivers that know nothing of it. Step one reserves IOVAs; step two
//! links pages into them later, a run at a time, at addresses that are known beforehand. In a granule a page is linked
//! at its own position: the DMA address of page *i* is `base + i * 4096`, so no address is stored per page.
//!
//! # Roles
//! * [`Domain`]: what one or several devices reach. An IOVA space in front of one [`Iommu`](crate::ports::Iommu), or
//!   direct mode (DMA address = physical address + offset). Keeps bounce pages, peers, PASID users and counters.
//! * [`IovaSpace`]: who has which IOVA. Linking and unlinking never ask it.
//! * [`Reservation`]: IOVAs that are ours, and how many of their pages are linked. [`Span`]: what one call linked and
//!   nobody may use yet; [`Domain::sync`] makes a [`DmaRange`] of it, which a device may use.
//! * [`PageList`]: pages at fixed positions, one bit each: what somebody who serves page faults needs.
//! * [`PhysRange`](crate::units::PhysRange), [`DmaRange`]: in and out, 16 bytes each, in chained lists; [`Segments`]
//!   merges and cuts them for a device's [`SegmentLimits`].
//!
//! # Rules
//! 1. A range is linked only inside a reservation. `link` is all or nothing. A page that is linked is not linked
//!    again, a hole is not unlinked, a reservation with links is not freed: each is refused by name and nothing is
//!    changed. What is linked is what the IOMMU's table says; nothing is kept per page beside it.
//! 2. Ranges of one `link` stand one behind the other. Inside a call all joints lie on boundaries of the IOMMU's page;
//!    only its first byte and its last may lie inside of a page. Then offset and physical address agree modulo that
//!    page, and the rest of the page is the device's to see, unless the device is untrusted: then it is bounced.
//! 3. A device uses what was linked after one `sync` of the whole span, and not before.
//! 4. `unlink` unmaps, flushes once per call, and then looks to the CPU's caches and copies bounce pages back, so that
//!    the memory is the CPU's again when it returns. Only [`Deferred`] leaves the flush for later, and then neither the
//!    pages nor the IOVAs may be used for anything else before [`Deferred::flush`]; a reservation with a flush
//!    outstanding is not freed.
//! 5. Direction and attributes of an `unlink` are those of its `link`. The domain does not store them.
//! 6. Calls on one reservation may come from several threads at once, if their spans do not overlap. `free` and
//!    `destroy` take the reservation itself, so nobody else has it.
//! 7. Memory of a peer that is reached by bus address is never in the IOMMU and is not unmapped. A pair that cannot
//!    talk is an error when it is mapped.
//! 8. A PASID is kept with the domain and not with a device, is attached to the domain of the device's ordinary DMA,
//!    and is detached by its last user.
//! 9. Nothing here allocates while it links, syncs or unlinks, so that it may be called under block locks;
//!    reserving may (it is asked before locks are taken), and so may lists.

mod attributes;
mod bounce;
pub mod convert;
mod counters;
mod domain;
mod error;
mod hand_sync;
mod iova_classes;
mod iova_error;
mod iova_index;
mod iova_space;
mod link;
mod list;
mod one_step;
mod p2p;
mod page_list;
mod page_runs;
mod pasid;
mod pinned;
mod range;
mod replace;
mod reservation;
mod reserve_iova;
mod scatter;
mod segments;
mod unlink;

pub use attributes::Attributes;
pub use counters::DmaCounts;
pub use domain::{Domain, DomainBuilder};
pub use error::DmaError;
pub use iova_error::IovaError;
pub use iova_space::{IovaRequest, IovaSpace, IovaUse};
pub use list::{DmaList, PhysList, Piece, RangeList};
pub use one_step::DmaMapping;
pub use p2p::{P2pKind, Topology, TopologyError, TopologyNode};
pub use page_list::PageList;
pub use pasid::{DmaPasid, PasidError, PasidSpace};
pub use pinned::{Pinned, pin, pin_vectors};
pub use range::DmaRange;
pub use replace::Replaced;
pub use reservation::{DmaSpan, Reservation, Span, Unlinked};
pub use reserve_iova::ReserveIova;
pub use scatter::{Provided, Provider, ScatterEntry, ScatterMapping};
pub use segments::{SegmentError, SegmentLimits, Segments, segments};
pub use unlink::Deferred;

use domain::{Translated, Way};

use crate::units::{BlockNo, GranuleNo, Iova, PAGE_SHIFT};

/// The DMA address of a block's page: its position in the granule's reservation. Asserts that this lies within 64 bits.
pub fn position(granule_base: Iova, block: BlockNo, page: usize) -> Iova {
    let granule = GranuleNo::of(block.base());
    granule_base + block.base().bytes_since(granule.base()) + ((page as u64) << PAGE_SHIFT)
}

/// The worked example of the page is run with the tests.
#[cfg(doctest)]
#[doc = include_str!("../../docs/dma.md")]
struct WorkedExample;
