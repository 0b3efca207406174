use alloc::vec::Vec;

use super::bounce::BouncePool;
use super::counters::{Counters, add};
use super::p2p::Peer;
use super::pasid::PasidUsers;
use super::{DmaCounts, DmaError, IovaRequest, IovaUse, P2pKind, PasidSpace, Reservation, ReserveIova};
use crate::ports::{BounceMemory, CacheSync, Iommu, PeerWindow};
use crate::sync::{Ordering, Park, SpinPark, unique_id};
use crate::units::{Iova, PAGE_BYTES, PeerNo};

static SPIN: SpinPark = SpinPark;

/// What one or several devices reach by DMA: an IOVA space in front of an IOMMU, or direct mode without one. See the
/// header of the module for its rules.
pub struct Domain<'d> {
    pub(super) id: u32,
    pub(super) way: Way<'d>,
    /// The IOMMU's page; 4096 without an IOMMU.
    pub(super) page_bytes: u64,
    /// Last address that the devices put on the bus.
    pub(super) last: Iova,
    pub(super) cache: Option<&'d dyn CacheSync>,
    pub(super) pool: Option<BouncePool<'d>>,
    pub(super) is_untrusted: bool,
    pub(super) peers: Vec<Peer>,
    pub(super) pasids: PasidUsers<'d>,
    pub(super) counters: Counters,
}

/// What stands between devices and memory.
#[derive(Clone, Copy)]
pub(super) enum Way<'d> {
    Translated(Translated<'d>),
    /// DMA address = physical address + offset, wrapping.
    Direct {
        offset: u64,
    },
}

#[derive(Clone, Copy)]
pub(super) struct Translated<'d> {
    pub(super) iommu: &'d dyn Iommu,
    pub(super) iova: &'d dyn ReserveIova,
}

impl core::fmt::Debug for Domain<'_> {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        let way = if self.is_direct() { "direct" } else { "translated" };
        f.debug_struct("Domain").field("id", &self.id).field("way", &way).finish_non_exhaustive()
    }
}

/// A domain before it is used.
pub struct DomainBuilder<'d> {
    domain: Domain<'d>,
    pasids: Option<&'d PasidSpace<'d>>,
    bounce: Option<&'d dyn BounceMemory>,
    park: &'d dyn Park,
}

impl<'d> Domain<'d> {
    /// Behind an IOMMU. `iova` is a space over its aperture, without its reserved windows; several domains' builders
    /// may not share one. Asserts that the IOMMU's page is a power of two of at least 4096.
    pub fn builder(iommu: &'d dyn Iommu, iova: &'d dyn ReserveIova) -> DomainBuilder<'d> {
        let page_bytes = iommu.caps().page_bytes;
        assert!(
            page_bytes.is_power_of_two() && page_bytes >= PAGE_BYTES,
            "an IOMMU's page is a power of two of at least 4096 bytes"
        );
        DomainBuilder::new(Way::Translated(Translated { iommu, iova }), page_bytes)
    }

    /// Without an IOMMU: a DMA address is the physical address plus `offset`, wrapping.
    pub fn direct(offset: u64) -> DomainBuilder<'d> {
        DomainBuilder::new(Way::Direct { offset }, PAGE_BYTES)
    }

    /// Whether there is no IOMMU: then nothing is reserved or linked, and `map` is all there is.
    pub fn is_direct(&self) -> bool {
        matches!(self.way, Way::Direct { .. })
    }

    /// Whether devices see what the CPU wrote, and the CPU what they wrote, without being synced.
    pub fn is_coherent(&self) -> bool {
        self.cache.is_none()
    }

    /// The smallest page that can be linked, in bytes.
    pub fn page_bytes(&self) -> u64 {
        self.page_bytes
    }

    /// What was done so far.
    pub fn counts(&self) -> DmaCounts {
        self.counters.snapshot()
    }

    /// Bounce pages that are lent at present.
    pub fn bounce_pages_in_use(&self) -> usize {
        self.pool.as_ref().map_or(0, BouncePool::in_use)
    }

    pub(super) fn translated(&self) -> Result<&Translated<'d>, DmaError> {
        match &self.way {
            Way::Translated(translated) => Ok(translated),
            Way::Direct { .. } => Err(DmaError::Direct),
        }
    }

    /// Step one: reserves `bytes` (a multiple of the IOMMU's page) of IOVAs at a multiple of `align_bytes` (a power of
    /// two, at least 4096), within the devices' reach. Nothing is linked there yet. May allocate.
    ///
    /// # Errors
    /// [`DmaError::Direct`], [`DmaError::Iova`].
    pub fn reserve(&self, bytes: u64, align_bytes: u64) -> Result<Reservation, DmaError> {
        let base = self.reserve_iova(bytes, align_bytes, IovaUse::TwoStep)?;
        Ok(Reservation::new(self.id, base, bytes))
    }

    pub(super) fn reserve_iova(
        &self,
        bytes: u64,
        align_bytes: u64,
        purpose: IovaUse,
    ) -> Result<Iova, DmaError> {
        let translated = self.translated()?;
        if !bytes.is_multiple_of(self.page_bytes) {
            return Err(super::IovaError::BadSize(bytes).into());
        }
        // A bad alignment stays one: only a good one is raised to the IOMMU's page.
        let align_bytes = if align_bytes.is_power_of_two() && align_bytes >= PAGE_BYTES {
            align_bytes.max(self.page_bytes)
        } else {
            align_bytes
        };
        let request = IovaRequest { bytes, align_bytes, last: self.last, purpose };
        Ok(translated.iova.reserve_for(&request)?)
    }

    /// Ends a reservation in which nothing is linked.
    ///
    /// # Errors
    /// [`DmaError::LinksLeft`], [`DmaError::OtherDomain`], with the reservation as it was.
    pub fn free(&self, reservation: Reservation) -> Result<(), (Reservation, DmaError)> {
        if let Err(error) = self.owns(&reservation) {
            return Err((reservation, error));
        }
        match reservation.linked.load(Ordering::Acquire) {
            0 => {
                self.give_back(&reservation);
                Ok(())
            }
            pages => Err((reservation, DmaError::LinksLeft(pages))),
        }
    }

    /// Gives the IOVAs of a reservation that nobody has any more back.
    pub(super) fn give_back(&self, reservation: &Reservation) {
        let translated = self.translated().expect("direct domains make no reservations");
        let freed = translated.iova.free(reservation.base, reservation.bytes);
        freed.expect("a reservation is given back once, to the space that it came from");
    }

    pub(super) fn owns(&self, reservation: &Reservation) -> Result<(), DmaError> {
        if reservation.domain == self.id { Ok(()) } else { Err(DmaError::OtherDomain) }
    }

    /// One flush of one run.
    pub(super) fn flush(&self, iommu: &dyn Iommu, at: Iova, bytes: u64) {
        iommu.flush(at, bytes);
        add(&self.counters.flushes, 1);
        add(&self.counters.flushed_runs, 1);
        add(&self.counters.flushed_pages, bytes / self.page_bytes);
    }
}

