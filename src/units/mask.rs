use core::fmt;
use core::ops::{BitAnd, BitAndAssign, BitOr, BitOrAssign, Not, Range, Sub, SubAssign};

use bitvec::array::BitArray;
use bitvec::order::Lsb0;

use super::geometry::{MASK_WORDS, PAGES_PER_BLOCK};
use super::id::PageIndex;

/// A set of pages of one block: plain data, 64 bytes. Bit *i* is page *i*.
///
/// What the fault path does for every fault (ranges, runs, set operations) works on whole words; iterating over single
/// pages is bitvec's.
#[derive(Clone, Copy)]
pub struct PageMask(BitArray<[u64; MASK_WORDS], Lsb0>);

const WORD_BITS: usize = u64::BITS as usize;

/// Bits `from..to` of a word. `from < to <= 64`.
const fn bits(from: usize, to: usize) -> u64 {
    (u64::MAX >> (WORD_BITS - (to - from))) << from
}

impl PageMask {
    /// No page.
    pub const EMPTY: Self = Self::from_words([0; MASK_WORDS]);
    /// Every page of the block.
    pub const FULL: Self = Self::from_words([u64::MAX; MASK_WORDS]);

    /// One page.
    #[inline]
    pub fn of(page: PageIndex) -> Self {
        let mut mask = Self::EMPTY;
        mask.insert(page);
        mask
    }
    /// The pages of a range of positions, end exclusive. Asserts that the end is at most the block's pages.
    #[inline]
    pub fn of_range(pages: Range<usize>) -> Self {
        let mut mask = Self::EMPTY;
        mask.insert_range(pages);
        mask
    }
    /// Adds a range of positions, as in [`PageMask::of_range`].
    #[inline]
    pub fn insert_range(&mut self, pages: Range<usize>) {
        assert!(pages.start <= pages.end && pages.end <= PAGES_PER_BLOCK, "pages of one block");
        let mut at = pages.start;
        while at < pages.end {
            let word = at / WORD_BITS;
            let end = pages.end.min((word + 1) * WORD_BITS);
            self.0.data[word] |= bits(at % WORD_BITS, end - word * WORD_BITS);
            at = end;
        }
    }
    /// From raw words, bit 0 of word 0 being page 0.
    pub const fn from_words(words: [u64; MASK_WORDS]) -> Self {
        Self(BitArray { _ord: core::marker::PhantomData, data: words })
    }
    /// The raw words.
    #[inline]
    pub const fn words(&self) -> &[u64; MASK_WORDS] {
        &self.0.data
    }
    /// The raw words, to change.
    #[inline]
    pub const fn words_mut(&mut self) -> &mut [u64; MASK_WORDS] {
        &mut self.0.data
    }
    /// Adds a page.
    #[inline]
    pub fn insert(&mut self, page: PageIndex) {
        self.0.data[page.0 as usize / WORD_BITS] |= 1 << (page.0 as usize % WORD_BITS);
    }
    /// Whether a page is in it.
    #[inline]
    pub fn contains(&self, page: PageIndex) -> bool {
        self.0.data[page.0 as usize / WORD_BITS] >> (page.0 as usize % WORD_BITS) & 1 != 0
    }
    /// Whether it holds no page.
    #[inline]
    pub fn is_empty(&self) -> bool {
        self.0.data.iter().fold(0, |all, word| all | word) == 0
    }
    /// Whether it holds every page of the block.
    #[inline]
    pub fn is_full(&self) -> bool {
        self.0.data.iter().fold(u64::MAX, |all, word| all & word) == u64::MAX
    }
    /// How many pages it holds.
    #[inline]
    pub fn count(&self) -> usize {
        self.0.data.iter().map(|word| word.count_ones() as usize).sum()
    }
    /// Whether the two share a page.
    #[inline]
    pub fn intersects(&self, other: &Self) -> bool {
        self.0.data.iter().zip(&other.0.data).fold(0, |all, (a, b)| all | (a & b)) != 0
    }
    /// Whether every page of `other` is in it.
    #[inline]
    pub fn covers(&self, other: &Self) -> bool {
        self.0.data.iter().zip(&other.0.data).fold(0, |all, (a, b)| all | (b & !a)) == 0
    }
    /// The lowest page, if any.
    #[inline]
    pub fn first(&self) -> Option<PageIndex> {
        let word = self.0.data.iter().position(|word| *word != 0)?;
        Some(PageIndex((word * WORD_BITS) as u16 + self.0.data[word].trailing_zeros() as u16))
    }
    /// Its pages in ascending order.
    pub fn pages(&self) -> impl Iterator<Item = PageIndex> + '_ {
        self.0.iter_ones().map(|page| PageIndex(page as u16))
    }
    /// Its maximal runs of neighbouring pages, ascending, as position ranges with exclusive end.
    #[inline]
    pub fn runs(&self) -> Runs<'_> {
        Runs { words: &self.0.data, next: 0 }
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
            wide.insert_range(run.start & !(group - 1)..run.end.next_multiple_of(group));
        }
        wide
    }
    #[inline]
    fn zip(mut self, other: &Self, op: impl Fn(u64, u64) -> u64) -> Self {
        for (word, with) in self.0.data.iter_mut().zip(&other.0.data) {
            *word = op(*word, *with);
        }
        self
    }
}

