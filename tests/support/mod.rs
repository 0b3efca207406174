//! Simulated ports: an address space of a few pages, a device, and application threads, for models and for tests of
//! the pure part. One word per page is looked at. The kernel's promises are kept to the letter: events, who goes on
//! when, what a touch of an absent page does.

#![allow(dead_code, unused_imports, reason = "each test binary uses a part")]

mod device;
mod host;
mod memory;
mod sleep;
mod space;

pub use device::{Faulted, SimDevice};
pub use host::{Mapping, SimHost};
pub use sleep::{SimPark, Sleepers, Step, yield_now};
pub use space::{SimMemory, pass_once};

use granule::ports::{Clock, WORDS_PER_PAGE, Word};
use granule::units::{BLOCK_BYTES, PAGE_BYTES, PageIndex, PageMask, VirtAddr};

/// Where the simulated mapping lies: the start of block 2, which in a model is the first of a granule.
pub const BASE: u64 = 2 * BLOCK_BYTES;

pub fn page_at(page: u64) -> VirtAddr {
    VirtAddr(BASE + page * PAGE_BYTES)
}

pub fn one(page: u64) -> PageMask {
    PageMask::of(PageIndex::of(page_at(page)))
}

/// Zeroed memory that outlives every run of a model; runs come one after the other.
pub fn words(pages: usize) -> &'static [Word] {
    Vec::leak((0..pages * WORDS_PER_PAGE).map(|_| Word::new(0)).collect())
}

pub struct TickClock(std::sync::atomic::AtomicU64);
impl TickClock {
    pub fn new() -> Self {
        Self(std::sync::atomic::AtomicU64::new(0))
    }
}
impl Clock for TickClock {
    fn now_ns(&self) -> u64 {
        self.0.fetch_add(1, std::sync::atomic::Ordering::Relaxed)
    }
}
