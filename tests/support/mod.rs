//! Simulated ports: an address space of a few pages, a device, and application threads, for models and for tests of
//! the pure part. One word per page is looked at. The kernel's promises are kept to the letter: events, who goes on
//! when, what a touch of an absent page does.

#![allow(dead_code, reason = "each test binary uses a part")]

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::sync::Mutex;
use std::sync::atomic::Ordering::Relaxed;

use granule::dma::{IovaError, IovaSpace, ReserveIova};
use granule::granule::{
    BlockRecord, DevicePlane, FineSlots, Gate, GateSeat, GranuleRecord, HomecomingRecord, Homecomings,
    TableMemory, TableNode, Tables, TransitRecord, UserptrRecord, Userptrs,
};
use granule::migrate::{ChunkRecord, DeviceMemory, EvictionOrder, Space, SpaceDevice};
use granule::policy::Policy;
use granule::ports::{
    Clock, Device, DeviceCaps, DeviceError, DeviceFault, FaultCause, Host, HostError, HostEvent, Iommu,
    IommuError, Lookup, MapTarget, Mirrored, Probe, StagingId, Take, Vma, VmaKind, WORDS_PER_PAGE, Word,
};
use granule::sync::{AtomicU32, AtomicU64, Ordering, Park};
use granule::units::{
    Access, BLOCK_BYTES, BlockNo, DevAddr, DevMemAddr, Iova, PAGE_BYTES, PAGES_PER_BLOCK, PageIndex,
    PageMask, PhysAddr, VirtAddr, VirtRange,
};

/// Where the simulated mapping lies: the start of block 1.
pub const BASE: u64 = BLOCK_BYTES;

pub fn page_at(page: u64) -> VirtAddr {
    VirtAddr(BASE + page * PAGE_BYTES)
}

pub fn yield_now() {
    #[cfg(granule_loom)]
    loom::thread::yield_now();
    #[cfg(not(granule_loom))]
    std::thread::yield_now();
}

/// Parks by yielding: the scheduler of the model (or of the system) comes back.
pub struct YieldPark;
impl Park for YieldPark {
    fn park(&self, word: &AtomicU32, expected: u32) {
        if word.load(Ordering::Acquire) == expected {
            yield_now();
        }
    }
    fn unpark_all(&self, _: &AtomicU32) {}
}

pub struct TickClock(std::sync::atomic::AtomicU64);
impl TickClock {
    pub fn new() -> Self {
        Self(std::sync::atomic::AtomicU64::new(0))
    }
}
impl Clock for TickClock {
    fn now_ns(&self) -> u64 {
        self.0.fetch_add(1, Relaxed)
    }
}

#[derive(Clone, Copy, PartialEq, Debug)]
pub struct Mapping {
    pub access: Access,
    pub kind: VmaKind,
}

#[derive(Default)]
struct World {
    /// Page number -> mapping.
    mapped: BTreeMap<u64, Mapping>,
    /// Page number -> the value that the CPU sees. Absent: not present.
    present: BTreeMap<u64, u64>,
    mirrored: BTreeSet<u64>,
    armed: BTreeSet<u64>,
    events: VecDeque<HostEvent>,
    /// Events read so far, and pushed so far.
    read: u64,
    pushed: u64,
    /// Callers whose event is not read, or who did not run since.
    changing: u32,
    waiting: BTreeMap<u64, u32>,
    wakes: u64,
    staging_used: Vec<bool>,
}

pub struct SimHost {
    world: Mutex<World>,
    /// A point at which the model may switch threads, before each effect.
    step: AtomicU32,
    staging: &'static [Word],
    slots: usize,
}

const fn no(at: VirtAddr) -> u64 {
    at.0 / PAGE_BYTES
}

/// Zeroed memory that outlives every run of a model; runs come one after the other.
pub fn words(pages: usize) -> &'static [Word] {
    Vec::leak((0..pages * WORDS_PER_PAGE).map(|_| Word::new(0)).collect())
}

