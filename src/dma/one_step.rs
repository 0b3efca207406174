//! The ordinary way: memory in, DMA addresses out, in one call; and back. It takes IOVAs from the same space as the
//! two-step way and links by the same function.

use super::bounce::Bounced;
use super::counters::add;
use super::p2p::Reach;
use super::unlink::Leaving;
use super::{
    Attributes, DmaError, DmaList, DmaRange, Domain, IovaSpace, IovaUse, Reservation, Translated, Unlinked,
    Way,
};
use crate::units::{Iova, PAGE_BYTES, PhysAddr, PhysRange};

/// What [`Domain::map_list`] mapped: DMA ranges in the order of the physical ones, neighbours merged. Ended by
/// [`Domain::unmap_list`].
#[derive(Debug)]
#[must_use = "its IOVAs are lost until it is given to unmap_list"]
pub struct DmaMapping {
    domain: u32,
    list: DmaList,
    /// The IOVAs of everything behind the IOMMU: one reservation.
    reservation: Option<Reservation>,
}

impl DmaMapping {
    /// What the device is given.
    pub fn ranges(&self) -> &DmaList {
        &self.list
    }
}

/// Ranges that stand one behind the other in one run of IOVAs, or one range of a peer that is reached by bus address.
struct Group<I> {
    ranges: I,
    count: usize,
    first: PhysRange,
    bytes: u64,
    reach: Reach,
}

impl<'d> Domain<'d> {
    /// Maps one range, byte-exact. The devices may use the addresses at once, until [`Domain::unmap`]. May allocate.
    ///
    /// # Errors
    /// [`DmaError`], with nothing changed: `Empty`, `Wraps`, `Iova`, `OutOfTables`; `BeyondReach` in direct mode; what
    /// the attributes forbid (`MustNotBounce`, `NotCoherent`, `NoBouncePages`, `MemoryGone`); and what peers have to say
    /// (`UnknownPeer`, `OutsidePeer`, `PeerUnreachable`).
    pub fn map(&self, range: PhysRange, attributes: Attributes) -> Result<DmaRange, DmaError> {
        if let Some(bus) = self.bus_range(range, attributes.direction().is_from_device())? {
            add(&self.counters.bus_ranges, 1);
            return Ok(bus);
        }
        let translated = match &self.way {
            Way::Direct { offset } => return self.map_direct(range, attributes, *offset),
            Way::Translated(translated) => translated,
        };
        let (_, bytes) = self.pages_of(Iova(range.addr.0), u64::from(range.len));
        let base = self.reserve_iova(bytes, self.best_alignment(range.addr, bytes), IovaUse::OneStep)?;
        let at = base + (range.addr.0 & (self.page_bytes - 1));
        match self.enter_new(translated.iommu, at, core::iter::once(range), attributes) {
            Ok(entered) => {
                translated.iommu.sync(base, bytes);
                Ok(DmaRange { addr: at, len: range.len, flags: entered.flags })
            }
            Err(error) => {
                free_one_step(translated, base, bytes);
                Err(error)
            }
        }
    }

    /// What a run has to be aligned to so that the IOMMU can use its largest leaf.
    fn best_alignment(&self, phys: PhysAddr, bytes: u64) -> u64 {
        let page = phys.0 & !(self.page_bytes - 1);
        let fits = |leaf: &u64| page.is_multiple_of(*leaf) && bytes >= *leaf;
        [1 << 30, 2 << 20, 64 << 10].into_iter().find(fits).unwrap_or(PAGE_BYTES)
    }

    /// Whether a range that `map` returned has to be given to [`Domain::unmap`] at all. If not, the caller need not keep
    /// anything: bus addresses, and direct mode for coherent devices where nothing was bounced.
    pub fn needs_unmap(&self, range: &DmaRange) -> bool {
        let free = DmaRange::BUS_ADDRESS;
        let is_plain = range.flags & (DmaRange::DIRECT | DmaRange::BOUNCED) == DmaRange::DIRECT;
        range.flags & free == 0 && !(is_plain && (self.is_coherent() || range.flags & DmaRange::MMIO != 0))
    }

