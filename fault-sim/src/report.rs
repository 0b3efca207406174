//! What a run prints: a table for people, or one JSON object with stable keys. Every row and key is explained in
//! `docs/counters.md`, which a test compares with this file.

use std::fmt::Write;
use std::time::Duration;

use granule::ports::Count;
use granule::service::Stats;
use granule::units::PAGE_BYTES;
use serde::Serialize;

use crate::alloc::Source;
use crate::commands::run::Take;
use crate::size::Size;
use crate::workload::Kind;

/// Everything that is printed. The names of the fields are the keys of the JSON object; they are not changed.
#[derive(Clone, Debug, Serialize)]
#[allow(
    missing_docs,
    reason = "docs/counters.md says what each key means, and a test compares it with this list"
)]
pub struct Report {
    pub verified: bool,
    /// The sentence that says what is wrong, if anything is.
    pub error: Option<String>,
    pub workload: Kind,
    pub alloc: Source,
    pub take: Take,
    /// Found out, not asked for: without rights it is so whatever was asked for.
    pub user_mode_only: bool,
    pub backend: &'static str,
    pub size_bytes: u64,
    pub device_memory_bytes: u64,
    pub granularity_bytes: u64,
    pub engines: usize,
    pub threads: usize,
    pub seed: u64,

    pub faults: u64,
    pub faults_unique: u64,
    pub faults_duplicate: u64,
    pub faults_failed: u64,
    pub batches: u64,
    pub cpu_faults: u64,
    pub cpu_faults_zero_filled: u64,
    pub cpu_faults_queued: u64,

    pub migrated_to_device_pages: u64,
    pub migrated_to_device_bytes: u64,
    pub migrated_to_ram_pages: u64,
    pub migrated_to_ram_bytes: u64,
    pub linked_pages: u64,
    pub unlinked_pages: u64,
    pub refused_pages: u64,
    pub evictions: u64,
    pub evicted_pages: u64,
    pub invalidations: u64,
    pub invalidated_pages: u64,
    pub granules_reserved: u64,
    pub gate_closed: u64,
    pub copies_failed: u64,
    pub unreadable_pages: u64,
    pub iommu_errors: u64,

    pub retries_sequence: u64,
    /// Begun again because the mapping was followed only from this fault on.
    pub retries_newly_mirrored: u64,
    pub retries_in_transit: u64,
    pub retries_address_space_changing: u64,
    pub retries_device_full: u64,
    pub retries_taken_back: u64,

    pub device_fault_p50_ns: u64,
    pub device_fault_p99_ns: u64,
    pub device_fault_max_ns: u64,
    pub cpu_fault_p50_ns: u64,
    pub cpu_fault_p99_ns: u64,
    pub cpu_fault_max_ns: u64,

    pub device_seconds: f64,
    pub device_gb_per_second: f64,
    pub check_seconds: f64,
    pub check_gb_per_second: f64,

    pub pages_touched: u64,
    pub state_bytes_per_page: f64,
    pub table_bytes: u64,
    pub granule_bytes: u64,
    pub block_bytes: u64,
    pub iova_bytes: u64,
    pub fine_slot_bytes: u64,
    pub device_record_bytes: u64,
    pub staging_bytes: u64,
    pub stack_bytes: u64,
    pub device_page_table_bytes: u64,
    pub iommu_page_table_bytes: u64,
}

/// What was asked for.
#[derive(Clone, Copy, Debug)]
#[allow(missing_docs, reason = "each field is the option of that name")]
pub struct Asked {
    pub workload: Kind,
    pub alloc: Source,
    pub take: Take,
    pub backend: &'static str,
    pub size: Size,
    pub device_memory: Size,
    pub granularity_bytes: u64,
    pub engines: usize,
    pub threads: usize,
    pub seed: u64,
}

/// What was measured from outside.
#[derive(Clone, Copy, Debug)]
pub struct Measured {
    /// Bytes that the device passed over, and how long it took.
    pub device: (u64, Duration),
    /// Bytes that the CPU checked, and how long it took.
    pub check: (u64, Duration),
    /// Pages that hold the workload's data.
    pub pages_touched: u64,
    /// Whether the kernel served touches of user mode only.
    pub user_mode_only: bool,
    /// Accesses that the device's IOMMU refused.
    pub iommu_errors: u64,
    /// Memory of the device's page table.
    pub device_page_table_bytes: u64,
    /// Memory of the IOMMU's page table.
    pub iommu_page_table_bytes: u64,
}

fn gb_per_second((bytes, time): (u64, Duration)) -> f64 {
    let seconds = time.as_secs_f64();
    if seconds > 0.0 { bytes as f64 / 1e9 / seconds } else { 0.0 }
}