impl SimHost {
    pub fn new(staging: &'static [Word]) -> Self {
        let slots = staging.len() / (PAGES_PER_BLOCK * WORDS_PER_PAGE);
        let world = World { staging_used: vec![false; slots], ..World::default() };
        Self { world: Mutex::new(world), step: AtomicU32::new(0), staging, slots }
    }

    fn step(&self) {
        self.step.load(Ordering::Relaxed);
    }

    // ---- what a program does ----

    pub fn mmap(&self, page: u64, mapping: Mapping) {
        self.step();
        self.world.lock().unwrap().mapped.insert(no(page_at(page)), mapping);
    }

    /// Gives up the page; returns when its event was read.
    pub fn munmap(&self, page: u64) {
        self.step();
        let ticket = {
            let mut world = self.world.lock().unwrap();
            let page = no(page_at(page));
            world.mapped.remove(&page);
            world.present.remove(&page);
            world.armed.remove(&page);
            if !world.mirrored.remove(&page) {
                return;
            }
            world.events.push_back(HostEvent::Unmap(VirtRange::of_pages(VirtAddr(page * PAGE_BYTES), 1)));
            world.changing += 1;
            world.pushed += 1;
            world.pushed
        };
        while self.world.lock().unwrap().read < ticket {
            yield_now();
        }
        self.world.lock().unwrap().changing -= 1;
    }

    /// Applies `change` to the page's value as one access of a CPU thread; waits while the page is away. `None`: no
    /// mapping, or no permission.
    pub fn touch(&self, page: u64, change: impl Fn(u64) -> u64) -> Option<u64> {
        let number = no(page_at(page));
        loop {
            self.step();
            let wakes = {
                let mut world = self.world.lock().unwrap();
                world.mapped.get(&number)?;
                if let Some(value) = world.present.get(&number).copied() {
                    let new = change(value);
                    world.present.insert(number, new);
                    return Some(value);
                }
                if !world.armed.contains(&number) {
                    world.present.insert(number, change(0));
                    return Some(0);
                }
                let at = VirtAddr(number * PAGE_BYTES);
                world.events.push_back(HostEvent::Fault {
                    at,
                    access: Access::Write,
                    write_protected: false,
                });
                world.pushed += 1;
                *world.waiting.entry(number).or_default() += 1;
                world.wakes
            };
            loop {
                let world = self.world.lock().unwrap();
                if world.wakes != wakes && !world.waiting.contains_key(&number) {
                    break;
                }
                drop(world);
                yield_now();
            }
        }
    }

    pub fn present(&self, page: u64) -> Option<u64> {
        self.world.lock().unwrap().present.get(&no(page_at(page))).copied()
    }
    pub fn put(&self, page: u64, value: u64) {
        self.world.lock().unwrap().present.insert(no(page_at(page)), value);
    }
    pub fn has_events(&self) -> bool {
        !self.world.lock().unwrap().events.is_empty()
    }
    /// Whether a thread waits although there is nothing left to read.
    pub fn is_stuck(&self) -> bool {
        let world = self.world.lock().unwrap();
        world.events.is_empty() && !world.waiting.is_empty()
    }

    fn wake_pages(world: &mut World, range: VirtRange) {
        for page in no(range.start())..no(range.end()) {
            world.waiting.remove(&page);
        }
        world.wakes += 1;
    }
}

