//! A machine for DMA that is as simple as can be and checks its users: memory, an IOMMU that caches translations until
//! it is told to forget them, a device cache that keeps lines, bounce pages, a peer's window.

#![allow(dead_code, reason = "each test binary uses a part")]

pub mod churn;

use std::collections::BTreeMap;
use std::sync::Mutex;

use granule::dma::{Domain, DomainBuilder, IovaSpace, ReserveIova};
use granule::ports::{
    AttachError, BounceFault, BounceMemory, CacheSync, Iommu, IommuCaps, IommuError, IovaWindow, Mapped,
    PasidDevice, PinError, PinMemory,
};
use granule::units::{Access, Direction, Iova, Pasid, PhysAddr, PhysRange, VirtAddr};

pub const PAGE: u64 = 4096;
/// Where memory begins, and how many pages it has.
pub const MEMORY: u64 = 0x4000_0000;
pub const PAGES: u64 = 4096;
/// The last pages of memory are bounce pages.
pub const BOUNCE: u64 = 8;
pub const LINE: u64 = 64;
/// A device's window behind the memory.
pub const WINDOW: u64 = 0x9000_0000;
pub const WINDOW_BYTES: u64 = 64 * PAGE;

/// A small generator of numbers; the seed replays a run.
pub struct Dice(pub u64);
impl Dice {
    pub fn roll(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }
    /// From 0 up to `end`, exclusive.
    pub fn below(&mut self, end: u64) -> u64 {
        self.roll() % end
    }
    pub fn one_in(&mut self, n: u64) -> bool {
        self.below(n) == 0
    }
}

/// Seeds of a run: a fixed set, or the one that `GRANULE_SEED` names.
pub fn seeds(count: u64) -> Vec<u64> {
    match std::env::var("GRANULE_SEED") {
        Ok(seed) => vec![seed.parse().expect("GRANULE_SEED is a number")],
        Err(_) => (1..=count).collect(),
    }
}

#[derive(Default)]
pub struct Flushes {
    pub calls: u64,
    pub runs: Vec<(u64, u64)>,
}

struct State {
    memory: Vec<u8>,
    table: BTreeMap<u64, (u64, Access)>,
    cached: BTreeMap<u64, (u64, Access)>,
    lines: BTreeMap<u64, ([u8; LINE as usize], bool)>,
    flushes: Flushes,
    /// Pages that fit in the table.
    room: usize,
    /// Map calls that were made.
    maps: u64,
    synced: Vec<(u64, u64)>,
    is_gone: bool,
    attached: Vec<Pasid>,
    attach: Result<(), AttachError>,
}

pub struct Machine {
    state: Mutex<State>,
    pub caps: IommuCaps,
    pub windows: Vec<IovaWindow>,
    pub aperture: (Iova, Iova),
    pub caches: bool,
    pub pasid_bits: u32,
    pub key: u64,
}

impl Default for Machine {
    fn default() -> Self {
        Self::new()
    }
}

impl Machine {
    pub fn new() -> Self {
        let state = State {
            memory: vec![0; (PAGES * PAGE) as usize],
            table: BTreeMap::new(),
            cached: BTreeMap::new(),
            lines: BTreeMap::new(),
            flushes: Flushes::default(),
            room: usize::MAX,
            maps: 0,
            synced: Vec::new(),
            is_gone: false,
            attached: Vec::new(),
            attach: Ok(()),
        };
        Self {
            state: Mutex::new(state),
            caps: IommuCaps { page_bytes: PAGE, can_replace: true, pins: false },
            windows: vec![IovaWindow::MSI_X86],
            aperture: (Iova(0), Iova((1 << 40) - 1)),
            caches: false,
            pasid_bits: 20,
            key: 1,
        }
    }

    fn page(&self) -> u64 {
        self.caps.page_bytes
    }

