//! The memory of a space over simulated ports. Nothing here is mirrored, so it may lie on the heap.

use granule::dma::{IovaSpace, ReserveIova};
use granule::granule::{
    BlockRecord, DevicePlane, FineSlots, Gate, GateSeat, GranuleRecord, HomecomingRecord, Homecomings,
    TableMemory, TableNode, Tables, TransitRecord, UserptrRecord, Userptrs,
};
use granule::migrate::{ChunkRecord, DeviceMemory, EvictionOrder, Space, SpaceDevice};
use granule::policy::Policy;
use granule::ports::{Device, Host, Probe};
use granule::sync::{AtomicU32, AtomicU64, Park};
use granule::units::{GRANULE_SHIFT, SPACE_BYTES};

/// How much of everything.
#[derive(Clone, Copy, Debug)]
pub struct Sizes {
    /// Granules that may be touched.
    pub granules: usize,
    /// Blocks that may be touched.
    pub blocks: usize,
    /// Blocks whose device memory may be handed out in slots of 4 KiB.
    pub fine: usize,
    /// Workers.
    pub seats: usize,
    /// Blocks that may wait for the end of an mremap.
    pub homecomings: usize,
    /// Ranges that may be registered at once.
    pub userptrs: usize,
    /// Pages of all of them.
    pub userptr_pages: usize,
    /// Memory of each device in blocks.
    pub chunks: usize,
    /// How many devices.
    pub devices: usize,
}

/// What a [`Space`] borrows from.
pub struct SpaceMemory {
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
    chunks: Vec<Vec<ChunkRecord>>,
    devices: usize,
}

fn make<T: Default>(count: usize) -> Vec<T> {
    std::iter::repeat_with(T::default).take(count).collect()
}

/// Entries of the first level of the table; each stands for a node's 512 granules.
const LEVEL1: usize = (SPACE_BYTES >> GRANULE_SHIFT) as usize / 512;

impl SpaceMemory {
    /// All of it empty.
    pub fn new(sizes: &Sizes) -> Self {
        Self {
            level1: make(LEVEL1),
            nodes: make(sizes.granules.min(LEVEL1)),
            granules: make(sizes.granules),
            blocks: make(sizes.blocks),
            planes: make(sizes.blocks * sizes.devices),
            fine: make(sizes.fine),
            seats: make(sizes.seats),
            transits: make(sizes.seats),
            homecomings: make(sizes.homecomings),
            userptrs: make(sizes.userptrs),
            userptr_words: make(sizes.userptr_pages.div_ceil(64)),
            chunks: (0..sizes.devices).map(|_| make(sizes.chunks)).collect(),
            devices: sizes.devices,
        }
    }

    /// The part of device `at`, which has `port` and reserves from `iova`.
    pub fn device<'m>(
        &'m self,
        at: usize,
        port: &'m dyn Device,
        iova: &'m dyn ReserveIova,
    ) -> SpaceDevice<'m> {
        let memory = DeviceMemory::new(&self.chunks[at]);
        SpaceDevice { port, memory, order: EvictionOrder::default(), iova }
    }

    /// The space. Made once from this memory.
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
            tables: Tables::new(tables, self.devices),
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

/// IOVAs of one device, for one thread at a time.
pub struct Iovas(std::sync::Mutex<IovaSpace>);

impl Iovas {
    /// All of a device's aperture is free.
    pub fn new(device: &dyn Device) -> Self {
        let iommu = device.iommu();
        Self(std::sync::Mutex::new(IovaSpace::new(iommu.aperture(), iommu.reserved_windows())))
    }
}

impl ReserveIova for Iovas {
    fn with(&self, act: &mut dyn FnMut(&mut IovaSpace)) {
        act(&mut self.0.lock().unwrap_or_else(std::sync::PoisonError::into_inner));
    }
}
