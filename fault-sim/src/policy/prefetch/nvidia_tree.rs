use std::ops::Range;

use granule::units::{MASK_WORDS, PAGES_PER_BLOCK, PAGES_PER_SLOT_64K, PageMask};

use super::super::{Demand, Prefetcher};
use crate::processor;
use crate::replay::Proc;

/// The driver's parameters, with its defaults.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct TreeOptions {
    /// `uvm_perf_prefetch_threshold`: percent of a subtree that has to be there or asked for; more is needed, not as
    /// much. Above 100 the driver takes 51.
    pub threshold: u32,
    /// `uvm_perf_prefetch_min_faults`.
    pub min_faults: u32,
}

impl Default for TreeOptions {
    fn default() -> Self {
        Self { threshold: 51, min_faults: 1 }
    }
}

/// NVIDIA's tree prefetcher: the largest aligned subtree around a fault of which more than 51 percent is there or asked
/// for, where 64 KiB with a fault count as asked for whole.
#[derive(Clone, Debug)]
pub struct NvidiaTree {
    options: TreeOptions,
    /// Per block: where pages went last, and how many faults took them there. Used only where `min_faults` is above 1.
    last: Vec<(Option<Proc>, u16)>,
}

impl NvidiaTree {
    /// With these parameters.
    pub fn new(options: TreeOptions) -> Self {
        let threshold = if options.threshold > 100 { 51 } else { options.threshold };
        Self { options: TreeOptions { threshold, ..options }, last: Vec::new() }
    }

    /// Counts faults towards a destination; whether they are enough to prefetch.
    fn enough_faults(&mut self, demand: &Demand<'_>) -> bool {
        if self.options.min_faults <= 1 {
            return true;
        }
        let block = demand.block as usize;
        if block >= self.last.len() {
            self.last.resize(block + 1, (None, 0));
        }
        let (to, faults) = &mut self.last[block];
        if *to != Some(demand.to) {
            (*to, *faults) = (Some(demand.to), 0);
        }
        *faults = faults.wrapping_add(demand.faulted.count() as u16);
        u32::from(*faults) >= self.options.min_faults
    }
}

impl Prefetcher for NvidiaTree {
    fn widen(&mut self, demand: &Demand<'_>) -> PageMask {
        processor::fast(Widening { tree: self, demand })
    }
}

/// One question to the tree.
struct Widening<'a, 'b> {
    tree: &'a mut NvidiaTree,
    demand: &'a Demand<'b>,
}

impl processor::Work for Widening<'_, '_> {
    type Found = PageMask;
    #[inline(always)]
    fn run(self) -> PageMask {
        self.tree.candidate(self.demand)
    }
}

impl NvidiaTree {
    #[inline(always)]
    fn candidate(&mut self, demand: &Demand<'_>) -> PageMask {
        if !demand.one_destination {
            return PageMask::EMPTY;
        }
        let enough = self.enough_faults(demand);
        let all = if demand.preferred == Some(demand.to) && demand.exists.is_empty() {
            PageMask::of_range(demand.region.clone()) - *demand.faulted
        } else if demand.preferred.is_none_or(|preferred| preferred == demand.to) {
            self.tree(demand)
        } else {
            PageMask::EMPTY
        };
        let mut candidate = all;
        if let Some(thrashing) = demand.thrashing {
            candidate -= *thrashing;
        }
        if enough { candidate } else { PageMask::EMPTY }
    }

    #[inline(always)]
    fn tree(&self, demand: &Demand<'_>) -> PageMask {
        let none = PageMask::EMPTY;
        let thrashing = demand.thrashing.unwrap_or(&none);
        let first = demand.region.start;
        let threshold = self.options.threshold;
        if first == 0 {
            let pages = demand.region.end;
            return tree_hint(demand.faulted, demand.resident, thrashing, pages, 0, threshold);
        }
        // The driver's block begins where the mapping does; its pages are counted from there.
        let down = |mask: &PageMask| shifted_down(mask, first);
        let (faulted, resident, thrashing) = (down(demand.faulted), down(demand.resident), down(thrashing));
        let pages = demand.region.len();
        let misaligned = first % PAGES_PER_SLOT_64K;
        shifted_up(&tree_hint(&faulted, &resident, &thrashing, pages, misaligned, threshold), first)
    }
}

