//! A set of page ranges in private memory: sorted, disjoint, never adjacent, of fixed capacity.
//!
//! Used under the lock of whoever owns it; the cells are atomic only so that a shared reference suffices.

use core::sync::atomic::{AtomicU64, Ordering};

use super::private::{PrivateError, Slab};
use crate::units::{VirtAddr, VirtRange};

/// The set has no room for one more range.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct Full;

#[derive(Debug)]
pub(crate) struct RangeSet {
    /// `[start, end]` of range *i* at `2 * i` and `2 * i + 1`.
    ends: Slab<AtomicU64>,
    count: AtomicU64,
}

impl RangeSet {
    pub(crate) fn new(capacity: usize) -> Result<Self, PrivateError> {
        Ok(Self { ends: Slab::new(capacity * 2)?, count: AtomicU64::new(0) })
    }

    pub(crate) fn len(&self) -> usize {
        self.count.load(Ordering::Relaxed) as usize
    }

    pub(crate) fn get(&self, index: usize) -> VirtRange {
        let end = |at: usize| VirtAddr(self.ends[at].load(Ordering::Relaxed));
        VirtRange::between(end(index * 2), end(index * 2 + 1))
    }

    fn set(&self, index: usize, start: u64, end: u64) {
        self.ends[index * 2].store(start, Ordering::Relaxed);
        self.ends[index * 2 + 1].store(end, Ordering::Relaxed);
    }

    /// Index of the first range that ends behind `at`.
    fn first_behind(&self, at: u64) -> usize {
        let (mut low, mut high) = (0, self.len());
        while low < high {
            let middle = (low + high) / 2;
            if self.get(middle).end().0 <= at { low = middle + 1 } else { high = middle }
        }
        low
    }

    /// Replaces `old` neighbouring ranges from `index` on by the given ones, shifting what follows.
    fn splice(&self, index: usize, old: usize, new: &[(u64, u64)]) -> Result<(), Full> {
        let (len, after) = (self.len(), index + old);
        let new_len = len - old + new.len();
        if new_len * 2 > self.ends.len() {
            return Err(Full);
        }
        let copy = |from: usize, to: usize| {
            let range = self.get(from);
            self.set(to, range.start().0, range.end().0);
        };
        if new.len() > old {
            (after..len).rev().for_each(|at| copy(at, at + new.len() - old));
        } else if new.len() < old {
            (after..len).for_each(|at| copy(at, at + new.len() - old));
        }
        for (at, &(start, end)) in new.iter().enumerate() {
            self.set(index + at, start, end);
        }
        self.count.store(new_len as u64, Ordering::Relaxed);
        Ok(())
    }

    /// Adds a range, joining what it touches.
    pub(crate) fn insert(&self, range: VirtRange) -> Result<(), Full> {
        if range.is_empty() {
            return Ok(());
        }
        let (mut start, mut end) = (range.start().0, range.end().0);
        let first = self.first_behind(start.saturating_sub(1));
        let mut last = first;
        while last < self.len() && self.get(last).start().0 <= end {
            start = start.min(self.get(last).start().0);
            end = end.max(self.get(last).end().0);
            last += 1;
        }
        self.splice(first, last - first, &[(start, end)])
    }

    /// Takes a range out. Needs room only if it cuts a range in two; then `Full` leaves the set as it was.
    pub(crate) fn remove(&self, range: VirtRange) -> Result<(), Full> {
        let (start, end) = (range.start().0, range.end().0);
        let first = self.first_behind(start);
        let mut last = first;
        let (mut kept, mut count) = ([(0, 0); 2], 0);
        while last < self.len() && self.get(last).start().0 < end {
            let hit = self.get(last);
            for part in [(hit.start().0, start.min(hit.end().0)), (end.max(hit.start().0), hit.end().0)] {
                if part.0 < part.1 {
                    kept[count] = part;
                    count += 1;
                }
            }
            last += 1;
        }
        self.splice(first, last - first, &kept[..count])
    }

    /// Calls `each` with the parts of `range` that are in the set, ascending.
    pub(crate) fn for_each_in(&self, range: VirtRange, mut each: impl FnMut(VirtRange)) {
        let mut index = self.first_behind(range.start().0);
        while index < self.len() && self.get(index).start() < range.end() {
            each(self.get(index).intersection(range));
            index += 1;
        }
    }