impl Host for SimHost {
    fn window(&self) -> VirtRange {
        VirtRange::of_pages(VirtAddr(0), 1 << 35)
    }
    fn vma(&self, at: VirtAddr) -> Result<Lookup, HostError> {
        self.step();
        let world = self.world.lock().unwrap();
        let Some(here) = world.mapped.get(&no(at)).copied() else {
            return Ok(Lookup::Hole { until: at + PAGE_BYTES });
        };
        let same = |page: u64| world.mapped.get(&page) == Some(&here);
        let mut first = no(at);
        let mut end = first + 1;
        while same(first - 1) {
            first -= 1;
        }
        while same(end) {
            end += 1;
        }
        let range = VirtRange::of_pages(VirtAddr(first * PAGE_BYTES), end - first);
        Ok(Lookup::Mapped(Vma { range, access: Some(here.access), kind: here.kind }))
    }
    fn mirror(&self, range: VirtRange) -> Result<Mirrored, HostError> {
        self.step();
        let mut world = self.world.lock().unwrap();
        let mut was = Mirrored::Already;
        for page in no(range.start())..no(range.end()) {
            if !world.mapped.contains_key(&page) {
                return Err(HostError::NoMapping);
            }
            if world.mirrored.insert(page) {
                was = Mirrored::FromNow;
            }
        }
        Ok(was)
    }
    fn arm(&self, range: VirtRange) -> Result<(), HostError> {
        self.step();
        self.world.lock().unwrap().armed.extend(no(range.start())..no(range.end()));
        Ok(())
    }
    fn disarm(&self, block: BlockNo) {
        let range = block.range();
        self.world.lock().unwrap().armed.retain(|page| !range.contains(VirtAddr(page * PAGE_BYTES)));
    }
    fn populate(&self, range: VirtRange, _: Access) -> Result<(), HostError> {
        self.step();
        let mut world = self.world.lock().unwrap();
        for page in no(range.start())..no(range.end()) {
            if !world.mapped.contains_key(&page) {
                return Err(HostError::NoMapping);
            }
            world.present.entry(page).or_insert(0);
        }
        Ok(())
    }
    fn take(&self, block: BlockNo, pages: &PageMask, staging: StagingId) -> Take {
        self.step();
        let mut world = self.world.lock().unwrap();
        if world.changing > 0 {
            return Take { stopped: Some(HostError::Changing), ..Take::default() };
        }
        let mut take = Take::default();
        for page in pages.pages() {
            let number = no(block.page(page));
            if !world.mapped.contains_key(&number) {
                take.refused.insert(page);
                continue;
            }
            assert!(world.armed.contains(&number), "a page is taken that would not trap");
            let value = world.present.remove(&number).unwrap_or(0);
            self.staging_words(staging)[page.0 as usize * WORDS_PER_PAGE].store(value, Relaxed);
            take.taken.insert(page);
        }
        take
    }
    fn drop_taken(&self, _: BlockNo, pages: &PageMask) -> PageMask {
        *pages
    }
    fn give(
        &self,
        block: BlockNo,
        pages: &PageMask,
        staging: StagingId,
    ) -> (PageMask, Result<(), HostError>) {
        let mut given = PageMask::EMPTY;
        for page in pages.pages() {
            let from = &self.staging_words(staging)[page.0 as usize * WORDS_PER_PAGE..][..WORDS_PER_PAGE];
            match self.give_words(block.page(page), from) {
                (1, Ok(())) => given.insert(page),
                (_, why) => return (given, why),
            }
        }
        (given, Ok(()))
    }
    fn give_words(&self, at: VirtAddr, words: &[Word]) -> (u64, Result<(), HostError>) {
        self.step();
        let mut world = self.world.lock().unwrap();
        if world.changing > 0 {
            return (0, Err(HostError::Changing));
        }
        if !world.mapped.contains_key(&no(at)) {
            return (0, Err(HostError::NoMapping));
        }
        if world.present.contains_key(&no(at)) {
            return (0, Err(HostError::Present));
        }
        world.present.insert(no(at), words[0].load(Relaxed));
        Self::wake_pages(&mut world, VirtRange::of_pages(at, 1));
        (1, Ok(()))
    }
    fn fill_zero(&self, range: VirtRange) -> (u64, Result<(), HostError>) {
        self.step();
        let mut world = self.world.lock().unwrap();
        let mut filled = 0;
        for page in no(range.start())..no(range.end()) {
            if world.changing > 0 {
                return (filled, Err(HostError::Changing));
            }
            if !world.mapped.contains_key(&page) {
                return (filled, Err(HostError::NoMapping));
            }
            if world.present.contains_key(&page) {
                return (filled, Err(HostError::Present));
            }
            world.present.insert(page, 0);
            Self::wake_pages(&mut world, VirtRange::of_pages(VirtAddr(page * PAGE_BYTES), 1));
            filled += 1;
        }
        (filled, Ok(()))
    }
    fn wake(&self, range: VirtRange) {
        self.step();
        Self::wake_pages(&mut self.world.lock().unwrap(), range);
    }
    fn staging(&self, _: &PageMask) -> Option<StagingId> {
        let mut world = self.world.lock().unwrap();
        let slot = world.staging_used.iter().position(|used| !used)?;
        world.staging_used[slot] = true;
        Some(StagingId(slot as u32))
    }
    fn staging_words(&self, staging: StagingId) -> &[Word] {
        let words = PAGES_PER_BLOCK * WORDS_PER_PAGE;
        &self.staging[staging.0 as usize * words..][..words]
    }
    fn staging_done(&self, staging: StagingId) {
        self.world.lock().unwrap().staging_used[staging.0 as usize] = false;
    }
    fn drain(&self, out: &mut [HostEvent]) -> usize {
        self.step();
        let mut world = self.world.lock().unwrap();
        // The kernel hands out faults before older events.
        let (faults, others): (VecDeque<_>, VecDeque<_>) =
            world.events.drain(..).partition(|event| matches!(event, HostEvent::Fault { .. }));
        let all: Vec<_> = faults.into_iter().chain(others).collect();
        let n = all.len().min(out.len());
        out[..n].copy_from_slice(&all[..n]);
        world.events.extend(&all[n..]);
        world.read += n as u64;
        n
    }
    fn wait_word(&self, word: &AtomicU32, seen: u32, _: u64) {
        YieldPark.park(word, seen);
    }
    fn pause(&self) {
        yield_now();
    }
    fn child_fill(&self, _: u32, _: VirtAddr, _: &[Word]) {}
    fn child_done(&self, _: u32) {}
}

