use core::fmt;
use core::ops::{BitAnd, BitAndAssign, BitOr, BitOrAssign, Not, Range, Sub, SubAssign};

use bitvec::array::BitArray;
use bitvec::order::Lsb0;
use bitvec::slice::BitSlice;

use super::geometry::{MASK_WORDS, PAGES_PER_BLOCK};
use super::id::PageIndex;

/// A set of pages of one block: plain data, 64 bytes. Bit *i* is page *i*.
#[derive(Clone, Copy, PartialEq, Eq)]
pub struct PageMask(BitArray<[u64; MASK_WORDS], Lsb0>);

impl PageMask {
    /// No page.
    pub const EMPTY: Self = Self(BitArray { _ord: core::marker::PhantomData, data: [0; MASK_WORDS] });
    /// Every page of the block.
    pub const FULL: Self = Self(BitArray { _ord: core::marker::PhantomData, data: [u64::MAX; MASK_WORDS] });

    /// One page.
    pub fn of(page: PageIndex) -> Self {
        let mut mask = Self::EMPTY;
        mask.insert(page);
        mask
    }
    /// The pages of a range of positions, end exclusive. Asserts that the end is at most the block's pages.
    pub fn of_range(pages: Range<usize>) -> Self {
        assert!(pages.start <= pages.end && pages.end <= PAGES_PER_BLOCK, "pages of one block");
        let mut mask = Self::EMPTY;
        mask.0[pages].fill(true);
        mask
    }
    /// From raw words, bit 0 of word 0 being page 0.
    pub const fn from_words(words: [u64; MASK_WORDS]) -> Self {
        Self(BitArray { _ord: core::marker::PhantomData, data: words })
    }
    /// The raw words.
    pub const fn words(&self) -> &[u64; MASK_WORDS] {
        &self.0.data
    }
    /// Adds a page.
    pub fn insert(&mut self, page: PageIndex) {
        self.0.set(page.0 as usize, true);
    }
    /// Whether a page is in it.
    pub fn contains(&self, page: PageIndex) -> bool {
        self.0[page.0 as usize]
    }
    /// Whether it holds no page.
    pub fn is_empty(&self) -> bool {
        self.0.data == [0; MASK_WORDS]
    }
    /// Whether it holds every page of the block.
    pub fn is_full(&self) -> bool {
        self.0.data == [u64::MAX; MASK_WORDS]
    }
    /// How many pages it holds.
    pub fn count(&self) -> usize {
        self.0.data.iter().map(|word| word.count_ones() as usize).sum()
    }
    /// Whether the two share a page.
    pub fn intersects(&self, other: &Self) -> bool {
        self.0.data.iter().zip(&other.0.data).any(|(a, b)| a & b != 0)
    }
    /// Whether every page of `other` is in it.
    pub fn covers(&self, other: &Self) -> bool {
        self.0.data.iter().zip(&other.0.data).all(|(a, b)| b & !a == 0)
    }
    /// The lowest page, if any.
    pub fn first(&self) -> Option<PageIndex> {
        self.0.first_one().map(|page| PageIndex(page as u16))
    }
    /// Its pages in ascending order.
    pub fn pages(&self) -> impl Iterator<Item = PageIndex> + '_ {
        self.0.iter_ones().map(|page| PageIndex(page as u16))
    }
    /// Its maximal runs of neighbouring pages, ascending, as position ranges with exclusive end.
    pub fn runs(&self) -> Runs<'_> {
        Runs { bits: self.0.as_bitslice(), next: 0 }
    }
    /// The mask grown to whole aligned groups of `group` pages (a power of two): every group that holds one of
    /// its pages.
    pub fn widened_to(&self, group: usize) -> Self {
        assert!(group.is_power_of_two(), "groups of pages are powers of two");
        if group >= PAGES_PER_BLOCK {
            return if self.is_empty() { Self::EMPTY } else { Self::FULL };
        }
        let mut wide = Self::EMPTY;
        for run in self.runs() {
            let from = run.start & !(group - 1);
            wide.0[from..run.end.next_multiple_of(group)].fill(true);
        }
        wide
    }
    fn zip(mut self, other: &Self, op: impl Fn(u64, u64) -> u64) -> Self {
        for (word, with) in self.0.data.iter_mut().zip(&other.0.data) {
            *word = op(*word, *with);
        }
        self
    }
}

impl Default for PageMask {
    fn default() -> Self {
        Self::EMPTY
    }
}

impl BitAnd for PageMask {
    type Output = Self;
    fn bitand(self, other: Self) -> Self {
        self.zip(&other, |a, b| a & b)
    }
}
impl BitOr for PageMask {
    type Output = Self;
    fn bitor(self, other: Self) -> Self {
        self.zip(&other, |a, b| a | b)
    }
}
/// The pages of the left that are not in the right.
impl Sub for PageMask {
    type Output = Self;
    fn sub(self, other: Self) -> Self {
        self.zip(&other, |a, b| a & !b)
    }
}
impl Not for PageMask {
    type Output = Self;
    fn not(self) -> Self {
        Self::FULL - self
    }
}
impl BitAndAssign for PageMask {
    fn bitand_assign(&mut self, other: Self) {
        *self = *self & other;
    }
}
impl BitOrAssign for PageMask {
    fn bitor_assign(&mut self, other: Self) {
        *self = *self | other;
    }
}
impl SubAssign for PageMask {
    fn sub_assign(&mut self, other: Self) {
        *self = *self - other;
    }
}

impl fmt::Debug for PageMask {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_list().entries(self.runs()).finish()
    }
}

/// Iterator over the runs of a [`PageMask`].
#[derive(Clone, Debug)]
pub struct Runs<'a> {
    bits: &'a BitSlice<u64, Lsb0>,
    next: usize,
}

impl Iterator for Runs<'_> {
    type Item = Range<usize>;
    fn next(&mut self) -> Option<Range<usize>> {
        let start = self.next + self.bits[self.next..].first_one()?;
        let end = self.bits[start..].first_zero().map_or(self.bits.len(), |zero| start + zero);
        self.next = end;
        Some(start..end)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn runs_are_maximal_and_ascending() {
        let mask =
            PageMask::of_range(0..3) | PageMask::of_range(5..6) | PageMask::of_range(60..PAGES_PER_BLOCK);
        let runs: [Range<usize>; 3] = [0..3, 5..6, 60..PAGES_PER_BLOCK];
        assert!(mask.runs().eq(runs));
        assert_eq!(PageMask::EMPTY.runs().next(), None);
        assert!(PageMask::FULL.runs().eq([0..PAGES_PER_BLOCK]));
    }

    #[test]
    fn widening_covers_whole_groups_only() {
        let mask = PageMask::of(PageIndex(17)) | PageMask::of(PageIndex(47));
        assert_eq!(mask.widened_to(16), PageMask::of_range(16..48) - PageMask::of_range(32..32));
        assert_eq!(PageMask::of(PageIndex(17)).widened_to(16), PageMask::of_range(16..32));
        assert_eq!(mask.widened_to(1), mask);
        assert!(mask.widened_to(PAGES_PER_BLOCK).is_full());
    }
}
