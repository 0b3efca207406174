//! What `replay` found: one row of numbers per policy, as a table, one JSON object or CSV. The keys are a promise to
//! other programs; `docs/replay.md` explains each of them.

use std::collections::BTreeMap;
use std::fmt::Write;

use granule::units::PAGE_BYTES;
use serde::{Deserialize, Serialize};

use crate::places::Place;
use crate::replay::{Cost, Metrics, PHASE_NAMES};

/// The commit that this program was built from.
pub const COMMIT: &str = env!("FAULT_SIM_COMMIT");

/// One number: counted, or a quotient of counted ones (`None`: of nothing by nothing).
#[derive(Clone, Copy, PartialEq, Debug, Serialize, Deserialize)]
#[serde(untagged)]
pub enum Number {
    /// A count.
    Count(u64),
    /// A quotient.
    Ratio(Option<f64>),
}

/// A named number.
#[derive(Clone, PartialEq, Debug, Serialize, Deserialize)]
pub struct Metric(pub String, pub Number);

/// One policy's numbers.
#[derive(Clone, PartialEq, Debug, Serialize, Deserialize)]
pub struct Row {
    /// The policy as it was asked for.
    pub policy: String,
    /// What it consists of.
    pub parts: String,
    /// Its parameters that differ from their defaults.
    #[serde(default)]
    pub parameters: BTreeMap<String, u64>,
    /// Sentences about what its numbers do not mean.
    pub notes: Vec<String>,
    /// The numbers.
    #[serde(with = "as_object")]
    pub metrics: Vec<Metric>,
    /// The allocations with the most faults, if they were asked for.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub allocations: Vec<Place>,
    /// The blocks with the most faults, if they were asked for.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub blocks: Vec<Place>,
}

/// Everything that one `replay` found.
#[derive(Clone, PartialEq, Debug, Serialize, Deserialize)]
pub struct Outcome {
    /// The commit of the program.
    pub commit: String,
    /// The trace's file.
    pub trace: String,
    /// What the trace holds: `accesses`, `faults`, `migrations`.
    pub trace_kind: String,
    /// Where the trace comes from.
    pub trace_origin: String,
    /// The commit of the program that made the trace.
    pub trace_commit: String,
    /// The seed of the trace, if it has one.
    pub trace_seed: Option<u64>,
    /// The seed of the policies.
    pub seed: u64,
    /// The cost profile.
    pub profile: String,
    /// Its figures.
    #[serde(default)]
    pub cost: Cost,
    /// Device memory.
    pub device_memory_bytes: u64,
    /// Distinct pages of the trace, in bytes.
    pub footprint_bytes: u64,
    /// Faults that the device can have open.
    pub outstanding: usize,
    /// Evictions within which a page that comes back is a refault.
    #[serde(default)]
    pub refault_window: u64,
    /// Pages had no contents before their first touch.
    #[serde(default)]
    pub untouched: bool,
    /// One row per policy.
    pub rows: Vec<Row>,
}

mod as_object {
    use std::fmt;

    use serde::de::{MapAccess, Visitor};
    use serde::{Deserializer, Serializer};

    use super::{Metric, Number};

    pub fn serialize<S: Serializer>(metrics: &[Metric], serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_map(metrics.iter().map(|Metric(name, number)| (name, number)))
    }

    pub fn deserialize<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Vec<Metric>, D::Error> {
        struct Metrics;
        impl<'de> Visitor<'de> for Metrics {
            type Value = Vec<Metric>;
            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("an object of numbers")
            }
            fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Vec<Metric>, A::Error> {
                let mut metrics = Vec::new();
                while let Some((name, number)) = map.next_entry::<String, Number>()? {
                    metrics.push(Metric(name, number));
                }
                Ok(metrics)
            }
        }
        deserializer.deserialize_map(Metrics)
    }
}

