//! A space over the simulated ports.

use granule::granule::{Gate, TransitBusy};
use granule::migrate::{Space, SpaceDevice};
use granule::policy::Policy;
use granule::ports::Probe;
use granule::sync::Park;
use granule::units::Seat;

use super::memory::{Sizes, SpaceMemory};
use super::{SimDevice, SimHost};

/// The memory of a small space.
pub struct SimMemory(SpaceMemory);

impl SimMemory {
    pub fn new(blocks: usize, seats: usize, device: &SimDevice) -> Self {
        let sizes = Sizes {
            level1: if cfg!(granule_loom) { 1 } else { 512 },
            nodes: 1,
            granules: 1,
            blocks,
            // Models use slots of 64 KiB: one word per page and per run is a cost that nothing needs.
            fine: if cfg!(granule_loom) { 0 } else { blocks },
            seats,
            userptrs: 2,
        };
        Self(SpaceMemory::new(sizes, device))
    }

    pub fn device<'m>(&'m self, device: &'m SimDevice) -> SpaceDevice<'m> {
        self.0.device(device)
    }

    pub fn space<'m>(
        &'m self,
        host: &'m SimHost,
        devices: &'m [SpaceDevice<'m>],
        policy: &'m dyn Policy,
        probe: &'m dyn Probe,
    ) -> Space<'m, SimHost> {
        let space = self.0.space(host, &host.park, devices, policy, probe);
        pass_once(&space.gate, space.park);
        // The same for the words of a wait for a transit.
        for block in &self.0.blocks {
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
