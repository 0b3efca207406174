//! The end of a link: the IOMMU's table, one flush, the CPU's caches, bounce pages; and the flush that comes later.

use core::marker::PhantomData;

use super::counters::add;
use super::{Attributes, DmaError, Domain, Reservation, Unlinked};
use crate::ports::Iommu;
use crate::sync::Ordering;
use crate::units::{Iova, PhysAddr};

/// What may have to be done besides the table.
#[derive(Clone, Copy)]
pub(super) struct Leaving {
    /// First byte and length of what is unlinked, exactly.
    pub(super) at: Iova,
    pub(super) bytes: u64,
    /// Some page may be bounced.
    pub(super) is_bounced: bool,
    pub(super) attributes: Attributes,
}

impl Domain<'_> {
    /// Unlinks the pages that `bytes` bytes from `offset` touch: all of them are linked. They may have been linked by
    /// several calls; a part of a link may be unlinked, and nothing else moves. Flushes once. Once it has returned, no
    /// device reaches the pages and the CPU sees what the devices wrote. The devices are done with the span before.
    ///
    /// # Errors
    /// [`DmaError::OtherDomain`], [`DmaError::OutsideReservation`] (also for 0 bytes), [`DmaError::NotLinked`] with
    /// the first hole; nothing is changed then.
    pub fn unlink(
        &self,
        reservation: &Reservation,
        offset: u64,
        bytes: u64,
        attributes: Attributes,
    ) -> Result<Unlinked, DmaError> {
        let (iommu, leaving) = self.leaving(reservation, offset, bytes, attributes)?;
        let (from, whole) = self.pages_of(leaving.at, bytes);
        self.leave_table(iommu, &leaving, from, whole)?;
        self.flush(iommu, from, whole);
        let unlinked = self.bring_back(&leaving, from, whole);
        reservation.count_out(&unlinked);
        Ok(unlinked)
    }

    /// As [`Domain::unlink`], but for the flush, which is left to `deferred`: until then devices may still reach the
    /// pages, so the caller uses neither them nor the IOVAs for anything else. A choice for whoever unlinks much and
    /// can wait, at the price of that window. The reservation cannot be freed while `deferred` lives.
    ///
    /// Bounce pages cannot be copied back before a flush: with any in the reservation this flushes at once.
    ///
    /// # Errors
    /// As [`Domain::unlink`]; [`DmaError::OtherDomain`] also if `deferred` is another domain's.
    pub fn unlink_deferred<'r>(
        &self,
        reservation: &'r Reservation,
        offset: u64,
        bytes: u64,
        attributes: Attributes,
        deferred: &mut Deferred<'r>,
    ) -> Result<Unlinked, DmaError> {
        if deferred.domain.id != self.id {
            return Err(DmaError::OtherDomain);
        }
        let (iommu, leaving) = self.leaving(reservation, offset, bytes, attributes)?;
        if leaving.is_bounced {
            return self.unlink(reservation, offset, bytes, attributes);
        }
        let (from, whole) = self.pages_of(leaving.at, bytes);
        self.leave_table(iommu, &leaving, from, whole)?;
        deferred.push(from, whole);
        let unlinked = self.bring_back(&leaving, from, whole);
        reservation.count_out(&unlinked);
        Ok(unlinked)
    }

    /// Unlinks whatever is linked in a reservation, wherever it is, with one flush over all of it, and frees it. The
    /// attributes are those of its links; where they differed, unlink by hand first.
    ///
    /// # Errors
    /// [`DmaError::OtherDomain`], with the reservation as it was.
    pub fn destroy(
        &self,
        reservation: Reservation,
        attributes: Attributes,
    ) -> Result<Unlinked, (Reservation, DmaError)> {
        if let Err(error) = self.owns(&reservation) {
            return Err((reservation, error));
        }
        let unlinked = self.unlink_all(&reservation, attributes);
        self.give_back(&reservation);
        Ok(unlinked)
    }

    /// Unlinks whatever is linked in a reservation that the caller has to himself.
    pub(super) fn unlink_all(&self, reservation: &Reservation, attributes: Attributes) -> Unlinked {
        let iommu = self.translated().expect("direct domains make no reservations").iommu;
        let (base, end) = (reservation.base, reservation.base.0 + reservation.bytes);
        let is_bounced = reservation.bounced.load(Ordering::Acquire) > 0;
        let (mut at, mut pages, mut hull) = (base, 0, None::<(Iova, Iova)>);
        while pages < reservation.linked.load(Ordering::Acquire) {
            let Some(piece) = iommu.mapped(at, end - at.0) else { break };
            // Pieces with neighbouring IOVAs are unmapped as one.
            let mut run_end = piece.iova + piece.bytes;
            while run_end.0 < end
                && let Some(next) = iommu.mapped(run_end, end - run_end.0)
                && next.iova == run_end
            {
                run_end = next.iova + next.bytes;
            }
            let bytes = run_end.0 - piece.iova.0;
            let leaving = Leaving { at: piece.iova, bytes, is_bounced, attributes };
            self.leave_table(iommu, &leaving, piece.iova, bytes).expect("it was just seen to be mapped");
            pages += bytes / self.page_bytes;
            hull = Some((hull.map_or(piece.iova, |(first, _)| first), run_end));
            at = run_end;
        }
        let Some((first, last)) = hull else { return Unlinked::default() };
        self.flush(iommu, first, last.0 - first.0);
        let leaving = Leaving { at: first, bytes: last.0 - first.0, is_bounced, attributes };
        let unlinked = Unlinked { pages, ..self.bring_back(&leaving, first, leaving.bytes) };
        reservation.count_out(&unlinked);
        unlinked
    }

    /// Checks a span and says what unlinking it takes.
    fn leaving(
        &self,
        reservation: &Reservation,
        offset: u64,
        bytes: u64,
        attributes: Attributes,
    ) -> Result<(&dyn Iommu, Leaving), DmaError> {
        self.owns(reservation)?;
        let at = self.part_of(reservation, offset, bytes)?;
        // Acquire pairs with the release of whoever linked, so that the bounce pages of the span are seen.
        let is_bounced = reservation.bounced.load(Ordering::Acquire) > 0;
        Ok((self.translated()?.iommu, Leaving { at, bytes, is_bounced, attributes }))
    }

    /// Where a span of a reservation begins.
    pub(super) fn part_of(
        &self,
        reservation: &Reservation,
        offset: u64,
        bytes: u64,
    ) -> Result<Iova, DmaError> {
        let reserved = reservation.bytes;
        let inside = bytes > 0 && offset.checked_add(bytes).is_some_and(|end| end <= reserved);
        let outside = DmaError::OutsideReservation { offset, bytes, reserved };
        if inside { Ok(reservation.base + offset) } else { Err(outside) }
    }

    /// Unmaps whole pages, after the caches were looked after. Changes nothing if there is a hole.
    pub(super) fn leave_table(
        &self,
        iommu: &dyn Iommu,
        leaving: &Leaving,
        from: Iova,
        bytes: u64,
    ) -> Result<(), DmaError> {
        let attributes = leaving.attributes;
        let syncs =
            attributes.direction().is_from_device() && !attributes.skips_cpu_sync() && !attributes.is_mmio();
        if let (Some(_), true) = (self.cache, syncs) {
            self.whole(iommu, from, bytes)?;
            self.each_cached(iommu, leaving.at, leaving.bytes, |phys, bytes| {
                self.cache.expect("it was looked at").sync_for_cpu(phys, bytes, attributes.direction());
            });
        }
        iommu.unmap(from, bytes).map_err(DmaError::of_iommu)?;
        add(&self.counters.unlinks, 1);
        add(&self.counters.unlinked_pages, bytes / self.page_bytes);
        Ok(())
    }

    /// Fails with the first hole of a range.
    pub(super) fn whole(&self, iommu: &dyn Iommu, from: Iova, bytes: u64) -> Result<(), DmaError> {
        let end = from.0 + bytes;
        let mut at = from;
        while at.0 < end {
            match iommu.mapped(at, end - at.0) {
                Some(piece) if piece.iova == at => at = piece.iova + piece.bytes,
                _ => return Err(DmaError::NotLinked(at)),
            }
        }
        Ok(())
    }

    /// Calls `act` for each piece of system memory behind a mapped range, byte-exact: not for windows of peers.
    pub(super) fn each_cached(
        &self,
        iommu: &dyn Iommu,
        at: Iova,
        bytes: u64,
        mut act: impl FnMut(PhysAddr, u64),
    ) {
        let (from, whole) = self.pages_of(at, bytes);
        let (mut here, end) = (from, from.0 + whole);
        while let Some(piece) = iommu.mapped(here, end - here.0) {
            here = piece.iova + piece.bytes;
            let (start, stop) = (piece.iova.0.max(at.0), here.0.min(at.0 + bytes));
            if start < stop && !self.is_peer_memory(piece.phys) {
                act(piece.phys + (start - piece.iova.0), stop - start);
                add(&self.counters.cache_syncs, 1);
            }
            if here.0 >= end {
                return;
            }
        }
    }

    pub(super) fn is_peer_memory(&self, phys: PhysAddr) -> bool {
        let inside = |window: &crate::ports::PeerWindow| {
            phys.0.checked_sub(window.phys.0).is_some_and(|offset| offset < window.bytes)
        };
        self.peers.iter().any(|peer| inside(&peer.window))
    }

    /// After the flush: bounce pages of the range are copied back and given back.
    pub(super) fn bring_back(&self, leaving: &Leaving, from: Iova, bytes: u64) -> Unlinked {
        let (mut lost_bytes, mut bounced) = (0, 0);
        if let (Some(pool), true) = (&self.pool, leaving.is_bounced) {
            let attributes = leaving.attributes;
            let back = attributes.direction().is_from_device() && !attributes.skips_cpu_sync();
            for (slot, what) in pool.own(from, bytes) {
                if back && pool.copy_out(slot, what).is_err() {
                    lost_bytes += what.until - what.from;
                }
                pool.release(slot, 1);
                bounced += 1;
            }
            add(&self.counters.lost_bytes, lost_bytes);
        }
        Unlinked { pages: bytes / self.page_bytes, lost_bytes, bounced }
    }
}

