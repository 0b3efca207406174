//! Step two: linking. One function does it for both ways, [`Domain::enter`].

use super::bounce::Bounced;
use super::counters::add;
use super::p2p::Reach;
use super::{Attributes, DmaError, DmaRange, DmaSpan, Domain, Reservation, Span};
use crate::ports::Iommu;
use crate::sync::Ordering;
use crate::units::{Iova, PhysAddr, PhysRange};

/// What a call is about to link.
#[derive(Clone, Copy, Debug)]
struct Extent {
    bytes: u64,
    /// The first range, and the address after the last byte.
    first: PhysRange,
    end: PhysAddr,
    ranges: usize,
    /// Some of it is memory of a device, by attribute, by flag or behind the host bridge.
    is_mmio: bool,
}

/// What was linked.
#[derive(Clone, Copy, Debug)]
pub(super) struct Entered {
    pub(super) bytes: u64,
    pub(super) pages: u64,
    pub(super) bounced: u32,
    pub(super) flags: u32,
}

impl Domain<'_> {
    /// Step two: links physical ranges, one behind the other, from `offset` bytes into a reservation on. Everything
    /// that is contiguous is entered as one run, so that huge leaves are used wherever alignment allows.
    ///
    /// All or nothing. The joints between the ranges lie at pages of the IOMMU; the first byte may lie inside of a
    /// page, at an offset that is equal modulo the page, and so may the end. No device may use the span before
    /// [`Domain::sync`]. Allocates nothing.
    ///
    /// # Errors
    /// [`DmaError`], with nothing changed: `OtherDomain`, `Empty`, `Wraps`, `Misaligned`, `OffsetMismatch`,
    /// `OutsideReservation`, `AlreadyLinked`, `OutOfTables`; what the attributes and the devices' kind forbid
    /// (`MustNotBounce`, `NotCoherent`, `AlreadyBounced`, `NoBouncePages`, `MemoryGone`, `UnnamedMmio`); and what peers have to say
    /// (`UnknownPeer`, `OutsidePeer`, `PeerUnreachable`, `BusAddress`).
    pub fn link(
        &self,
        reservation: &Reservation,
        offset: u64,
        ranges: impl IntoIterator<Item = PhysRange, IntoIter: Clone>,
        attributes: Attributes,
    ) -> Result<Span, DmaError> {
        self.owns(reservation)?;
        let ranges = ranges.into_iter();
        let iommu = self.translated()?.iommu;
        let extent = self.extent(ranges.clone(), attributes)?;
        let reserved = reservation.bytes;
        let outside = DmaError::OutsideReservation { offset, bytes: extent.bytes, reserved };
        if offset.checked_add(extent.bytes).is_none_or(|end| end > reserved) {
            return Err(outside);
        }
        if attributes.requires_coherent() && reservation.bounced.load(Ordering::Relaxed) > 0 {
            return Err(DmaError::AlreadyBounced(reservation.base));
        }
        let at = reservation.base + offset;
        if !self.agrees(at.0, extent.first.addr.0) {
            return Err(DmaError::OffsetMismatch { offset, addr: extent.first.addr });
        }
        let entered = self.enter(iommu, at, ranges, &extent, attributes)?;
        reservation.bounced.fetch_add(entered.bounced, Ordering::Relaxed);
        reservation.count_in(entered.pages);
        let at = DmaSpan { addr: at, bytes: entered.bytes, flags: entered.flags };
        Ok(Span { domain: self.id, at })
    }

    /// Makes a linked span usable: its devices may use the addresses that this returns, until they are unlinked.
    ///
    /// # Errors
    /// [`DmaError::OtherDomain`].
    pub fn sync(&self, span: Span) -> Result<DmaSpan, DmaError> {
        if span.domain != self.id {
            return Err(DmaError::OtherDomain);
        }
        let (from, bytes) = self.pages_of(span.at.addr, span.at.bytes);
        self.translated()?.iommu.sync(from, bytes);
        Ok(span.at)
    }

    /// The whole pages of the IOMMU that a span touches.
    pub(super) fn pages_of(&self, at: Iova, bytes: u64) -> (Iova, u64) {
        let mask = self.page_bytes - 1;
        let from = at.0 & !mask;
        (Iova(from), ((at.0 - from) + bytes + mask) & !mask)
    }

    /// Whether two addresses are the same inside of a page.
    fn agrees(&self, one: u64, other: u64) -> bool {
        (one ^ other) & (self.page_bytes - 1) == 0
    }

    /// Checks ranges that are to stand one behind the other.
    fn extent(
        &self,
        ranges: impl Iterator<Item = PhysRange>,
        attributes: Attributes,
    ) -> Result<Extent, DmaError> {
        let mut extent: Option<Extent> = None;
        for (index, range) in ranges.enumerate() {
            if range.len == 0 {
                return Err(DmaError::Empty(index));
            }
            let end = range.end().ok_or(DmaError::Wraps(range.addr))?;
            let is_mmio = match self.reach(range)? {
                Reach::System => self.is_mmio(range, attributes)?,
                Reach::HostBridge => true,
                Reach::Bus(_) => return Err(DmaError::BusAddress(range.peer().expect("it is a peer's"))),
            };
            let len = u64::from(range.len);
            match &mut extent {
                None => extent = Some(Extent { bytes: len, first: range, end, ranges: 1, is_mmio }),
                Some(sum) => {
                    if !self.agrees(sum.end.0, 0) || !self.agrees(range.addr.0, 0) {
                        return Err(DmaError::Misaligned { index, addr: range.addr });
                    }
                    sum.bytes = sum.bytes.checked_add(len).ok_or(DmaError::Wraps(range.addr))?;
                    (sum.end, sum.ranges) = (end, index + 1);
                    sum.is_mmio |= is_mmio;
                }
            }
        }
        let extent = extent.ok_or(DmaError::Empty(0))?;
        // The last page must end somewhere.
        extent.end.checked_add(self.page_bytes).ok_or(DmaError::Wraps(extent.first.addr))?;
        Ok(extent)
    }

    /// Whether a range that is no peer's is memory of a device. Where caches are maintained the attributes say so: the
    /// unlink has nothing else to go by.
    pub(super) fn is_mmio(&self, range: PhysRange, attributes: Attributes) -> Result<bool, DmaError> {
        let by_flag = range.flags & PhysRange::MMIO != 0;
        let maintains = self.cache.is_some() && !attributes.skips_cpu_sync();
        if by_flag && maintains && !attributes.is_mmio() {
            return Err(DmaError::UnnamedMmio(range.addr));
        }
        Ok(by_flag || attributes.is_mmio())
    }

    /// Checks ranges and links them at `at`, for the one-step way. The caller has the IOVAs.
    pub(super) fn enter_new(
        &self,
        iommu: &dyn Iommu,
        at: Iova,
        ranges: impl Iterator<Item = PhysRange> + Clone,
        attributes: Attributes,
    ) -> Result<Entered, DmaError> {
        let extent = self.extent(ranges.clone(), attributes)?;
        self.enter(iommu, at, ranges, &extent, attributes)
    }

    /// To which boundary the ends of writable memory have to be aligned: to a page for devices that must not see
    /// what stands beside it, to a cache line for devices that are not coherent. 1: they need not.
    fn edge_bytes(&self, attributes: Attributes) -> u64 {
        let line = match self.cache {
            Some(cache) if attributes.direction().is_from_device() && !attributes.skips_cpu_sync() => {
                cache.line_bytes()
            }
            _ => 1,
        };
        if self.is_untrusted { self.page_bytes } else { line }
    }

    /// Whether the attributes allow memory to be mapped at all.
    pub(super) fn permits(&self, attributes: Attributes) -> Result<(), DmaError> {
        if attributes.requires_coherent() && self.cache.is_some() {
            return Err(DmaError::NotCoherent);
        }
        Ok(())
    }

    /// Links checked ranges at `at`: bounce pages, caches, tables; or nothing.
    fn enter(
        &self,
        iommu: &dyn Iommu,
        at: Iova,
        ranges: impl Iterator<Item = PhysRange> + Clone,
        extent: &Extent,
        attributes: Attributes,
    ) -> Result<Entered, DmaError> {
        self.permits(attributes)?;
        let (from, bytes) = self.pages_of(at, extent.bytes);
        let access = attributes.direction().access();
        let edge = if extent.is_mmio && !self.is_untrusted { 1 } else { self.edge_bytes(attributes) };
        let head = !extent.first.addr.0.is_multiple_of(edge);
        let tail = !extent.end.0.is_multiple_of(edge);
        let mut flags = if attributes.direction().is_from_device() { DmaRange::WRITABLE } else { 0 };
        if extent.is_mmio {
            flags |= DmaRange::MMIO;
        }
        let pages = bytes / self.page_bytes;
        let mut entered = Entered { bytes: extent.bytes, pages, bounced: 0, flags };
        if !head && !tail && (self.cache.is_none() || attributes.skips_cpu_sync()) {
            let result = if extent.ranges == 1 {
                iommu.map(from, PhysAddr(extent.first.addr.0 & !(self.page_bytes - 1)), bytes, access)
            } else {
                let mut runs = Runs::new(self.page_bytes, from, bytes, at, [None; 2], ranges);
                iommu.map_runs(from, &mut runs, access).map(drop)
            };
            result.map_err(DmaError::of_iommu)?;
        } else {
            let edges = self.bounce_edges(from, bytes, at, extent, [head, tail], attributes)?;
            self.sync_ranges_for_device(ranges.clone(), at, from, bytes, edges, attributes);
            let mut runs = Runs::new(self.page_bytes, from, bytes, at, edges.map(|e| e.map(|e| e.1)), ranges);
            if let Err(error) = iommu.map_runs(from, &mut runs, access) {
                self.release(edges);
                return Err(DmaError::of_iommu(error));
            }
            entered.bounced = edges.iter().flatten().count() as u32;
            if entered.bounced > 0 {
                entered.flags |= DmaRange::BOUNCED;
                add(&self.counters.bounced_pages, u64::from(entered.bounced));
            }
        }
        add(&self.counters.links, 1);
        add(&self.counters.linked_pages, pages);
        Ok(entered)
    }

    /// Takes and fills bounce pages for the first and the last page, where asked. If both are one page, the first
    /// stands for it.
    fn bounce_edges(
        &self,
        from: Iova,
        bytes: u64,
        at: Iova,
        extent: &Extent,
        [head, tail]: [bool; 2],
        attributes: Attributes,
    ) -> Result<[Option<Edge>; 2], DmaError> {
        let page = self.page_bytes;
        let last_page = from + (bytes - page);
        let mut edges = [None; 2];
        let head = (head || (tail && bytes == page)).then(|| {
            let first = at.0 - from.0;
            let phys = PhysAddr(extent.first.addr.0 - first);
            (from, Bounced { phys, from: first, until: (first + extent.bytes).min(page) })
        });
        let tail = (tail && bytes > page).then(|| {
            let until = (extent.end.0 - 1) % page + 1;
            (last_page, Bounced { phys: PhysAddr(extent.end.0 - until), from: 0, until })
        });
        for (edge, wanted) in edges.iter_mut().zip([head, tail]) {
            let Some((iova, what)) = wanted else { continue };
            let memory = what.phys + what.from;
            let bounced = if extent.is_mmio || attributes.is_mmio() || attributes.requires_coherent() {
                Err(DmaError::MustNotBounce(memory))
            } else {
                self.bounce_page(iova, what)
            };
            match bounced {
                Ok(slot) => *edge = Some((slot, self.pool.as_ref().expect("it lent a page").phys(slot))),
                Err(error) => {
                    self.release(edges);
                    return Err(error);
                }
            }
        }
        Ok(edges)
    }

    /// Takes and fills one bounce page for DMA page `iova`.
    fn bounce_page(&self, iova: Iova, what: Bounced) -> Result<usize, DmaError> {
        let memory = what.phys + what.from;
        let pool = self.pool.as_ref().ok_or(DmaError::NoBouncePages(memory))?;
        let slot = pool.take(1, u64::MAX, |_| iova, |_| what).ok_or(DmaError::NoBouncePages(memory))?;
        pool.fill(slot, 1).map_err(|fault| {
            pool.release(slot, 1);
            DmaError::MemoryGone(fault.0)
        })?;
        Ok(slot)
    }

    fn release(&self, edges: [Option<Edge>; 2]) {
        for (slot, _) in edges.into_iter().flatten() {
            self.pool.as_ref().expect("it lent a page").release(slot, 1);
        }
    }

    /// Before devices use it: caches of what is not MMIO, and of the bounce pages instead of what they stand for.
    fn sync_ranges_for_device(
        &self,
        ranges: impl Iterator<Item = PhysRange>,
        at: Iova,
        from: Iova,
        bytes: u64,
        edges: [Option<Edge>; 2],
        attributes: Attributes,
    ) {
        let Some(cache) = self.cache else { return };
        if attributes.skips_cpu_sync() || attributes.is_mmio() {
            return;
        }
        let page = self.page_bytes;
        let direction = attributes.direction();
        let low = if edges[0].is_some() { from.0 + page } else { at.0 };
        let high = from.0 + bytes - if edges[1].is_some() { page } else { 0 };
        let mut here = at.0;
        for range in ranges {
            let (start, end) = (here.max(low), (here + u64::from(range.len)).min(high));
            if start < end && range.flags & (PhysRange::MMIO | PhysRange::PEER) == 0 {
                cache.sync_for_device(range.addr + (start - here), end - start, direction);
                add(&self.counters.cache_syncs, 1);
            }
            here += u64::from(range.len);
        }
        for (_, phys) in edges.into_iter().flatten() {
            cache.sync_for_device(phys, page, direction);
            add(&self.counters.cache_syncs, 1);
        }
    }
}

