//! What the examples of two-step DMA share: an IOVA space that says what it takes, memory of an application, numbers that
//! look random, and the table of costs at the end.
#![allow(dead_code, reason = "each example uses the part that it needs")]
#![allow(unsafe_code, reason = "maps and unmaps memory as an application does")]

use std::collections::HashMap;
use std::ops::Range;
use std::time::Instant;

use granule::dma::{IovaSpace, ReserveIova};
use granule::os::SharedIova;
use granule::ports::Iommu;
use granule::units::{PAGE_BYTES, PAGE_SHIFT, PhysAddr, PhysRange, VirtAddr};

/// The free IOVAs of one IOMMU, for all domains that are built on it.
pub struct Iovas {
    space: SharedIova,
    empty_bytes: u64,
}

impl Iovas {
    pub fn of(iommu: &dyn Iommu) -> Self {
        let mut iovas = Self { space: SharedIova::of(iommu), empty_bytes: 0 };
        iovas.empty_bytes = iovas.state_bytes();
        iovas
    }

    /// Memory that the bookkeeping takes at present, beyond what it takes with nothing reserved.
    pub fn state_bytes(&self) -> u64 {
        let mut bytes = 0;
        self.with(&mut |space| bytes = space.state_bytes() as u64);
        bytes - self.empty_bytes
    }
}

impl ReserveIova for Iovas {
    fn with(&self, act: &mut dyn FnMut(&mut IovaSpace)) {
        self.space.with(act);
    }
}

/// Fresh anonymous memory that costs nothing until it is touched; unmapped on drop.
pub struct Memory {
    at: VirtAddr,
    bytes: u64,
}

impl Memory {
    /// At least `bytes` bytes, the first at a multiple of `align` (a power of two).
    pub fn new(bytes: u64, align: u64) -> Self {
        let protection = libc::PROT_READ | libc::PROT_WRITE;
        let flags = libc::MAP_PRIVATE | libc::MAP_ANONYMOUS | libc::MAP_NORESERVE;
        let null = std::ptr::null_mut();
        // SAFETY: a fresh mapping; what of it lies before and behind the aligned part is given back at once.
        let at = unsafe {
            let start = libc::mmap(null, (bytes + align) as usize, protection, flags, -1, 0);
            assert_ne!(start, libc::MAP_FAILED, "no address space for {bytes} bytes");
            let at = (start as u64).next_multiple_of(align);
            let before = at - start as u64;
            if before > 0 {
                libc::munmap(start, before as usize);
            }
            libc::munmap((at + bytes) as *mut _, (align - before) as usize);
            at
        };
        Self { at: VirtAddr(at), bytes }
    }

    pub fn at(&self) -> VirtAddr {
        self.at
    }

    pub fn bytes(&self) -> u64 {
        self.bytes
    }

    /// What the software device calls the memory: it reaches it by the addresses of the process.
    pub fn phys(&self, offset: u64) -> PhysAddr {
        assert!(offset < self.bytes);
        PhysAddr(self.at.0 + offset)
    }

    pub fn range(&self, offset: u64, bytes: u64) -> PhysRange {
        assert!(offset + bytes <= self.bytes);
        PhysRange::new(self.phys(offset), bytes)
    }

    /// Copies out, as the application reads.
    pub fn read(&self, offset: u64, into: &mut [u8]) {
        assert!(offset + into.len() as u64 <= self.bytes);
        for (index, byte) in into.iter_mut().enumerate() {
            // SAFETY: inside of the mapping, checked; volatile, since devices write it.
            *byte = unsafe { ((self.at.0 + offset) as *const u8).add(index).read_volatile() };
        }
    }

    /// Copies in, as the application writes.
    pub fn write(&self, offset: u64, from: &[u8]) {
        assert!(offset + from.len() as u64 <= self.bytes);
        for (index, byte) in from.iter().enumerate() {
            // SAFETY: inside of the mapping, checked; volatile, since devices read it.
            unsafe { ((self.at.0 + offset) as *mut u8).add(index).write_volatile(*byte) };
        }
    }

    /// Throws whole pages away: they read as zeros from now on.
    pub fn discard(&self, offset: u64, bytes: u64) {
        assert!(offset + bytes <= self.bytes);
        // SAFETY: a part of the mapping; its contents are the application's to lose.
        let rc =
            unsafe { libc::madvise((self.at.0 + offset) as *mut _, bytes as usize, libc::MADV_DONTNEED) };
        assert_eq!(rc, 0, "memory of the example can be discarded");
    }
}

impl Drop for Memory {
    fn drop(&mut self) {
        // SAFETY: mapped in `new`; nobody uses it any more.
        unsafe { libc::munmap(self.at.0 as *mut _, self.bytes as usize) };
    }
}

/// Numbers that look random, the same in every run.
pub struct Random(pub u64);

