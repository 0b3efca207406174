//! How a software device is made.

use granule::os::guarded::{self, InstallError};
use granule::os::private::{PrivateArc, PrivateError};
use granule::os::thread::ThreadError;
use granule::units::{BLOCK_BYTES, Iova};
use thiserror::Error;

use super::device::{Inner, SoftwareDevice};
use super::domain::IommuDomain;
use super::inject::{Inject, Latency};
use super::windows::Switch;

/// Why a device could not be built.
#[derive(Clone, PartialEq, Eq, Debug, Error)]
#[non_exhaustive]
pub enum BuildError {
    /// Device memory of no size, or not in whole blocks.
    #[error("device memory of {0} bytes is not a positive multiple of 2 MiB; round it up")]
    MemorySize(u64),
    /// Memory for address spaces that is not in whole blocks, or all that there is.
    #[error(
        "{0} bytes cannot be set aside for address spaces; pass a multiple of 2 MiB below the size of device memory"
    )]
    SpaceMemory(u64),
    /// No engine, or too many.
    #[error("a device has 1 to {most} engines, not {asked}", most = Builder::MOST_ENGINES)]
    Engines {
        /// What was asked for.
        asked: usize,
    },
    /// A fault buffer without room.
    #[error("a fault buffer has 1 to {most} entries, not {asked}", most = Builder::MOST_FAULT_ENTRIES)]
    FaultEntries {
        /// What was asked for.
        asked: usize,
    },
    /// Too little for a page table.
    #[error("page tables of {0} bytes are too small; give them at least 64 KiB")]
    TableBytes(u64),
    /// No memory file.
    #[error("no memory file for device memory: {0}")]
    Memfd(String),
    /// No memory to fill device memory with.
    #[error(
        "the host cannot fill {bytes} bytes of device memory ({errno}); ask for less, or do not populate it"
    )]
    Populate {
        /// What was asked for.
        bytes: u64,
        /// What the kernel said.
        errno: String,
    },
    /// A page of the IOMMU, or of bounce memory, that is none.
    #[error("{0} bytes are no page: a power of two of at least 4096 is")]
    IommuPage(u64),
    /// The domain has as many devices as it can have.
    #[error("the IOMMU domain has {most} devices already; use another one", most = super::MOST_DEVICES)]
    DomainFull,
    /// The emulated machine has as many devices as it can have.
    #[error("the machine has {most} devices already; drop one first", most = super::windows::MOST_WINDOWS)]
    TooManyDevices,
    /// No private memory.
    #[error(transparent)]
    Private(#[from] PrivateError),
    /// No thread for an engine.
    #[error(transparent)]
    Thread(#[from] ThreadError),
    /// No signal handlers.
    #[error(transparent)]
    Signals(#[from] InstallError),
}

/// What stands between DMA by IOVA and memory.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Way {
    Translated,
    Direct { offset: u64 },
}

/// Settings of a device's DMA by IOVA.
#[derive(Clone, Copy, Debug)]
pub(super) struct DmaSettings {
    pub way: Way,
    pub dma_last: u64,
    pub pasid_bits: u32,
    pub tagged_only: bool,
    pub coherent: bool,
    pub switch: Option<Switch>,
    /// What further address spaces are made of: nodes of a table, entries of a fault buffer, and where their part of
    /// device memory begins and ends.
    pub nodes: usize,
    pub fault_entries: usize,
    pub space_memory: (u64, u64),
}

/// Settings of a [`SoftwareDevice`]. Start with [`SoftwareDevice::builder`].
#[derive(Clone, Debug)]
pub struct Builder {
    pub(super) memory_bytes: u64,
    pub(super) populate: bool,
    pub(super) engines: usize,
    pub(super) fault_buffer_entries: usize,
    pub(super) table_bytes: u64,
    pub(super) engine_stack_bytes: u64,
    pub(super) space_memory_bytes: u64,
    pub(super) domain: Option<IommuDomain>,
    pub(super) dma: DmaSettings,
    seed: u64,
    latency: Latency,
    inject: Inject,
}

impl Default for Builder {
    fn default() -> Self {
        Self {
            memory_bytes: 64 << 20,
            populate: false,
            engines: 2,
            fault_buffer_entries: 256,
            table_bytes: 256 << 20,
            engine_stack_bytes: 2 << 20,
            space_memory_bytes: 0,
            domain: None,
            dma: DmaSettings {
                way: Way::Translated,
                dma_last: u64::MAX,
                pasid_bits: 0,
                tagged_only: false,
                coherent: true,
                switch: None,
                nodes: 0,
                fault_entries: 0,
                space_memory: (0, 0),
            },
            seed: 0,
            latency: Latency::default(),
            inject: Inject::default(),
        }
    }
}

impl Builder {
    /// The most engines that a device may have.
    pub const MOST_ENGINES: usize = 256;
    /// The most entries that a fault buffer may have.
    pub const MOST_FAULT_ENTRIES: usize = 1 << 20;

    /// Size of device memory in bytes, a multiple of 2 MiB. Default 64 MiB. Costs memory where it is touched.
    pub fn memory_bytes(mut self, bytes: u64) -> Self {
        self.memory_bytes = bytes;
        self
    }
    /// Whether device memory is filled when the device is built, as on a real device, rather than when it is
    /// touched. Default no. Measurements want it: a first touch costs the host a page fault.
    pub fn populate(mut self, populate: bool) -> Self {
        self.populate = populate;
        self
    }
    /// How many engines execute a kernel. Default 2.
    pub fn engines(mut self, engines: usize) -> Self {
        self.engines = engines;
        self
    }
    /// How many faults the buffer holds. Default 256. An engine that finds it full waits.
    pub fn fault_buffer_entries(mut self, entries: usize) -> Self {
        self.fault_buffer_entries = entries;
        self
    }
    /// The most that the device's page table, and that of the IOMMU, may each occupy. Default 256 MiB.
    pub fn table_bytes(mut self, bytes: u64) -> Self {
        self.table_bytes = bytes;
        self
    }
    /// Size of an engine's stack, on which the local variables of kernels lie. Default 2 MiB.
    pub fn engine_stack_bytes(mut self, bytes: u64) -> Self {
        self.engine_stack_bytes = bytes;
        self
    }
    /// How much of device memory is set aside for further address spaces
    /// ([`SoftwareDevice::address_space`]), a multiple of 2 MiB. Default 0: all of it is the device's own.
    pub fn space_memory_bytes(mut self, bytes: u64) -> Self {
        self.space_memory_bytes = bytes;
        self
    }
    /// The IOMMU domain of the device's DMA; several devices may share one. Default: one of its own.
    pub fn iommu_domain(mut self, domain: &IommuDomain) -> Self {
        self.domain = Some(domain.clone());
        self
    }
    /// DMA goes to memory without an IOMMU: a DMA address is the physical address plus `offset`, wrapping. (The
    /// device's page table still leads through its IOMMU.)
    ///
    /// # Safety
    /// DMA of this device reaches all memory of the process. Whoever lets it do DMA answers for the addresses.
    #[allow(unsafe_code, reason = "nothing stands between the device and memory any more")]
    pub unsafe fn direct(mut self, offset: u64) -> Self {
        self.dma.way = Way::Direct { offset };
        self
    }
    /// The last address that the device's DMA reaches, inclusive. Default: all 64 bits.
    pub fn dma_last(mut self, last: Iova) -> Self {
        self.dma.dma_last = last.0;
        self
    }
    /// Width of its PASIDs, 20 bits at most. Default 0: it cannot tag its DMA.
    pub fn pasid_bits(mut self, bits: u32) -> Self {
        self.dma.pasid_bits = bits.min(20);
        self
    }
    /// The device does no DMA without a PASID.
    pub fn tagged_dma_only(mut self) -> Self {
        self.dma.tagged_only = true;
        self
    }
    /// The device keeps lines of memory in a cache into which nobody looks: DMA needs syncs
    /// ([`CacheSync`](granule::ports::CacheSync), which the device implements).
    pub fn non_coherent(mut self) -> Self {
        self.dma.coherent = false;
        self
    }
    /// The switch below which the device stands. Default none.
    pub fn switch(mut self, switch: Switch) -> Self {
        self.dma.switch = Some(switch);
        self
    }
    /// What latency and failures are drawn from. Default 0.
    pub fn seed(mut self, seed: u64) -> Self {
        self.seed = seed;
        self
    }
    /// How slow the device is. Default: as fast as the host.
    pub fn latency(mut self, latency: Latency) -> Self {
        self.latency = latency;
        self
    }
    /// Which failures the device commits. Default none.
    pub fn inject(mut self, inject: Inject) -> Self {
        self.inject = inject;
        self
    }

    /// Makes the device and starts its engines.
    ///
    /// # Errors
    /// [`BuildError`]; nothing is left behind but signal handlers.
    pub fn build(self) -> Result<SoftwareDevice, BuildError> {
        if self.memory_bytes == 0 || !self.memory_bytes.is_multiple_of(BLOCK_BYTES) {
            return Err(BuildError::MemorySize(self.memory_bytes));
        }
        if self.space_memory_bytes >= self.memory_bytes
            || !self.space_memory_bytes.is_multiple_of(BLOCK_BYTES)
        {
            return Err(BuildError::SpaceMemory(self.space_memory_bytes));
        }
        if self.engines == 0 || self.engines > Self::MOST_ENGINES {
            return Err(BuildError::Engines { asked: self.engines });
        }
        if self.fault_buffer_entries == 0 || self.fault_buffer_entries > Self::MOST_FAULT_ENTRIES {
            return Err(BuildError::FaultEntries { asked: self.fault_buffer_entries });
        }
        if self.table_bytes < 64 << 10 {
            return Err(BuildError::TableBytes(self.table_bytes));
        }
        guarded::install()?;
        let fate = super::inject::Fate::new(self.seed, self.latency, self.inject);
        let inner = PrivateArc::new(Inner::new(&self, fate)?)?;
        SoftwareDevice::start(inner, self.engine_stack_bytes)
    }
}
