use crate::units::{BusAddr, PhysAddr};

/// Memory of a device that other devices may reach.
pub trait PeerMemory: Sync {
    /// Where its memory stands. Constant while anybody has it mapped. Byte `i` of the memory is reached at
    /// `phys + i` through an IOMMU (as MMIO) or by the CPU, and at `bus + i` by a device below the same switch.
    fn peer_window(&self) -> PeerWindow;
}

/// Where a device's memory stands.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct PeerWindow {
    /// In the physical address space: what an IOMMU maps.
    pub phys: PhysAddr,
    /// On the bus: what a peer puts there itself.
    pub bus: BusAddr,
    /// Length in bytes.
    pub bytes: u64,
}
