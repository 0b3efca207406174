use super::DmaRange;
use crate::sync::{AtomicU32, AtomicU64, Ordering, Rule, holds};
use crate::units::Iova;

/// Step one of two: IOVAs that are ours. Made by [`Domain::reserve`](super::Domain::reserve), ended by `free` or
/// `destroy`, which take it; dropping it otherwise loses its IOVAs until the IOVA space ends.
#[derive(Debug)]
#[must_use = "its IOVAs are lost until it is given to free or destroy"]
pub struct Reservation {
    pub(super) domain: u32,
    pub(super) base: Iova,
    pub(super) bytes: u64,
    /// Linked pages of the IOMMU. Moves with every link and unlink; `free` has the reservation to itself when it looks.
    pub(super) linked: AtomicU64,
    /// Bounce pages among them. Never less than there are, so that 0 lets `unlink` skip looking for them.
    pub(super) bounced: AtomicU32,
}

impl Reservation {
    pub(super) fn new(domain: u32, base: Iova, bytes: u64) -> Self {
        Self { domain, base, bytes, linked: AtomicU64::new(0), bounced: AtomicU32::new(0) }
    }

    /// Counts pages that were linked. Release pairs with the acquire in `free`.
    pub(super) fn count_in(&self, pages: u64) {
        if holds(Rule::CountLinksAtOnce) {
            self.linked.fetch_add(pages, Ordering::Release);
        } else {
            self.linked.store(self.linked.load(Ordering::Relaxed) + pages, Ordering::Relaxed);
        }
    }

    /// Counts what was unlinked.
    pub(super) fn count_out(&self, unlinked: &Unlinked) {
        self.bounced.fetch_sub(unlinked.bounced, Ordering::Relaxed);
        let before = self.linked.fetch_sub(unlinked.pages, Ordering::AcqRel);
        debug_assert!(before >= unlinked.pages, "DATA: more pages are unlinked than were linked");
    }

    /// First address. What is linked at an offset is at this address plus the offset.
    pub fn base(&self) -> Iova {
        self.base
    }
    /// Length in bytes.
    pub fn bytes(&self) -> u64 {
        self.bytes
    }
    /// How many pages of the IOMMU are linked; a snapshot while other threads link and unlink.
    pub fn linked_pages(&self) -> u64 {
        self.linked.load(Ordering::Relaxed)
    }
}

/// What one `link` linked, or several with [`Span::join`]. A device may use it after
/// [`Domain::sync`](super::Domain::sync), which makes a [`DmaSpan`] of it.
#[derive(PartialEq, Eq, Debug)]
#[must_use = "no device may use the span before Domain::sync"]
pub struct Span {
    pub(super) domain: u32,
    pub(super) at: DmaSpan,
}

impl Span {
    /// This span and the one that begins where it ends, as one: for a single sync.
    ///
    /// # Errors
    /// Both, if the other one begins elsewhere, is another domain's, or was linked with other attributes.
    pub fn join(self, next: Self) -> Result<Self, (Self, Self)> {
        let joins = self.at.addr.checked_add(self.at.bytes) == Some(next.at.addr)
            && self.domain == next.domain
            && self.at.flags == next.at.flags;
        if joins {
            let bytes = self.at.bytes + next.at.bytes;
            Ok(Self { domain: self.domain, at: DmaSpan { bytes, ..self.at } })
        } else {
            Err((self, next))
        }
    }

    /// Length in bytes.
    pub fn bytes(&self) -> u64 {
        self.at.bytes
    }
}

/// DMA addresses that a device may use until they are unlinked: one contiguous run, of any length.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct DmaSpan {
    /// First address.
    pub addr: Iova,
    /// Length in bytes.
    pub bytes: u64,
    /// As those of [`DmaRange`].
    pub flags: u32,
}

impl DmaSpan {
    /// The same as ranges of at most [`DmaRange::MAX_BYTES`].
    pub fn ranges(self) -> impl Iterator<Item = DmaRange> {
        DmaRange::of_run(self.addr, self.bytes, self.flags)
    }
}

/// What an unlink or unmap did.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Unlinked {
    /// Pages of the IOMMU that are unlinked now.
    pub pages: u64,
    /// Bytes that the device wrote into bounce pages and that could not be copied back, because their memory is gone.
    pub lost_bytes: u64,
    /// Bounce pages that were given back.
    pub bounced: u32,
}
