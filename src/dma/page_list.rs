use core::ops::Range;

use super::counters::{Counters, add};
use super::page_runs::{Hulls, bit, next, runs, set};
use super::{DmaError, DmaRange, Domain, Reservation};
use crate::ports::{Iommu, IommuError};
use crate::sync::{AtomicU64, LockedU64, Ordering};
use crate::units::{Access, Iova, PAGE_BYTES, PAGE_SHIFT, PhysAddr, PhysRange};

/// Pages at fixed positions of one IOVA reservation, and which of them are linked: one bit per page, no address. What
/// somebody who serves page faults needs; the granule keeps its links in the same way, block by block.
///
/// Where the device's rights differ from page to page, the list learns them from the I/O page table, which has them
/// anyway ([`PageList::with_table_rights`]), or from a second bit per page ([`PageList::with_writable`]).
///
/// Whoever owns the list guards it with a lock of his: its words change under that lock only. Allocates nothing.
#[derive(Clone, Copy)]
pub struct PageList<'m> {
    base: Iova,
    pages: u64,
    linked: &'m [LockedU64],
    rights: Rights<'m>,
    /// The reservation's count of links and the domain's counters, where there is a [`Reservation`].
    counts: Option<(&'m AtomicU64, &'m Counters)>,
}

/// What the device may do with linked pages.
#[derive(Clone, Copy)]
enum Rights<'m> {
    /// The same with all of them.
    Alike,
    /// What the I/O page table says.
    Table(&'m dyn Iommu),
    /// Write where the bit is set, else read.
    Words(&'m [LockedU64]),
}

impl core::fmt::Debug for PageList<'_> {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        let linked = self.linked_pages(0..self.pages);
        write!(f, "PageList({linked} of {} pages at {} are linked)", self.pages, self.base)
    }
}

impl<'m> PageList<'m> {
    /// A list of `pages` pages over a reservation that begins at `base`, all linked with the same rights. `linked` has a
    /// bit per page, word 0 bit 0 being page 0, and tells what is linked already. Asserts that it is long enough and
    /// that the pages end within 64 bits.
    pub fn new(base: Iova, pages: u64, linked: &'m [LockedU64]) -> Self {
        assert!(linked.len() as u64 * 64 >= pages, "a bit per page");
        let end = pages.checked_mul(PAGE_BYTES).and_then(|bytes| base.checked_add(bytes));
        assert!(end.is_some(), "the pages of a list end within 64 bits");
        Self { base, pages, linked, rights: Rights::Alike, counts: None }
    }

    /// The same list with rights page by page, read from the I/O page table: not a bit more to keep, at the price of a
    /// walk ([`Iommu::mapped`]) where rights are asked for, and for pages that a link for writing finds linked.
    #[must_use]
    pub fn with_table_rights(self, iommu: &'m dyn Iommu) -> Self {
        Self { rights: Rights::Table(iommu), ..self }
    }

    /// The same list with rights page by page: `writable` has a bit per page, set where a linked page may be written.
    /// For whoever has such bits anyway, or asks often. Asserts that it is long enough.
    #[must_use]
    pub fn with_writable(self, writable: &'m [LockedU64]) -> Self {
        assert!(writable.len() as u64 * 64 >= self.pages, "a bit per page");
        Self { rights: Rights::Words(writable), ..self }
    }

    /// How many pages it has.
    pub fn pages(&self) -> u64 {
        self.pages
    }

    /// The DMA address of a page: its position. Asserts that the list has the page, or ends there.
    pub fn address(&self, page: u64) -> Iova {
        assert!(page <= self.pages, "a page of the list, or its end");
        self.at(page)
    }

    fn at(&self, page: u64) -> Iova {
        self.base + (page << PAGE_SHIFT)
    }

    /// Whether a page is linked.
    pub fn is_linked(&self, page: u64) -> bool {
        page < self.pages && bit(self.linked, page)
    }

