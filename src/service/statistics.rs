//! What the service counts. Counters and distributions lie in private memory, since the fault path writes them.

use crate::ports::{Count, Counts, Probe, Timing};
use crate::sync::{AtomicU64, Ordering};

/// Buckets of a distribution: 16 per power of two, 2^0 to 2^39 ns.
const BUCKETS: usize = 40 * SUB;
const SUB: usize = 16;

/// Counts durations in buckets whose width is a sixteenth of their power of two.
#[derive(Debug)]
struct Histogram {
    buckets: [AtomicU64; BUCKETS],
    max_ns: AtomicU64,
}

impl Histogram {
    fn new() -> Self {
        Self { buckets: std::array::from_fn(|_| AtomicU64::new(0)), max_ns: AtomicU64::new(0) }
    }

    fn bucket(ns: u64) -> usize {
        let ns = ns.max(1);
        let power = ns.ilog2() as usize;
        let sub =
            if power >= 4 { (ns >> (power - 4)) as usize % SUB } else { (ns << (4 - power)) as usize % SUB };
        (power * SUB + sub).min(BUCKETS - 1)
    }

    /// The middle of a bucket.
    fn value_ns(bucket: usize) -> u64 {
        let (power, sub) = (bucket / SUB, bucket % SUB);
        let width = (1u64 << power) as f64 / SUB as f64;
        ((1u64 << power) as f64 + (sub as f64 + 0.5) * width) as u64
    }

    fn add(&self, ns: u64) {
        self.buckets[Self::bucket(ns)].fetch_add(1, Ordering::Relaxed);
        self.max_ns.fetch_max(ns, Ordering::Relaxed);
    }

    fn summary(&self) -> Distribution {
        let counts: Vec<u64> = self.buckets.iter().map(|bucket| bucket.load(Ordering::Relaxed)).collect();
        let n: u64 = counts.iter().sum();
        let max_ns = self.max_ns.load(Ordering::Relaxed);
        let quantile = |per_mille: u64| {
            let rank = (n * per_mille).div_ceil(1000).max(1);
            let mut seen = 0;
            let at = counts.iter().position(|count| {
                seen += count;
                seen >= rank
            });
            at.map_or(0, |bucket| Self::value_ns(bucket).min(max_ns))
        };
        Distribution { n, p50_ns: quantile(500), p99_ns: quantile(990), max_ns }
    }
}

/// Counters of one space.
#[derive(Debug)]
pub(super) struct Statistics {
    counts: Counts,
    device_fault: Histogram,
    cpu_fault: Histogram,
}

impl Statistics {
    pub(super) fn new() -> Self {
        Self { counts: Counts::new(), device_fault: Histogram::new(), cpu_fault: Histogram::new() }
    }

    pub(super) fn snapshot(&self, memory: MemoryUse) -> Stats {
        Stats {
            counts: Count::ALL.map(|what| self.counts.get(what)),
            device_fault: self.device_fault.summary(),
            cpu_fault: self.cpu_fault.summary(),
            memory,
        }
    }
}

impl Probe for Statistics {
    fn add(&self, what: Count, n: u64) {
        self.counts.add(what, n);
    }

    fn time(&self, what: Timing, ns: u64) {
        match what {
            Timing::DeviceFault => self.device_fault.add(ns),
            Timing::CpuFault => self.cpu_fault.add(ns),
        }
    }
}

/// What a space did so far.
#[derive(Clone, Debug, Default)]
pub struct Stats {
    counts: [u64; Count::ALL.len()],
    /// Service time of device faults: from the fetch of a fault's batch to its replay.
    pub device_fault: Distribution,
    /// Service time of CPU faults: from the read of a fault to the wake of its thread.
    pub cpu_fault: Distribution,
    /// Memory that the state takes.
    pub memory: MemoryUse,
}

impl Stats {
    /// One counter; `docs/counters.md` explains each.
    pub fn count(&self, what: Count) -> u64 {
        self.counts[what as usize]
    }
}

/// A distribution of durations. Quantiles are good to 1/32.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Distribution {
    /// How many.
    pub n: u64,
    /// Median.
    pub p50_ns: u64,
    /// 99th percentile.
    pub p99_ns: u64,
    /// Largest.
    pub max_ns: u64,
}

/// Physical memory behind the state of a space, in bytes.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct MemoryUse {
    /// The two levels of the table.
    pub table_bytes: u64,
    /// Granule records.
    pub granule_bytes: u64,
    /// Block records and their planes.
    pub block_bytes: u64,
    /// The index of 4 KiB slots.
    pub fine_slot_bytes: u64,
    /// Records of device memory.
    pub device_record_bytes: u64,
    /// Bookkeeping of IOVA reservations.
    pub iova_bytes: u64,
    /// Staging slots.
    pub staging_bytes: u64,
    /// Stacks of the service's threads, with their thread-local storage, and those on which threads of the application
    /// serve their own faults.
    pub stack_bytes: u64,
    /// Blocks that have a record.
    pub blocks: u64,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn quantiles_lie_within_a_bucket_of_the_truth() {
        let histogram = Histogram::new();
        for ns in 1..=10_000 {
            histogram.add(ns);
        }
        let summary = histogram.summary();
        assert_eq!((summary.n, summary.max_ns), (10_000, 10_000));
        assert!(summary.p50_ns.abs_diff(5_000) <= 5_000 / 16, "{summary:?}");
        assert!(summary.p99_ns.abs_diff(9_900) <= 9_900 / 16, "{summary:?}");
    }
}
