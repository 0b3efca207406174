#![allow(unsafe_code, reason = "raw memory is handed out as words")]

use std::os::fd::{AsRawFd, BorrowedFd};

use super::PrivateError;
use super::reservation::{Carve, Mapping, carve, release};
use crate::ports::Word;
use crate::units::{VirtAddr, VirtRange};

/// Raw private memory in whole pages: fresh zero pages, or a view of a memfd. Unmapped on drop.
#[derive(Debug)]
pub struct PrivateBytes {
    mapping: Mapping,
}

impl PrivateBytes {
    /// At least `bytes` bytes of zeros, filled page by page as they are touched.
    ///
    /// # Errors
    /// [`PrivateError`].
    pub fn new(bytes: u64) -> Result<Self, PrivateError> {
        Ok(Self { mapping: carve(Carve::zeroed(bytes))? })
    }

    /// As [`PrivateBytes::new`], starting at a multiple of `align` (a power of two, at least a page).
    ///
    /// # Errors
    /// [`PrivateError`].
    pub fn aligned(bytes: u64, align: u64) -> Result<Self, PrivateError> {
        Ok(Self { mapping: carve(Carve { align, ..Carve::zeroed(bytes) })? })
    }

    /// A shared view of the first `bytes` bytes of a memfd, which must be that long (touching a page beyond its
    /// end is SIGBUS). 2 MiB aligned, so that huge pages of the memfd stay whole.
    ///
    /// # Errors
    /// [`PrivateError`].
    pub fn map_memfd(fd: BorrowedFd<'_>, bytes: u64) -> Result<Self, PrivateError> {
        let want = Carve { align: 2 << 20, memfd: Some(fd.as_raw_fd()), ..Carve::zeroed(bytes) };
        Ok(Self { mapping: carve(want)? })
    }

    /// A stack: `bytes` bytes above an inaccessible page.
    pub(in crate::os) fn stack(bytes: u64) -> Result<Self, PrivateError> {
        let guard_bytes = crate::units::PAGE_BYTES;
        Ok(Self { mapping: carve(Carve { guard_bytes, ..Carve::zeroed(bytes) })? })
    }

    /// Address of the first byte.
    pub fn base(&self) -> VirtAddr {
        VirtAddr(self.mapping.start)
    }

    /// The whole range.
    pub fn range(&self) -> VirtRange {
        VirtRange::of_pages(self.base(), self.mapping.bytes / crate::units::PAGE_BYTES)
    }

    /// Bytes of it that are backed by memory now, in whole pages: asked from the kernel, a call per 16 MiB.
    pub fn resident_bytes(&self) -> u64 {
        self.mapping.resident_bytes()
    }

    /// The memory, as words that several threads may look at.
    pub fn as_words(&self) -> &[Word] {
        // SAFETY: the mapping is page aligned, readable and writable until `self` is dropped; any bytes are
        // valid words, and words may change under a shared reference.
        unsafe {
            core::slice::from_raw_parts(
                self.mapping.start as *const Word,
                self.mapping.bytes as usize / size_of::<Word>(),
            )
        }
    }
}

impl Drop for PrivateBytes {
    fn drop(&mut self) {
        // SAFETY: every reference into it borrows `self`; whoever keeps a bare address answers for it.
        unsafe { release(&self.mapping) }
    }
}

#[cfg(test)]
mod tests {
    use core::sync::atomic::Ordering;
    use std::os::fd::AsFd;

    use super::*;

    #[test]
    fn two_views_of_a_memfd_show_one_memory() {
        let memfd = memfd::MemfdOptions::new().create("granule-test").expect("a memfd");
        memfd.as_file().set_len(4 << 20).expect("4 MiB");
        let one = PrivateBytes::map_memfd(memfd.as_file().as_fd(), 4 << 20).expect("a view");
        let two = PrivateBytes::map_memfd(memfd.as_file().as_fd(), 4 << 20).expect("a view");
        assert!(super::super::contains(one.range()) && one.base().0.is_multiple_of(2 << 20));
        one.as_words()[700].store(9, Ordering::Relaxed);
        assert_eq!(two.as_words()[700].load(Ordering::Relaxed), 9);
    }

    #[test]
    fn alignment_is_kept() {
        let odd = PrivateBytes::new(4096).expect("a page");
        let block = PrivateBytes::aligned(2 << 20, 2 << 20).expect("a block");
        assert!(block.base().0.is_multiple_of(2 << 20) && block.as_words().len() == (2 << 20) / 8);
        assert!(odd.range().intersection(block.range()).is_empty());
    }
}
