/// What the driver's time goes into.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[repr(u8)]
pub enum Phase {
    /// From the first fault to the driver's first instruction.
    Interrupt,
    /// Reading the fault buffer.
    Fetch,
    /// Sorting and looking up.
    Preprocess,
    /// Taking and leaving a block.
    Lock,
    /// Making and zeroing pages that had no contents.
    Populate,
    /// DMA mappings of system memory.
    DmaMap,
    /// Taking pages from the CPU, and flushing its TLBs.
    Unmap,
    /// Copies to the device.
    CopyIn,
    /// Copies to system memory.
    CopyOut,
    /// Page tables of the device.
    Map,
    /// Letting the device go on.
    Replay,
    /// Letting a side wait on purpose.
    Throttle,
    /// Faults of the CPU, beside their copies.
    CpuFault,
}

/// How many phases there are.
pub const PHASES: usize = Phase::CpuFault as usize + 1;

/// Their names in output, in the order of [`Phase`].
pub const PHASE_NAMES: [&str; PHASES] = [
    "interrupt",
    "fetch",
    "preprocess",
    "lock",
    "populate",
    "dma_map",
    "unmap",
    "copy_in",
    "copy_out",
    "map",
    "replay",
    "throttle",
    "cpu_fault",
];

/// What things cost. All times in nanoseconds.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default, serde::Serialize, serde::Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Cost {
    /// From the first fault of an idle driver to its first instruction.
    pub interrupt_ns: u64,
    /// For each entry of the fault buffer that is read.
    pub fetch_entry_ns: u64,
    /// For each entry that is sorted and looked up.
    pub preprocess_entry_ns: u64,
    /// For each block of a batch.
    pub block_ns: u64,
    /// For each 64 KiB that had no contents.
    pub populate_64k_ns: u64,
    /// For each page of system memory that is mapped for DMA.
    pub dma_map_page_ns: u64,
    /// For each service that takes pages from the CPU.
    pub unmap_ns: u64,
    /// For each contiguous copy to the device, whatever its size.
    pub copy_in_ns: u64,
    /// Bytes per microsecond to the device; 0: without limit.
    pub copy_in_bytes_per_us: u64,
    /// For each contiguous copy to system memory.
    pub copy_out_ns: u64,
    /// Bytes per microsecond to system memory; 0: without limit.
    pub copy_out_bytes_per_us: u64,
    /// For each block whose device page table changes.
    pub map_ns: u64,
    /// For each replay.
    pub replay_ns: u64,
    /// For each CPU fault on a page of the device, beside the copy.
    pub cpu_fault_ns: u64,
    /// For each touch of a page by the device through the bus.
    pub remote_access_ns: u64,
}

impl Cost {
    /// Nothing costs anything.
    pub const FREE: Self = Self {
        interrupt_ns: 0,
        fetch_entry_ns: 0,
        preprocess_entry_ns: 0,
        block_ns: 0,
        populate_64k_ns: 0,
        dma_map_page_ns: 0,
        unmap_ns: 0,
        copy_in_ns: 0,
        copy_in_bytes_per_us: 0,
        copy_out_ns: 0,
        copy_out_bytes_per_us: 0,
        map_ns: 0,
        replay_ns: 0,
        cpu_fault_ns: 0,
        remote_access_ns: 0,
    };

    /// Copies to the device: so many contiguous runs of so many bytes in all.
    #[inline]
    pub fn copy_in(&self, runs: u64, bytes: u64) -> u64 {
        runs * self.copy_in_ns + (bytes * 1000).checked_div(self.copy_in_bytes_per_us).unwrap_or(0)
    }

    /// Copies to system memory.
    #[inline]
    pub fn copy_out(&self, runs: u64, bytes: u64) -> u64 {
        runs * self.copy_out_ns + (bytes * 1000).checked_div(self.copy_out_bytes_per_us).unwrap_or(0)
    }
}