impl PartialEq for PageMask {
    #[inline]
    fn eq(&self, other: &Self) -> bool {
        self.0.data.iter().zip(&other.0.data).fold(0, |all, (a, b)| all | (a ^ b)) == 0
    }
}

impl Eq for PageMask {}

impl Default for PageMask {
    fn default() -> Self {
        Self::EMPTY
    }
}

impl BitAnd for PageMask {
    type Output = Self;
    #[inline]
    fn bitand(self, other: Self) -> Self {
        self.zip(&other, |a, b| a & b)
    }
}
impl BitOr for PageMask {
    type Output = Self;
    #[inline]
    fn bitor(self, other: Self) -> Self {
        self.zip(&other, |a, b| a | b)
    }
}
/// The pages of the left that are not in the right.
impl Sub for PageMask {
    type Output = Self;
    #[inline]
    fn sub(self, other: Self) -> Self {
        self.zip(&other, |a, b| a & !b)
    }
}
impl Not for PageMask {
    type Output = Self;
    #[inline]
    fn not(self) -> Self {
        Self::FULL - self
    }
}
impl BitAndAssign for PageMask {
    #[inline]
    fn bitand_assign(&mut self, other: Self) {
        *self = *self & other;
    }
}
impl BitOrAssign for PageMask {
    #[inline]
    fn bitor_assign(&mut self, other: Self) {
        *self = *self | other;
    }
}
impl SubAssign for PageMask {
    #[inline]
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
    words: &'a [u64; MASK_WORDS],
    next: usize,
}

impl Runs<'_> {
    /// The first position from `from` on whose bit is set (or, with `inverted`, clear); the end of the block if none.
    #[inline]
    fn next_bit(&self, from: usize, inverted: bool) -> usize {
        let flip = if inverted { u64::MAX } else { 0 };
        let mut word = from / WORD_BITS;
        if word >= MASK_WORDS {
            return PAGES_PER_BLOCK;
        }
        let mut left = (self.words[word] ^ flip) & (u64::MAX << (from % WORD_BITS));
        while left == 0 {
            word += 1;
            if word == MASK_WORDS {
                return PAGES_PER_BLOCK;
            }
            left = self.words[word] ^ flip;
        }
        word * WORD_BITS + left.trailing_zeros() as usize
    }
}

impl Iterator for Runs<'_> {
    type Item = Range<usize>;
    #[inline]
    fn next(&mut self) -> Option<Range<usize>> {
        let start = self.next_bit(self.next, false);
        if start == PAGES_PER_BLOCK {
            return None;
        }
        self.next = self.next_bit(start, true);
        Some(start..self.next)
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
        assert!(PageMask::FULL.runs().eq(core::iter::once(0..PAGES_PER_BLOCK)));
    }

    #[test]
    fn ranges_across_words_hold_exactly_their_pages() {
        let all = PAGES_PER_BLOCK;
        for (start, end) in [(0, 0), (0, 1), (0, 64), (3, 61), (60, 64), (0, all), (63, all), (all, all)] {
            let mask = PageMask::of_range(start..end);
            assert_eq!(mask.count(), end - start, "{start}..{end}");
            assert!(mask.pages().map(|page| page.0 as usize).eq(start..end));
            assert!(mask.runs().eq((start < end).then_some(start..end)));
            let holds = |at: usize| mask.contains(PageIndex(at as u16)) == (start..end).contains(&at);
            assert!((0..all).all(holds));
        }
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