// ---- the device ----

#[derive(Default)]
struct Translations {
    pages: BTreeMap<u64, (MapTarget, Access)>,
    iommu: BTreeMap<u64, (PhysAddr, Access)>,
}

pub struct SimDevice {
    translations: Mutex<Translations>,
    memory: &'static [Word],
    step: AtomicU32,
}

/// An access that the device could not make: to be served, then made again.
#[derive(Debug, PartialEq)]
pub struct Faulted;

impl SimDevice {
    pub fn new(memory: &'static [Word]) -> Self {
        Self { translations: Mutex::default(), memory, step: AtomicU32::new(0) }
    }
    fn step(&self) {
        self.step.load(Ordering::Relaxed);
    }
    fn word(&self, at: DevMemAddr) -> &Word {
        &self.memory[at.0 as usize / 8]
    }
    /// Whether the page has a translation, and where to.
    pub fn translation(&self, page: u64) -> Option<(MapTarget, Access)> {
        self.translations.lock().unwrap().pages.get(&no(page_at(page))).copied()
    }
    pub fn linked_pages(&self) -> usize {
        self.translations.lock().unwrap().iommu.len()
    }
    /// Applies `change` to the page's value as one access of an engine.
    pub fn touch(
        &self,
        host: &SimHost,
        page: u64,
        access: Access,
        change: impl Fn(u64) -> u64,
    ) -> Result<u64, Faulted> {
        self.step();
        let translations = self.translations.lock().unwrap();
        let (target, right) = *translations.pages.get(&no(page_at(page))).ok_or(Faulted)?;
        if !right.covers(access) {
            return Err(Faulted);
        }
        match target {
            MapTarget::DeviceMemory(at) => {
                let old = self.word(at).load(Relaxed);
                self.word(at).store(change(old), Relaxed);
                Ok(old)
            }
            MapTarget::System(iova) => {
                let (phys, right) =
                    *translations.iommu.get(&(iova.0 / PAGE_BYTES)).expect("DMA through nothing");
                assert!(right.covers(access), "DMA against the IOMMU's rights");
                let mut world = host.world.lock().unwrap();
                let number = phys.0 / PAGE_BYTES;
                let old = *world.present.get(&number).ok_or(Faulted)?;
                world.present.insert(number, change(old));
                Ok(old)
            }
        }
    }
}

