//! Who has which IOVA: a two-level segregated fit with boundary tags.
//!
//! # Shape
//! The aperture is a chain of ranges in address order, each free or reserved, cut where nobody may map and at 4 GiB.
//! Free ranges stand in lists by size class: 16 classes for each power of two, so that a range in the next class up
//! always fits. The chain's entries lie in one growing table; a hash of first pages finds the entry of a reservation.
//!
//! # Rules
//! 1. Two free neighbours of one zone are one range. The zones are below 4 GiB and above; the upper one is used first,
//!    so that the lower one is there for devices that reach nothing else.
//! 2. Reservations below 2 MiB are cut from the low end of a free range and longer ones from its high end: small ones
//!    stay together and granules stay whole.
//! 3. `reserve` and `free` take a constant number of steps at every size (the table grows by doubling). Two cases walk
//!    instead: a limit that cuts a zone in two, and a space so full that no class promises a fit.

use alloc::vec::Vec;

use super::iova_classes::Classes;
use super::iova_error::IovaError;
use super::iova_index::IovaIndex;
use crate::ports::IovaWindow;
use crate::units::{Iova, PAGE_BYTES, PAGE_SHIFT};

/// Number of an entry that does not exist.
pub(super) const NONE: u32 = u32::MAX;
/// First page of the upper zone: 4 GiB.
const UPPER: u64 = 1 << (32 - PAGE_SHIFT);
/// Reservations of so many pages and more are cut from the high end.
const LARGE: u64 = 512;

/// What a reservation is for. Who frees says it again, so that one cannot be taken for another.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum IovaUse {
    /// Reserved first and linked later.
    TwoStep,
    /// Made by one `map`.
    OneStep,
}

/// What is asked for.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct IovaRequest {
    /// Length in bytes, a multiple of 4096, at least 4096.
    pub bytes: u64,
    /// The first address is a multiple of this: a power of two, at least 4096.
    pub align_bytes: u64,
    /// The last address that may be used, inclusive.
    pub last: Iova,
    /// What for.
    pub purpose: IovaUse,
}

impl IovaRequest {
    /// For step one of two, anywhere.
    pub const fn anywhere(bytes: u64, align_bytes: u64) -> Self {
        Self { bytes, align_bytes, last: Iova(u64::MAX), purpose: IovaUse::TwoStep }
    }
}

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum State {
    Free,
    Reserved(IovaUse),
    /// The entry itself is unused.
    Vacant,
}

/// A range of the chain.
#[derive(Clone, Copy, Debug)]
pub(super) struct Entry {
    pub(super) first: u64,
    pub(super) pages: u64,
    /// Neighbours by address.
    before: u32,
    behind: u32,
    /// Neighbours in the list of its class, or of the vacant entries.
    pub(super) list_before: u32,
    pub(super) list_behind: u32,
    state: State,
}

impl Entry {
    fn end(&self) -> u64 {
        self.first + self.pages
    }
}

/// The free and the reserved addresses of one IOMMU domain. See the header of its file.
#[derive(Debug)]
pub struct IovaSpace {
    entries: Vec<Entry>,
    vacant: u32,
    zones: [Zone; 2],
    index: IovaIndex,
    reserved_pages: u64,
}

#[derive(Debug)]
struct Zone {
    classes: Classes,
    /// Its first range by address. Merging and splitting leave the lower part its entry, so this never changes.
    head: u32,
    end: u64,
}

impl IovaSpace {
    /// A space over an aperture, first and last address inclusive, but for page 0 (so that a forgotten address is an
    /// error) and for `windows`, which nobody may use.
    pub fn new(aperture: (Iova, Iova), windows: &[IovaWindow]) -> Self {
        let zone = || Zone { classes: Classes::new(), head: NONE, end: 0 };
        let mut space = Self {
            entries: Vec::new(),
            vacant: NONE,
            zones: [zone(), zone()],
            index: IovaIndex::new(),
            reserved_pages: 0,
        };
        let (first, end) = (aperture.0.0.div_ceil(PAGE_BYTES).max(1), aperture.1.0 / PAGE_BYTES);
        // The last page counts only if all of it is inside.
        let end = end + u64::from(aperture.1.0 % PAGE_BYTES == PAGE_BYTES - 1);
        let mut holes: Vec<(u64, u64)> = windows
            .iter()
            .filter(|window| window.bytes > 0)
            .map(|window| {
                let last = window.start.0.saturating_add(window.bytes - 1);
                (window.start.0 / PAGE_BYTES, last / PAGE_BYTES + 1)
            })
            .collect();
        holes.push((UPPER, UPPER));
        holes.push((end.max(first), u64::MAX));
        holes.sort_unstable();
        let (mut at, mut before) = (first, NONE);
        for (start, stop) in holes {
            let start = start.min(end);
            if at < start {
                before = space.append(at, start, before);
            }
            at = at.max(stop);
        }
        space
    }

