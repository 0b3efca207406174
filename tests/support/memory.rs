//! The memory of a space over ports of one's own, handed out as slices: for models, for tests of the pure part, and for
//! benches of it.

use std::sync::Mutex;

use granule::dma::{IovaSpace, ReserveIova};
use granule::granule::{
    BlockRecord, DevicePlane, FineSlots, Gate, GateSeat, GranuleRecord, HomecomingRecord, Homecomings,
    TableMemory, TableNode, Tables, TransitRecord, UserptrRecord, Userptrs,
};
use granule::migrate::{ChunkRecord, DeviceMemory, EvictionOrder, Space, SpaceDevice};
use granule::policy::Policy;
use granule::ports::{Device, Host, Probe};
use granule::sync::{AtomicU32, LockedU64, Park};
use granule::units::BLOCK_BYTES;

struct Iovas(Mutex<IovaSpace>);

impl ReserveIova for Iovas {
    fn with(&self, act: &mut dyn FnMut(&mut IovaSpace)) {
        act(&mut self.0.lock().expect("nobody panics inside"));
    }
}

/// How much of everything.
#[derive(Clone, Copy)]
pub struct Sizes {
    pub level1: usize,
    pub nodes: usize,
    pub granules: usize,
    pub blocks: usize,
    /// Index records for slots of 4 KiB.
    pub fine: usize,
    pub seats: usize,
    pub userptrs: usize,
}

/// What a space with one device borrows from.
pub struct SpaceMemory {
    level1: Vec<AtomicU32>,
    nodes: Vec<TableNode>,
    granules: Vec<GranuleRecord>,
    pub blocks: Vec<BlockRecord>,
    planes: Vec<DevicePlane>,
    fine: Vec<FineSlots>,
    seats: Vec<GateSeat>,
    transits: Vec<TransitRecord>,
    homecomings: Vec<HomecomingRecord>,
    userptrs: Vec<UserptrRecord>,
    userptr_words: Vec<LockedU64>,
    chunks: Vec<ChunkRecord>,
    iova: Iovas,
}

fn make<T: Default>(n: usize) -> Vec<T> {
    (0..n).map(|_| T::default()).collect()
}

impl SpaceMemory {
    pub fn new(sizes: Sizes, device: &dyn Device) -> Self {
        Self {
            level1: (0..sizes.level1).map(|_| AtomicU32::new(0)).collect(),
            nodes: make(sizes.nodes),
            granules: make(sizes.granules),
            blocks: make(sizes.blocks),
            planes: make(sizes.blocks),
            fine: make(sizes.fine),
            seats: make(sizes.seats),
            transits: make(sizes.seats),
            homecomings: make(2),
            userptrs: make(sizes.userptrs),
            userptr_words: (0..sizes.userptrs).map(|_| LockedU64::new(0)).collect(),
            chunks: make((device.caps().memory_bytes / BLOCK_BYTES) as usize),
            iova: Iovas(Mutex::new(IovaSpace::new(device.iommu().aperture(), &[]))),
        }
    }

    pub fn device<'m>(&'m self, port: &'m dyn Device) -> SpaceDevice<'m> {
        SpaceDevice {
            port,
            memory: DeviceMemory::new(&self.chunks),
            order: EvictionOrder::default(),
            iova: &self.iova,
        }
    }

    pub fn space<'m, H: Host>(
        &'m self,
        host: &'m H,
        park: &'m dyn Park,
        devices: &'m [SpaceDevice<'m>],
        policy: &'m dyn Policy,
        probe: &'m dyn Probe,
    ) -> Space<'m, H> {
        let tables = TableMemory {
            nodes: &self.nodes,
            level1: &self.level1,
            granules: &self.granules,
            blocks: &self.blocks,
            planes: &self.planes,
            fine: &self.fine,
        };
        Space {
            host,
            tables: Tables::new(tables, 1),
            gate: Gate::new(&self.seats),
            transits: &self.transits,
            park,
            policy,
            probe,
            devices,
            userptrs: Userptrs::new(&self.userptrs, &self.userptr_words),
            fence_limit_ns: 1_000_000_000,
            homecomings: Homecomings::new(&self.homecomings),
        }
    }
}
