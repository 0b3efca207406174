use super::iova_space::{Entry, NONE};

/// Classes for each power of two: 16.
const FINE_BITS: u32 = 4;
const FINE: usize = 1 << FINE_BITS;
/// Powers of two of pages, from 16 pages on; the first row holds the sizes below, one class each.
const COARSE: usize = 50;
/// How many ranges of a reservation's own class are looked at before a class that is sure to fit.
const LOOKS: usize = 8;

/// The free ranges of one zone by size class.
#[derive(Debug)]
pub(super) struct Classes {
    heads: [[u32; FINE]; COARSE],
    /// Which rows, and which classes of a row, have a range.
    rows: u64,
    fine: [u16; COARSE],
}

/// The class of ranges of so many pages.
fn class(pages: u64) -> (usize, usize) {
    if pages < FINE as u64 {
        return (0, pages as usize);
    }
    let log = pages.ilog2();
    let fine = (pages >> (log - FINE_BITS)) as usize - FINE;
    ((log - FINE_BITS + 1) as usize, fine)
}

/// The first class of which every range has at least so many pages.
fn sure_class(pages: u64) -> Option<(usize, usize)> {
    if pages < FINE as u64 {
        return Some(class(pages));
    }
    let step = (1 << (pages.ilog2() - FINE_BITS)) - 1;
    pages.checked_add(step).map(class)
}

impl Classes {
    pub(super) const fn new() -> Self {
        Self { heads: [[NONE; FINE]; COARSE], rows: 0, fine: [0; COARSE] }
    }

    pub(super) fn insert(&mut self, entries: &mut [Entry], no: u32) {
        let (row, fine) = class(entries[no as usize].pages);
        let head = core::mem::replace(&mut self.heads[row][fine], no);
        let entry = &mut entries[no as usize];
        (entry.list_before, entry.list_behind) = (NONE, head);
        if head != NONE {
            entries[head as usize].list_before = no;
        }
        self.rows |= 1 << row;
        self.fine[row] |= 1 << fine;
    }

    pub(super) fn remove(&mut self, entries: &mut [Entry], no: u32) {
        let Entry { pages, list_before, list_behind, .. } = entries[no as usize];
        let (row, fine) = class(pages);
        if list_before == NONE {
            self.heads[row][fine] = list_behind;
        } else {
            entries[list_before as usize].list_behind = list_behind;
        }
        if list_behind != NONE {
            entries[list_behind as usize].list_before = list_before;
        }
        if self.heads[row][fine] == NONE {
            self.fine[row] &= !(1 << fine);
            if self.fine[row] == 0 {
                self.rows &= !(1 << row);
            }
        }
    }

    /// The first class from `from` on that has a range.
    fn next(&self, from: (usize, usize)) -> Option<(usize, usize)> {
        let (row, fine) = from;
        if row >= COARSE {
            return None;
        }
        let here = self.fine[row] & (u16::MAX.checked_shl(fine as u32).unwrap_or(0));
        if here != 0 {
            return Some((row, here.trailing_zeros() as usize));
        }
        let rows = self.rows & u64::MAX.checked_shl(row as u32 + 1).unwrap_or(0);
        let row = (rows != 0).then(|| rows.trailing_zeros() as usize)?;
        Some((row, self.fine[row].trailing_zeros() as usize))
    }

    fn list<'a>(&self, entries: &'a [Entry], class: (usize, usize)) -> impl Iterator<Item = u32> + use<'a> {
        let mut no = self.heads[class.0][class.1];
        core::iter::from_fn(move || {
            let found = (no != NONE).then_some(no)?;
            no = entries[no as usize].list_behind;
            Some(found)
        })
    }

    /// Free ranges to try for a reservation, best first: some of its own class, one that is sure to fit, then all that
    /// are long enough.
    pub(super) fn candidates<'a>(
        &'a self,
        entries: &'a [Entry],
        pages: u64,
        align: u64,
    ) -> impl Iterator<Item = u32> + 'a {
        let own = class(pages);
        let near = self.lowest(entries, own, |entry| entry.pages >= pages);
        let sure = pages.checked_add(align - 1).and_then(sure_class).and_then(|from| self.next(from));
        let sure = sure.and_then(|class| self.lowest(entries, class, |_| true));
        let all = core::iter::successors(self.next(own), |class| self.next((class.0, class.1 + 1)));
        near.into_iter().chain(sure).chain(all.flat_map(|class| self.list(entries, class)))
    }

    /// Of the first few ranges of a class, the one at the lowest address that is long enough: what is low fills first,
    /// and what is high runs empty and becomes whole again.
    fn lowest(&self, entries: &[Entry], class: (usize, usize), fits: impl Fn(&Entry) -> bool) -> Option<u32> {
        let few = self.list(entries, class).take(LOOKS).filter(|no| fits(&entries[*no as usize]));
        few.min_by_key(|no| entries[*no as usize].first)
    }

    /// Pages of the largest free range.
    pub(super) fn largest(&self, entries: &[Entry]) -> u64 {
        let Some(row) = self.rows.checked_ilog2() else { return 0 };
        let fine = self.fine[row as usize].ilog2();
        let pages = |no: u32| entries[no as usize].pages;
        self.list(entries, (row as usize, fine as usize)).map(pages).max().unwrap_or(0)
    }
}
