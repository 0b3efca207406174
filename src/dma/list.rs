use alloc::vec::Vec;

use super::DmaRange;
use crate::units::{Iova, PhysAddr, PhysRange};

/// A range of 16 bytes: [`PhysRange`] or [`DmaRange`], and nothing else.
pub trait Piece: Copy + private::Sealed {
    /// First address.
    fn start(self) -> u64;
    /// Length in bytes.
    fn bytes(self) -> u64;
    /// Flags of its type.
    fn flags(self) -> u32;
    /// A range elsewhere with the same flags.
    #[must_use]
    fn moved(self, start: u64, bytes: u32) -> Self;
}

mod private {
    pub trait Sealed {}
    impl Sealed for crate::units::PhysRange {}
    impl Sealed for super::DmaRange {}
}

impl Piece for PhysRange {
    fn start(self) -> u64 {
        self.addr.0
    }
    fn bytes(self) -> u64 {
        u64::from(self.len)
    }
    fn flags(self) -> u32 {
        self.flags
    }
    fn moved(self, start: u64, bytes: u32) -> Self {
        Self { addr: PhysAddr(start), len: bytes, ..self }
    }
}

impl Piece for DmaRange {
    fn start(self) -> u64 {
        self.addr.0
    }
    fn bytes(self) -> u64 {
        u64::from(self.len)
    }
    fn flags(self) -> u32 {
        self.flags
    }
    fn moved(self, start: u64, bytes: u32) -> Self {
        Self { addr: Iova(start), len: bytes, ..self }
    }
}

/// Ranges in one link of a chain: 4080 bytes.
const PER_LINK: usize = 255;
/// A range is at most 4 GiB less a page.
const MAX_BYTES: u64 = PhysRange::MAX_BYTES;

/// Ranges in order, in a chain of links of 255. Pushing moves no range, and chains are joined link by link. Ranges that
/// touch and have the same flags become one where it stays below 4 GiB.
#[derive(Clone, Debug)]
pub struct RangeList<R> {
    links: Vec<Vec<R>>,
    len: usize,
    bytes: u64,
}

/// What is to be mapped.
pub type PhysList = RangeList<PhysRange>;
/// What a device is given.
pub type DmaList = RangeList<DmaRange>;

impl<R: Piece> Default for RangeList<R> {
    fn default() -> Self {
        Self::new()
    }
}

impl<R: Piece> RangeList<R> {
    /// No range.
    pub const fn new() -> Self {
        Self { links: Vec::new(), len: 0, bytes: 0 }
    }

    /// Adds a range behind the others. An empty one is dropped.
    pub fn push(&mut self, range: R) {
        if range.bytes() == 0 {
            return;
        }
        self.bytes += range.bytes();
        if let Some(last) = self.links.last_mut().and_then(|link| link.last_mut())
            && last.start().checked_add(last.bytes()) == Some(range.start())
            && last.flags() == range.flags()
            && last.bytes() + range.bytes() <= MAX_BYTES
        {
            *last = last.moved(last.start(), (last.bytes() + range.bytes()) as u32);
            return;
        }
        match self.links.last_mut() {
            Some(link) if link.len() < PER_LINK => link.push(range),
            _ => {
                // Most lists are short: only the second link is made whole at once.
                let mut link = if self.links.is_empty() { Vec::new() } else { Vec::with_capacity(PER_LINK) };
                link.push(range);
                self.links.push(link);
            }
        }
        self.len += 1;
    }

    /// Adds another list behind this one, link by link.
    pub fn append(&mut self, mut other: Self) {
        self.links.append(&mut other.links);
        self.len += other.len;
        self.bytes += other.bytes;
    }

    /// How many ranges.
    pub fn len(&self) -> usize {
        self.len
    }
    /// Whether there is none.
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }
    /// Length of all ranges together.
    pub fn bytes(&self) -> u64 {
        self.bytes
    }

    /// The ranges, in order.
    pub fn iter(&self) -> impl Iterator<Item = R> + Clone {
        self.links.iter().flatten().copied()
    }

    /// Bytes of memory that the list takes.
    pub fn state_bytes(&self) -> usize {
        let links: usize = self.links.iter().map(|link| link.capacity() * size_of::<R>()).sum();
        size_of::<Self>() + self.links.capacity() * size_of::<Vec<R>>() + links
    }
}

impl<R: Piece> Extend<R> for RangeList<R> {
    fn extend<I: IntoIterator<Item = R>>(&mut self, ranges: I) {
        ranges.into_iter().for_each(|range| self.push(range));
    }
}

impl<R: Piece> FromIterator<R> for RangeList<R> {
    fn from_iter<I: IntoIterator<Item = R>>(ranges: I) -> Self {
        let mut list = Self::new();
        list.extend(ranges);
        list
    }
}
