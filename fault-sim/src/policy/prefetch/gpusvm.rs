use granule::units::{PAGES_PER_BLOCK, PAGES_PER_SLOT_64K, PageMask};

use super::super::{Demand, Prefetcher};

/// Intel's chunk choice (drm_gpusvm as xe uses it): of 2 MiB, 64 KiB and 4 KiB the largest aligned chunk around the
/// fault that fits into the mapping and overlaps no range that exists; of chunks up to 64 KiB only one whose pages all
/// have contents. The chunk becomes a range and stays one: it moves as a whole, both ways, until part of it is unmapped,
/// which destroys all of it.
#[derive(Clone, Debug, Default)]
pub struct GpusvmChunks {
    ranges: Vec<Ranges>,
}

/// The ranges of one block: the pages of ranges of each size.
#[derive(Clone, Copy, Default, Debug)]
struct Ranges {
    whole: bool,
    mid: PageMask,
    small: PageMask,
}

/// Chunks up to this size are made only of pages that have contents, on devices with memory of their own.
const CHECKED_PAGES: usize = PAGES_PER_SLOT_64K;

impl GpusvmChunks {
    fn ranges(&mut self, block: u32) -> &mut Ranges {
        if block as usize >= self.ranges.len() {
            self.ranges.resize(block as usize + 1, Ranges::default());
        }
        &mut self.ranges[block as usize]
    }
}

impl Ranges {
    /// The range that holds a page; a new one if none does.
    fn around(&mut self, page: usize, region: &PageMask, exists: &PageMask) -> PageMask {
        let unit = |pages: usize| {
            let first = page / pages * pages;
            PageMask::of_range(first..first + pages)
        };
        let (mid, small) = (unit(PAGES_PER_SLOT_64K), unit(1));
        if self.whole {
            return PageMask::FULL;
        }
        if self.small.covers(&small) {
            return small;
        }
        if self.mid.covers(&small) {
            return mid;
        }
        let fits = |chunk: &PageMask| region.covers(chunk);
        if region.is_full() && self.mid.is_empty() && self.small.is_empty() {
            self.whole = true;
            return PageMask::FULL;
        }
        let checked = PAGES_PER_SLOT_64K > CHECKED_PAGES || exists.covers(&mid);
        if fits(&mid) && !mid.intersects(&self.small) && checked {
            self.mid |= mid;
            return mid;
        }
        self.small |= small;
        small
    }
}

impl Prefetcher for GpusvmChunks {
    fn widen(&mut self, demand: &Demand<'_>) -> PageMask {
        let region = PageMask::of_range(demand.region.clone());
        let exists = *demand.exists;
        let ranges = self.ranges(demand.block);
        let mut wide = PageMask::EMPTY;
        for page in demand.faulted.pages() {
            wide |= ranges.around(page.0.into(), &region, &exists);
        }
        wide
    }

    fn unmapped(&mut self, block: u32, pages: &PageMask) {
        let Some(ranges) = self.ranges.get_mut(block as usize) else { return };
        ranges.whole = false;
        ranges.small -= *pages;
        for first in (0..PAGES_PER_BLOCK).step_by(PAGES_PER_SLOT_64K) {
            let mid = PageMask::of_range(first..first + PAGES_PER_SLOT_64K);
            if mid.intersects(pages) {
                ranges.mid -= mid;
            }
        }
    }
}
