use alloc::vec::Vec;

use super::counters::add;
use super::{Attributes, DmaError, DmaSpan, Domain, PhysList, Reservation};
use crate::ports::{Iommu, Mapped};
use crate::sync::Ordering;
use crate::units::{Iova, PhysRange};

/// What a replace put in place, and what it took out.
#[derive(Debug)]
#[must_use = "the old pages are the caller's again"]
pub struct Replaced {
    /// What the devices use: the same addresses as before.
    pub at: DmaSpan,
    /// What was linked there before, in order, holes left out. No device reaches it any more.
    pub old: PhysList,
}

impl Domain<'_> {
    /// Installs pages from `offset` on, whatever was linked there or not, while devices go on: every single access sees
    /// wholly the old or wholly the new page, and never a hole. Returns the old pages after the flush. The ranges are
    /// whole pages of the IOMMU. All or nothing. May allocate: not for use under locks. No other call may work on this
    /// part of the reservation meanwhile.
    ///
    /// # Errors
    /// [`DmaError::CannotReplace`] if the IOMMU cannot; [`DmaError::AlreadyBounced`] in a reservation with bounce pages;
    /// [`DmaError::Misaligned`] for a range that is no whole pages; otherwise as [`Domain::link`], without
    /// `AlreadyLinked` and bounce pages.
    pub fn replace(
        &self,
        reservation: &Reservation,
        offset: u64,
        ranges: impl IntoIterator<Item = PhysRange, IntoIter: Clone>,
        attributes: Attributes,
    ) -> Result<Replaced, DmaError> {
        self.owns(reservation)?;
        let ranges = ranges.into_iter();
        let iommu = self.translated()?.iommu;
        if !iommu.caps().can_replace {
            return Err(DmaError::CannotReplace);
        }
        let (bytes, is_mmio) = self.whole_pages(ranges.clone(), attributes)?;
        let base = self.part_of(reservation, offset, bytes)?;
        if !offset.is_multiple_of(self.page_bytes) {
            let addr = ranges.clone().next().expect("it was looked at").addr;
            return Err(DmaError::OffsetMismatch { offset, addr });
        }
        if reservation.bounced.load(Ordering::Relaxed) > 0 {
            return Err(DmaError::AlreadyBounced(reservation.base));
        }
        let old = pieces(iommu, base, bytes);
        self.sync_new(ranges.clone(), attributes);
        let access = attributes.direction().access();
        let mut at = base;
        for range in ranges {
            if let Err(error) = iommu.replace(at, range.addr, u64::from(range.len), access) {
                self.restore(iommu, base, at.0 - base.0, &old);
                return Err(DmaError::of_iommu(error));
            }
            at = at + u64::from(range.len);
        }
        iommu.sync(base, bytes);
        self.flush(iommu, base, bytes);
        self.sync_old(&old, attributes);
        let before: u64 = old.iter().map(|piece| piece.bytes).sum();
        let filled = (bytes - before) / self.page_bytes;
        if filled > 0 {
            reservation.count_in(filled);
            add(&self.counters.links, 1);
            add(&self.counters.linked_pages, filled);
        }
        add(&self.counters.replaced_pages, bytes / self.page_bytes);
        let mut flags = if attributes.direction().is_from_device() { super::DmaRange::WRITABLE } else { 0 };
        flags |= if is_mmio { super::DmaRange::MMIO } else { 0 };
        let old = old.iter().flat_map(|piece| PhysRange::of_run(piece.phys, piece.bytes, 0)).collect();
        Ok(Replaced { at: DmaSpan { addr: base, bytes, flags }, old })
    }

    /// Checks ranges of whole pages; their length, and whether some is device memory.
    fn whole_pages(
        &self,
        ranges: impl Iterator<Item = PhysRange>,
        attributes: Attributes,
    ) -> Result<(u64, bool), DmaError> {
        self.permits(attributes)?;
        let (mut bytes, mut is_mmio) = (0u64, attributes.is_mmio());
        for (index, range) in ranges.enumerate() {
            let len = u64::from(range.len);
            if len == 0 {
                return Err(DmaError::Empty(index));
            }
            range.end().ok_or(DmaError::Wraps(range.addr))?;
            if (range.addr.0 | len) & (self.page_bytes - 1) != 0 {
                return Err(DmaError::Misaligned { index, addr: range.addr });
            }
            match self.reach(range)? {
                super::p2p::Reach::System => is_mmio |= self.is_mmio(range, attributes)?,
                super::p2p::Reach::HostBridge => is_mmio = true,
                super::p2p::Reach::Bus(_) => {
                    return Err(DmaError::BusAddress(range.peer().expect("it is a peer's")));
                }
            }
            bytes = bytes.checked_add(len).ok_or(DmaError::Wraps(range.addr))?;
        }
        if bytes == 0 { Err(DmaError::Empty(0)) } else { Ok((bytes, is_mmio)) }
    }

    fn sync_new(&self, ranges: impl Iterator<Item = PhysRange>, attributes: Attributes) {
        let Some(cache) = self.cache.filter(|_| !attributes.is_mmio() && !attributes.skips_cpu_sync()) else {
            return;
        };
        for range in ranges.filter(|range| range.flags & (PhysRange::MMIO | PhysRange::PEER) == 0) {
            cache.sync_for_device(range.addr, u64::from(range.len), attributes.direction());
            add(&self.counters.cache_syncs, 1);
        }
    }

    fn sync_old(&self, old: &[Mapped], attributes: Attributes) {
        let Some(cache) = self.cache.filter(|_| !attributes.is_mmio() && !attributes.skips_cpu_sync()) else {
            return;
        };
        if !attributes.direction().is_from_device() {
            return;
        }
        for piece in old.iter().filter(|piece| !self.is_peer_memory(piece.phys)) {
            cache.sync_for_cpu(piece.phys, piece.bytes, attributes.direction());
            add(&self.counters.cache_syncs, 1);
        }
    }

    /// Puts back what stood in the first `bytes` bytes.
    fn restore(&self, iommu: &dyn Iommu, base: Iova, bytes: u64, old: &[Mapped]) {
        let end = base.0 + bytes;
        let mut at = base.0;
        let unmap = |from: u64, until: u64| {
            if from < until {
                iommu.unmap(Iova(from), until - from).expect("the call that is undone mapped it");
            }
        };
        for piece in old.iter().filter(|piece| piece.iova.0 < end) {
            unmap(at, piece.iova.0);
            let part = piece.bytes.min(end - piece.iova.0);
            let restored = iommu.replace(piece.iova, piece.phys, part, piece.access);
            restored.expect("what stood there has tables to stand in");
            at = piece.iova.0 + part;
        }
        unmap(at, end);
        if bytes > 0 {
            self.flush(iommu, base, bytes);
        }
    }
}

/// What is mapped in a range, in order.
fn pieces(iommu: &dyn Iommu, base: Iova, bytes: u64) -> Vec<Mapped> {
    let end = base.0 + bytes;
    let next = |at: Iova| iommu.mapped(at, end.saturating_sub(at.0)).filter(|_| at.0 < end);
    core::iter::successors(next(base), |piece| next(piece.iova + piece.bytes)).collect()
}