    /// Whether the device may do this with a page. Without rights page by page: whether it is linked.
    pub fn allows(&self, page: u64, access: Access) -> bool {
        if !self.is_linked(page) {
            return false;
        }
        match (self.rights, access) {
            (Rights::Alike, _) | (_, Access::Read) => true,
            (Rights::Words(writable), Access::Write) => bit(writable, page),
            (Rights::Table(iommu), Access::Write) => {
                let piece = iommu.mapped(self.at(page), PAGE_BYTES);
                piece.is_some_and(|piece| piece.access == Access::Write)
            }
        }
    }

    /// How many pages of a range are linked.
    pub fn linked_pages(&self, within: Range<u64>) -> u64 {
        self.runs(within, true).map(|run| run.end - run.start).sum()
    }

    /// The runs in `within` whose pages are all linked (or all not), ascending, as page positions, end exclusive.
    pub fn runs(&self, within: Range<u64>, linked: bool) -> impl Iterator<Item = Range<u64>> + use<'m> {
        runs(self.linked, within.start..within.end.min(self.pages), linked)
    }

    /// Links the pages of a range that are not linked yet; page *i* of the list is at `phys + i * 4096`. Pages that are
    /// linked keep their address and gain the right to be written, if `access` is more than they have. All or nothing.
    /// Returns how many were linked by this call.
    ///
    /// # Errors
    /// What the IOMMU says; what this call had linked is unlinked again. [`IommuError::OutsideAperture`] for pages that
    /// the list has not. Asserts that `phys` is page aligned and that the last of the pages lies within 64 bits.
    pub fn link(
        &self,
        iommu: &dyn Iommu,
        pages: Range<u64>,
        phys: PhysAddr,
        access: Access,
    ) -> Result<u64, IommuError> {
        self.inside(&pages)?;
        assert!(phys.is_page_aligned(), "a page list links whole pages");
        let mut done = 0;
        let first = phys + (pages.start << PAGE_SHIFT);
        let result = self.link_new(iommu, pages.clone(), first, access, &mut done);
        self.finish(iommu, pages, access, done, result)
    }

    /// As [`PageList::link`], for pages that lie anywhere: physical ranges of whole pages, from page `first` on.
    ///
    /// # Errors
    /// As [`PageList::link`]. Asserts that the ranges are whole pages.
    pub fn link_ranges(
        &self,
        iommu: &dyn Iommu,
        first: u64,
        ranges: impl IntoIterator<Item = PhysRange, IntoIter: Clone>,
        access: Access,
    ) -> Result<u64, IommuError> {
        let ranges = ranges.into_iter();
        let mut bytes = 0;
        for range in ranges.clone() {
            let whole = range.addr.is_page_aligned() && u64::from(range.len).is_multiple_of(PAGE_BYTES);
            assert!(whole, "a page list links whole pages");
            bytes += u64::from(range.len);
        }
        let beyond = IommuError::OutsideAperture(self.base);
        let pages = first..first.checked_add(bytes >> PAGE_SHIFT).ok_or(beyond)?;
        self.inside(&pages)?;
        let (mut at, mut done) = (first, 0);
        let mut result = Ok(());
        for range in ranges {
            let part = at..at + (u64::from(range.len) >> PAGE_SHIFT);
            at = part.end;
            result = self.link_new(iommu, part, range.addr, access, &mut done);
            if result.is_err() {
                break;
            }
        }
        self.finish(iommu, pages, access, done, result)
    }

    fn inside(&self, pages: &Range<u64>) -> Result<(), IommuError> {
        let inside = pages.start <= pages.end && pages.end <= self.pages;
        let outside = || Iova(self.base.0.saturating_add(pages.end.saturating_mul(PAGE_BYTES)));
        if inside { Ok(()) } else { Err(IommuError::OutsideAperture(outside())) }
    }

    /// Maps what the bits call unlinked in a range whose first page is at `phys`. Changes no bit.
    fn link_new(
        &self,
        iommu: &dyn Iommu,
        pages: Range<u64>,
        phys: PhysAddr,
        access: Access,
        done: &mut u64,
    ) -> Result<(), IommuError> {
        for run in self.runs(pages.clone(), false) {
            let from = phys + ((run.start - pages.start) << PAGE_SHIFT);
            iommu.map(self.at(run.start), from, (run.end - run.start) << PAGE_SHIFT, access)?;
            *done += run.end - run.start;
        }
        Ok(())
    }

    /// After what was unlinked was mapped, or not all of it: upgrades and enters it, or undoes it.
    fn finish(
        &self,
        iommu: &dyn Iommu,
        pages: Range<u64>,
        access: Access,
        done: u64,
        result: Result<(), IommuError>,
    ) -> Result<u64, IommuError> {
        if let Err(error) = result {
            self.undo(iommu, pages, done);
            return Err(error);
        }
        if access == Access::Write {
            for run in self.runs(pages.clone(), true) {
                self.upgrade(iommu, run);
            }
            if let Rights::Words(writable) = self.rights {
                set(writable, pages.clone(), true);
            }
        }
        if done > 0 {
            let bytes = (pages.end - pages.start) << PAGE_SHIFT;
            iommu.sync(self.at(pages.start), bytes);
            if let Some((count, counters)) = self.counts {
                count.fetch_add(done, Ordering::Release);
                add(&counters.links, 1);
                add(&counters.linked_pages, done);
            }
        }
        set(self.linked, pages, true);
        Ok(done)
    }

    /// Makes a linked run writable where it is not.
    fn upgrade(&self, iommu: &dyn Iommu, run: Range<u64>) {
        if let Rights::Alike = self.rights {
            return;
        }
        for (part, access) in self.split_by_rights(run, Access::Read) {
            if access == Access::Read {
                let (at, bytes) = (self.at(part.start), (part.end - part.start) << PAGE_SHIFT);
                iommu.protect(at, bytes, Access::Write).expect("the bits say that it is linked");
            }
        }
    }

    /// Unmaps the first `count` pages of a range that the bits call unlinked.
    fn undo(&self, iommu: &dyn Iommu, pages: Range<u64>, count: u64) {
        let mut left = count;
        let mut hulls = Hulls::new();
        for run in self.runs(pages, false) {
            let part = (run.end - run.start).min(left);
            if part == 0 {
                break;
            }
            let bytes = part << PAGE_SHIFT;
            iommu.unmap(self.at(run.start), bytes).expect("it was mapped by the call that is undone");
            hulls.push(self.at(run.start), bytes);
            left -= part;
        }
        self.flush(iommu, &hulls);
    }

    fn flush(&self, iommu: &dyn Iommu, hulls: &Hulls) {
        match hulls.runs() {
            [] => return,
            [(at, bytes)] => iommu.flush(*at, *bytes),
            runs => iommu.flush_runs(runs),
        }
        if let Some((_, counters)) = self.counts {
            let bytes: u64 = hulls.runs().iter().map(|(_, bytes)| bytes).sum();
            add(&counters.flushes, 1);
            add(&counters.flushed_runs, hulls.runs().len() as u64);
            add(&counters.flushed_pages, bytes >> PAGE_SHIFT);
        }
    }

    /// Unlinks what is linked in a range, holes left out, and takes the rights back: what an invalidation does. Flushes
    /// once, by run (many runs are flushed as fewer, longer ones). Returns how many pages that were.
    pub fn unlink(&self, iommu: &dyn Iommu, pages: Range<u64>) -> u64 {
        self.unlink_runs(iommu, core::iter::once(pages))
    }

    /// As [`PageList::unlink`], for several ranges with one flush. Asserts that no page is named twice.
    pub fn unlink_runs(
        &self,
        iommu: &dyn Iommu,
        ranges: impl IntoIterator<Item = Range<u64>, IntoIter: Clone>,
    ) -> u64 {
        let ranges = ranges.into_iter();
        let mut done = 0;
        let mut hulls = Hulls::new();
        for run in ranges.clone().flat_map(|range| self.runs(range, true)) {
            let bytes = (run.end - run.start) << PAGE_SHIFT;
            iommu.unmap(self.at(run.start), bytes).expect("the bits say that it is linked");
            hulls.push(self.at(run.start), bytes);
            done += run.end - run.start;
        }
        if done == 0 {
            return 0;
        }
        self.flush(iommu, &hulls);
        for range in ranges {
            let range = range.start..range.end.min(self.pages);
            if let Rights::Words(writable) = self.rights {
                set(writable, range.clone(), false);
            }
            set(self.linked, range, false);
        }
        if let Some((count, counters)) = self.counts {
            count.fetch_sub(done, Ordering::AcqRel);
            add(&counters.unlinks, 1);
            add(&counters.unlinked_pages, done);
        }
        done
    }

    /// The DMA ranges of everything that is linked, neighbours merged. `access` is that of lists that are linked alike.
    pub fn dma_ranges(&self, access: Access) -> impl Iterator<Item = DmaRange> + use<'m> {
        let list = *self;
        self.runs(0..self.pages, true).flat_map(move |run| list.split_by_rights(run, access)).flat_map(
            move |(run, access)| {
                let flags = if access == Access::Write { DmaRange::WRITABLE } else { 0 };
                DmaRange::of_run(list.at(run.start), (run.end - run.start) << PAGE_SHIFT, flags)
            },
        )
    }

    /// A linked run in parts of the same rights. `alike` is what holds for a list without rights page by page.
    fn split_by_rights(
        &self,
        run: Range<u64>,
        alike: Access,
    ) -> impl Iterator<Item = (Range<u64>, Access)> + use<'m> {
        let list = *self;
        let mut at = run.start;
        core::iter::from_fn(move || {
            let start = (at < run.end).then_some(at)?;
            let access = match list.rights {
                Rights::Alike => {
                    at = run.end;
                    alike
                }
                Rights::Words(words) => {
                    let is_writable = bit(words, start);
                    at = next(words, start, run.end, !is_writable).unwrap_or(run.end);
                    if is_writable { Access::Write } else { Access::Read }
                }
                Rights::Table(iommu) => {
                    let piece = |page: u64| {
                        let piece = iommu.mapped(list.at(page), (run.end - page) << PAGE_SHIFT);
                        let piece = piece.expect("the bits say that it is linked");
                        (piece.access, piece.bytes >> PAGE_SHIFT)
                    };
                    let (access, pages) = piece(start);
                    at = start + pages;
                    while at < run.end {
                        let (same, pages) = piece(at);
                        if same != access {
                            break;
                        }
                        at += pages;
                    }
                    access
                }
            };
            Some((start..at, access))
        })
    }
}

