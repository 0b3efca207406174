use std::ops::{Deref, DerefMut, Range};

use granule::units::{PAGES_PER_BLOCK, PageMask};

use crate::processor;
use crate::trace::BlockMap;

/// Who can own a page.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Hash)]
pub enum Proc {
    /// The CPU, with system memory.
    Cpu,
    /// The device.
    Device,
}

/// What every fault needs to know of a block, in three cache lines. What few blocks have is in its [`Rare`].
#[derive(Clone, Debug)]
#[repr(C, align(64))]
pub struct Block {
    /// Its first page: address / 4096.
    pub first_page: u64,
    /// When the last batch that brought something here ended.
    pub ready_ns: u64,
    /// Which eviction (counted from 1) was the last one here.
    pub evicted_at: u64,
    /// The pages that the program mapped: the hull of all allocations here.
    pub first: u16,
    /// End of them, exclusive.
    pub end: u16,
    /// Preferred location, from advice.
    pub preferred: Option<Proc>,
    /// The device may reach it where it is, from advice.
    pub accessed_by_device: bool,
    /// Copies on both sides are welcome, from advice.
    pub read_mostly: bool,
    /// A map event said what `first` and `end` are; before that they are the whole block.
    pub mapped: bool,
    /// Every page has contents: `exists` is full.
    pub all_exist: bool,
    /// `dirty` may hold something.
    pub some_dirty: bool,
    /// `linked` or `duplicated` may hold something.
    pub some_shared: bool,
    /// Faults of the device that were served here.
    pub faults: u32,
    /// Evictions of anything here.
    pub evictions: u32,
    /// Pages that faults brought.
    pub demand_pages: u32,
    /// Pages that prefetches brought.
    pub prefetch_pages: u32,
    /// On the device.
    pub resident: Lined,
    /// Of what is on the device: came by a prefetch, and was not touched since. Of what is not: was evicted the last time
    /// that it left, and the program has not unmapped it since.
    pub(super) marked: Lined,
}

/// The masks of a block that are looked at only where a flag of the block says that they hold something.
#[derive(Clone, Debug)]
pub struct Rare {
    /// Written by the device since it came.
    pub dirty: PageMask,
    /// Has contents, here or there. What is resident has; what has and is not resident is in system memory.
    pub exists: PageMask,
    /// In system memory and mapped by the device where it is.
    pub linked: PageMask,
    /// On the device and in system memory, both up to date.
    pub duplicated: PageMask,
}

/// A mask at the beginning of a cache line.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
#[repr(align(64))]
pub struct Lined(pub PageMask);

impl Deref for Lined {
    type Target = PageMask;
    #[inline]
    fn deref(&self) -> &PageMask {
        &self.0
    }
}

impl DerefMut for Lined {
    #[inline]
    fn deref_mut(&mut self) -> &mut PageMask {
        &mut self.0
    }
}

impl Rare {
    fn new(data_on_cpu: bool) -> Self {
        Self {
            exists: if data_on_cpu { PageMask::FULL } else { PageMask::EMPTY },
            dirty: PageMask::EMPTY,
            linked: PageMask::EMPTY,
            duplicated: PageMask::EMPTY,
        }
    }
}

impl Block {
    fn new(first_page: u64, data_on_cpu: bool) -> Self {
        Self {
            first_page,
            resident: Lined(PageMask::EMPTY),
            marked: Lined(PageMask::EMPTY),
            ready_ns: 0,
            evicted_at: 0,
            first: 0,
            end: PAGES_PER_BLOCK as u16,
            preferred: None,
            accessed_by_device: false,
            read_mostly: false,
            mapped: false,
            all_exist: data_on_cpu,
            some_dirty: false,
            some_shared: false,
            faults: 0,
            evictions: 0,
            demand_pages: 0,
            prefetch_pages: 0,
        }
    }

    /// The pages that the program mapped.
    #[inline]
    pub fn region(&self) -> Range<usize> {
        usize::from(self.first)..usize::from(self.end)
    }

    /// On the device by a prefetch, and not touched since.
    #[inline]
    pub fn unused(&self) -> PageMask {
        *self.marked & *self.resident
    }

