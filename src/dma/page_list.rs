use core::ops::Range;

use super::DmaRange;
use crate::ports::{Iommu, IommuError};
use crate::sync::{AtomicU64, Ordering};
use crate::units::{Access, Iova, PAGE_SHIFT, PhysAddr};

/// Pages at fixed positions of one IOVA reservation, and which of them are linked: one bit per page, no address.
/// Whoever owns the list guards it with a lock of his.
#[derive(Clone, Copy, Debug)]
pub struct PageList<'m> {
    base: Iova,
    pages: u64,
    linked: &'m [AtomicU64],
}

impl<'m> PageList<'m> {
    /// A list of `pages` pages over a reservation that begins at `base`. `linked` has a bit per page, word 0 bit 0
    /// being page 0, and tells what is linked already. Asserts that it is long enough.
    pub fn new(base: Iova, pages: u64, linked: &'m [AtomicU64]) -> Self {
        assert!(linked.len() as u64 * 64 >= pages, "a bit per page");
        Self { base, pages, linked }
    }

    /// How many pages it has.
    pub fn pages(&self) -> u64 {
        self.pages
    }

    /// The DMA address of a page: its position.
    pub fn address(&self, page: u64) -> Iova {
        self.base + (page << PAGE_SHIFT)
    }

    /// The runs in `within` whose pages are all linked (or all not), ascending, as page positions, end exclusive.
    pub fn runs(&self, within: Range<u64>, linked: bool) -> impl Iterator<Item = Range<u64>> + 'm {
        let words = self.linked;
        let mut at = within.start;
        let end = within.end.min(self.pages);
        core::iter::from_fn(move || {
            let start = next(words, at, end, linked)?;
            let stop = next(words, start, end, !linked).unwrap_or(end);
            at = stop;
            Some(start..stop)
        })
    }

    /// Links the pages of a range that are not linked yet; page *i* of the list is at `phys + i * 4096`. All or
    /// nothing. Returns how many were linked by this call.
    ///
    /// # Errors
    /// What the IOMMU says; what this call had linked is unlinked again.
    pub fn link(
        &self,
        iommu: &dyn Iommu,
        pages: Range<u64>,
        phys: PhysAddr,
        access: Access,
    ) -> Result<u64, IommuError> {
        let mut done = 0;
        for run in self.runs(pages.clone(), false) {
            let bytes = (run.end - run.start) << PAGE_SHIFT;
            let from = phys + (run.start << PAGE_SHIFT);
            if let Err(error) = iommu.map(self.address(run.start), from, bytes, access) {
                // The runs before this one are those that are linked now and were not before: undo them by walking
                // again what was to be linked.
                self.undo(iommu, pages.start..run.start, done);
                return Err(error);
            }
            done += run.end - run.start;
        }
        self.set(pages, true);
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

    /// Unlinks what is linked in a range; flushes by run. Returns how many pages that were.
    pub fn unlink(&self, iommu: &dyn Iommu, pages: Range<u64>) -> u64 {
        let mut done = 0;
        for run in self.runs(pages.clone(), true) {
            let bytes = (run.end - run.start) << PAGE_SHIFT;
            iommu.unmap(self.address(run.start), bytes).expect("the bits say that it is linked");
            iommu.flush(self.address(run.start), bytes);
            done += run.end - run.start;
        }
        self.set(pages, false);
        done
    }

    /// The DMA ranges of everything that is linked, neighbours merged.
    pub fn dma_ranges(&self, access: Access) -> impl Iterator<Item = DmaRange> + 'm {
        let list = *self;
        let flags = if access == Access::Write { DmaRange::WRITABLE } else { 0 };
        self.runs(0..self.pages, true).flat_map(move |run| {
            DmaRange::of_run(list.address(run.start), (run.end - run.start) << PAGE_SHIFT, flags)
        })
    }

    fn set(&self, pages: Range<u64>, linked: bool) {
        let end = pages.end.min(self.pages);
        let mut at = pages.start;
        while at < end {
            let stop = ((at / 64 + 1) * 64).min(end);
            let mask = (u64::MAX >> (64 - (stop - at))) << (at % 64);
            let word = &self.linked[(at / 64) as usize];
            let old = word.load(Ordering::Relaxed);
            word.store(if linked { old | mask } else { old & !mask }, Ordering::Relaxed);
            at = stop;
        }
    }
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
        assert_eq!((ranges[1].addr, ranges[1].bytes), (Iova(0x10_0000 + 65 * 4096), 15 * 4096));
        assert_eq!(list.unlink(&iommu, 0..200), 29);
        assert!(iommu.mapped.lock().unwrap().is_empty());
    }

    #[test]
    fn long_runs_are_split_at_four_gib_less_a_page() {
        let bytes = 9 << 30;
        let parts: Vec<_> = DmaRange::of_run(Iova(0), bytes, 0).collect();
        assert_eq!(parts.iter().map(|part| u64::from(part.bytes)).sum::<u64>(), bytes);
        assert_eq!(parts.len(), 3);
        assert_eq!(parts[1].addr, Iova(DmaRange::MAX_BYTES));
    }
}