impl Domain<'_> {
    /// A list over a reservation of this domain, counted with its other links: a reservation with linked pages is not
    /// freed. `linked` has a bit per 4096 bytes of it, all clear at first. The domain's devices are coherent and the
    /// IOMMU's page is 4096 bytes: CPU and device use the pages at once. Where rights differ from page to page, see
    /// [`PageList::with_table_rights`].
    ///
    /// # Errors
    /// [`DmaError::OtherDomain`], [`DmaError::Direct`], [`DmaError::NotCoherent`]; [`DmaError::PageSize`].
    pub fn page_list<'m>(
        &'m self,
        reservation: &'m Reservation,
        linked: &'m [LockedU64],
    ) -> Result<PageList<'m>, DmaError> {
        self.owns(reservation)?;
        self.translated()?;
        if !self.is_coherent() {
            return Err(DmaError::NotCoherent);
        }
        if self.page_bytes != PAGE_BYTES {
            return Err(DmaError::PageSize(self.page_bytes));
        }
        let list = PageList::new(reservation.base, reservation.bytes >> PAGE_SHIFT, linked);
        Ok(PageList { counts: Some((&reservation.linked, &self.counters)), ..list })
    }
}

#[cfg(all(test, not(granule_loom)))]
mod tests {
    use std::collections::BTreeMap;
    use std::sync::Mutex;

