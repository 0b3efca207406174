use parking_lot::Mutex;

use crate::dma::{IovaSpace, ReserveIova};
use crate::ports::Iommu;

/// An [`IovaSpace`] with a lock around it, for drivers that have none of their own.
#[derive(Debug)]
pub struct SharedIova(Mutex<IovaSpace>);

impl SharedIova {
    /// Over the aperture of an IOMMU, without its reserved windows.
    pub fn of(iommu: &dyn Iommu) -> Self {
        Self(Mutex::new(IovaSpace::new(iommu.aperture(), iommu.reserved_windows())))
    }

    /// Bytes that are reserved.
    pub fn reserved_bytes(&self) -> u64 {
        self.0.lock().reserved_bytes()
    }
}

impl ReserveIova for SharedIova {
    fn with(&self, act: &mut dyn FnMut(&mut IovaSpace)) {
        act(&mut self.0.lock());
    }
}