    pub fn set_room(&self, pages: usize) {
        self.state.lock().unwrap().room = pages;
    }
    pub fn set_gone(&self, is_gone: bool) {
        self.state.lock().unwrap().is_gone = is_gone;
    }
    pub fn set_attach(&self, answer: Result<(), AttachError>) {
        self.state.lock().unwrap().attach = answer;
    }
    pub fn attached(&self) -> Vec<Pasid> {
        self.state.lock().unwrap().attached.clone()
    }
    pub fn mapped_pages(&self) -> usize {
        self.state.lock().unwrap().table.len()
    }
    pub fn maps(&self) -> u64 {
        self.state.lock().unwrap().maps
    }
    pub fn synced(&self) -> Vec<(u64, u64)> {
        self.state.lock().unwrap().synced.clone()
    }
    pub fn flush_calls(&self) -> u64 {
        self.state.lock().unwrap().flushes.calls
    }
    pub fn flushed_runs(&self) -> Vec<(u64, u64)> {
        self.state.lock().unwrap().flushes.runs.clone()
    }

    /// The CPU writes memory.
    pub fn write(&self, phys: u64, bytes: &[u8]) {
        let at = (phys - MEMORY) as usize;
        self.state.lock().unwrap().memory[at..at + bytes.len()].copy_from_slice(bytes);
    }
    /// The CPU reads memory.
    pub fn read(&self, phys: u64, len: usize) -> Vec<u8> {
        let at = (phys - MEMORY) as usize;
        self.state.lock().unwrap().memory[at..at + len].to_vec()
    }

    /// What an access at an IOVA reaches now: through the cached translation, if there is one.
    pub fn translate(&self, iova: u64, access: Access) -> Option<u64> {
        let mut state = self.state.lock().unwrap();
        let page = iova / self.page();
        let entry = match state.cached.get(&page) {
            Some(entry) => *entry,
            None => {
                let entry = *state.table.get(&page)?;
                state.cached.insert(page, entry);
                entry
            }
        };
        entry.1.covers(access).then_some(entry.0 + iova % self.page())
    }

    /// A device reads a byte by DMA. `None`: refused by the IOMMU.
    pub fn dma_read(&self, iova: u64) -> Option<u8> {
        let phys = self.translate(iova, Access::Read)?;
        Some(self.bus_read(phys))
    }
    /// A device writes a byte by DMA.
    pub fn dma_write(&self, iova: u64, byte: u8) -> Option<()> {
        let phys = self.translate(iova, Access::Write)?;
        self.bus_write(phys, byte);
        Some(())
    }
    pub fn dma_read_all(&self, iova: u64, len: u64) -> Option<Vec<u8>> {
        (iova..iova + len).map(|at| self.dma_read(at)).collect()
    }

    /// A device reads a byte at a physical address, through its own cache if it has one.
    pub fn bus_read(&self, phys: u64) -> u8 {
        let mut state = self.state.lock().unwrap();
        if !self.caches {
            return state.memory[(phys - MEMORY) as usize];
        }
        line(&mut state, phys).0[(phys % LINE) as usize]
    }
    pub fn bus_write(&self, phys: u64, byte: u8) {
        let mut state = self.state.lock().unwrap();
        if !self.caches {
            state.memory[(phys - MEMORY) as usize] = byte;
            return;
        }
        let line = line(&mut state, phys);
        line.0[(phys % LINE) as usize] = byte;
        line.1 = true;
    }

    /// Where the first bounce page lies.
    pub fn bounce_phys() -> u64 {
        MEMORY + (PAGES - BOUNCE) * PAGE
    }
}

fn line(state: &mut State, phys: u64) -> &mut ([u8; LINE as usize], bool) {
    let first = phys / LINE * LINE;
    let at = (first - MEMORY) as usize;
    let bytes: [u8; LINE as usize] = state.memory[at..at + LINE as usize].try_into().unwrap();
    state.lines.entry(first).or_insert((bytes, false))
}