    /// Ends one `map`: the devices are done with the range. Once it has returned, they do not reach it and the CPU sees
    /// what they wrote. A range that needs no unmapping may be given, too.
    ///
    /// # Errors
    /// [`DmaError::NotMapped`] if `map` returned no such range, or it is unmapped already; nothing is changed then. In
    /// direct mode only bounced ranges are known, so only they can be refused.
    pub fn unmap(&self, range: DmaRange, attributes: Attributes) -> Result<Unlinked, DmaError> {
        if !self.needs_unmap(&range) {
            return Ok(Unlinked::default());
        }
        let translated = match &self.way {
            Way::Direct { offset } => return self.unmap_direct(range, attributes, *offset),
            Way::Translated(translated) => translated,
        };
        let not_mapped = DmaError::NotMapped(range.addr);
        range.addr.checked_add(u64::from(range.len) + self.page_bytes).ok_or(not_mapped)?;
        let (base, bytes) = self.pages_of(range.addr, u64::from(range.len));
        let mut known = None;
        translated.iova.with(&mut |space: &mut IovaSpace| known = space.reservation_at(base));
        if known != Some((bytes, IovaUse::OneStep)) {
            return Err(not_mapped);
        }
        let is_bounced = range.flags & DmaRange::BOUNCED != 0;
        let len = u64::from(range.len);
        let leaving = Leaving { at: range.addr, bytes: len, is_bounced, attributes };
        // Of two that unmap the same, the table lets one pass.
        self.leave_table(translated.iommu, &leaving, base, bytes).map_err(|_| not_mapped)?;
        self.flush(translated.iommu, base, bytes);
        let unlinked = self.bring_back(&leaving, base, bytes);
        free_one_step(translated, base, bytes);
        Ok(unlinked)
    }

    /// Maps many ranges at once. Those behind the IOMMU share one reservation, where they stand one behind the other as
    /// far as the IOMMU's page allows, so that they come out as few DMA ranges; ranges of peers that are reached by bus
    /// address come out flagged, in their place. All or nothing. May allocate.
    ///
    /// # Errors
    /// As [`Domain::map`].
    pub fn map_list(
        &self,
        ranges: impl IntoIterator<Item = PhysRange, IntoIter: Clone>,
        attributes: Attributes,
    ) -> Result<DmaMapping, DmaError> {
        let ranges = ranges.into_iter();
        let mut mapping = DmaMapping { domain: self.id, list: DmaList::new(), reservation: None };
        let Way::Translated(translated) = self.way else {
            return self.map_list_direct(ranges, attributes, mapping);
        };
        let (mut bytes, mut any) = (0u64, false);
        let mut alignment = PAGE_BYTES;
        for group in self.groups(ranges.clone(), attributes) {
            let group = group?;
            any = true;
            if let Reach::System | Reach::HostBridge = group.reach {
                let (_, whole) = self.pages_of(Iova(group.first.addr.0), group.bytes);
                if bytes == 0 {
                    alignment = self.best_alignment(group.first.addr, whole);
                }
                bytes = bytes.checked_add(whole).ok_or(DmaError::Wraps(group.first.addr))?;
            }
        }
        if !any {
            return Err(DmaError::Empty(0));
        }
        let mut at = Iova(0);
        if bytes > 0 {
            let reservation = self.reserve(bytes, alignment)?;
            at = reservation.base;
            mapping.reservation = Some(reservation);
        }
        for group in self.groups(ranges, attributes) {
            let group = group.expect("it was looked at before");
            match (group.reach, &mapping.reservation) {
                (Reach::System | Reach::HostBridge, Some(reservation)) => {
                    let offset = at.0 + group.first.addr.0 % self.page_bytes - reservation.base.0;
                    let linked = self.link(reservation, offset, group.ranges.take(group.count), attributes);
                    match linked {
                        Ok(span) => mapping.list.extend(span.at.ranges()),
                        Err(error) => {
                            let reservation = mapping.reservation.take().expect("it was just looked at");
                            self.unlink_all(&reservation, attributes.skip_cpu_sync());
                            self.give_back(&reservation);
                            return Err(error);
                        }
                    }
                    at = at + self.pages_of(Iova(group.first.addr.0), group.bytes).1;
                }
                (Reach::Bus(addr), _) => {
                    let writable = attributes.direction().is_from_device();
                    let flags = DmaRange::BUS_ADDRESS | if writable { DmaRange::WRITABLE } else { 0 };
                    add(&self.counters.bus_ranges, 1);
                    mapping.list.push(DmaRange { addr, len: group.first.len, flags });
                }
                (_, None) => unreachable!("groups behind the IOMMU have a reservation"),
            }
        }
        if let Some(reservation) = &mapping.reservation {
            translated.iommu.sync(reservation.base, reservation.bytes);
        }
        Ok(mapping)
    }

