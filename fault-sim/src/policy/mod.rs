//! Policies: what vendors, papers and this library decide, each in a file of its own behind one of four traits.
//!
//! | trait | answers | folder |
//! |---|---|---|
//! | [`Prefetcher`] | which pages come beside those that faulted | `prefetch/` |
//! | [`Eviction`] | who leaves when device memory is full, in which unit | `eviction/` |
//! | [`Residency`] | where a faulting page shall be: moved, mapped where it is, duplicated, left waiting | `residency/` |
//! | [`Batching`] | how the fault buffer is read, what is merged, when the device goes on | `batching/` |
//!
//! `catalogue` reads names, `parts` lists them all, `parameters` lists the numbers in them that can be changed.
//!
//! # Rules
//! 1. A policy decides and does nothing: it sees blocks and changes none.
//! 2. What a policy remembers is its own, indexed by block or unit; nothing is allocated for a fault but when a block
//!    is seen for the first time.
//! 3. Chance comes from the seed.
//! 4. Any prefetcher goes with any eviction, residency and batching: `nvidia+lru-2m` is NVIDIA's but for eviction.

pub mod batching;
pub mod catalogue;
pub mod eviction;
pub mod parameters;
pub mod parts;
pub mod prefetch;
pub mod residency;

use std::ops::Range;

use granule::policy::Granularity;
use granule::units::{PAGES_PER_BLOCK, PageMask};

use crate::replay::{Block, Blocks, Proc, Rare};
use crate::trace::Access;

/// What a prefetcher sees: the pages of one block that are about to move to one destination.
#[derive(Clone, Debug)]
pub struct Demand<'a> {
    /// The block's number.
    pub block: u32,
    /// Its first page: address / 4096.
    pub first_page: u64,
    /// Where the pages go.
    pub to: Proc,
    /// The pages that faulted and go there.
    pub faulted: &'a PageMask,
    /// Of these, those that were written.
    pub written: &'a PageMask,
    /// The pages that are there already.
    pub resident: &'a PageMask,
    /// Pages that thrash, if any of the block does.
    pub thrashing: Option<&'a PageMask>,
    /// The pages that the program mapped.
    pub region: Range<usize>,
    /// The preferred location.
    pub preferred: Option<Proc>,
    /// The pages that have contents, there or elsewhere.
    pub exists: &'a PageMask,
    /// All faults of this service go to one destination.
    pub one_destination: bool,
    /// Position in the trace of the latest event.
    pub position: u64,
}

/// Says which pages come beside those that faulted.
pub trait Prefetcher {
    /// Pages of the same block. What faulted, is there already or is not mapped is ignored.
    fn widen(&mut self, demand: &Demand<'_>) -> PageMask;
    /// The program unmapped pages of a block.
    fn unmapped(&mut self, _block: u32, _pages: &PageMask) {}
}

/// How a unit came to the device.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Brought {
    /// Nothing of the unit was there before.
    pub fresh: bool,
    /// A fault asked for some of it; otherwise all of it was prefetched.
    pub demanded: bool,
    /// The program mapped the whole block.
    pub whole_block: bool,
    /// Position in the trace of the latest event.
    pub position: u64,
}

/// Pages of one block that shall leave the device.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Victim {
    /// The block's number.
    pub block: u32,
    /// Which of its pages, in whole units; those that are not there are ignored.
    pub pages: PageMask,
}

/// Says who leaves. Units are numbered `block * units per block + position`; [`unit_of`] and [`pages_of_unit`] convert.
pub trait Eviction {
    /// The unit in which device memory is handed out and taken back.
    fn unit(&self) -> Granularity;
    /// Pages of a unit came to the device.
    fn brought(&mut self, unit: u32, how: Brought);
    /// Whether [`Eviction::hit`] is wanted.
    fn sees_hits(&self) -> bool {
        false
    }
    /// The device touched a page that was there.
    fn hit(&mut self, _unit: u32, _position: u64) {}
    /// The last page of a unit left the device for another reason than this policy.
    fn gone(&mut self, unit: u32);
    /// Blocks that will most likely leave soon, at most about `count`: so that they can be fetched side by side. A hint.
    fn soon(&self, _count: usize) -> Box<dyn Iterator<Item = u32> + '_> {
        Box::new(std::iter::empty())
    }
    /// Who leaves next; forgotten by the policy from now on. `None` only if nothing is there.
    fn victim(&mut self, blocks: &Blocks) -> Option<Victim>;
}

/// Units in a block.
#[inline]
pub fn units_per_block(unit: Granularity) -> u32 {
    (PAGES_PER_BLOCK / unit.pages()) as u32
}

/// The unit that holds a page of a block.
#[inline]
pub fn unit_of(unit: Granularity, block: u32, page: usize) -> u32 {
    block * units_per_block(unit) + (page / unit.pages()) as u32
}