impl Iommu for Machine {
    fn aperture(&self) -> (Iova, Iova) {
        self.aperture
    }
    fn caps(&self) -> IommuCaps {
        self.caps
    }
    fn reserved_windows(&self) -> &[IovaWindow] {
        &self.windows
    }
    fn map(&self, iova: Iova, phys: PhysAddr, bytes: u64, access: Access) -> Result<(), IommuError> {
        let page = self.page();
        assert!((iova.0 | phys.0 | bytes).is_multiple_of(page) && bytes > 0, "whole pages");
        if iova.0.checked_add(bytes - 1).is_none_or(|last| last > self.aperture.1.0) {
            return Err(IommuError::OutsideAperture(iova));
        }
        let mut state = self.state.lock().unwrap();
        state.maps += 1;
        let pages = iova.0 / page..(iova.0 + bytes) / page;
        if let Some((at, _)) = state.table.range(pages.clone()).next() {
            return Err(IommuError::AlreadyMapped(Iova(at * page)));
        }
        if state.table.len() + (bytes / page) as usize > state.room {
            return Err(IommuError::OutOfTables);
        }
        for (index, at) in pages.enumerate() {
            state.table.insert(at, (phys.0 + index as u64 * page, access));
        }
        Ok(())
    }
    fn sync(&self, iova: Iova, bytes: u64) {
        self.state.lock().unwrap().synced.push((iova.0, bytes));
    }
    fn protect(&self, iova: Iova, bytes: u64, access: Access) -> Result<(), IommuError> {
        let mut state = self.state.lock().unwrap();
        let pages = iova.0 / self.page()..(iova.0 + bytes) / self.page();
        if let Some(hole) = pages.clone().find(|at| !state.table.contains_key(at)) {
            return Err(IommuError::NotMapped(Iova(hole * self.page())));
        }
        for at in pages {
            state.table.get_mut(&at).unwrap().1 = access;
            // More rights hold at once.
            if access == Access::Write {
                state.cached.remove(&at);
            }
        }
        Ok(())
    }
    fn unmap(&self, iova: Iova, bytes: u64) -> Result<(), IommuError> {
        let page = self.page();
        assert!((iova.0 | bytes).is_multiple_of(page) && bytes > 0, "whole pages");
        let mut state = self.state.lock().unwrap();
        let pages = iova.0 / page..(iova.0 + bytes) / page;
        if let Some(hole) = pages.clone().find(|at| !state.table.contains_key(at)) {
            return Err(IommuError::NotMapped(Iova(hole * page)));
        }
        for at in pages {
            state.table.remove(&at);
        }
        Ok(())
    }
    fn replace(&self, iova: Iova, phys: PhysAddr, bytes: u64, access: Access) -> Result<(), IommuError> {
        let page = self.page();
        if !self.caps.can_replace {
            return Err(IommuError::CannotReplace(iova));
        }
        let mut state = self.state.lock().unwrap();
        let pages = iova.0 / page..(iova.0 + bytes) / page;
        let new = pages.clone().filter(|at| !state.table.contains_key(at)).count();
        if state.table.len() + new > state.room {
            return Err(IommuError::OutOfTables);
        }
        for (index, at) in pages.enumerate() {
            state.table.insert(at, (phys.0 + index as u64 * page, access));
        }
        Ok(())
    }
    fn mapped(&self, iova: Iova, bytes: u64) -> Option<Mapped> {
        let (page, state) = (self.page(), self.state.lock().unwrap());
        let pages = iova.0 / page..(iova.0 + bytes) / page;
        let (at, (phys, access)) = state.table.range(pages.clone()).next()?;
        let mut piece = Mapped { iova: Iova(at * page), phys: PhysAddr(*phys), bytes: page, access: *access };
        // As long as it is contiguous.
        for next in at + 1..pages.end {
            let wanted = (piece.phys.0 + piece.bytes, piece.access);
            if state.table.get(&next) != Some(&wanted) {
                break;
            }
            piece.bytes += page;
        }
        Some(piece)
    }
    fn flush(&self, iova: Iova, bytes: u64) {
        let mut state = self.state.lock().unwrap();
        state.flushes.calls += 1;
        forget(&mut state, iova, bytes, self.page());
    }
    fn flush_runs(&self, runs: &[(Iova, u64)]) {
        let mut state = self.state.lock().unwrap();
        state.flushes.calls += 1;
        runs.iter().for_each(|(iova, bytes)| forget(&mut state, *iova, *bytes, self.page()));
    }
}