/// What one service prefetches: steps 4 to 7 of the driver, quirks included, without what faulted. Pages are counted from the block's first
/// one, of `pages`; `misaligned` says how many pages that one lies behind a multiple of 64 KiB.
#[inline(always)]
pub fn tree_hint(
    faulted: &PageMask,
    resident: &PageMask,
    thrashing: &PageMask,
    pages: usize,
    misaligned: usize,
    threshold: u32,
) -> PageMask {
    let group = PAGES_PER_SLOT_64K;
    let prefix = if misaligned == 0 { 0 } else { group - misaligned };
    // The largest span aligned to 64 KiB; without one nothing is padded and the whole region is one segment.
    let aligned_end = prefix + pages.saturating_sub(prefix) / group * group;
    let has_aligned = aligned_end > prefix;
    let offset = if has_aligned && prefix > 0 { group - prefix } else { 0 };
    let grown = if !has_aligned {
        grow(faulted, thrashing, 0..pages)
    } else if offset == 0 && aligned_end == pages {
        grow_groups(faulted, thrashing)
    } else {
        let mut grown = grow(faulted, thrashing, 0..prefix);
        for at in (prefix..aligned_end).step_by(group) {
            grown |= grow(faulted, thrashing, at..at + group);
        }
        grown | grow(faulted, thrashing, aligned_end..pages)
    };
    // Pages are at most 512 and the offset at most 15, but a block that is padded is short by at least as much.
    let tree = shifted_up(&(*resident | *faulted | grown), offset);
    let leaves = pages + offset;
    let counts = Counts::new(&tree);
    let wanted = *faulted - *thrashing;
    let mut candidate = PageMask::EMPTY;
    let mut found = 0..0;
    for page in ones(&wanted) {
        if found.contains(&page) {
            continue; // The same subtree again: what is inside of it has no larger one that passes.
        }
        let Some(leaves) = largest(&counts, page + offset, leaves, threshold) else { continue };
        // A subtree that begins in the padding is clipped to the page `offset`, not to the first one.
        let back = |leaf: usize| if leaf < offset { offset } else { (leaf - offset).min(pages) };
        let region = back(leaves.start)..back(leaves.end);
        candidate |= range(region.clone()) - *faulted;
        let ends = region.end == pages;
        found = region;
        if ends {
            break;
        }
    }
    candidate
}

/// The leaves of the largest subtree around a leaf of which more than the threshold is set, if any is.
#[inline(always)]
fn largest(counts: &Counts, leaf: usize, leaves: usize, threshold: u32) -> Option<Range<usize>> {
    let mut size = leaves.next_power_of_two();
    // All that is set is not enough for the larger ones.
    while size > PAGES_PER_SLOT_64K && size <= leaves && counts.all() * 100 <= size as u32 * threshold {
        size /= 2;
    }
    while size > 0 {
        let start = leaf & !(size - 1);
        let end = (start + size).min(leaves);
        if counts.between(start, end) * 100 > ((end - start) as u32) * threshold {
            return Some(start..end);
        }
        size /= 2;
    }
    None
}

/// A range of pages, made of whole words at once: a mask that is written word by word and then read as a whole keeps the
/// processor waiting until the words have reached its cache.
#[inline(always)]
fn range(pages: Range<usize>) -> PageMask {
    let below = |end: usize, at: usize| match end.saturating_sub(at * 64) {
        bits @ 0..64 => (1 << bits) - 1,
        _ => u64::MAX,
    };
    PageMask::from_words(std::array::from_fn(|at| below(pages.end, at) & !below(pages.start, at)))
}

/// How many leaves are set before each word, for counts of ranges.
struct Counts<'a> {
    words: &'a [u64; MASK_WORDS],
    before: [u32; MASK_WORDS + 1],
}

impl<'a> Counts<'a> {
    #[inline(always)]
    fn new(mask: &'a PageMask) -> Self {
        let words = mask.words();
        let mut before = [0; MASK_WORDS + 1];
        for at in 0..MASK_WORDS {
            let here = if words[at] == 0 { 0 } else { words[at].count_ones() };
            before[at + 1] = before[at] + here;
        }
        Self { words, before }
    }

    #[inline(always)]
    fn all(&self) -> u32 {
        self.before[MASK_WORDS]
    }

    #[inline(always)]
    fn up_to(&self, leaf: usize) -> u32 {
        let (word, bit) = (leaf / 64, leaf % 64);
        if bit == 0 {
            return self.before[word];
        }
        self.before[word] + (self.words[word] & ((1 << bit) - 1)).count_ones()
    }

    #[inline(always)]
    fn between(&self, start: usize, end: usize) -> u32 {
        if start / 64 == (end - 1) / 64 && end - start < 64 {
            let word = self.words[start / 64] >> (start % 64) & ((1 << (end - start)) - 1);
            return word.count_ones();
        }
        self.up_to(end) - self.up_to(start)
    }
}

/// A segment whole, if it has a fault and does not thrash.
#[inline(always)]
fn grow(faulted: &PageMask, thrashing: &PageMask, segment: Range<usize>) -> PageMask {
    let all = PageMask::of_range(segment);
    if all.intersects(faulted) && !all.intersects(thrashing) { all } else { PageMask::EMPTY }
}

/// Every aligned 64 KiB that has a fault and does not thrash.
#[inline(always)]
fn grow_groups(faulted: &PageMask, thrashing: &PageMask) -> PageMask {
    let (faulted, thrashing) = (faulted.words(), thrashing.words());
    PageMask::from_words(std::array::from_fn(|at| spread(faulted[at]) & !spread(thrashing[at])))
}

