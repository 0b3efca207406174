use super::{DeviceMemory, EvictionOrder};
use crate::dma::ReserveIova;
use crate::granule::{Gate, Homecomings, Tables, TransitRecord, Userptrs};
use crate::policy::Policy;
use crate::ports::{Count, Device, Host, Probe};
use crate::sync::Park;
use crate::units::{Access, DeviceId, PageMask};

/// Everything that serving one address space needs, by reference: state and ports. The service, the simulator and
/// the models each build one; the code that runs over it is the same.
///
/// All of it lies in private memory of whoever built it (design rule 2).
pub struct Space<'m, H: Host> {
    /// The CPU side.
    pub host: &'m H,
    /// State of every page.
    pub tables: Tables<'m>,
    /// Keeps workers out while events are read and applied.
    pub gate: Gate<'m>,
    /// One per seat of the gate.
    pub transits: &'m [TransitRecord],
    /// How threads sleep.
    pub park: &'m dyn Park,
    /// Decides.
    pub policy: &'m dyn Policy,
    /// Counts.
    pub probe: &'m dyn Probe,
    /// The devices, in the order of their ids.
    pub devices: &'m [SpaceDevice<'m>],
    /// Ranges registered in advance.
    pub userptrs: Userptrs<'m>,
    /// How long an invalidation waits for submissions that use a userptr.
    pub fence_limit_ns: u64,
    /// Pages that mremap moved while they were away.
    pub homecomings: Homecomings<'m>,
}

/// One device of a space.
pub struct SpaceDevice<'m> {
    /// The device itself.
    pub port: &'m dyn Device,
    /// Who has which part of its memory.
    pub memory: DeviceMemory<'m>,
    /// In which order blocks leave it.
    pub order: EvictionOrder,
    /// Its IOVA reservations.
    pub iova: &'m dyn ReserveIova,
}

impl<'m, H: Host> Space<'m, H> {
    /// A device by its id. Asserts that it exists.
    pub fn device(&self, id: DeviceId) -> &SpaceDevice<'m> {
        &self.devices[id.0 as usize]
    }

    /// Counts pages.
    pub(crate) fn count_pages(&self, what: Count, pages: &PageMask) {
        if !pages.is_empty() {
            self.probe.add(what, pages.count() as u64);
        }
    }

    /// All ids.
    pub fn device_ids(&self) -> impl Iterator<Item = DeviceId> + use<H> {
        (0..self.devices.len() as u8).map(DeviceId)
    }
}

/// What a device may do with a page of a mapping that the CPU may use like this.
pub(crate) fn device_access(mapping: Option<Access>) -> Access {
    mapping.unwrap_or(Access::Read)
}
