//! A space over the simulated ports: its memory, handed out as slices.

use std::sync::Mutex;

use granule::dma::{IovaSpace, ReserveIova};
use granule::granule::{
    BlockRecord, DevicePlane, FineSlots, Gate, GateSeat, GranuleRecord, HomecomingRecord, Homecomings,
    TableMemory, TableNode, Tables, TransitBusy, TransitRecord, UserptrRecord, Userptrs,
};
use granule::migrate::{ChunkRecord, DeviceMemory, EvictionOrder, Space, SpaceDevice};
use granule::policy::Policy;
use granule::ports::{Device, Probe};
use granule::sync::{AtomicU32, AtomicU64, Park};
use granule::units::{BLOCK_BYTES, Seat};

use super::{SimDevice, SimHost};

pub struct SimIova(Mutex<IovaSpace>);
impl ReserveIova for SimIova {
    fn with(&self, act: &mut dyn FnMut(&mut IovaSpace)) {
        act(&mut self.0.lock().unwrap());
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
            // Models use slots of 64 KiB: one word per page and per run is a cost that nothing needs.
            fine: make(if cfg!(granule_loom) { 0 } else { blocks }),
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
        let space = Space {
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
            park: &host.park,
            policy,
            probe,
            devices,
            userptrs: Userptrs::new(&self.userptrs, &self.userptr_words),
            fence_limit_ns: 1_000_000_000,
            homecomings: Homecomings::new(&self.homecomings),
        };
        pass_once(&space.gate, space.park);
        // The same for the words of a wait for a transit.
        for block in &self.blocks {
            block.wait_transit(TransitBusy { seen: u32::MAX }, space.park);
        }
        space
    }
}

/// Everybody goes through the gate once. Nothing but a model needs it: loom lets a sequentially consistent load read
/// the value that a word was made with, even after sequentially consistent stores; it is right about later values.
pub fn pass_once(gate: &Gate<'_>, park: &dyn Park) {
    for seat in 0..gate.seats() {
        drop(gate.enter(Seat(seat as u16), park));
    }
    drop(gate.close(park));
}
