//! A trace through the whole fault service: batches of device faults through `group` and `serve`, CPU faults and unmaps
//! through the reader's `round`.
//!
//! # Rules
//! 1. A touch of a page that the device has, or that is linked for it, is a hit. Any other is a fault, and waits until as
//!    many are open as the device may have; then they are one batch. There is no time here: `replay` without the service
//!    has the clock.
//! 2. What the CPU does to a block waits until the faults before it have been served: events happen in their order.
//! 3. CPU faults come only of pages that are away, as with the real kernel.

use granule::fault::{BlockFault, CpuFault, Reader, RoundEnd, group, round, serve};
use granule::granule::check_block;
use granule::migrate::Space;
use granule::policy::Policy;
use granule::ports::{Clock, Count, DeviceFault, HostEvent, Probe};
use granule::sync::SpinPark;
use granule::units::{
    Access, BLOCK_BYTES, BlockNo, DevAddr, DeviceId, PAGES_PER_BLOCK, PageIndex, PageMask, Seat, VirtAddr,
    VirtRange,
};

use super::flat::{FlatDevice, FlatHost, Tally, window};
use super::{Iovas, Sizes, SpaceMemory};
use crate::trace::{Event, EventKind};

/// What a player is given.
#[derive(Clone, Copy, Debug)]
pub struct Limits {
    /// Device memory in bytes, rounded down to 2 MiB.
    pub device_bytes: u64,
    /// Faults that the device can have open.
    pub outstanding: usize,
    /// Distinct blocks of the trace.
    pub blocks: usize,
    /// Distinct granules of the trace.
    pub granules: usize,
}

/// What was counted.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Played {
    /// Events of the trace.
    pub events: u64,
    /// Touches that found their page.
    pub hits: u64,
    /// Events at addresses that the library does not serve.
    pub outside: u64,
    /// Recorded decisions and advice, which are not played.
    pub not_played: u64,
    /// The library's own counters.
    pub counts: Vec<(Count, u64)>,
}

impl Played {
    /// One of the library's counters.
    pub fn of(&self, what: Count) -> u64 {
        self.counts.iter().find(|(count, _)| *count == what).map_or(0, |(_, n)| *n)
    }
}

struct NoClock;
impl Clock for NoClock {
    fn now_ns(&self) -> u64 {
        0
    }
}

/// Plays events into a space.
pub struct Player<'s> {
    space: &'s Space<'s, FlatHost>,
    tally: &'s Tally,
    reader: Reader<'s>,
    open: Vec<DeviceFault>,
    groups: Vec<BlockFault>,
    outstanding: usize,
    played: Played,
}

const SEAT: Seat = Seat(0);
const DEVICE: DeviceId = DeviceId(0);

