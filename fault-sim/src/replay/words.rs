//! The two hottest moves, word by word: most of a block's words have nothing to do with a fault, and the processors
//! that this program is built for count bits slowly.

use granule::units::{MASK_WORDS, PageMask};

use super::{Block, Rare};

/// What one service brought.
#[derive(Clone, Copy, Default, Debug)]
pub(super) struct Brought {
    pub fresh: PageMask,
    pub demand_pages: u64,
    pub demand_runs: u64,
    pub prefetch_pages: u64,
    pub prefetch_runs: u64,
    /// Of the demanded pages, those that were evicted the last time.
    pub returned_pages: u64,
}

/// One page. Made of whole words at once: a mask that is written bit by bit and then read as a whole keeps the processor
/// waiting until the bits have reached its cache.
#[inline(always)]
pub(super) fn one(page: usize) -> PageMask {
    let bit = 1 << (page % 64);
    PageMask::from_words(std::array::from_fn(|at| if at == page / 64 { bit } else { 0 }))
}

#[inline(always)]
fn ones(word: u64) -> u64 {
    if word == 0 { 0 } else { u64::from(word.count_ones()) }
}

/// Enters pages as resident: those that faulted, and of `wide` those that were not there. Contents, links and
/// duplicates are the caller's.
#[inline(always)]
pub(super) fn bring(state: &mut Block, faulted: &PageMask, wide: &PageMask) -> Brought {
    let mut done = Brought::default();
    let (mut demand_before, mut ahead_before) = (0, 0);
    for at in 0..MASK_WORDS {
        let asked = faulted.words()[at];
        let more = wide.words()[at];
        let resident = &mut state.resident.words_mut()[at];
        let demand = asked & !*resident;
        let ahead = more & !asked & !*resident;
        let fresh = demand | ahead;
        if fresh != 0 {
            *resident |= fresh;
            let marked = &mut state.marked.words_mut()[at];
            done.returned_pages += ones(demand & *marked);
            *marked = *marked & !fresh | ahead;
            done.fresh.words_mut()[at] = fresh;
            done.demand_pages += ones(demand);
            done.demand_runs += ones(demand & !(demand << 1 | demand_before));
            done.prefetch_pages += ones(ahead);
            done.prefetch_runs += ones(ahead & !(ahead << 1 | ahead_before));
        }
        (demand_before, ahead_before) = (demand >> 63, ahead >> 63);
    }
    done
}

/// What left.
#[derive(Clone, Copy, Default, Debug)]
pub(super) struct Left {
    /// All of it.
    pub pages: u64,
    /// Contiguous runs of what has to be copied, and its pages.
    pub copy_runs: u64,
    pub copy_pages: u64,
    /// Prefetched, and never touched.
    pub unused_pages: u64,
    /// Written.
    pub dirty_pages: u64,
}

/// Enters that resident pages are not on the device any more, and whether that was an eviction.
#[inline(always)]
pub(super) fn leave(state: &mut Block, rare: &mut Rare, pages: &PageMask, evicted: bool) -> Left {
    let mut done = Left::default();
    let mut before = 0;
    let mut still_dirty = 0;
    for at in 0..MASK_WORDS {
        let word = pages.words()[at];
        let mut copied = word;
        if word != 0 {
            state.resident.words_mut()[at] &= !word;
            let marked = &mut state.marked.words_mut()[at];
            done.unused_pages += ones(word & *marked);
            *marked = *marked & !word | if evicted { word } else { 0 };
            if state.some_shared {
                let duplicated = &mut rare.duplicated.words_mut()[at];
                copied &= !*duplicated;
                *duplicated &= !word;
            }
            if state.some_dirty {
                let dirty = &mut rare.dirty.words_mut()[at];
                done.dirty_pages += ones(word & *dirty);
                *dirty &= !word;
            }
            done.pages += ones(word);
            done.copy_pages += ones(copied);
            done.copy_runs += ones(copied & !(copied << 1 | before));
        }
        if state.some_dirty {
            still_dirty |= rare.dirty.words()[at];
        }
        before = copied >> 63;
    }
    state.some_dirty = still_dirty != 0;
    done
}