fn forget(state: &mut State, iova: Iova, bytes: u64, page: u64) {
    state.flushes.runs.push((iova.0, bytes));
    let pages = iova.0 / page..(iova.0 + bytes) / page;
    state.cached.retain(|at, _| !pages.contains(at));
}

impl CacheSync for Machine {
    fn line_bytes(&self) -> u64 {
        LINE
    }
    fn sync_for_device(&self, phys: PhysAddr, bytes: u64, _: Direction) {
        let first = phys.0 / LINE * LINE;
        let lines = first..phys.0 + bytes;
        self.state.lock().unwrap().lines.retain(|at, _| !lines.contains(at));
    }
    fn sync_for_cpu(&self, phys: PhysAddr, bytes: u64, direction: Direction) {
        assert!(direction.is_from_device(), "nothing to do towards the device");
        let first = phys.0 / LINE * LINE;
        let mut state = self.state.lock().unwrap();
        let all: Vec<u64> = state.lines.range(first..phys.0 + bytes).map(|(at, _)| *at).collect();
        for at in all {
            let (bytes, is_dirty) = state.lines.remove(&at).unwrap();
            if is_dirty {
                let offset = (at - MEMORY) as usize;
                state.memory[offset..offset + LINE as usize].copy_from_slice(&bytes);
            }
        }
    }
}

impl BounceMemory for Machine {
    fn pages(&self) -> usize {
        (BOUNCE * PAGE / self.page()) as usize
    }
    fn page_bytes(&self) -> u64 {
        self.page()
    }
    fn phys(&self, slot: usize) -> PhysAddr {
        PhysAddr(Self::bounce_phys() + slot as u64 * self.page())
    }
    fn clear(&self, slot: usize) {
        self.write(self.phys(slot).0, &vec![0; self.page() as usize]);
    }
    fn copy_in(&self, slot: usize, offset: u64, from: PhysAddr, bytes: u64) -> Result<(), BounceFault> {
        if self.state.lock().unwrap().is_gone {
            return Err(BounceFault(from));
        }
        let data = self.read(from.0, bytes as usize);
        self.write(self.phys(slot).0 + offset, &data);
        Ok(())
    }
    fn copy_out(&self, slot: usize, offset: u64, to: PhysAddr, bytes: u64) -> Result<(), BounceFault> {
        if self.state.lock().unwrap().is_gone {
            return Err(BounceFault(to));
        }
        let data = self.read(self.phys(slot).0 + offset, bytes as usize);
        self.write(to.0, &data);
        Ok(())
    }
}

impl PasidDevice for Machine {
    fn pasid_bits(&self) -> u32 {
        self.pasid_bits
    }
    fn key(&self) -> u64 {
        self.key
    }
    fn attach_pasid(&self, pasid: Pasid) -> Result<(), AttachError> {
        let mut state = self.state.lock().unwrap();
        state.attach?;
        assert!(!state.attached.contains(&pasid), "attached twice");
        state.attached.push(pasid);
        Ok(())
    }
    fn detach_pasid(&self, pasid: Pasid) {
        let mut state = self.state.lock().unwrap();
        let at = state.attached.iter().position(|known| *known == pasid).expect("it was attached");
        state.attached.remove(at);
    }
}