    use super::*;
    use crate::ports::Mapped;

    /// Remembers what is mapped; fails when it has `room` pages.
    struct Naive {
        mapped: Mutex<BTreeMap<u64, u64>>,
        room: usize,
    }

    impl Iommu for Naive {
        fn aperture(&self) -> (Iova, Iova) {
            (Iova(0), Iova(u64::MAX))
        }
        fn map(&self, iova: Iova, phys: PhysAddr, bytes: u64, _: Access) -> Result<(), IommuError> {
            let mut mapped = self.mapped.lock().unwrap();
            if mapped.len() + (bytes >> PAGE_SHIFT) as usize > self.room {
                return Err(IommuError::OutOfTables);
            }
            for page in 0..bytes >> PAGE_SHIFT {
                let old = mapped.insert((iova.0 >> PAGE_SHIFT) + page, (phys.0 >> PAGE_SHIFT) + page);
                assert_eq!(old, None, "linked twice");
            }
            Ok(())
        }
        fn protect(&self, _: Iova, _: u64, _: Access) -> Result<(), IommuError> {
            Ok(())
        }
        fn unmap(&self, iova: Iova, bytes: u64) -> Result<(), IommuError> {
            for page in 0..bytes >> PAGE_SHIFT {
                let at = (iova.0 >> PAGE_SHIFT) + page;
                self.mapped.lock().unwrap().remove(&at).ok_or(IommuError::NotMapped(iova))?;
            }
            Ok(())
        }
        fn mapped(&self, iova: Iova, bytes: u64) -> Option<Mapped> {
            let mapped = self.mapped.lock().unwrap();
            let pages = iova.0 >> PAGE_SHIFT..(iova.0 + bytes) >> PAGE_SHIFT;
            let (page, phys) = mapped.range(pages).next()?;
            let (iova, phys) = (Iova(page << PAGE_SHIFT), PhysAddr(phys << PAGE_SHIFT));
            Some(Mapped { iova, phys, bytes: 1 << PAGE_SHIFT, access: Access::Write })
        }
        fn flush(&self, _: Iova, _: u64) {}
    }