    /// While the space is made: a free range at the end of the chain.
    fn append(&mut self, first: u64, end: u64, before: u32) -> u32 {
        let no = self.entry(first, end - first, before, NONE);
        if before != NONE {
            self.entries[before as usize].behind = no;
        }
        let zone = &mut self.zones[zone_of(first)];
        if zone.head == NONE {
            zone.head = no;
        }
        zone.end = end;
        self.file(no);
        no
    }

    fn entry(&mut self, first: u64, pages: u64, before: u32, behind: u32) -> u32 {
        let (list_before, list_behind) = (NONE, NONE);
        let entry = Entry { first, pages, before, behind, list_before, list_behind, state: State::Free };
        let no = self.vacant;
        if no == NONE {
            self.entries.push(entry);
            return self.entries.len() as u32 - 1;
        }
        self.vacant = self.entries[no as usize].list_behind;
        self.entries[no as usize] = entry;
        no
    }

    /// Enters a free range in the list of its class.
    fn file(&mut self, no: u32) {
        self.zones[zone_of(self.entries[no as usize].first)].classes.insert(&mut self.entries, no);
    }

    fn unfile(&mut self, no: u32) {
        self.zones[zone_of(self.entries[no as usize].first)].classes.remove(&mut self.entries, no);
    }

    /// Reserves `bytes`, aligned to `align_bytes`, anywhere, for step one of two.
    ///
    /// # Errors
    /// As [`IovaSpace::reserve_for`].
    pub fn reserve(&mut self, bytes: u64, align_bytes: u64) -> Result<Iova, IovaError> {
        self.reserve_for(&IovaRequest::anywhere(bytes, align_bytes))
    }

    /// Reserves what is asked for.
    ///
    /// # Errors
    /// [`IovaError::BadSize`], [`IovaError::BadAlignment`]; [`IovaError::Exhausted`] or [`IovaError::ExhaustedBelow`]
    /// if no free range is large enough.
    pub fn reserve_for(&mut self, request: &IovaRequest) -> Result<Iova, IovaError> {
        let IovaRequest { bytes, align_bytes, last, purpose } = *request;
        if bytes == 0 || !bytes.is_multiple_of(PAGE_BYTES) {
            return Err(IovaError::BadSize(bytes));
        }
        if !align_bytes.is_power_of_two() || align_bytes < PAGE_BYTES {
            return Err(IovaError::BadAlignment(align_bytes));
        }
        let (pages, align) = (bytes >> PAGE_SHIFT, align_bytes >> PAGE_SHIFT);
        let end = last.0 / PAGE_BYTES + u64::from(last.0 % PAGE_BYTES == PAGE_BYTES - 1);
        let (no, at) = [1, 0].into_iter().find_map(|zone| self.find(zone, pages, align, end)).ok_or(
            if last.0 == u64::MAX {
                IovaError::Exhausted(bytes)
            } else {
                IovaError::ExhaustedBelow { bytes, last }
            },
        )?;
        self.take(no, at, pages, purpose);
        Ok(Iova(at << PAGE_SHIFT))
    }

    /// A free range of a zone that holds such a reservation below page `end`, and where in it.
    fn find(&self, zone: usize, pages: u64, align: u64, end: u64) -> Option<(u32, u64)> {
        let zone = &self.zones[zone];
        let place = |no: u32| place(&self.entries[no as usize], pages, align, end).map(|at| (no, at));
        if zone.end <= end {
            zone.classes.candidates(&self.entries, pages, align).find_map(place)
        } else {
            self.by_address(zone).find_map(place)
        }
    }

    /// The free ranges of a zone in address order.
    fn by_address(&self, zone: &Zone) -> impl Iterator<Item = u32> {
        let (mut no, end) = (zone.head, zone.end);
        core::iter::from_fn(move || {
            while no != NONE && self.entries[no as usize].first < end {
                let found = no;
                no = self.entries[no as usize].behind;
                if self.entries[found as usize].state == State::Free {
                    return Some(found);
                }
            }
            None
        })
    }

    /// Reserves `pages` from page `at` on out of free range `no`.
    fn take(&mut self, no: u32, at: u64, pages: u64, purpose: IovaUse) {
        self.unfile(no);
        let no = if self.entries[no as usize].first < at {
            let upper = self.split(no, at);
            self.file(no);
            upper
        } else {
            no
        };
        if self.entries[no as usize].pages > pages {
            let rest = self.split(no, at + pages);
            self.file(rest);
        }
        self.entries[no as usize].state = State::Reserved(purpose);
        self.index.insert(&self.entries, no);
        self.reserved_pages += pages;
    }

