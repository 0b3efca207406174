//! Bits of pages in words, and the runs that they make.

use core::ops::Range;

use crate::sync::{LockedU64, Ordering};
use crate::units::Iova;

/// How many runs a flush names at most.
const FLUSHED: usize = 16;

/// What one flush is told: runs of IOVAs. What does not fit is covered by the last of them: a flush of more costs
/// translations that are looked up again, and nothing else.
pub(super) struct Hulls {
    runs: [(Iova, u64); FLUSHED],
    used: usize,
}

impl Hulls {
    pub(super) const fn new() -> Self {
        Self { runs: [(Iova(0), 0); FLUSHED], used: 0 }
    }

    /// Adds a run behind the others.
    pub(super) fn push(&mut self, at: Iova, bytes: u64) {
        if self.used == FLUSHED {
            let last = &mut self.runs[FLUSHED - 1];
            let (first, end) = (last.0.min(at), (last.0.0 + last.1).max(at.0 + bytes));
            *last = (first, end - first.0);
            return;
        }
        self.runs[self.used] = (at, bytes);
        self.used += 1;
    }

    pub(super) fn runs(&self) -> &[(Iova, u64)] {
        &self.runs[..self.used]
    }
}

pub(super) fn bit(words: &[LockedU64], page: u64) -> bool {
    words[(page / 64) as usize].load(Ordering::Relaxed) >> (page % 64) & 1 != 0
}

pub(super) fn set(words: &[LockedU64], pages: Range<u64>, value: bool) {
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
pub(super) fn runs(
    words: &[LockedU64],
    within: Range<u64>,
    wanted: bool,
) -> impl Iterator<Item = Range<u64>> + use<'_> {
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
pub(super) fn next(words: &[LockedU64], at: u64, end: u64, wanted: bool) -> Option<u64> {
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
