use super::Histogram;
use super::cost::PHASES;

/// What a replay counted. Pages are 4 KiB.
#[derive(Clone, Debug, Default)]
pub struct Metrics {
    /// Events of the trace.
    pub events: u64,
    /// Events whose time lies before that of an earlier one.
    pub time_backwards: u64,
    /// Recorded decisions in the trace (migrations), which a replay does not repeat.
    pub not_replayed: u64,
    /// Touches by the device that found their page.
    pub hits: u64,
    /// Of these, on a page that a prefetch had brought, the first touch each.
    pub prefetch_hits: u64,
    /// Of these, before the batch that brings the page was done.
    pub prefetch_late: u64,
    /// Touches by the device through the bus.
    pub remote_touches: u64,
    /// Entries of the fault buffer that were read.
    pub faults: u64,
    /// Entries that were merged with another one on arrival.
    pub faults_coalesced: u64,
    /// Entries that stood behind another one for the same page once sorted.
    pub faults_duplicate: u64,
    /// Entries whose page the device had by the time they were looked at.
    pub faults_spurious: u64,
    /// Entries that were served: distinct pages per batch.
    pub faults_unique: u64,
    /// Entries that were thrown out of the buffer by a flush and came again.
    pub faults_reappeared: u64,
    /// Times that a fault was left waiting because its page thrashes.
    pub throttles: u64,
    /// Batches.
    pub batches: u64,
    /// Blocks of batches.
    pub services: u64,
    /// Pages that faults brought to the device.
    pub demand_pages: u64,
    /// Pages that prefetches brought.
    pub prefetch_pages: u64,
    /// Prefetched pages that left without having been touched.
    pub prefetch_wasted: u64,
    /// Pages that were zeroed on the device instead of being copied.
    pub zeroed_pages: u64,
    /// Contiguous copies to the device.
    pub copies_in: u64,
    /// Contiguous copies to system memory.
    pub copies_out: u64,
    /// Units that came to the device, whatever part of them.
    pub units_in: u64,
    /// Evictions.
    pub evictions: u64,
    /// Pages that were evicted.
    pub evicted_pages: u64,
    /// Of these, pages that the device had written.
    pub evicted_dirty_pages: u64,
    /// Pages that a fault brought back within so many evictions of the last one in their block.
    pub refaults: u64,
    /// Pages that the device mapped in system memory.
    pub linked_pages: u64,
    /// Pages that were duplicated.
    pub duplicated_pages: u64,
    /// CPU faults on pages of the device.
    pub cpu_faults: u64,
    /// Pages that came to system memory with them.
    pub homecoming_pages: u64,
    /// Pages that the program unmapped while the device had them.
    pub unmapped_pages: u64,
    /// The driver's time, by phase.
    pub phase_ns: [u64; PHASES],
    /// Time in which the device stood still.
    pub stalled_ns: u64,
    /// From the first event to the end of the last one.
    pub total_ns: u64,
    /// From a fault's arrival to its replay.
    pub latency: Histogram,
    /// Of this, until the batch began that served it.
    pub waiting: Histogram,
    /// And from then on.
    pub serving: Histogram,
    /// Of CPU faults.
    pub cpu_latency: Histogram,
}

impl Metrics {
    /// A fault has come to its end: it arrived, a batch began, and it was done.
    pub(super) fn ended(&mut self, arrival_ns: u64, batch_ns: u64, done_ns: u64) {
        let all = done_ns.saturating_sub(arrival_ns);
        let waited = batch_ns.saturating_sub(arrival_ns).min(all);
        self.latency.add(all);
        self.waiting.add(waited);
        self.serving.add(all - waited);
    }
}