/// The numbers of a replay, in the order of the table.
pub fn metrics(of: &Metrics) -> Vec<Metric> {
    use Number::{Count, Ratio};
    let bytes = |pages: u64| Count(pages * PAGE_BYTES);
    let ratio = |part: u64, whole: u64| Ratio((whole != 0).then(|| part as f64 / whole as f64));
    let mut all = vec![
        ("events", Count(of.events)),
        ("touches", Count(of.hits + of.remote_touches + of.latency.count())),
        ("hits", Count(of.hits)),
        ("remote_touches", Count(of.remote_touches)),
        ("faults", Count(of.faults)),
        ("faults_unique", Count(of.faults_unique)),
        ("faults_coalesced", Count(of.faults_coalesced)),
        ("faults_duplicate", Count(of.faults_duplicate)),
        ("faults_spurious", Count(of.faults_spurious)),
        ("faults_reappeared", Count(of.faults_reappeared)),
        ("batches", Count(of.batches)),
        ("services", Count(of.services)),
        ("demand_bytes", bytes(of.demand_pages)),
        ("prefetch_bytes", bytes(of.prefetch_pages)),
        ("evicted_bytes", bytes(of.evicted_pages)),
        ("homecoming_bytes", bytes(of.homecoming_pages)),
        ("linked_bytes", bytes(of.linked_pages)),
        ("duplicated_bytes", bytes(of.duplicated_pages)),
        ("zeroed_bytes", bytes(of.zeroed_pages)),
        ("unmapped_bytes", bytes(of.unmapped_pages)),
        ("copies_in", Count(of.copies_in)),
        ("copies_out", Count(of.copies_out)),
        ("units_in", Count(of.units_in)),
        ("evictions", Count(of.evictions)),
        ("refaults", Count(of.refaults)),
        ("prefetch_accuracy", ratio(of.prefetch_hits, of.prefetch_pages)),
        ("prefetch_coverage", ratio(of.prefetch_hits, of.prefetch_hits + of.demand_pages)),
        ("prefetch_timeliness", ratio(of.prefetch_hits - of.prefetch_late, of.prefetch_hits)),
        ("prefetch_wasted_bytes", bytes(of.prefetch_wasted)),
        ("write_amplification", ratio(of.evicted_pages, of.evicted_dirty_pages)),
        ("cpu_faults", Count(of.cpu_faults)),
        ("throttles", Count(of.throttles)),
        ("total_ns", Count(of.total_ns)),
        ("stalled_ns", Count(of.stalled_ns)),
        ("fault_p50_ns", Count(of.latency.quantile_ns(500))),
        ("fault_p90_ns", Count(of.latency.quantile_ns(900))),
        ("fault_p99_ns", Count(of.latency.quantile_ns(990))),
        ("fault_max_ns", Count(of.latency.max_ns())),
        ("fault_mean_ns", Count(of.latency.mean_ns())),
        ("fault_wait_p50_ns", Count(of.waiting.quantile_ns(500))),
        ("fault_wait_p99_ns", Count(of.waiting.quantile_ns(990))),
        ("fault_wait_mean_ns", Count(of.waiting.mean_ns())),
        ("fault_service_p50_ns", Count(of.serving.quantile_ns(500))),
        ("fault_service_p99_ns", Count(of.serving.quantile_ns(990))),
        ("fault_service_mean_ns", Count(of.serving.mean_ns())),
        ("cpu_fault_p50_ns", Count(of.cpu_latency.quantile_ns(500))),
        ("cpu_fault_p99_ns", Count(of.cpu_latency.quantile_ns(990))),
        ("cpu_fault_max_ns", Count(of.cpu_latency.max_ns())),
        ("time_backwards", Count(of.time_backwards)),
        ("not_replayed", Count(of.not_replayed)),
    ]
    .into_iter()
    .map(|(name, number)| Metric(name.to_owned(), number))
    .collect::<Vec<_>>();
    let phases = PHASE_NAMES.iter().zip(of.phase_ns);
    all.extend(phases.map(|(name, ns)| Metric(format!("driver_{name}_ns"), Count(ns))));
    all
}

impl Number {
    /// As people read it: bytes and times with units, by the ending of the name.
    pub fn shown(self, name: &str) -> String {
        match self {
            Self::Count(bytes) if name.ends_with("_bytes") => shown_bytes(bytes),
            Self::Count(ns) if name.ends_with("_ns") => shown_ns(ns),
            Self::Count(count) => count.to_string(),
            Self::Ratio(Some(ratio)) => format!("{ratio:.3}"),
            Self::Ratio(None) => "-".to_owned(),
        }
    }

    /// The number; `None` where there is none.
    pub fn value(self) -> Option<f64> {
        match self {
            Self::Count(count) => Some(count as f64),
            Self::Ratio(ratio) => ratio,
        }
    }

    fn csv(self) -> String {
        match self {
            Self::Count(count) => count.to_string(),
            Self::Ratio(ratio) => ratio.map_or(String::new(), |ratio| ratio.to_string()),
        }
    }
}

/// Bytes with the largest unit of which there is at least one.
pub fn shown_bytes(bytes: u64) -> String {
    let units = [("GiB", 30), ("MiB", 20), ("KiB", 10)];
    match units.iter().find(|(_, shift)| bytes >> shift != 0) {
        Some((unit, shift)) => format!("{:.1} {unit}", bytes as f64 / (1u64 << shift) as f64),
        None => format!("{bytes} B"),
    }
}

/// A time with a unit that fits.
pub fn shown_ns(ns: u64) -> String {
    let value = ns as f64;
    match ns {
        ..1_000 => format!("{ns} ns"),
        1_000..1_000_000 => format!("{:.1} us", value / 1e3),
        1_000_000..1_000_000_000 => format!("{:.1} ms", value / 1e6),
        _ => format!("{:.2} s", value / 1e9),
    }
}

