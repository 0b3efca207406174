//! Which pages the CPU has: PAGEMAP_SCAN where the kernel has it (6.7), else the flags in /proc/self/pagemap.
#![allow(unsafe_code, reason = "an ioctl that fills a buffer")]

use core::sync::atomic::{AtomicBool, Ordering};
use std::os::fd::{AsRawFd, OwnedFd};

use linux_raw_sys::general as raw;

use super::abi::{self, Errno, ioctl};
use crate::ports::HostError;
use crate::units::{BlockNo, PAGE_BYTES, PAGES_PER_BLOCK, PageMask, VirtAddr, VirtRange};

/// /proc/self/pagemap of the process that opened it.
#[derive(Debug)]
pub struct Pagemap {
    fd: OwnedFd,
    no_scan: AtomicBool,
}

impl Pagemap {
    /// Opens it.
    ///
    /// # Errors
    /// What open(2) says.
    pub fn open() -> std::io::Result<Self> {
        Ok(Self { fd: std::fs::File::open("/proc/self/pagemap")?.into(), no_scan: AtomicBool::new(false) })
    }

    /// The same without PAGEMAP_SCAN, whatever the kernel has.
    ///
    /// # Errors
    /// What open(2) says.
    pub fn open_without_scan() -> std::io::Result<Self> {
        let pagemap = Self::open()?;
        pagemap.no_scan.store(true, Ordering::Relaxed);
        Ok(pagemap)
    }

    /// The pages of `within` whose contents the CPU's mapping holds, in memory or swapped out.
    ///
    /// # Errors
    /// [`HostError`] if the kernel cannot be asked.
    pub fn present(&self, block: BlockNo, within: &PageMask) -> Result<PageMask, HostError> {
        let mut present = PageMask::EMPTY;
        for run in within.runs() {
            let at = block.base() + run.start as u64 * PAGE_BYTES;
            let range = VirtRange::of_pages(at, run.len() as u64);
            self.for_each_present(range, |part| present |= part.mask_in(block))?;
        }
        Ok(present)
    }

    /// Whether the CPU's mapping holds a block as one huge page, as far as the kernel tells (6.7); else `false`.
    pub fn is_huge(&self, block: BlockNo) -> bool {
        if self.no_scan.load(Ordering::Relaxed) {
            return false;
        }
        let (whole, mut huge) = (block.range(), false);
        let seen = self.scan(whole, u64::from(raw::PAGE_IS_HUGE), &mut |part| huge |= part == whole);
        seen.is_ok() && huge
    }

    /// The pages of `within` at which the CPU's mapping shows the kernel's page of zeros. Only where the kernel has
    /// PAGEMAP_SCAN, as every kernel with `UFFDIO_MOVE` has.
    ///
    /// # Errors
    /// [`HostError`] if the kernel cannot be asked.
    pub fn zero_pages(&self, block: BlockNo, within: &PageMask) -> Result<PageMask, HostError> {
        let mut zero = PageMask::EMPTY;
        for run in within.runs() {
            let at = block.base() + run.start as u64 * PAGE_BYTES;
            let range = VirtRange::of_pages(at, run.len() as u64);
            self.scan(range, u64::from(raw::PAGE_IS_PFNZERO), &mut |part| zero |= part.mask_in(block))
                .map_err(HostError::from)?;
        }
        Ok(zero)
    }

    /// Whether the CPU's mapping holds no page of a range.
    ///
    /// # Errors
    /// [`HostError`] if the kernel cannot be asked.
    pub fn is_absent(&self, range: VirtRange) -> Result<bool, HostError> {
        let mut absent = true;
        self.for_each_present(range, |_| absent = false)?;
        Ok(absent)
    }

    /// Calls `each` with runs of present or swapped pages, ascending.
    ///
    /// # Errors
    /// [`HostError`] if the kernel cannot be asked.
    pub fn for_each_present(
        &self,
        range: VirtRange,
        mut each: impl FnMut(VirtRange),
    ) -> Result<(), HostError> {
        if !self.no_scan.load(Ordering::Relaxed) {
            match self.scan(range, u64::from(raw::PAGE_IS_PRESENT | raw::PAGE_IS_SWAPPED), &mut each) {
                Err(Errno(libc::ENOTTY | libc::EINVAL)) => self.no_scan.store(true, Ordering::Relaxed),
                done => return done.map_err(HostError::from),
            }
        }
        self.read(range, &mut each).map_err(HostError::from)
    }

    /// Runs of pages that have any of the kernel's `categories`.
    fn scan(&self, range: VirtRange, categories: u64, each: &mut impl FnMut(VirtRange)) -> Result<(), Errno> {
        const REGIONS: usize = 64;
        let mut from = range.start().0;
        while from < range.end().0 {
            let mut found = [abi::page_region { start: 0, end: 0, categories: 0 }; REGIONS];
            let mut arg = abi::pm_scan_arg {
                size: size_of::<abi::pm_scan_arg>() as u64,
                flags: 0,
                start: from,
                end: range.end().0,
                walk_end: 0,
                vec: found.as_mut_ptr() as u64,
                vec_len: REGIONS as u64,
                max_pages: 0,
                category_inverted: 0,
                category_mask: 0,
                category_anyof_mask: categories,
                // The categories of a region are not asked for, so that differing neighbours are one region.
                return_mask: 0,
            };
            // SAFETY: `found` is writable for `vec_len` regions and outlives the call.
            let count = unsafe { ioctl(self.fd.as_raw_fd(), abi::PAGEMAP_SCAN, &mut arg) }?;
            for region in &found[..count as usize] {
                each(VirtRange::between(VirtAddr(region.start), VirtAddr(region.end)));
            }
            if arg.walk_end <= from {
                return Err(Errno(libc::EIO));
            }
            from = arg.walk_end;
        }
        Ok(())
    }

    fn read(&self, range: VirtRange, each: &mut impl FnMut(VirtRange)) -> Result<(), Errno> {
        /// Present, or swapped out.
        const THERE: u64 = 1 << 63 | 1 << 62;
        let mut from = range.start();
        while from < range.end() {
            let mut flags = [0u64; PAGES_PER_BLOCK];
            let pages = (range.end().bytes_since(from) / PAGE_BYTES).min(PAGES_PER_BLOCK as u64);
            let offset = from.0 / PAGE_BYTES * size_of::<u64>() as u64;
            let bytes = pages as usize * size_of::<u64>();
            // SAFETY: `flags` is writable for `bytes` bytes, which lie within it.
            let got = unsafe {
                libc::pread(self.fd.as_raw_fd(), flags.as_mut_ptr().cast(), bytes, offset as libc::off_t)
            };
            if got != bytes as isize {
                return Err(if got < 0 { Errno::last() } else { Errno(libc::EIO) });
            }
            for (page, flags) in flags[..pages as usize].iter().enumerate() {
                if flags & THERE != 0 {
                    each(VirtRange::of_pages(from + page as u64 * PAGE_BYTES, 1));
                }
            }
            from = from + pages * PAGE_BYTES;
        }
        Ok(())
    }
}