    /// Was evicted the last time that it left, and has not been back since.
    #[inline]
    pub fn evicted(&self) -> PageMask {
        *self.marked - *self.resident
    }
}

/// All blocks that a trace has touched, by the number in which they came.
#[derive(Debug)]
pub struct Blocks {
    map: BlockMap,
    all: Vec<Block>,
    rare: Vec<Rare>,
    data_on_cpu: bool,
    /// Position in the trace of the latest event.
    pub(super) position: u64,
}

impl Blocks {
    /// None yet. `data_on_cpu`: every page has contents in system memory from the start; otherwise the first touch
    /// makes it.
    pub fn new(data_on_cpu: bool) -> Self {
        Self { map: BlockMap::default(), all: Vec::new(), rare: Vec::new(), data_on_cpu, position: 0 }
    }

    /// The number of the block that holds a page (address / 4096).
    #[inline]
    pub fn number(&mut self, page: u64) -> u32 {
        let number = self.map.get_or_add(page / PAGES_PER_BLOCK as u64);
        if number as usize == self.all.len() {
            self.add(page);
        }
        number
    }

    #[cold]
    fn add(&mut self, page: u64) {
        let room = (self.all.capacity(), self.rare.capacity());
        let first_page = page / PAGES_PER_BLOCK as u64 * PAGES_PER_BLOCK as u64;
        self.all.push(Block::new(first_page, self.data_on_cpu));
        self.rare.push(Rare::new(self.data_on_cpu));
        if self.all.capacity() != room.0 {
            processor::huge(&mut self.all);
        }
        if self.rare.capacity() != room.1 {
            processor::huge(&mut self.rare);
        }
    }

    /// The number of the block that holds a page, if it was touched before.
    #[inline]
    pub fn known(&self, page: u64) -> Option<u32> {
        self.map.get(page / PAGES_PER_BLOCK as u64)
    }

    /// The first page (address / 4096) of a block.
    #[inline]
    pub fn first_page(&self, block: u32) -> u64 {
        self.get(block).first_page
    }

    /// A block. Asserts that the number is one of ours.
    #[inline]
    pub fn get(&self, block: u32) -> &Block {
        &self.all[block as usize]
    }

    /// A block to change.
    #[inline]
    pub fn get_mut(&mut self, block: u32) -> &mut Block {
        &mut self.all[block as usize]
    }

    /// What few blocks have.
    #[inline]
    pub fn rare(&self, block: u32) -> &Rare {
        &self.rare[block as usize]
    }

    /// What few blocks have, to change.
    #[inline]
    pub fn rare_mut(&mut self, block: u32) -> &mut Rare {
        &mut self.rare[block as usize]
    }

    /// A block and what few blocks have, to change.
    #[inline]
    pub(super) fn both_mut(&mut self, block: u32) -> (&mut Block, &mut Rare) {
        (&mut self.all[block as usize], &mut self.rare[block as usize])
    }

    /// Pages of a block whose contents are in system memory.
    #[inline]
    pub fn on_cpu(&self, block: u32) -> PageMask {
        let (state, rare) = (self.get(block), self.rare(block));
        (rare.exists - *state.resident) | rare.duplicated
    }

    /// A block will be looked at soon. A hint.
    #[inline]
    pub(super) fn fetch(&self, block: u32) {
        if let Some(state) = self.all.get(block as usize) {
            processor::fetch(state);
            processor::fetch(&state.resident);
            processor::fetch(&state.marked);
        }
    }

    /// Position in the trace of the latest event, counted from 1.
    #[inline]
    pub fn position(&self) -> u64 {
        self.position
    }

    /// How many there are.
    pub fn len(&self) -> usize {
        self.all.len()
    }

    /// Whether there is none.
    pub fn is_empty(&self) -> bool {
        self.all.is_empty()
    }

    /// Bytes that they take.
    pub fn bytes(&self) -> usize {
        self.all.capacity() * size_of::<Block>() + self.rare.capacity() * size_of::<Rare>()
    }
}

const _: () = assert!(size_of::<Block>() == 192, "a block is three cache lines");
