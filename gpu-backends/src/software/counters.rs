//! What a device did so far.

use granule::sync::{AtomicU64, Ordering};
use granule::units::Iova;

use super::device::{Inner, SoftwareDevice};
use super::entry::EngineRecord;
use super::page_table::LeafCounts;

/// How many errors of the IOMMU are kept with their address.
pub const FIRST_ERRORS: usize = 8;

/// A picture of a device's counters; each is exact, together they may be of slightly different moments.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Counters {
    /// Translations of device addresses that an engine knew.
    pub tlb_hits: u64,
    /// Translations for which an engine walked the page table.
    pub tlb_misses: u64,
    /// Translations of IOVAs that an engine knew.
    pub iotlb_hits: u64,
    /// Translations for which an engine walked the IOMMU's table.
    pub iotlb_misses: u64,
    /// Accesses to system memory that were ended by a flush or a quiesce and executed again.
    pub stopped: u64,
    /// Accesses to system memory that was not there (any more) and became device faults.
    pub vanished: u64,
    /// Faults that went into the buffer.
    pub faults: u64,
    /// Times that an engine found the buffer full and waited.
    pub overflows: u64,
    /// Faults that ended with an error.
    pub cancelled: u64,
    /// Replays.
    pub replays: u64,
    /// Accesses through an IOVA that was not linked, or not for writing, and DMA that was refused for any reason.
    pub iommu_errors: u64,
    /// Where the first of them were.
    pub first_iommu_errors: [Option<Iova>; FIRST_ERRORS],
    /// Bytes that DMA by IOVA read.
    pub dma_read_bytes: u64,
    /// Bytes that DMA by IOVA wrote.
    pub dma_written_bytes: u64,
    /// Translations for DMA that the device knew itself.
    pub device_iotlb_hits: u64,
    /// Translations for DMA for which the device asked the IOMMU.
    pub device_iotlb_misses: u64,
    /// Translations that flushes and detached PASIDs dropped from the device's IOTLB.
    pub device_iotlb_dropped: u64,
    /// Lines that a device which is not coherent wrote back when somebody synced.
    pub lines_written_back: u64,
    /// Pages that were copied to the device.
    pub pages_in: u64,
    /// Pages that were copied from the device.
    pub pages_out: u64,
    /// Leaves in the device's page table.
    pub leaves: LeafCounts,
    /// Leaves in the IOMMU's page table.
    pub iommu_leaves: LeafCounts,
    /// Memory that the device's page table occupies.
    pub table_bytes: u64,
    /// Memory that the IOMMU's page table occupies.
    pub iommu_table_bytes: u64,
}

/// Errors of the IOMMU: how many, and the first addresses.
#[derive(Default)]
pub(crate) struct IommuLog {
    count: AtomicU64,
    /// Address + 1; 0 is empty.
    first: [AtomicU64; FIRST_ERRORS],
}

impl IommuLog {
    pub(crate) fn record(&self, at: u64) {
        let number = self.count.fetch_add(1, Ordering::Relaxed) as usize;
        if let Some(place) = self.first.get(number) {
            place.store(at + 1, Ordering::Relaxed);
        }
    }
}

impl SoftwareDevice {
    /// What the device did so far. Looks at every leaf: not for hot paths.
    pub fn counters(&self) -> Counters {
        let inner: &Inner = &self.inner;
        let sum = |of: fn(&EngineRecord) -> &AtomicU64| {
            inner.engines.iter().map(|record| of(record).load(Ordering::Relaxed)).sum()
        };
        let read = |counter: &AtomicU64| counter.load(Ordering::Relaxed);
        let mut first_iommu_errors = [None; FIRST_ERRORS];
        for (shown, kept) in first_iommu_errors.iter_mut().zip(&inner.log.first) {
            *shown = read(kept).checked_sub(1).map(Iova);
        }
        Counters {
            tlb_hits: sum(|record| &record.tlb_hits),
            tlb_misses: sum(|record| &record.tlb_misses),
            iotlb_hits: sum(|record| &record.iotlb_hits),
            iotlb_misses: sum(|record| &record.iotlb_misses),
            stopped: sum(|record| &record.stopped),
            vanished: sum(|record| &record.vanished),
            faults: read(&inner.space.faults.recorded),
            overflows: read(&inner.space.faults.overflowed),
            cancelled: read(&inner.space.faults.cancelled),
            replays: read(&inner.space.faults.replays),
            iommu_errors: read(&inner.log.count),
            first_iommu_errors,
            dma_read_bytes: sum(|record| &record.dma_read),
            dma_written_bytes: sum(|record| &record.dma_written),
            device_iotlb_hits: read(&inner.device_iotlb.hits),
            device_iotlb_misses: read(&inner.device_iotlb.misses),
            device_iotlb_dropped: read(&inner.device_iotlb.dropped),
            lines_written_back: inner.lines.as_ref().map_or(0, |lines| read(&lines.written_back)),
            pages_in: read(&inner.pages_in),
            pages_out: read(&inner.pages_out),
            leaves: inner.space.table.leaves(),
            iommu_leaves: inner.space.domain.table.leaves(),
            table_bytes: inner.space.table.resident_bytes(),
            iommu_table_bytes: inner.space.domain.table.resident_bytes(),
        }
    }
}