impl Device for SimDevice {
    fn caps(&self) -> DeviceCaps {
        let memory_bytes = (self.memory.len() * 8) as u64;
        DeviceCaps { name: "simulated", memory_bytes, driver_free: true, can_quiesce: true }
    }
    fn copy_in(&self, dst: DevMemAddr, src: &[Word]) -> Result<(), DeviceError> {
        self.step();
        for page in 0..src.len() / WORDS_PER_PAGE {
            self.word(dst + page as u64 * PAGE_BYTES)
                .store(src[page * WORDS_PER_PAGE].load(Relaxed), Relaxed);
        }
        Ok(())
    }
    fn copy_out(&self, src: DevMemAddr, dst: &[Word]) -> Result<(), DeviceError> {
        self.step();
        for page in 0..dst.len() / WORDS_PER_PAGE {
            dst[page * WORDS_PER_PAGE]
                .store(self.word(src + page as u64 * PAGE_BYTES).load(Relaxed), Relaxed);
        }
        Ok(())
    }
    fn window(&self, at: DevMemAddr, bytes: u64) -> Option<&[Word]> {
        Some(&self.memory[at.0 as usize / 8..][..bytes as usize / 8])
    }
    fn map(&self, at: DevAddr, pages: u64, target: MapTarget, access: Access) -> Result<(), DeviceError> {
        self.step();
        let mut translations = self.translations.lock().unwrap();
        for page in 0..pages {
            let target = match target {
                MapTarget::DeviceMemory(to) => MapTarget::DeviceMemory(to + page * PAGE_BYTES),
                MapTarget::System(to) => MapTarget::System(to + page * PAGE_BYTES),
            };
            translations.pages.insert(at.0 / PAGE_BYTES + page, (target, access));
        }
        Ok(())
    }
    fn unmap(&self, at: DevAddr, pages: u64) {
        self.step();
        let first = at.0 / PAGE_BYTES;
        self.translations.lock().unwrap().pages.retain(|page, _| !(first..first + pages).contains(page));
    }
    fn flush(&self, _: DevAddr, _: u64) {}
    fn quiesce(&self) {}
    fn resume(&self) {}
    fn attach(&self) {}
    fn detach(&self) {}
    fn wait_fault(&self) {}
    fn interrupt(&self) {}
    fn fetch(&self, _: &mut [DeviceFault]) -> usize {
        0
    }
    fn replay(&self) {}
    fn cancel(&self, _: &DeviceFault, _: FaultCause) {}
    fn iommu(&self) -> &dyn Iommu {
        self
    }
}

impl Iommu for SimDevice {
    fn aperture(&self) -> (Iova, Iova) {
        (Iova(0), Iova((1 << 40) - 1))
    }
    fn map(&self, iova: Iova, phys: PhysAddr, bytes: u64, access: Access) -> Result<(), IommuError> {
        let mut translations = self.translations.lock().unwrap();
        for page in 0..bytes / PAGE_BYTES {
            let old =
                translations.iommu.insert(iova.0 / PAGE_BYTES + page, (phys + page * PAGE_BYTES, access));
            assert!(old.is_none(), "a page is linked twice");
        }
        Ok(())
    }
    fn protect(&self, iova: Iova, bytes: u64, access: Access) -> Result<(), IommuError> {
        let mut translations = self.translations.lock().unwrap();
        for page in 0..bytes / PAGE_BYTES {
            translations.iommu.get_mut(&(iova.0 / PAGE_BYTES + page)).ok_or(IommuError::NotMapped(iova))?.1 =
                access;
        }
        Ok(())
    }
    fn unmap(&self, iova: Iova, bytes: u64) -> Result<(), IommuError> {
        let mut translations = self.translations.lock().unwrap();
        for page in 0..bytes / PAGE_BYTES {
            translations.iommu.remove(&(iova.0 / PAGE_BYTES + page)).ok_or(IommuError::NotMapped(iova))?;
        }
        Ok(())
    }
    fn flush(&self, _: Iova, _: u64) {}
}

