//! The device that works: a workload has a kernel for each kind.

use granule::units::{DevAddr, DevMemAddr};
use granule_backends::software::{AccessError, SoftwareDevice};
use thiserror::Error;

use crate::shaders::{LaunchError, ShaderDevice};

/// A device of some kind.
pub enum Accelerator {
    /// Kernels are functions over its engines.
    Software(SoftwareDevice),
    /// Kernels are compute shaders.
    Shaders(ShaderDevice),
}

/// Why a kernel did not do its work.
#[derive(Clone, PartialEq, Eq, Debug, Error)]
pub enum WorkError {
    /// An access of an engine.
    #[error(transparent)]
    Access(#[from] AccessError),
    /// A launch of a shader.
    #[error(transparent)]
    Launch(#[from] LaunchError),
}

/// What the report says of a device.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Tables {
    /// Accesses that the IOMMU refused.
    pub iommu_errors: u64,
    /// Memory of the page table.
    pub table_bytes: u64,
    /// Memory of the IOMMU's page table.
    pub iommu_table_bytes: u64,
}

impl Accelerator {
    /// Where in device memory an address leads at this moment.
    pub fn place(&self, at: DevAddr) -> Option<DevMemAddr> {
        match self {
            Accelerator::Software(device) => device.place(at),
            Accelerator::Shaders(device) => device.place(at),
        }
    }

    /// Turns one bit of a byte of device memory over.
    pub fn flip_byte(&self, at: DevMemAddr) {
        match self {
            Accelerator::Software(device) => device.flip_byte(at),
            Accelerator::Shaders(device) => device.flip_byte(at),
        }
    }

    /// What its tables hold.
    pub fn tables(&self) -> Tables {
        match self {
            Accelerator::Software(device) => {
                let counters = device.counters();
                Tables {
                    iommu_errors: counters.iommu_errors,
                    table_bytes: counters.table_bytes,
                    iommu_table_bytes: counters.iommu_table_bytes,
                }
            }
            Accelerator::Shaders(device) => device.tables(),
        }
    }
}