    /// Cuts range `no` at page `at`; says the entry of the upper part.
    fn split(&mut self, no: u32, at: u64) -> u32 {
        let Entry { behind, .. } = self.entries[no as usize];
        let end = self.entries[no as usize].end();
        let upper = self.entry(at, end - at, no, behind);
        if behind != NONE {
            self.entries[behind as usize].before = upper;
        }
        let lower = &mut self.entries[no as usize];
        (lower.behind, lower.pages) = (upper, at - lower.first);
        upper
    }

    /// What is reserved from exactly this address on: bytes and purpose.
    pub fn reservation_at(&self, base: Iova) -> Option<(u64, IovaUse)> {
        let no = self.index.find(&self.entries, base.0 >> PAGE_SHIFT)?;
        let State::Reserved(purpose) = self.entries[no as usize].state else { return None };
        base.is_page_aligned().then_some((self.entries[no as usize].pages << PAGE_SHIFT, purpose))
    }

    /// Gives back what `reserve` returned, whole.
    ///
    /// # Errors
    /// As [`IovaSpace::free_for`].
    pub fn free(&mut self, base: Iova, bytes: u64) -> Result<(), IovaError> {
        self.free_for(base, bytes, IovaUse::TwoStep)
    }

    /// Gives back what `reserve_for` returned for this purpose, whole.
    ///
    /// # Errors
    /// [`IovaError::NotReserved`] if no reservation of exactly these bytes, for this purpose, begins there.
    pub fn free_for(&mut self, base: Iova, bytes: u64, purpose: IovaUse) -> Result<(), IovaError> {
        if self.reservation_at(base) != Some((bytes, purpose)) {
            return Err(IovaError::NotReserved(base));
        }
        let mut no = self.index.remove(&self.entries, base.0 >> PAGE_SHIFT).expect("it was just found");
        self.reserved_pages -= bytes >> PAGE_SHIFT;
        self.entries[no as usize].state = State::Free;
        let Entry { before, behind, .. } = self.entries[no as usize];
        if self.is_one(no, behind) {
            self.unfile(behind);
            self.absorb(no, behind);
        }
        if self.is_one(before, no) {
            self.unfile(before);
            self.absorb(before, no);
            no = before;
        }
        self.file(no);
        Ok(())
    }

    /// Whether two neighbours are to be one free range.
    fn is_one(&self, lower: u32, upper: u32) -> bool {
        if lower == NONE || upper == NONE {
            return false;
        }
        let (lower, upper) = (&self.entries[lower as usize], &self.entries[upper as usize]);
        let both_free = lower.state == State::Free && upper.state == State::Free;
        both_free && lower.end() == upper.first && zone_of(lower.first) == zone_of(upper.first)
    }

    /// Adds the upper neighbour to the lower one; its entry is vacant then.
    fn absorb(&mut self, lower: u32, upper: u32) {
        let Entry { pages, behind, .. } = self.entries[upper as usize];
        self.entries[lower as usize].pages += pages;
        self.entries[lower as usize].behind = behind;
        if behind != NONE {
            self.entries[behind as usize].before = lower;
        }
        let vacant = &mut self.entries[upper as usize];
        (vacant.state, vacant.list_behind) = (State::Vacant, self.vacant);
        self.vacant = upper;
    }

    /// Bytes that are reserved.
    pub fn reserved_bytes(&self) -> u64 {
        self.reserved_pages << PAGE_SHIFT
    }

    /// Bytes that are free, in however many ranges.
    pub fn free_bytes(&self) -> u64 {
        self.free_ranges().map(|(_, bytes)| bytes).sum()
    }

    /// Bytes of the largest free range.
    pub fn largest_free_bytes(&self) -> u64 {
        let largest = self.zones.iter().map(|zone| zone.classes.largest(&self.entries));
        largest.max().unwrap_or(0) << PAGE_SHIFT
    }

    /// The free ranges in address order: first address and bytes.
    pub fn free_ranges(&self) -> impl Iterator<Item = (Iova, u64)> {
        let all = self.zones.iter().flat_map(|zone| self.by_address(zone));
        all.map(|no| &self.entries[no as usize])
            .map(|entry| (Iova(entry.first << PAGE_SHIFT), entry.pages << PAGE_SHIFT))
    }

    /// Bytes of memory that the bookkeeping takes at present.
    pub fn state_bytes(&self) -> usize {
        size_of::<Self>() + self.entries.capacity() * size_of::<Entry>() + self.index.state_bytes()
    }
}

fn zone_of(first: u64) -> usize {
    usize::from(first >= UPPER)
}

/// Where in a free range a reservation goes, if it fits below page `end`.
fn place(entry: &Entry, pages: u64, align: u64, end: u64) -> Option<u64> {
    let end = entry.end().min(end);
    let low = entry.first.checked_next_multiple_of(align)?;
    if low.checked_add(pages)? > end {
        return None;
    }
    Some(if pages < LARGE { low } else { (end - pages) & !(align - 1) })
}