impl Report {
    /// Puts together what is printed. `error` is why the result is not right, if it is not.
    pub fn new(asked: Asked, stats: &Stats, measured: Measured, error: Option<String>) -> Self {
        let count = |what| stats.count(what);
        let memory = &stats.memory;
        let state = memory.table_bytes + memory.granule_bytes + memory.block_bytes + memory.iova_bytes;
        Self {
            verified: error.is_none(),
            error,
            workload: asked.workload,
            alloc: asked.alloc,
            take: asked.take,
            user_mode_only: measured.user_mode_only,
            backend: asked.backend,
            size_bytes: asked.size.0,
            device_memory_bytes: asked.device_memory.0,
            granularity_bytes: asked.granularity_bytes,
            engines: asked.engines,
            threads: asked.threads,
            seed: asked.seed,
            faults: count(Count::DeviceFaults),
            faults_unique: count(Count::DeviceFaults) - count(Count::DeviceFaultsDuplicate),
            faults_duplicate: count(Count::DeviceFaultsDuplicate),
            faults_failed: count(Count::FaultsFailed),
            batches: count(Count::DeviceBatches),
            cpu_faults: count(Count::CpuFaults),
            cpu_faults_zero_filled: count(Count::CpuFaultsZeroFilled),
            cpu_faults_queued: count(Count::CpuFaultsQueued),
            migrated_to_device_pages: count(Count::PagesToDevice),
            migrated_to_device_bytes: count(Count::PagesToDevice) * PAGE_BYTES,
            migrated_to_ram_pages: count(Count::PagesToRam),
            migrated_to_ram_bytes: count(Count::PagesToRam) * PAGE_BYTES,
            linked_pages: count(Count::PagesLinked),
            unlinked_pages: count(Count::PagesUnlinked),
            refused_pages: count(Count::PagesRefused),
            evictions: count(Count::Evictions),
            evicted_pages: count(Count::EvictedPages),
            invalidations: count(Count::Invalidations),
            invalidated_pages: count(Count::InvalidatedPages),
            granules_reserved: count(Count::GranulesReserved),
            gate_closed: count(Count::GateClosed),
            copies_failed: count(Count::CopiesFailed),
            unreadable_pages: count(Count::PagesUnreadable),
            iommu_errors: measured.iommu_errors,
            retries_sequence: count(Count::RetrySequence),
            retries_newly_mirrored: count(Count::RetryNewlyMirrored),
            retries_in_transit: count(Count::RetryInTransit),
            retries_address_space_changing: count(Count::RetryAddressSpaceChanging),
            retries_device_full: count(Count::RetryDeviceFull),
            retries_taken_back: count(Count::RetryTakenBack),
            device_fault_p50_ns: stats.device_fault.p50_ns,
            device_fault_p99_ns: stats.device_fault.p99_ns,
            device_fault_max_ns: stats.device_fault.max_ns,
            cpu_fault_p50_ns: stats.cpu_fault.p50_ns,
            cpu_fault_p99_ns: stats.cpu_fault.p99_ns,
            cpu_fault_max_ns: stats.cpu_fault.max_ns,
            device_seconds: measured.device.1.as_secs_f64(),
            device_gb_per_second: gb_per_second(measured.device),
            check_seconds: measured.check.1.as_secs_f64(),
            check_gb_per_second: gb_per_second(measured.check),
            pages_touched: measured.pages_touched,
            state_bytes_per_page: state as f64 / measured.pages_touched.max(1) as f64,
            table_bytes: memory.table_bytes,
            granule_bytes: memory.granule_bytes,
            block_bytes: memory.block_bytes,
            iova_bytes: memory.iova_bytes,
            fine_slot_bytes: memory.fine_slot_bytes,
            device_record_bytes: memory.device_record_bytes,
            staging_bytes: memory.staging_bytes,
            stack_bytes: memory.stack_bytes,
            device_page_table_bytes: measured.device_page_table_bytes,
            iommu_page_table_bytes: measured.iommu_page_table_bytes,
        }
    }

    /// The JSON object, on one line.
    pub fn json(&self) -> String {
        // Numbers, strings and booleans under fixed keys: nothing in it can fail to be written.
        serde_json::to_string(self)
            .unwrap_or_else(|error| format!("{{\"verified\":false,\"error\":\"{error}\"}}"))
    }

    /// The table.
    pub fn table(&self) -> String {
        let mut out = String::new();
        let verdict = if self.verified { "the result is right" } else { "THE RESULT IS WRONG" };
        let size = Size(self.size_bytes);
        let _ = writeln!(out, "{} over {size} on {}: {verdict}", name(self.workload), self.backend);
        for (title, rows) in self.sections() {
            let _ = writeln!(out, "\n{title}");
            for (label, value) in rows {
                let _ = writeln!(out, "  {label:<34} {value:>22}");
            }
        }
        out
    }