    /// The first part of `range` that is not in the set.
    pub(crate) fn first_gap(&self, range: VirtRange) -> Option<VirtRange> {
        let mut from = range.start();
        let mut index = self.first_behind(from.0);
        while from < range.end() {
            let next = (index < self.len()).then(|| self.get(index));
            match next {
                Some(next) if next.start() <= from => from = next.end(),
                Some(next) if next.start() < range.end() => {
                    return Some(VirtRange::between(from, next.start()));
                }
                _ => return Some(VirtRange::between(from, range.end())),
            }
            index += 1;
        }
        None
    }

    /// The first part of `range` that is in the set.
    pub(crate) fn first_in(&self, range: VirtRange) -> Option<VirtRange> {
        let index = self.first_behind(range.start().0);
        (index < self.len()).then(|| self.get(index).intersection(range)).filter(|part| !part.is_empty())
    }

    /// The largest part of `range` around `at` that lies wholly inside, or wholly outside, the set, and which. `at` is in
    /// `range`.
    pub(crate) fn part_around(&self, range: VirtRange, at: VirtAddr) -> (VirtRange, bool) {
        let index = self.first_behind(at.0);
        let next = (index < self.len()).then(|| self.get(index));
        if let Some(here) = next.filter(|next| next.contains(at)) {
            return (here.intersection(range), true);
        }
        let start = if index > 0 { self.get(index - 1).end().max(range.start()) } else { range.start() };
        let end = next.map_or(range.end(), |next| next.start().min(range.end()));
        (VirtRange::between(start, end), false)
    }

    pub(crate) fn clear(&self) {
        self.count.store(0, Ordering::Relaxed);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn pages(start: u64, end: u64) -> VirtRange {
        VirtRange::between(VirtAddr(start << 12), VirtAddr(end << 12))
    }

    /// Every operation against a plain array of flags, in a fixed pseudo-random order.
    #[test]
    fn it_does_what_an_array_of_flags_does() {
        const PAGES: usize = 64;
        let set = RangeSet::new(64).expect("a page");
        let mut flags = [false; PAGES];
        let mut random = 12345u64;
        let mut next = |below: usize| {
            random = random.wrapping_mul(6364136223846793005).wrapping_add(1442695040888963407);
            (random >> 33) as usize % below
        };
        for _ in 0..20_000 {
            let start = next(PAGES);
            let end = start + 1 + next((PAGES - start).min(9));
            let range = pages(start as u64, end as u64);
            let add = next(2) == 0;
            if add { set.insert(range) } else { set.remove(range) }.expect("it has room");
            flags[start..end].fill(add);

            let mut seen = [false; PAGES];
            let mut last_end = None;
            for index in 0..set.len() {
                let range = set.get(index);
                assert!(
                    !range.is_empty() && last_end < Some(range.start()),
                    "sorted, disjoint, not adjacent"
                );
                last_end = Some(range.end());
                seen[(range.start().0 >> 12) as usize..(range.end().0 >> 12) as usize].fill(true);
            }
            assert_eq!(seen, flags);
            let (from, to) = (next(PAGES / 2), PAGES / 2 + next(PAGES / 2));
            let gap = (from..to).find(|&page| !flags[page]);
            assert_eq!(
                set.first_gap(pages(from as u64, to as u64)).map(|gap| (gap.start().0 >> 12) as usize),
                gap
            );
            let at = from + next(to - from);
            let inside = flags[at];
            let first =
                (from..=at).rev().take_while(|&page| flags[page] == inside).last().expect("at least `at`");
            let end = (at..to).take_while(|&page| flags[page] == inside).last().expect("at least `at`") + 1;
            assert_eq!(
                set.part_around(pages(from as u64, to as u64), VirtAddr((at as u64) << 12)),
                (pages(first as u64, end as u64), inside)
            );
            let hit = (from..to).find(|&page| flags[page]);
            assert_eq!(
                set.first_in(pages(from as u64, to as u64)).map(|hit| (hit.start().0 >> 12) as usize),
                hit
            );
        }
    }

    #[test]
    fn full_changes_nothing() {
        let set = RangeSet::new(2).expect("a page");
        set.insert(pages(0, 10)).expect("room");
        set.insert(pages(20, 30)).expect("room");
        assert_eq!(set.insert(pages(40, 41)), Err(Full));
        assert_eq!(set.remove(pages(4, 5)), Err(Full));
        assert_eq!((set.get(0), set.get(1), set.len()), (pages(0, 10), pages(20, 30), 2));
        set.insert(pages(10, 20)).expect("joining needs no room");
        assert_eq!((set.get(0), set.len()), (pages(0, 30), 1));
    }
}