impl Random {
    pub fn below(&mut self, end: u64) -> u64 {
        self.0 = self.0.wrapping_mul(6364136223846793005).wrapping_add(1442695040888963407);
        ((u128::from(self.0 >> 16) * u128::from(end)) >> 48) as u64
    }

    pub fn fill(&mut self, bytes: &mut [u8]) {
        bytes.iter_mut().for_each(|byte| *byte = self.below(256) as u8);
    }
}

/// What one way of mapping cost.
#[derive(Clone, Copy, Default)]
pub struct Cost {
    /// Time and pages of all calls that mapped.
    pub map_ns: u64,
    pub mapped: u64,
    /// Time and pages of all calls that unmapped.
    pub unmap_ns: u64,
    pub unmapped: u64,
    /// Memory that is kept for it, beyond the I/O page table, and the pages that it is kept for.
    pub state_bytes: u64,
    pub pages: u64,
}

impl Cost {
    /// Runs something that maps `pages` pages.
    pub fn map<R>(&mut self, act: impl FnOnce() -> (R, u64)) -> R {
        let begin = Instant::now();
        let (result, pages) = act();
        self.map_ns += begin.elapsed().as_nanos() as u64;
        self.mapped += pages;
        result
    }

    /// Runs something that unmaps pages, and says how many.
    pub fn unmap<R>(&mut self, act: impl FnOnce() -> (R, u64)) -> R {
        let begin = Instant::now();
        let (result, pages) = act();
        self.unmap_ns += begin.elapsed().as_nanos() as u64;
        self.unmapped += pages;
        result
    }
}

/// What the ways of mapping cost that did the same DMA: ours first, then its rivals.
pub struct Compared {
    /// What was done, in words.
    pub told: String,
    pub ways: Vec<(&'static str, Cost)>,
}

/// What is compared, per page.
pub const PER_PAGE: [(&str, &str); 3] =
    [("to map", "ns"), ("to unmap, with its flush", "ns"), ("kept beyond the I/O page table", "bytes")];

impl Cost {
    /// The figures that [`PER_PAGE`] names.
    pub fn per_page(&self) -> [f64; 3] {
        let per = |a: u64, b: u64| a as f64 / b.max(1) as f64;
        [per(self.map_ns, self.mapped), per(self.unmap_ns, self.unmapped), per(self.state_bytes, self.pages)]
    }
}

impl Compared {
    /// Prints all ways side by side.
    pub fn print(&self) {
        println!("{}", self.told);
        let row = |what: &str, of: &dyn Fn(&str, &Cost) -> String, unit: &str| {
            let cells: String =
                self.ways.iter().map(|(name, cost)| format!("{:>16}", of(name, cost))).collect();
            println!("{what:34}{cells} {unit}");
        };
        row("per page", &|name, _| name.into(), "");
        for (index, (what, unit)) in PER_PAGE.iter().enumerate() {
            row(&format!("  {what}"), &|_, cost| format!("{:.2}", cost.per_page()[index]), unit);
        }
        row("  pages mapped in all", &|_, cost| cost.mapped.to_string(), "");
    }
}

/// The number that the program was called with, or what it does without one.
pub fn argument(default: u64) -> u64 {
    std::env::args().nth(1).map_or(default, |text| {
        text.parse().unwrap_or_else(|_| panic!("{text} is no number; pass one, or nothing for {default}"))
    })
}

/// Pages that a run of bytes touches.
pub fn pages_of(offset: u64, bytes: u64) -> Range<u64> {
    offset / PAGE_BYTES..(offset + bytes).div_ceil(PAGE_BYTES)
}

/// What the process's memory should hold, page by page; what is not there is zero.
#[derive(Default)]
pub struct Expected(HashMap<u64, Box<[u8]>>);

impl Expected {
    fn each(&mut self, offset: u64, bytes: usize, mut act: impl FnMut(&mut u8, usize)) {
        for index in 0..bytes {
            let at = offset + index as u64;
            let page = self.0.entry(at >> PAGE_SHIFT).or_insert_with(|| vec![0; PAGE_BYTES as usize].into());
            act(&mut page[(at % PAGE_BYTES) as usize], index);
        }
    }

    pub fn write(&mut self, offset: u64, data: &[u8]) {
        self.each(offset, data.len(), |byte, index| *byte = data[index]);
    }

    pub fn check(&mut self, offset: u64, data: &[u8]) {
        self.each(offset, data.len(), |byte, index| {
            assert_eq!(*byte, data[index], "byte {:#x}", offset + index as u64);
        });
    }

    pub fn discard(&mut self, pages: Range<u64>) {
        self.0.retain(|page, _| !pages.contains(page));
    }

    /// Compares all of it with the memory itself.
    pub fn check_all(&self, memory: &Memory) {
        for (page, bytes) in &self.0 {
            let mut seen = vec![0; PAGE_BYTES as usize];
            memory.read(page << PAGE_SHIFT, &mut seen);
            assert!(seen == **bytes, "page {page} at the end");
        }
    }
}