/// Every 16 bits with a bit set become all set.
#[inline(always)]
fn spread(word: u64) -> u64 {
    const LOW: u64 = 0x7fff_7fff_7fff_7fff;
    let set = (((word & LOW) + LOW) | word) & !LOW;
    (set >> 15) * 0xffff
}

/// The positions of the pages of a mask.
#[inline(always)]
fn ones(mask: &PageMask) -> impl Iterator<Item = usize> + '_ {
    mask.words().iter().enumerate().flat_map(|(at, word)| {
        let mut left = *word;
        std::iter::from_fn(move || {
            let bit = left.trailing_zeros() as usize;
            (left != 0).then(|| {
                left &= left - 1;
                at * 64 + bit
            })
        })
    })
}

/// Page `i` becomes page `i - by`; those below are lost.
fn shifted_down(mask: &PageMask, by: usize) -> PageMask {
    let mut shifted = PageMask::EMPTY;
    for run in mask.runs() {
        shifted.insert_range(run.start.saturating_sub(by)..run.end.saturating_sub(by));
    }
    shifted
}

/// Page `i` becomes page `i + by`; those that would lie behind the end are lost.
fn shifted_up(mask: &PageMask, by: usize) -> PageMask {
    if by == 0 {
        return *mask;
    }
    let mut shifted = PageMask::EMPTY;
    for run in mask.runs() {
        shifted.insert_range((run.start + by).min(PAGES_PER_BLOCK)..(run.end + by).min(PAGES_PER_BLOCK));
    }
    shifted
}

#[cfg(test)]
mod tests {
    use super::*;
    use granule::units::PageIndex;

    fn mask(pages: &[usize]) -> PageMask {
        pages.iter().fold(PageMask::EMPTY, |all, page| all | PageMask::of(PageIndex(*page as u16)))
    }

    fn runs<const N: usize>(ranges: [Range<usize>; N]) -> PageMask {
        ranges.into_iter().fold(PageMask::EMPTY, |all, range| all | PageMask::of_range(range))
    }

    fn one(range: Range<usize>) -> PageMask {
        runs([range, 0..0])
    }

    /// What is prefetched: the candidate without the faults and without what thrashes.
    fn hint(
        faults: &[usize],
        resident: PageMask,
        thrashing: &[usize],
        pages: usize,
        misaligned: usize,
    ) -> PageMask {
        let (faults, thrashing) = (mask(faults), mask(thrashing));
        tree_hint(&faults, &resident, &thrashing, pages, misaligned, 51) - faults - thrashing
    }

    #[test]
    fn vectors_of_an_aligned_block() {
        let none = PageMask::EMPTY;
        let plain = |faults: &[usize]| hint(faults, none, &[], 512, 0);
        assert_eq!(plain(&[0]), one(1..16));
        assert_eq!(plain(&[0, 16]), runs([1..16, 17..32]));
        assert_eq!(plain(&[0, 32]), runs([1..16, 33..48]));
        assert_eq!(plain(&[0, 16, 32]), runs([1..16, 17..32, 33..64]));
        let nine: Vec<_> = (0..9).map(|at| at * 16).collect();
        assert_eq!(plain(&nine), one(0..256) - mask(&nine));
        assert_eq!(hint(&[300], one(0..256), &[], 512, 0), runs([0..300, 301..512]));
        assert_eq!(hint(&[250], one(0..240), &[], 512, 0), runs([0..250, 251..256]));
    }

    #[test]
    fn vectors_with_thrashing_pages() {
        assert_eq!(hint(&[3], PageMask::EMPTY, &[5], 512, 0), PageMask::EMPTY);
        assert_eq!(hint(&[3, 20], PageMask::EMPTY, &[3], 512, 0), runs([0..3, 4..20, 21..32]));
    }

    #[test]
    fn vectors_of_small_and_misaligned_blocks() {
        let none = PageMask::EMPTY;
        assert_eq!(hint(&[2], none, &[], 7, 0), runs([0..2, 3..7]));
        // The quirk: leading pages of a misaligned block are left out.
        assert_eq!(hint(&[0], none, &[], 100, 5), one(5..11));
        assert_eq!(hint(&[12], none, &[], 100, 5), runs([11..12, 13..27]));
    }

    #[test]
    fn a_stream_through_a_block_is_six_faults() {
        let mut resident = PageMask::EMPTY;
        let mut sizes = Vec::new();
        for page in 0..512 {
            if resident.contains(PageIndex(page as u16)) {
                continue;
            }
            let more = hint(&[page], resident, &[], 512, 0) - resident;
            sizes.push(more.count() * 4);
            resident |= more | mask(&[page]);
        }
        assert_eq!(sizes, [60, 60, 124, 252, 508, 1020]);
        assert!(resident.is_full());
    }
}
