use core::fmt;

use thiserror::Error;

use super::addr::VirtAddr;
use super::geometry::{BLOCK_BYTES, PAGE_BYTES, PAGE_SHIFT, PAGES_PER_BLOCK};
use super::id::{BlockNo, PageIndex};
use super::mask::PageMask;

/// A range of whole pages of the process, end exclusive. May be empty.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Default)]
pub struct VirtRange {
    start: VirtAddr,
    bytes: u64,
}

/// A range whose end lies beyond the last address.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Error)]
#[error(
    "the range of {bytes} bytes at {start} wraps around the end of the address space; pass a shorter one"
)]
pub struct WrapError {
    /// Where the refused range starts.
    pub start: VirtAddr,
    /// Its length in bytes.
    pub bytes: u64,
}

impl VirtRange {
    /// The smallest range of whole pages that holds `bytes` bytes from `start`.
    ///
    /// # Errors
    /// [`WrapError`] if the end, rounded up to a page, does not fit in 64 bits.
    pub fn covering(start: VirtAddr, bytes: u64) -> Result<Self, WrapError> {
        let wrap = WrapError { start, bytes };
        let end = start.0.checked_add(bytes).ok_or(wrap)?;
        let end = end.checked_next_multiple_of(PAGE_BYTES).ok_or(wrap)?;
        Ok(Self { start: start.page_floor(), bytes: end - start.page_floor().0 })
    }

    /// `pages` pages from `start`. Asserts that `start` is page aligned and the end does not wrap.
    pub fn of_pages(start: VirtAddr, pages: u64) -> Self {
        assert!(start.is_page_aligned(), "a range of pages starts at a page");
        let bytes = pages.checked_mul(PAGE_BYTES).expect("a page count fits in bytes");
        assert!(start.checked_add(bytes).is_some(), "a range of pages does not wrap");
        Self { start, bytes }
    }

    /// From `start` up to `end`, exclusive. Asserts page alignment and order.
    pub fn between(start: VirtAddr, end: VirtAddr) -> Self {
        assert!(start.is_page_aligned() && end.is_page_aligned(), "ends of a range are page aligned");
        Self { start, bytes: end.bytes_since(start) }
    }

    /// First address.
    pub const fn start(self) -> VirtAddr {
        self.start
    }
    /// Address after the last byte.
    pub const fn end(self) -> VirtAddr {
        VirtAddr(self.start.0 + self.bytes)
    }
    /// Length in bytes, a multiple of 4096.
    pub const fn bytes(self) -> u64 {
        self.bytes
    }
    /// Length in pages.
    pub const fn pages(self) -> u64 {
        self.bytes >> PAGE_SHIFT
    }
    /// Whether it holds no page.
    pub const fn is_empty(self) -> bool {
        self.bytes == 0
    }
    /// Whether an address lies in it.
    pub const fn contains(self, at: VirtAddr) -> bool {
        self.start.0 <= at.0 && at.0 < self.start.0 + self.bytes
    }
    /// Whether another range lies wholly in it.
    pub const fn covers(self, other: Self) -> bool {
        self.start.0 <= other.start.0 && other.start.0 + other.bytes <= self.start.0 + self.bytes
    }
    /// The part that both have; empty (at `self.start`) if there is none.
    pub fn intersection(self, other: Self) -> Self {
        let start = self.start.max(other.start);
        let end = self.end().min(other.end());
        if start < end { Self::between(start, end) } else { Self { start: self.start, bytes: 0 } }
    }
    /// The blocks that it touches, in order.
    pub fn blocks(self) -> impl Iterator<Item = BlockNo> + Clone {
        self.block_numbers().map(BlockNo)
    }
    /// The numbers of the blocks that it touches, end exclusive.
    pub fn block_numbers(self) -> core::ops::Range<u32> {
        let first = self.start.0 / BLOCK_BYTES;
        let end = if self.bytes == 0 { first } else { (self.end().0 - 1) / BLOCK_BYTES + 1 };
        first as u32..end as u32
    }
    /// The pages of `block` that lie in it.
    pub fn mask_in(self, block: BlockNo) -> PageMask {
        let part = self.intersection(block.range());
        if part.is_empty() {
            return PageMask::EMPTY;
        }
        let first = PageIndex::of(part.start()).0 as usize;
        let last = first + part.pages() as usize;
        debug_assert!(last <= PAGES_PER_BLOCK);
        PageMask::of_range(first..last)
    }
}

impl fmt::Debug for VirtRange {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:#x}..{:#x}", self.start.0, self.end().0)
    }
}

impl fmt::Display for VirtRange {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Debug::fmt(self, f)
    }
}