/// How many runs wait for a deferred flush at most; the next one makes it come.
const RUNS: usize = 64;

/// Runs that are unlinked and not yet flushed. Flushes when it is full, when it is told to, and when it is dropped.
/// While it lives, none of the reservations that it borrows can be freed.
pub struct Deferred<'r> {
    domain: &'r Domain<'r>,
    runs: [(Iova, u64); RUNS],
    used: usize,
    reservations: PhantomData<&'r Reservation>,
}

impl<'r> Deferred<'r> {
    /// Nothing to flush yet.
    pub fn new(domain: &'r Domain<'_>) -> Self {
        Self { domain, runs: [(Iova(0), 0); RUNS], used: 0, reservations: PhantomData }
    }

    /// Runs that wait.
    pub fn pending(&self) -> usize {
        self.used
    }

    fn push(&mut self, from: Iova, bytes: u64) {
        if let Some((first, before)) = self.runs[..self.used].last_mut()
            && first.checked_add(*before) == Some(from)
        {
            *before += bytes;
            return;
        }
        if self.used == RUNS {
            self.flush();
        }
        self.runs[self.used] = (from, bytes);
        self.used += 1;
    }

    /// Flushes all of them with one wait. Once it has returned, no device reaches any of the pages.
    pub fn flush(&mut self) {
        if self.used == 0 {
            return;
        }
        let runs = &self.runs[..self.used];
        let domain = self.domain;
        domain.translated().expect("direct domains link nothing").iommu.flush_runs(runs);
        let pages = runs.iter().map(|(_, bytes)| bytes / domain.page_bytes).sum();
        add(&domain.counters.flushes, 1);
        add(&domain.counters.flushed_runs, runs.len() as u64);
        add(&domain.counters.flushed_pages, pages);
        self.used = 0;
    }
}

impl Drop for Deferred<'_> {
    fn drop(&mut self) {
        self.flush();
    }
}