/// Makes a service over flat ports and lets `body` play into it.
pub fn with_service<R>(limits: &Limits, policy: &dyn Policy, body: impl FnOnce(&mut Player<'_>) -> R) -> R {
    let chunks = (limits.device_bytes / BLOCK_BYTES) as usize;
    let sizes = Sizes {
        granules: limits.granules,
        blocks: limits.blocks,
        fine: limits.blocks.min(chunks * PAGES_PER_BLOCK),
        seats: 1,
        homecomings: 1,
        userptrs: 0,
        userptr_pages: 0,
        chunks,
        devices: 1,
    };
    let memory = SpaceMemory::new(&sizes);
    let host = FlatHost::default();
    let device = FlatDevice { memory_bytes: chunks as u64 * BLOCK_BYTES };
    let iovas = Iovas::new(&device);
    let tally = Tally::default();
    let devices = [memory.device(0, &device, &iovas)];
    let space = memory.space(&host, &SpinPark, &devices, policy, &tally);
    let mut waiting = [CpuFault::NONE; 16];
    let mut events = [HostEvent::Unmap(VirtRange::default()); 16];
    let mut player = Player {
        space: &space,
        tally: &tally,
        reader: Reader::new(&mut waiting, &mut events),
        open: Vec::with_capacity(limits.outstanding),
        groups: vec![BlockFault::NONE; limits.outstanding],
        outstanding: limits.outstanding,
        played: Played::default(),
    };
    body(&mut player)
}

impl Player<'_> {
    /// Plays events.
    pub fn feed(&mut self, events: &[Event]) {
        for event in events {
            self.played.events += 1;
            let inside =
                event.page < window().pages() && u64::from(event.pages) <= window().pages() - event.page;
            match event.kind {
                _ if !inside => self.played.outside += 1,
                EventKind::Access | EventKind::DeviceFault => self.touch(event),
                EventKind::CpuFault => self.cpu(event),
                EventKind::Unmap => {
                    self.settle();
                    let range = VirtRange::of_pages(VirtAddr(event.address()), event.pages.into());
                    self.space.host.push(HostEvent::Unmap(range));
                    self.read();
                }
                EventKind::Map => {}
                EventKind::Migration | EventKind::Advice => self.played.not_played += 1,
            }
        }
    }

    fn touch(&mut self, event: &Event) {
        let at = VirtAddr(event.address());
        let access = if event.access.writes() { Access::Write } else { Access::Read };
        if self.has(at, access) {
            self.played.hits += 1;
            return;
        }
        let cookie = self.open.len() as u64;
        self.open.push(DeviceFault { at: DevAddr(at.0), access, engine: event.engine.into(), cookie });
        if self.open.len() == self.outstanding {
            self.settle();
        }
    }

    /// Whether an engine would find a translation.
    fn has(&self, at: VirtAddr, access: Access) -> bool {
        let Some(index) = self.space.tables.block(BlockNo::of(at)) else { return false };
        let page = PageIndex::of(at);
        let block = self.space.tables.lock(index, self.space.park);
        block.device_private().contains(page)
            || match access {
                Access::Read => block.dma_mapped(DEVICE).contains(page),
                Access::Write => block.writable(DEVICE).contains(page),
            }
    }

    /// Serves what is open, as a device's thread does with a batch.
    fn settle(&mut self) {
        if self.open.is_empty() {
            return;
        }
        let probe = self.tally;
        let (used, duplicates) = group(&mut self.open, DEVICE, &mut self.groups);
        probe.add(Count::DeviceBatches, 1);
        probe.add(Count::DeviceFaults, self.open.len() as u64);
        probe.add(Count::DeviceFaultsDuplicate, duplicates);
        for fault in &self.groups[..used] {
            // What fails is in the count of faults that failed; there is nobody to tell.
            let _ = serve(self.space, SEAT, fault);
        }
        self.open.clear();
    }

    fn cpu(&mut self, event: &Event) {
        self.settle();
        let at = VirtAddr(event.address());
        let away = self.space.tables.block(BlockNo::of(at)).is_some_and(|index| {
            self.space.tables.lock(index, self.space.park).device_private().contains(PageIndex::of(at))
        });
        if away {
            let access = if event.access.writes() { Access::Write } else { Access::Read };
            self.space.host.push(HostEvent::Fault { at, access, write_protected: false });
            self.read();
        }
    }

    fn read(&mut self) {
        while round(self.space, &NoClock, &mut self.reader) == RoundEnd::WorkLeft {}
    }

    /// The pages of a block that the device has.
    pub fn resident(&self, block: BlockNo) -> PageMask {
        self.space.tables.block(block).map_or(PageMask::EMPTY, |index| {
            let block = self.space.tables.lock(index, self.space.park);
            debug_assert_eq!(check_block(&block), Ok(()));
            block.device_private()
        })
    }

    /// Serves what is left and says what was counted so far.
    pub fn finish(&mut self) -> Played {
        self.settle();
        let counts = Count::ALL.iter().map(|count| (*count, self.tally.of(*count))).collect();
        Played { counts, ..std::mem::take(&mut self.played) }
    }
}