    /// The sections of the table with their rows.
    fn sections(&self) -> Vec<(&'static str, Vec<(&'static str, String)>)> {
        let number = |n: u64| n.to_string();
        let pages = |pages: u64| format!("{pages} ({})", binary(pages * PAGE_BYTES));
        let rate = |rate: f64| format!("{rate:.2} GB/s");
        let seconds = |s: f64| time((s * 1e9) as u64);
        vec![
            (
                "asked for",
                vec![
                    ("memory from", name(self.alloc)),
                    ("taken by", name(self.take)),
                    (
                        "faults served",
                        if self.user_mode_only { "of user mode only" } else { "all" }.to_owned(),
                    ),
                    ("device memory", Size(self.device_memory_bytes).to_string()),
                    ("granularity", Size(self.granularity_bytes).to_string()),
                    ("engines / CPU threads", format!("{} / {}", self.engines, self.threads)),
                    ("seed", number(self.seed)),
                ],
            ),
            (
                "faults",
                vec![
                    ("device faults", number(self.faults)),
                    ("  of these unique", number(self.faults_unique)),
                    ("  of these duplicate", number(self.faults_duplicate)),
                    ("pages that failed", number(self.faults_failed)),
                    ("batches", number(self.batches)),
                    ("CPU faults", number(self.cpu_faults)),
                    ("  filled with zeros", number(self.cpu_faults_zero_filled)),
                    ("  queued on a page in transit", number(self.cpu_faults_queued)),
                ],
            ),
            (
                "pages",
                vec![
                    ("migrated to the device", pages(self.migrated_to_device_pages)),
                    ("migrated to RAM", pages(self.migrated_to_ram_pages)),
                    ("linked", pages(self.linked_pages)),
                    ("unlinked", pages(self.unlinked_pages)),
                    ("refused by the kernel", pages(self.refused_pages)),
                    ("evictions", number(self.evictions)),
                    ("evicted pages", pages(self.evicted_pages)),
                    ("invalidations", number(self.invalidations)),
                    ("invalidated pages", pages(self.invalidated_pages)),
                    ("granules reserved", number(self.granules_reserved)),
                    ("gate closed", number(self.gate_closed)),
                    ("failed copies", number(self.copies_failed)),
                    ("unreadable pages", pages(self.unreadable_pages)),
                    ("IOMMU errors", number(self.iommu_errors)),
                ],
            ),
            (
                "retries",
                vec![
                    ("sequence moved", number(self.retries_sequence)),
                    ("newly mirrored", number(self.retries_newly_mirrored)),
                    ("page in transit", number(self.retries_in_transit)),
                    ("address space changing", number(self.retries_address_space_changing)),
                    ("device full", number(self.retries_device_full)),
                    ("taken back", number(self.retries_taken_back)),
                ],
            ),
            (
                "time",
                vec![
                    ("device fault p50", time(self.device_fault_p50_ns)),
                    ("device fault p99", time(self.device_fault_p99_ns)),
                    ("device fault max", time(self.device_fault_max_ns)),
                    ("CPU fault p50", time(self.cpu_fault_p50_ns)),
                    ("CPU fault p99", time(self.cpu_fault_p99_ns)),
                    ("CPU fault max", time(self.cpu_fault_max_ns)),
                    ("device work", seconds(self.device_seconds)),
                    ("device work, rate", rate(self.device_gb_per_second)),
                    ("check by the CPU", seconds(self.check_seconds)),
                    ("check by the CPU, rate", rate(self.check_gb_per_second)),
                ],
            ),
            (
                "memory of the service",
                vec![
                    ("pages touched", number(self.pages_touched)),
                    ("state per page", format!("{:.3} B", self.state_bytes_per_page)),
                    ("table", binary(self.table_bytes)),
                    ("granules", binary(self.granule_bytes)),
                    ("blocks", binary(self.block_bytes)),
                    ("IOVA bookkeeping", binary(self.iova_bytes)),
                    ("index of 4 KiB slots", binary(self.fine_slot_bytes)),
                    ("records of device memory", binary(self.device_record_bytes)),
                    ("staging", binary(self.staging_bytes)),
                    ("stacks", binary(self.stack_bytes)),
                    ("device page table", binary(self.device_page_table_bytes)),
                    ("IOMMU page table", binary(self.iommu_page_table_bytes)),
                ],
            ),
        ]
    }
}

/// The name by which the command line knows a value.
fn name(of: impl clap::ValueEnum) -> String {
    of.to_possible_value().map_or_else(String::new, |value| value.get_name().to_owned())
}

/// Bytes with three digits and a unit.
fn binary(bytes: u64) -> String {
    let units = ["B", "KiB", "MiB", "GiB", "TiB", "PiB", "EiB"];
    let step = (bytes.max(1).ilog2() / 10) as usize;
    if step == 0 {
        return format!("{bytes} B");
    }
    format!("{:.1} {}", bytes as f64 / (1u64 << (10 * step)) as f64, units[step])
}

/// A duration with three digits and a unit.
fn time(ns: u64) -> String {
    match ns {
        0..1_000 => format!("{ns} ns"),
        1_000..1_000_000 => format!("{:.1} us", ns as f64 / 1e3),
        1_000_000..1_000_000_000 => format!("{:.1} ms", ns as f64 / 1e6),
        _ => format!("{:.2} s", ns as f64 / 1e9),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_are_shown_with_three_digits() {
        assert_eq!([0, 999, 4096, 3 << 29].map(binary), ["0 B", "999 B", "4.0 KiB", "1.5 GiB"]);
        assert_eq!([5, 5_250, 7_100_000, 61_000_000_000].map(time), ["5 ns", "5.2 us", "7.1 ms", "61.00 s"]);
    }
}