impl<'d> DomainBuilder<'d> {
    fn new(way: Way<'d>, page_bytes: u64) -> Self {
        let domain = Domain {
            id: unique_id(),
            way,
            page_bytes,
            last: Iova(u64::MAX),
            cache: None,
            pool: None,
            is_untrusted: false,
            peers: Vec::new(),
            pasids: PasidUsers::new(&SPIN, None),
            counters: Counters::default(),
        };
        Self { domain, pasids: None, bounce: None, park: &SPIN }
    }

    /// The devices put no address on the bus that is above this one. IOVAs are taken below it; in direct mode what
    /// lies above is bounced.
    pub fn last(mut self, last: Iova) -> Self {
        self.domain.last = last;
        self
    }

    /// The devices are not coherent: this keeps memory the same for them and for the CPU.
    pub fn cache(mut self, cache: &'d dyn CacheSync) -> Self {
        self.domain.cache = Some(cache);
        self
    }

    /// The devices must not see bytes that were not mapped for them: pages that hold others are bounced.
    pub fn untrusted(mut self) -> Self {
        self.domain.is_untrusted = true;
        self
    }

    /// Pages to bounce with.
    pub fn bounce(mut self, memory: &'d dyn BounceMemory) -> Self {
        self.bounce = Some(memory);
        self
    }

    /// Memory of another device, and how this domain's devices reach it. Asserts that it ends within 64 bits, both where
    /// an IOMMU maps it and on the bus.
    pub fn peer(mut self, peer: PeerNo, window: PeerWindow, kind: P2pKind) -> Self {
        let ends = [window.phys.0, window.bus.0].map(|at| at.checked_add(window.bytes));
        assert!(ends.iter().all(Option::is_some), "a peer's memory ends within 64 bits");
        self.domain.peers.retain(|known| known.no != peer);
        self.domain.peers.push(Peer { no: peer, window, kind });
        self
    }

    /// Where the domain takes its PASID from. Other domains may share it.
    pub fn pasids(mut self, space: &'d PasidSpace<'d>) -> Self {
        self.pasids = Some(space);
        self
    }

    /// How a thread waits for the lock of the bounce pages or of the PASIDs: by spinning if nothing is said.
    pub fn park(mut self, park: &'d dyn Park) -> Self {
        self.park = park;
        self
    }

    /// The domain. Asserts that bounce pages are as large as the IOMMU's.
    pub fn build(self) -> Domain<'d> {
        let Self { mut domain, pasids, bounce, park } = self;
        domain.pool = bounce.map(|memory| {
            assert_eq!(memory.page_bytes(), domain.page_bytes, "a bounce page stands in for an IOMMU's page");
            BouncePool::new(memory, park)
        });
        domain.pasids = PasidUsers::new(park, pasids);
        domain
    }
}
