use granule::units::{PAGES_PER_BLOCK, PageMask};

use super::super::{Demand, Prefetcher};

/// AMD's ranges (KFD): memory moves in ranges of 2^granularity pages, 2 MiB by default, within what is mapped. An unmap
/// in the middle of a range splits it, and from then on its parts move apart, also when the hole is mapped again.
#[derive(Clone, Debug)]
pub struct AmdRanges {
    pages: usize,
    /// For each block the positions at which a range begins because of an unmap.
    edges: Vec<PageMask>,
}

impl AmdRanges {
    /// With this granularity, log2 of pages; up to 9.
    pub fn new(granularity: u32) -> Self {
        Self { pages: (1 << granularity).min(PAGES_PER_BLOCK), edges: Vec::new() }
    }
}

impl Prefetcher for AmdRanges {
    fn widen(&mut self, demand: &Demand<'_>) -> PageMask {
        let Some(edges) = self.edges.get(demand.block as usize).filter(|edges| !edges.is_empty()) else {
            return demand.faulted.widened_to(self.pages);
        };
        let is_edge = |page: usize| edges.words()[page / 64] >> (page % 64) & 1 != 0;
        let mut wide = PageMask::EMPTY;
        for page in demand.faulted.pages() {
            let page = usize::from(page.0);
            let (first, end) = (page / self.pages * self.pages, (page / self.pages + 1) * self.pages);
            let start = (first..=page).rev().find(|at| is_edge(*at)).unwrap_or(first);
            let end = (page + 1..end).find(|at| is_edge(*at)).unwrap_or(end);
            wide.insert_range(start..end);
        }
        wide
    }

    fn unmapped(&mut self, block: u32, pages: &PageMask) {
        if block as usize >= self.edges.len() {
            self.edges.resize(block as usize + 1, PageMask::EMPTY);
        }
        let edges = &mut self.edges[block as usize];
        for run in pages.runs() {
            edges.insert_range(run.start..run.start + 1);
            if run.end < PAGES_PER_BLOCK {
                edges.insert_range(run.end..run.end + 1);
            }
        }
    }
}