    /// Ends one `map_list`: one flush for all of it.
    ///
    /// # Errors
    /// [`DmaError::OtherDomain`], with the mapping as it was.
    pub fn unmap_list(
        &self,
        mapping: DmaMapping,
        attributes: Attributes,
    ) -> Result<Unlinked, (DmaMapping, DmaError)> {
        if mapping.domain != self.id {
            return Err((mapping, DmaError::OtherDomain));
        }
        if let Some(reservation) = mapping.reservation {
            let unlinked = self.unlink_all(&reservation, attributes);
            self.give_back(&reservation);
            return Ok(unlinked);
        }
        let mut sum = Unlinked::default();
        for range in mapping.list.iter() {
            let one = self.unmap(range, attributes).expect("map_list made the range and it is unmapped once");
            sum.lost_bytes += one.lost_bytes;
            sum.bounced += one.bounced;
        }
        Ok(sum)
    }

    /// Ranges in groups that can stand one behind the other. Checks each range.
    fn groups<I: Iterator<Item = PhysRange> + Clone>(
        &self,
        ranges: I,
        attributes: Attributes,
    ) -> impl Iterator<Item = Result<Group<I>, DmaError>> {
        let mut rest = ranges;
        let mut index = 0;
        core::iter::from_fn(move || {
            let start = rest.clone();
            let first = rest.next()?;
            let one = || {
                let (reach, mut end) = self.checked(first, index, attributes)?;
                let mut group = Group { ranges: start, count: 1, first, bytes: u64::from(first.len), reach };
                index += 1;
                // A bus address stands alone; the list merges neighbours.
                while let (false, Some(next)) = (matches!(reach, Reach::Bus(_)), rest.clone().next()) {
                    let (next_reach, next_end) = self.checked(next, index, attributes)?;
                    let mask = self.page_bytes - 1;
                    let joins = end & mask == 0 && next.addr.0 & mask == 0;
                    let is_same = next_reach == reach
                        && (next.flags ^ first.flags) & PhysRange::MMIO == 0
                        && !matches!(next_reach, Reach::Bus(_));
                    if !joins || !is_same {
                        break;
                    }
                    rest.next();
                    index += 1;
                    group.count += 1;
                    group.bytes += u64::from(next.len);
                    end = next_end;
                }
                Ok(group)
            };
            Some(one())
        })
    }

    /// Where a range lies, and its end.
    fn checked(
        &self,
        range: PhysRange,
        index: usize,
        attributes: Attributes,
    ) -> Result<(Reach, u64), DmaError> {
        self.permits(attributes)?;
        if range.len == 0 {
            return Err(DmaError::Empty(index));
        }
        let wraps = DmaError::Wraps(range.addr);
        let end = range.end().ok_or(wraps)?;
        end.checked_add(self.page_bytes).ok_or(wraps)?;
        Ok((self.reach(range)?, end.0))
    }

    fn map_list_direct(
        &self,
        ranges: impl Iterator<Item = PhysRange>,
        attributes: Attributes,
        mut mapping: DmaMapping,
    ) -> Result<DmaMapping, DmaError> {
        let mut failed = None;
        for (index, range) in ranges.enumerate() {
            let mapped =
                if range.len == 0 { Err(DmaError::Empty(index)) } else { self.map(range, attributes) };
            match mapped {
                Ok(range) => mapping.list.push(range),
                Err(error) => failed = Some(error),
            }
            if failed.is_some() {
                break;
            }
        }
        match failed.or(mapping.list.is_empty().then_some(DmaError::Empty(0))) {
            None => Ok(mapping),
            Some(error) => {
                self.unmap_list(mapping, attributes.skip_cpu_sync())
                    .expect("what this call mapped is this domain's");
                Err(error)
            }
        }
    }