/// A bounce page: its slot and where it lies.
type Edge = (usize, PhysAddr);

/// The runs of whole pages that ranges make, neighbours merged, with bounce pages in place of the first and the last.
struct Runs<I> {
    page: u64,
    /// IOVAs that come from ranges: the rest is bounced.
    low: u64,
    high: u64,
    /// IOVA of the next range's first byte.
    here: u64,
    head: Option<PhysAddr>,
    tail: Option<PhysAddr>,
    ranges: I,
    /// Found and not yet handed out.
    next: Option<(PhysAddr, u64)>,
}

impl<I: Iterator<Item = PhysRange>> Runs<I> {
    fn new(page: u64, from: Iova, bytes: u64, at: Iova, edges: [Option<PhysAddr>; 2], ranges: I) -> Self {
        let low = from.0 + if edges[0].is_some() { page } else { 0 };
        let high = from.0 + bytes - if edges[1].is_some() { page } else { 0 };
        let [head, tail] = edges;
        Self { page, low, high, here: at.0, head, tail, ranges, next: None }
    }

    /// The next run, not merged.
    fn piece(&mut self) -> Option<(PhysAddr, u64)> {
        if let Some(head) = self.head.take() {
            return Some((head, self.page));
        }
        for range in self.ranges.by_ref() {
            let mask = self.page - 1;
            let (start, end) = (self.here, self.here + u64::from(range.len));
            self.here = end;
            let (low, high) = ((start & !mask).max(self.low), ((end + mask) & !mask).min(self.high));
            if low < high {
                let phys = (range.addr.0 & !mask) + (low - (start & !mask));
                return Some((PhysAddr(phys), high - low));
            }
        }
        self.tail.take().map(|tail| (tail, self.page))
    }
}

impl<I: Iterator<Item = PhysRange>> Iterator for Runs<I> {
    type Item = (PhysAddr, u64);

    fn next(&mut self) -> Option<(PhysAddr, u64)> {
        let (phys, mut bytes) = match self.next.take() {
            Some(run) => run,
            None => self.piece()?,
        };
        while let Some((next, more)) = self.piece() {
            if phys.checked_add(bytes) != Some(next) {
                self.next = Some((next, more));
                break;
            }
            bytes += more;
        }
        Some((phys, bytes))
    }
}