    #[test]
    fn links_are_positional_and_a_failure_leaves_nothing() {
        let words: Vec<AtomicU64> = (0..4).map(|_| AtomicU64::new(0)).collect();
        let iommu = Naive { mapped: Mutex::default(), room: 150 };
        let list = PageList::new(Iova(0x10_0000), 200, &words);
        let phys = PhysAddr(0x4000_0000);
        assert_eq!(list.link(&iommu, 60..70, phys, Access::Write), Ok(10));
        assert_eq!(
            list.link(&iommu, 50..80, phys, Access::Write),
            Ok(20),
            "what is linked is not linked again"
        );
        assert_eq!(iommu.mapped.lock().unwrap()[&(0x100 + 65)], 0x40000 + 65);
        assert_eq!(list.link(&iommu, 0..200, phys, Access::Write), Err(IommuError::OutOfTables));
        assert_eq!(iommu.mapped.lock().unwrap().len(), 30, "nothing of a failed call stays");
        assert_eq!(list.unlink(&iommu, 64..65), 1);
        assert!(list.runs(0..200, true).eq([50..64, 65..80]));
        let ranges: Vec<_> = list.dma_ranges(Access::Write).collect();
        assert_eq!(ranges.len(), 2);
        assert_eq!((ranges[1].addr, ranges[1].len), (Iova(0x10_0000 + 65 * 4096), 15 * 4096));
        assert_eq!(list.unlink(&iommu, 0..200), 29);
        assert!(iommu.mapped.lock().unwrap().is_empty());
    }

    #[test]
    fn long_runs_are_split_at_four_gib_less_a_page() {
        let bytes = 9 << 30;
        let parts: Vec<_> = DmaRange::of_run(Iova(0), bytes, 0).collect();
        assert_eq!(parts.iter().map(|part| u64::from(part.len)).sum::<u64>(), bytes);
        assert_eq!(parts.len(), 3);
        assert_eq!(parts[1].addr, Iova(DmaRange::MAX_BYTES));
    }
}