    /// Maps without an IOMMU: an addition, unless the devices cannot reach the memory or share cache lines with it.
    fn map_direct(
        &self,
        range: PhysRange,
        attributes: Attributes,
        offset: u64,
    ) -> Result<DmaRange, DmaError> {
        let (reach, end) = self.checked(range, 0, attributes)?;
        let is_mmio =
            attributes.is_mmio() || range.flags & PhysRange::MMIO != 0 || reach == Reach::HostBridge;
        let len = u64::from(range.len);
        let addr = Iova(range.addr.0.wrapping_add(offset));
        let reached = addr.0.checked_add(len - 1).is_some_and(|last| last <= self.last.0);
        let syncs = self.cache.filter(|_| !is_mmio && !attributes.skips_cpu_sync());
        let lines = syncs.filter(|_| attributes.direction().is_from_device());
        let is_shared = lines.is_some_and(|cache| {
            let line = cache.line_bytes();
            !range.addr.0.is_multiple_of(line) || !end.is_multiple_of(line)
        });
        let mut flags = DmaRange::DIRECT;
        flags |= if attributes.direction().is_from_device() { DmaRange::WRITABLE } else { 0 };
        flags |= if is_mmio { DmaRange::MMIO } else { 0 };
        if reached && !is_shared {
            if let Some(cache) = syncs {
                cache.sync_for_device(range.addr, len, attributes.direction());
                add(&self.counters.cache_syncs, 1);
            }
            return Ok(DmaRange { addr, len: range.len, flags });
        }
        if is_mmio || attributes.requires_coherent() {
            return Err(DmaError::MustNotBounce(range.addr));
        }
        let Some(pool) = &self.pool else {
            let beyond = DmaError::BeyondReach { addr: range.addr, last: self.last };
            return Err(if reached { DmaError::NoBouncePages(range.addr) } else { beyond });
        };
        let inside = range.addr.0 % PAGE_BYTES;
        let count = (inside + len).div_ceil(PAGE_BYTES);
        let page_of = |slot: usize| Iova(pool.phys(slot).0.wrapping_add(offset));
        let what = |index: usize| {
            let start = index as u64 * PAGE_BYTES;
            let from = inside.max(start) - start;
            let until = (inside + len - start).min(PAGE_BYTES);
            Bounced { phys: PhysAddr(range.addr.0 - inside + start), from, until }
        };
        let first = pool
            .take(count as usize, self.last.0, page_of, what)
            .ok_or(DmaError::NoBouncePages(range.addr))?;
        if let Err(fault) = pool.fill(first, count as usize) {
            pool.release(first, count as usize);
            return Err(DmaError::MemoryGone(fault.0));
        }
        if let Some(cache) = syncs {
            cache.sync_for_device(pool.phys(first), count * PAGE_BYTES, attributes.direction());
            add(&self.counters.cache_syncs, 1);
        }
        add(&self.counters.bounced_pages, count);
        Ok(DmaRange { addr: page_of(first) + inside, len: range.len, flags: flags | DmaRange::BOUNCED })
    }

    fn unmap_direct(
        &self,
        range: DmaRange,
        attributes: Attributes,
        offset: u64,
    ) -> Result<Unlinked, DmaError> {
        let len = u64::from(range.len);
        let not_mapped = DmaError::NotMapped(range.addr);
        range.addr.checked_add(len + PAGE_BYTES).ok_or(not_mapped)?;
        if len == 0 {
            return Err(not_mapped);
        }
        let is_bounced = range.flags & DmaRange::BOUNCED != 0;
        let (from, whole) = self.pages_of(range.addr, len);
        let pages = whole / PAGE_BYTES;
        let own = || self.pool.as_ref().map_or(0, |pool| pool.own(from, whole).count() as u64);
        if is_bounced && own() != pages {
            return Err(not_mapped);
        }
        if let Some(cache) = self.cache
            && attributes.direction().is_from_device()
            && !attributes.skips_cpu_sync()
        {
            cache.sync_for_cpu(PhysAddr(range.addr.0.wrapping_sub(offset)), len, attributes.direction());
            add(&self.counters.cache_syncs, 1);
        }
        let leaving = Leaving { at: range.addr, bytes: len, is_bounced, attributes };
        Ok(Unlinked { pages: 0, ..self.bring_back(&leaving, from, whole) })
    }
}

/// Frees the IOVAs of one `map`.
fn free_one_step(translated: &Translated<'_>, base: Iova, bytes: u64) {
    let freed = translated.iova.free_for(base, bytes, IovaUse::OneStep);
    freed.expect("one map's IOVAs are freed once, by whoever emptied the table");
}