/// The block of a unit, and the unit's pages.
#[inline]
pub fn pages_of_unit(unit: Granularity, number: u32) -> Victim {
    if unit == Granularity::Mib2 {
        return Victim { block: number, pages: PageMask::FULL };
    }
    let (block, at) = (number / units_per_block(unit), (number % units_per_block(unit)) as usize);
    Victim { block, pages: PageMask::of_range(at * unit.pages()..(at + 1) * unit.pages()) }
}

/// What a residency policy sees: one fault on one page.
#[derive(Clone, Copy, Debug)]
pub struct FaultView<'a> {
    /// Who faulted.
    pub by: Proc,
    /// The block's number.
    pub block: u32,
    /// The page's position in it.
    pub page: usize,
    /// How it was touched.
    pub access: Access,
    /// The driver's clock.
    pub now_ns: u64,
    /// The block as it is.
    pub state: &'a Block,
    /// What few blocks have.
    pub rare: &'a Rare,
}

/// Where a faulting page shall be.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Decision {
    /// In device memory.
    Device,
    /// In system memory; a device that faulted maps it there.
    Cpu,
    /// On both sides, until somebody writes.
    Duplicate,
    /// Who faulted waits.
    Throttle {
        /// Until then.
        until_ns: u64,
    },
}

/// Why pages moved.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Cause {
    /// A fault and what was prefetched with it.
    Fault,
    /// An access counter.
    AccessCounter,
    /// Device memory was needed.
    Eviction,
}

/// Says where faulting pages shall be.
pub trait Residency {
    /// Where one page shall be.
    fn decide(&mut self, fault: &FaultView<'_>) -> Decision;
    /// Whether every device fault on this block would be answered with [`Decision::Device`] now. Spares the engine from
    /// asking page by page.
    fn always_device(&self, _block: u32, _state: &Block) -> bool {
        false
    }
    /// Faults on these blocks may be asked about soon. A hint.
    fn soon(&self, _blocks: &[u32]) {}
    /// Pages were moved.
    fn moved(
        &mut self,
        _block: u32,
        _state: &Block,
        _pages: &PageMask,
        _to: Proc,
        _cause: Cause,
        _now_ns: u64,
    ) {
    }
    /// The program unmapped pages.
    fn unmapped(&mut self, _block: u32, _pages: &PageMask) {}
    /// The device touched a page that it has mapped in system memory. The answer shall move to the device now.
    fn remote_touch(&mut self, _fault: &FaultView<'_>) -> PageMask {
        PageMask::EMPTY
    }
    /// Pages that thrash, which prefetchers leave alone.
    fn thrashing(&self, _block: u32) -> Option<&PageMask> {
        None
    }
    /// Pages whose mapping in system memory ends by now. Asked until there are none.
    fn expired(&mut self, _now_ns: u64) -> Option<(u32, PageMask)> {
        None
    }
}

/// One entry of the fault buffer.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct RawFault {
    /// Address / 4096.
    pub page: u64,
    /// When it came.
    pub arrival_ns: u64,
    /// The block's number.
    pub block: u32,
    /// Which engine.
    pub engine: u16,
    /// How it touched.
    pub access: Access,
}

/// The most entries of a batch.
pub const MOST_ENTRIES: usize = 1024;

/// A batch: the entries that were read, and those that stand for others.
#[derive(Debug, Default)]
pub struct Batch {
    /// One key for each entry that stands for itself: see [`Batch::key`].
    pub keys: Vec<u64>,
    /// For each entry that was read, the position of the one that stands for it.
    pub stands_for: Vec<u16>,
}

impl Batch {
    /// What keys sort by: page ascending, then access descending, then position.
    #[inline]
    pub fn key(page: u64, access: Access, position: usize) -> u64 {
        page << 12 | (3 - access as u64) << 10 | position as u64
    }
    /// The page of a key.
    #[inline]
    pub fn page(key: u64) -> u64 {
        key >> 12
    }
    /// The position of a key's entry.
    #[inline]
    pub fn position(key: u64) -> usize {
        key as usize % MOST_ENTRIES
    }
    /// Whether a key's access writes.
    #[inline]
    pub fn writes(key: u64) -> bool {
        3 - (key >> 10 & 3) >= Access::Write as u64
    }
}

/// When the device goes on.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Replay {
    /// After each block.
    EachBlock,
    /// After each batch; what is still in the buffer is served as it is.
    EachBatch,
    /// After each batch; the buffer is emptied first, and who is still without its page faults again.
    Flush,
    /// When the buffer is empty.
    Once,
}

/// Says how the fault buffer is read.
pub trait Batching {
    /// The most entries of a batch, up to [`MOST_ENTRIES`].
    fn entries(&self) -> usize;
    /// Reads up to [`Batching::entries`] of these into an empty batch and says how many it read; merges what it merges.
    fn read(&mut self, buffer: &[RawFault], batch: &mut Batch) -> usize;
    /// When the device goes on.
    fn replay(&self) -> Replay;
    /// Batches after which the driver leaves its loop and waits for the next interrupt.
    fn batches_per_service(&self) -> u32 {
        u32::MAX
    }
}
