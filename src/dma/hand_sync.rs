use super::counters::add;
use super::{Attributes, DmaError, Domain, Reservation, Unlinked};
use crate::units::{Direction, Iova};

impl Domain<'_> {
    /// Before the devices use a span that stays linked, after the CPU wrote: what it wrote is what they read. For
    /// [`Attributes::skip_cpu_sync`]. Bounce pages of the span are filled again.
    ///
    /// # Errors
    /// [`DmaError::OtherDomain`], [`DmaError::OutsideReservation`], [`DmaError::NotLinked`] with the first hole;
    /// [`DmaError::MemoryGone`] if a bounce page cannot be filled.
    pub fn sync_for_device(
        &self,
        reservation: &Reservation,
        offset: u64,
        bytes: u64,
        direction: Direction,
    ) -> Result<(), DmaError> {
        let at = self.linked_part(reservation, offset, bytes)?;
        let (from, whole) = self.pages_of(at, bytes);
        if let Some(pool) = &self.pool
            && direction.is_to_device()
        {
            for (slot, what) in pool.own(from, whole) {
                pool.copy_in(slot, what).map_err(|fault| DmaError::MemoryGone(fault.0))?;
            }
        }
        if let Some(cache) = self.cache {
            let iommu = self.translated()?.iommu;
            self.each_cached(iommu, at, bytes, |phys, bytes| cache.sync_for_device(phys, bytes, direction));
        }
        Ok(())
    }

    /// After the devices used a span that stays linked, before the CPU reads: what they wrote is what it reads. Bounce
    /// pages of the span are copied back. Says what could not be copied.
    ///
    /// # Errors
    /// [`DmaError::OtherDomain`], [`DmaError::OutsideReservation`], [`DmaError::NotLinked`] with the first hole.
    pub fn sync_for_cpu(
        &self,
        reservation: &Reservation,
        offset: u64,
        bytes: u64,
        direction: Direction,
    ) -> Result<Unlinked, DmaError> {
        let at = self.linked_part(reservation, offset, bytes)?;
        let mut done = Unlinked::default();
        if !direction.is_from_device() {
            return Ok(done);
        }
        if let Some(cache) = self.cache {
            let iommu = self.translated()?.iommu;
            self.each_cached(iommu, at, bytes, |phys, bytes| cache.sync_for_cpu(phys, bytes, direction));
        }
        let (from, whole) = self.pages_of(at, bytes);
        if let Some(pool) = &self.pool {
            for (slot, what) in pool.own(from, whole) {
                if pool.copy_out(slot, what).is_err() {
                    done.lost_bytes += what.until - what.from;
                }
            }
            add(&self.counters.lost_bytes, done.lost_bytes);
        }
        Ok(done)
    }

    /// Where a wholly linked span of a reservation begins.
    fn linked_part(&self, reservation: &Reservation, offset: u64, bytes: u64) -> Result<Iova, DmaError> {
        self.owns(reservation)?;
        let at = self.part_of(reservation, offset, bytes)?;
        let (from, whole) = self.pages_of(at, bytes);
        self.whole(self.translated()?.iommu, from, whole)?;
        Ok(at)
    }
}

/// The attributes of what is linked for a long time and synced by hand.
impl Attributes {
    /// [`Attributes::BOTH`] with [`Attributes::skip_cpu_sync`].
    pub const BY_HAND: Self = Self::BOTH.skip_cpu_sync();
}
