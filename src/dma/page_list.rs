use core::ops::Range;

use super::{DmaError, DmaRange, Domain, Reservation};
use crate::ports::{Iommu, IommuError};
use crate::sync::{AtomicU64, Ordering};
use crate::units::{Access, Iova, PAGE_BYTES, PAGE_SHIFT, PhysAddr, PhysRange};

/// Pages at fixed positions of one IOVA reservation, and which of them are linked: one bit per page, no address; one
/// more if the device's rights differ from page to page. What somebody who serves page faults needs.
///
/// Whoever owns the list guards it with a lock of his: its words change under that lock only. Allocates nothing.
#[derive(Clone, Copy, Debug)]
pub struct PageList<'m> {
    base: Iova,
    pages: u64,
    linked: &'m [AtomicU64],
    /// Which linked pages the device may write, where that differs; else all of them are linked alike.
    writable: Option<&'m [AtomicU64]>,
    /// The reservation's count of links, where there is a [`Reservation`].
    count: Option<&'m AtomicU64>,
}

/// How many runs are flushed with one wait.
const FLUSHED: usize = 16;

impl<'m> PageList<'m> {
    /// A list of `pages` pages over a reservation that begins at `base`, all linked with the same rights. `linked` has a
    /// bit per page, word 0 bit 0 being page 0, and tells what is linked already. Asserts that it is long enough.
    pub fn new(base: Iova, pages: u64, linked: &'m [AtomicU64]) -> Self {
        assert!(linked.len() as u64 * 64 >= pages, "a bit per page");
        Self { base, pages, linked, writable: None, count: None }
    }

    /// The same list with rights page by page: `writable` has a bit per page, set where a linked page may be written.
    /// Asserts that it is long enough.
    #[must_use]
    pub fn with_writable(self, writable: &'m [AtomicU64]) -> Self {
        assert!(writable.len() as u64 * 64 >= self.pages, "a bit per page");
        Self { writable: Some(writable), ..self }
    }

    /// How many pages it has.
    pub fn pages(&self) -> u64 {
        self.pages
    }

    /// The DMA address of a page: its position.
    pub fn address(&self, page: u64) -> Iova {
        self.base + (page << PAGE_SHIFT)
    }

    /// Whether a page is linked.
    pub fn is_linked(&self, page: u64) -> bool {
        page < self.pages && bit(self.linked, page)
    }

    /// Whether the device may do this with a page. Without rights page by page: whether it is linked.
    pub fn allows(&self, page: u64, access: Access) -> bool {
        let writable = |words| access == Access::Read || bit(words, page);
        self.is_linked(page) && self.writable.is_none_or(writable)
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
    /// the list has not.
    pub fn link(
        &self,
        iommu: &dyn Iommu,
        pages: Range<u64>,
        phys: PhysAddr,
        access: Access,
    ) -> Result<u64, IommuError> {
        self.inside(&pages)?;
        let mut done = 0;
        let result =
            self.link_new(iommu, pages.clone(), phys + (pages.start << PAGE_SHIFT), access, &mut done);
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
            iommu.map(self.address(run.start), from, (run.end - run.start) << PAGE_SHIFT, access)?;
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
        if let (Some(writable), Access::Write) = (self.writable, access) {
            for run in self.runs(pages.clone(), true).flat_map(|run| runs(writable, run, false)) {
                let (at, bytes) = (self.address(run.start), (run.end - run.start) << PAGE_SHIFT);
                iommu.protect(at, bytes, Access::Write).expect("the bits say that it is linked");
            }
            set(writable, pages.clone(), true);
        }
        if done > 0 {
            let bytes = (pages.end - pages.start) << PAGE_SHIFT;
            iommu.sync(self.address(pages.start), bytes);
            if let Some(count) = self.count {
                count.fetch_add(done, Ordering::Release);
            }
        }
        set(self.linked, pages, true);
        Ok(done)
    }

    /// Unmaps the first `count` pages of a range that the bits call unlinked.
    fn undo(&self, iommu: &dyn Iommu, pages: Range<u64>, count: u64) {
        let mut left = count;
        for run in self.runs(pages, false) {
            let part = (run.end - run.start).min(left);
            if part == 0 {
                return;
            }
            let bytes = part << PAGE_SHIFT;
            iommu.unmap(self.address(run.start), bytes).expect("it was mapped by the call that is undone");
            iommu.flush(self.address(run.start), bytes);
            left -= part;
        }
    }

    /// Unlinks what is linked in a range, holes left out, and takes the rights back: what an invalidation does. Flushes
    /// by run, many runs with one wait. Returns how many pages that were.
    pub fn unlink(&self, iommu: &dyn Iommu, pages: Range<u64>) -> u64 {
        let mut done = 0;
        let mut flushed = [(Iova(0), 0); FLUSHED];
        let mut used = 0;
        for run in self.runs(pages.clone(), true) {
            let bytes = (run.end - run.start) << PAGE_SHIFT;
            iommu.unmap(self.address(run.start), bytes).expect("the bits say that it is linked");
            if used == FLUSHED {
                iommu.flush_runs(&flushed);
                used = 0;
            }
            flushed[used] = (self.address(run.start), bytes);
            used += 1;
            done += run.end - run.start;
        }
        match used {
            0 => return 0,
            1 => iommu.flush(flushed[0].0, flushed[0].1),
            _ => iommu.flush_runs(&flushed[..used]),
        }
        if let Some(writable) = self.writable {
            set(writable, pages.start..pages.end.min(self.pages), false);
        }
        set(self.linked, pages.start..pages.end.min(self.pages), false);
        if let Some(count) = self.count {
            count.fetch_sub(done, Ordering::AcqRel);
        }
        done
    }

    /// The DMA ranges of everything that is linked, neighbours merged. `access` is that of lists that are linked alike.
    pub fn dma_ranges(&self, access: Access) -> impl Iterator<Item = DmaRange> + use<'m> {
        let list = *self;
        self.runs(0..self.pages, true).flat_map(move |run| list.split_by_rights(run, access)).flat_map(
            move |(run, access)| {
                let flags = if access == Access::Write { DmaRange::WRITABLE } else { 0 };
                DmaRange::of_run(list.address(run.start), (run.end - run.start) << PAGE_SHIFT, flags)
            },
        )
    }