// ---- a space over them ----

pub struct SimIova(Mutex<IovaSpace>);
impl ReserveIova for SimIova {
    fn reserve(&self, bytes: u64, align_bytes: u64) -> Result<Iova, IovaError> {
        self.0.lock().unwrap().reserve(bytes, align_bytes)
    }
    fn free(&self, base: Iova, bytes: u64) -> Result<(), IovaError> {
        self.0.lock().unwrap().free(base, bytes)
    }
}

/// The memory of a small space.
pub struct SimMemory {
    level1: Vec<AtomicU32>,
    nodes: Vec<TableNode>,
    granules: Vec<GranuleRecord>,
    blocks: Vec<BlockRecord>,
    planes: Vec<DevicePlane>,
    fine: Vec<FineSlots>,
    seats: Vec<GateSeat>,
    transits: Vec<TransitRecord>,
    homecomings: Vec<HomecomingRecord>,
    userptrs: Vec<UserptrRecord>,
    userptr_words: Vec<AtomicU64>,
    chunks: Vec<ChunkRecord>,
    iova: SimIova,
}

fn make<T: Default>(n: usize) -> Vec<T> {
    (0..n).map(|_| T::default()).collect()
}

impl SimMemory {
    pub fn new(blocks: usize, seats: usize, device: &SimDevice) -> Self {
        let level1 = if cfg!(granule_loom) { 1 } else { 512 };
        Self {
            level1: (0..level1).map(|_| AtomicU32::new(0)).collect(),
            nodes: make(1),
            granules: make(1),
            blocks: make(blocks),
            planes: make(blocks),
            fine: make(blocks),
            seats: make(seats),
            transits: make(seats),
            homecomings: make(2),
            userptrs: make(2),
            userptr_words: (0..2).map(|_| AtomicU64::new(0)).collect(),
            chunks: make((device.caps().memory_bytes / BLOCK_BYTES) as usize),
            iova: SimIova(Mutex::new(IovaSpace::new(device.iommu().aperture(), &[]))),
        }
    }

    pub fn device<'m>(&'m self, device: &'m SimDevice) -> SpaceDevice<'m> {
        SpaceDevice {
            port: device,
            memory: DeviceMemory::new(&self.chunks),
            order: EvictionOrder::default(),
            iova: &self.iova,
        }
    }

    pub fn space<'m>(
        &'m self,
        host: &'m SimHost,
        devices: &'m [SpaceDevice<'m>],
        policy: &'m dyn Policy,
        probe: &'m dyn Probe,
    ) -> Space<'m, SimHost> {
        Space {
            host,
            tables: Tables::new(
                TableMemory {
                    nodes: &self.nodes,
                    level1: &self.level1,
                    granules: &self.granules,
                    blocks: &self.blocks,
                    planes: &self.planes,
                    fine: &self.fine,
                },
                1,
            ),
            gate: Gate::new(&self.seats),
            transits: &self.transits,
            park: &YieldPark,
            policy,
            probe,
            devices,
            userptrs: Userptrs::new(&self.userptrs, &self.userptr_words),
            fence_limit_ns: 1_000_000_000,
            homecomings: Homecomings::new(&self.homecomings),
        }
    }
}

pub fn one(page: u64) -> PageMask {
    PageMask::of(PageIndex::of(page_at(page)))
}
