/// A counter that the fault path increments.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Hash)]
#[repr(u8)]
#[allow(
    missing_docs,
    reason = "each name is a row of the table in docs/counters.md, which a test compares with this list"
)]
pub enum Count {
    DeviceFaults,
    DeviceFaultsDuplicate,
    DeviceBatches,
    CpuFaults,
    CpuFaultsZeroFilled,
    CpuFaultsQueued,
    PagesToDevice,
    PagesToRam,
    PagesLinked,
    PagesUnlinked,
    PagesRefused,
    Evictions,
    EvictedPages,
    Invalidations,
    InvalidatedPages,
    RetrySequence,
    RetryNewlyMirrored,
    RetryInTransit,
    RetryAddressSpaceChanging,
    RetryDeviceFull,
    RetryTakenBack,
    FaultsFailed,
    GateClosed,
    GranulesReserved,
    CopiesFailed,
    PagesUnreadable,
}

impl Count {
    /// Every counter, in the order of their numbers.
    pub const ALL: [Count; 26] = [
        Count::DeviceFaults,
        Count::DeviceFaultsDuplicate,
        Count::DeviceBatches,
        Count::CpuFaults,
        Count::CpuFaultsZeroFilled,
        Count::CpuFaultsQueued,
        Count::PagesToDevice,
        Count::PagesToRam,
        Count::PagesLinked,
        Count::PagesUnlinked,
        Count::PagesRefused,
        Count::Evictions,
        Count::EvictedPages,
        Count::Invalidations,
        Count::InvalidatedPages,
        Count::RetrySequence,
        Count::RetryNewlyMirrored,
        Count::RetryInTransit,
        Count::RetryAddressSpaceChanging,
        Count::RetryDeviceFull,
        Count::RetryTakenBack,
        Count::FaultsFailed,
        Count::GateClosed,
        Count::GranulesReserved,
        Count::CopiesFailed,
        Count::PagesUnreadable,
    ];
}

/// A duration that the service measures.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Hash)]
#[repr(u8)]
pub enum Timing {
    /// From fetching a batch to its replay, counted once per fault of the batch.
    DeviceFault,
    /// From reading a CPU fault to waking its thread.
    CpuFault,
}

/// Where the fault path reports what it did. Called under block locks: touches private memory only.
pub trait Probe: Sync {
    /// Adds `n` to a counter.
    fn add(&self, what: Count, n: u64);
    /// Enters one duration into the distribution of `what`.
    fn time(&self, what: Timing, ns: u64);
}

/// A probe that forgets.
#[derive(Clone, Copy, Debug, Default)]
pub struct NoProbe;

impl Probe for NoProbe {
    fn add(&self, _: Count, _: u64) {}
    fn time(&self, _: Timing, _: u64) {}
}