    /// A linked run in parts of the same rights.
    fn split_by_rights(
        &self,
        run: Range<u64>,
        access: Access,
    ) -> impl Iterator<Item = (Range<u64>, Access)> + use<'m> {
        let writable = self.writable;
        let mut at = run.start;
        core::iter::from_fn(move || {
            let start = (at < run.end).then_some(at)?;
            let Some(words) = writable else {
                at = run.end;
                return Some((run.clone(), access));
            };
            let is_writable = bit(words, start);
            at = next(words, start, run.end, !is_writable).unwrap_or(run.end);
            Some((start..at, if is_writable { Access::Write } else { Access::Read }))
        })
    }
}

impl Domain<'_> {
    /// A list over a reservation of this domain, counted with its other links: a reservation with linked pages is not
    /// freed. `linked` has a bit per 4096 bytes of it, all clear at first. The domain's devices are coherent and the
    /// IOMMU's page is 4096 bytes: CPU and device use the pages at once. Where rights differ from page to page, see
    /// [`PageList::with_writable`].
    ///
    /// # Errors
    /// [`DmaError::OtherDomain`], [`DmaError::Direct`], [`DmaError::NotCoherent`]; [`DmaError::PageSize`].
    pub fn page_list<'m>(
        &self,
        reservation: &'m Reservation,
        linked: &'m [AtomicU64],
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
        Ok(PageList { count: Some(&reservation.linked), ..list })
    }
}

fn bit(words: &[AtomicU64], page: u64) -> bool {
    words[(page / 64) as usize].load(Ordering::Relaxed) >> (page % 64) & 1 != 0
}

fn set(words: &[AtomicU64], pages: Range<u64>, value: bool) {
    let mut at = pages.start;
    while at < pages.end {
        let stop = ((at / 64 + 1) * 64).min(pages.end);
        let mask = (u64::MAX >> (64 - (stop - at))) << (at % 64);
        let word = &words[(at / 64) as usize];
        let old = word.load(Ordering::Relaxed);
        word.store(if value { old | mask } else { old & !mask }, Ordering::Relaxed);
        at = stop;
    }
}

/// The runs of a range whose bits are all `wanted`.
fn runs(words: &[AtomicU64], within: Range<u64>, wanted: bool) -> impl Iterator<Item = Range<u64>> + use<'_> {
    let mut at = within.start;
    let end = within.end;
    core::iter::from_fn(move || {
        let start = next(words, at, end, wanted)?;
        let stop = next(words, start, end, !wanted).unwrap_or(end);
        at = stop;
        Some(start..stop)
    })
}

/// The first page of `at..end` whose bit is `wanted`.
fn next(words: &[AtomicU64], at: u64, end: u64, wanted: bool) -> Option<u64> {
    let mut at = at;
    while at < end {
        let word = words[(at / 64) as usize].load(Ordering::Relaxed);
        let hits = (if wanted { word } else { !word }) >> (at % 64);
        if hits != 0 {
            let found = at + u64::from(hits.trailing_zeros());
            return (found < end).then_some(found);
        }
        at = (at / 64 + 1) * 64;
    }
    None
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