/// Quotes a field of CSV where it needs it.
pub fn csv_field(text: &str) -> String {
    if text.contains([',', '"', '\n']) {
        format!("\"{}\"", text.replace('"', "\"\""))
    } else {
        text.to_owned()
    }
}

/// Lines for the places of one row.
fn place_table(out: &mut String, what: &str, places: &[Place]) {
    if places.is_empty() {
        return;
    }
    let _ = write!(
        out,
        "\n  {what:<20} {:>12} {:>12} {:>12} {:>12} {:>12}",
        "bytes", "faults", "demand", "prefetch", "evictions"
    );
    for place in places {
        let _ = write!(
            out,
            "\n  {:<20} {:>12} {:>12} {:>12} {:>12} {:>12}",
            format!("{:#x}", place.address),
            shown_bytes(place.bytes),
            place.faults,
            shown_bytes(place.demand_bytes),
            shown_bytes(place.prefetch_bytes),
            place.evictions
        );
    }
}

/// The names of the columns of [`Outcome::csv_rows`], as one line.
pub fn csv_header() -> String {
    let mut out = "commit,trace,trace_kind,trace_seed,seed,profile,device_memory_bytes,footprint_bytes,\
                   outstanding,refault_window,untouched,parameters,policy"
        .to_owned();
    metrics(&Metrics::default()).iter().for_each(|Metric(name, _)| {
        let _ = write!(out, ",{name}");
    });
    out.push('\n');
    out
}

impl Outcome {
    /// A table: one line per number, one column per policy. Lines that are zero for every policy are left out.
    pub fn table(&self) -> String {
        let mut out = String::new();
        let share = 100.0 * self.device_memory_bytes as f64 / self.footprint_bytes.max(1) as f64;
        let _ = writeln!(
            out,
            "{} ({} of {}): footprint {}, device memory {} ({share:.1}%), profile {}, seed {}, commit {}\n",
            self.trace,
            self.trace_kind,
            self.trace_origin,
            shown_bytes(self.footprint_bytes),
            shown_bytes(self.device_memory_bytes),
            self.profile,
            self.seed,
            self.commit
        );
        let names = self.rows.iter().map(|row| row.policy.len()).max().unwrap_or(0).max(12);
        let line = |out: &mut String, name: &str, cells: &[String]| {
            let _ = write!(out, "{name:<24}");
            for cell in cells {
                let _ = write!(out, " {cell:>names$}");
            }
            out.push('\n');
        };
        let of = |each: &dyn Fn(&Row) -> String| self.rows.iter().map(each).collect::<Vec<_>>();
        line(&mut out, "", &of(&|row| row.policy.clone()));
        let Some(first) = self.rows.first() else { return out };
        for (at, Metric(name, _)) in first.metrics.iter().enumerate() {
            let numbers = self.rows.iter().map(|row| row.metrics[at].1);
            if numbers.clone().any(|number| number.value().is_some_and(|value| value != 0.0)) {
                line(&mut out, name, &of(&|row| row.metrics[at].1.shown(name)));
            }
        }
        for row in &self.rows {
            let _ = write!(out, "\n{}: {}", row.policy, row.parts);
            row.notes.iter().for_each(|note| {
                let _ = write!(out, "\n  note: {note}");
            });
            for (what, places) in [("allocation", &row.allocations), ("block", &row.blocks)] {
                place_table(&mut out, what, places);
            }
        }
        out.push('\n');
        out
    }

    /// One JSON object on one line.
    ///
    /// # Errors
    /// Never for what this program makes; serde's signature asks for it.
    pub fn json(&self) -> Result<String, serde_json::Error> {
        serde_json::to_string(self).map(|line| line + "\n")
    }

    /// The header, and one row per policy, with what it needs to be made again.
    pub fn csv(&self) -> String {
        csv_header() + &self.csv_rows()
    }

    /// The same without the header.
    pub fn csv_rows(&self) -> String {
        let mut out = String::new();
        for row in &self.rows {
            let parameters: Vec<_> =
                row.parameters.iter().map(|(name, value)| format!("{name}={value}")).collect();
            let _ = write!(
                out,
                "{},{},{},{},{},{},{},{},{},{},{},{},{}",
                csv_field(&self.commit),
                csv_field(&self.trace),
                self.trace_kind,
                self.trace_seed.map_or(String::new(), |seed| seed.to_string()),
                self.seed,
                self.profile,
                self.device_memory_bytes,
                self.footprint_bytes,
                self.outstanding,
                self.refault_window,
                self.untouched,
                csv_field(&parameters.join(" ")),
                csv_field(&row.policy)
            );
            row.metrics.iter().for_each(|Metric(_, number)| {
                let _ = write!(out, ",{}", number.csv());
            });
            out.push('\n');
        }
        out
    }
}