/// Pins by a table: virtual page n lies in the page of memory that a fixed shuffle says.
#[derive(Default)]
pub struct Pins {
    pub held: Mutex<Vec<(u64, u64)>>,
    /// The most that may be pinned at once.
    pub limit_bytes: Option<u64>,
    /// Pages of memory that one pin can make present.
    pub memory_pages: Option<u64>,
    /// A page that the process has not mapped.
    pub unmapped: Option<u64>,
}
impl PinMemory for Pins {
    fn pin(
        &self,
        at: VirtAddr,
        bytes: u64,
        _: Access,
        each: &mut dyn FnMut(PhysRange),
    ) -> Result<(), PinError> {
        let held: u64 = self.held.lock().unwrap().iter().map(|(_, bytes)| *bytes).sum();
        if self.limit_bytes.is_some_and(|limit| held.saturating_add(bytes) > limit) {
            return Err(PinError::OverLimit);
        }
        let mut here = at.0;
        while here < at.0 + bytes {
            if self.unmapped.is_some_and(|page| here / PAGE == page) {
                return Err(PinError::NoAccess(VirtAddr(here)));
            }
            if self.memory_pages.is_some_and(|pages| here / PAGE - at.0 / PAGE >= pages) {
                return Err(PinError::OutOfMemory(VirtAddr(here)));
            }
            let end = (here | (PAGE - 1)).saturating_add(1).min(at.0 + bytes);
            // Pairs of pages are exchanged: 0 1 2 3 lie at 1 0 3 2.
            let phys = MEMORY + ((here / PAGE % 1024) ^ 1) * PAGE + here % PAGE;
            each(PhysRange::new(PhysAddr(phys), end - here).with(PhysRange::PINNED));
            here = end;
        }
        self.held.lock().unwrap().push((at.0, bytes));
        Ok(())
    }
    fn unpin(&self, at: VirtAddr, bytes: u64) {
        let mut held = self.held.lock().unwrap();
        let place = held.iter().position(|one| *one == (at.0, bytes)).expect("it was pinned");
        held.remove(place);
    }
}

pub struct Iovas(pub Mutex<IovaSpace>);
impl Iovas {
    pub fn of(machine: &Machine) -> Self {
        Self(Mutex::new(IovaSpace::new(machine.aperture(), machine.reserved_windows())))
    }
    pub fn reserved_bytes(&self) -> u64 {
        self.0.lock().unwrap().reserved_bytes()
    }
}
impl ReserveIova for Iovas {
    fn with(&self, act: &mut dyn FnMut(&mut IovaSpace)) {
        act(&mut self.0.lock().unwrap());
    }
}

/// Builds a domain over a machine, as `build` says, and checks at the end that nothing was forgotten.
pub fn with_domain(
    machine: &Machine,
    build: impl for<'d> FnOnce(DomainBuilder<'d>, &'d Machine) -> DomainBuilder<'d>,
    test: impl FnOnce(&Domain<'_>),
) {
    let iovas = Iovas::of(machine);
    let domain = build(Domain::builder(machine, &iovas), machine).build();
    test(&domain);
    assert_eq!(domain.bounce_pages_in_use(), 0, "a bounce page is still lent");
    assert_eq!(machine.mapped_pages(), 0, "something is still mapped");
    assert_eq!(iovas.reserved_bytes(), 0, "something is still reserved");
}

pub fn plain(machine: &Machine, test: impl FnOnce(&Domain<'_>)) {
    with_domain(machine, |builder, _| builder, test);
}

/// System memory from page `page` of memory on.
pub fn mem(page: u64, bytes: u64) -> PhysRange {
    PhysRange::new(PhysAddr(MEMORY + page * PAGE), bytes)
}
/// System memory at a byte.
pub fn mem_at(offset: u64, bytes: u64) -> PhysRange {
    PhysRange::new(PhysAddr(MEMORY + offset), bytes)
}
