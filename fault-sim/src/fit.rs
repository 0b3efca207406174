//! A cost vector from what was measured: what a trace shows of it, and another vector for the rest.
//!
//! A trace says when pages were moved, not for how long. But one thread moves them, one run after the other: from the
//! beginning of one migration to that of the next passes at least the time of the copy. Of each size the shortest such
//! times are kept (the tenth percentile), and a line through them is the time of a copy by its size: what a copy costs
//! whatever its size, and what a byte costs.
//!
//! # Rules
//! 1. The line is the median of the slopes between all pairs of sizes (Theil and Sen): half of the sizes may be wrong.
//! 2. A figure that the trace does not show is the base's, and says so.
//! 3. Memory does not grow with the trace: of each size a bounded sample is kept.

use std::collections::{BTreeMap, HashMap};

use granule::units::PAGE_BYTES;

use crate::replay::Cost;
use crate::trace::{Event, EventKind, MigrationCause};

/// Times of a size that are kept; more are thinned out evenly.
const MOST_TIMES: usize = 4096;
/// Sizes with fewer times are not looked at.
const LEAST_TIMES: usize = 5;
/// Faults that wait for their pages; the oldest are forgotten.
const MOST_WAITING: usize = 1 << 16;
/// Which of the times counts, in percent.
const PERCENT: usize = 10;

/// Times, thinned out evenly when there are too many.
#[derive(Clone, Debug)]
struct Times {
    kept: Vec<u64>,
    every: u64,
    seen: u64,
}

impl Default for Times {
    fn default() -> Self {
        Self { kept: Vec::new(), every: 1, seen: 0 }
    }
}

impl Times {
    fn add(&mut self, ns: u64) {
        if self.seen.is_multiple_of(self.every) {
            self.kept.push(ns);
            if self.kept.len() > MOST_TIMES {
                let mut at = 0;
                self.kept.retain(|_| {
                    at += 1;
                    at % 2 == 1
                });
                self.every *= 2;
            }
        }
        self.seen += 1;
    }

    /// The tenth percentile, if there are enough.
    fn short(&self) -> Option<f64> {
        if self.kept.len() < LEAST_TIMES {
            return None;
        }
        let mut sorted = self.kept.clone();
        sorted.sort_unstable();
        Some(sorted[sorted.len() * PERCENT / 100] as f64)
    }
}

/// What a trace shows of what things cost.
#[derive(Debug, Default)]
pub struct Measured {
    /// Time to the next migration, by pages: to the device, to system memory.
    copies: [BTreeMap<u32, Times>; 2],
    /// From a fault to the beginning of the migration that serves it: of the device, of the CPU.
    waits: [Times; 2],
    last: Option<(u64, usize, u32)>,
    /// Faults by page, and when.
    waiting: [HashMap<u64, u64>; 2],
    /// Migrations.
    pub migrations: u64,
    /// Faults of either side.
    pub faults: u64,
}

const TO_DEVICE: usize = 0;
const TO_SYSTEM: usize = 1;

/// A straight line.
#[derive(Clone, Copy, PartialEq, Debug)]
pub struct Line {
    /// Nanoseconds at no bytes.
    pub base_ns: f64,
    /// Nanoseconds for each byte.
    pub ns_per_byte: f64,
    /// Sizes that it goes through.
    pub sizes: usize,
    /// How far the sizes are from it, at the median, as a part of their time.
    pub off: f64,
}

/// One figure of the result, and where it comes from.
pub type Figure = (String, String);

impl Measured {
    /// Enters the next events.
    pub fn feed(&mut self, events: &[Event]) {
        for event in events {
            match event.kind {
                EventKind::Migration => self.migration(event),
                EventKind::DeviceFault => self.fault(TO_DEVICE, event),
                EventKind::CpuFault => self.fault(TO_SYSTEM, event),
                EventKind::Access | EventKind::Unmap | EventKind::Advice | EventKind::Map => {}
            }
        }
    }

    fn fault(&mut self, to: usize, event: &Event) {
        self.faults += 1;
        let waiting = &mut self.waiting[to];
        if waiting.len() >= MOST_WAITING {
            // They were served by something that is not in the trace.
            waiting.clear();
        }
        waiting.entry(event.page).or_insert(event.time_ns);
    }

    fn migration(&mut self, event: &Event) {
        self.migrations += 1;
        // Where to: 0 is system memory. What is evicted goes there whatever it says.
        let evicted = event.detail == MigrationCause::Eviction as u8;
        let to = if evicted || event.engine == 0 { TO_SYSTEM } else { TO_DEVICE };
        if let Some((began_ns, before, pages)) = self.last.replace((event.time_ns, to, event.pages))
            && event.time_ns > began_ns
        {
            self.copies[before].entry(pages).or_default().add(event.time_ns - began_ns);
        }
        if event.detail == MigrationCause::Fault as u8 {
            let served = event.page..event.page + u64::from(event.pages);
            let mut first: Option<u64> = None;
            let waiting = &mut self.waiting[to];
            let mut enter = |ns: u64| first = Some(first.map_or(ns, |first| first.min(ns)));
            if served.end - served.start <= waiting.len() as u64 {
                served.filter_map(|page| waiting.remove(&page)).for_each(&mut enter);
            } else {
                waiting.retain(|page, ns| {
                    let is_served = served.contains(page);
                    if is_served {
                        enter(*ns);
                    }
                    !is_served
                });
            }
            if let Some(ns) = first.and_then(|first| event.time_ns.checked_sub(first)) {
                self.waits[to].add(ns);
            }
        }
    }

    /// Times of copies by their size, as a line; `None` if the trace has fewer than two sizes, or times that do not grow
    /// with them.
    fn line(&self, to: usize) -> Option<Line> {
        let points = self.copies[to].iter();
        let points: Vec<(f64, f64)> = points
            .filter_map(|(pages, times)| Some(((u64::from(*pages) * PAGE_BYTES) as f64, times.short()?)))
            .collect();
        line_through(&points)
    }

    /// The vector, and where each figure that the trace shows comes from. `base` is for the others.
    pub fn fitted(&self, base: &Cost) -> (Cost, Vec<Figure>) {
        let (mut cost, mut figures) = (*base, Vec::new());
        for (to, name) in [(TO_DEVICE, "copy_in"), (TO_SYSTEM, "copy_out")] {
            let Some(line) = self.line(to) else { continue };
            let (ns, bytes_per_us) = match to {
                TO_DEVICE => (&mut cost.copy_in_ns, &mut cost.copy_in_bytes_per_us),
                _ => (&mut cost.copy_out_ns, &mut cost.copy_out_bytes_per_us),
            };
            *ns = line.base_ns.max(0.0).round() as u64;
            *bytes_per_us = (1000.0 / line.ns_per_byte).round().max(1.0) as u64;
            figures.push((
                format!("{name}_ns, {name}_bytes_per_us"),
                format!(
                    "line through {} sizes of migrations, {:.1} percent off at the median; time to the next one",
                    line.sizes,
                    line.off * 100.0
                ),
            ));
        }
        let wait = |to: usize| self.waits[to].short().map(|ns| (ns, self.waits[to].seen));
        if let Some((ns, count)) = wait(TO_DEVICE) {
            let rest = base.fetch_entry_ns
                + base.preprocess_entry_ns
                + base.block_ns
                + base.unmap_ns
                + base.dma_map_page_ns;
            cost.interrupt_ns = (ns as u64).saturating_sub(rest);
            figures.push((
                "interrupt_ns".to_owned(),
                format!(
                    "from a fault to its migration, {count} times, tenth percentile {ns:.0} ns, less {rest} ns for what \
                     the base says of one fault's other steps"
                ),
            ));
        }
        if let Some((ns, count)) = wait(TO_SYSTEM) {
            cost.cpu_fault_ns = ns as u64;
            figures.push((
                "cpu_fault_ns".to_owned(),
                format!("from a CPU fault to its migration, {count} times, tenth percentile"),
            ));
        }
        (cost, figures)
    }
}

/// The line of Theil and Sen through points with distinct positions.
fn line_through(points: &[(f64, f64)]) -> Option<Line> {
    let mut slopes = Vec::new();
    for (at, one) in points.iter().enumerate() {
        slopes.extend(points[at + 1..].iter().map(|other| (other.1 - one.1) / (other.0 - one.0)));
    }
    let ns_per_byte = median(slopes).filter(|slope| *slope > 0.0)?;
    let base_ns = median(points.iter().map(|(bytes, ns)| ns - ns_per_byte * bytes).collect())?;
    let off = |(bytes, ns): &(f64, f64)| ((base_ns + ns_per_byte * bytes - ns) / ns).abs();
    let off = median(points.iter().map(off).collect())?;
    Some(Line { base_ns, ns_per_byte, sizes: points.len(), off })
}

fn median(mut values: Vec<f64>) -> Option<f64> {
    values.sort_unstable_by(f64::total_cmp);
    let middle = values.len() / 2;
    match values.len() {
        0 => None,
        length if length % 2 == 1 => Some(values[middle]),
        _ => Some((values[middle - 1] + values[middle]) / 2.0),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::seed;

    #[test]
    fn a_line_survives_outliers() {
        let mut points: Vec<_> =
            (1..=20).map(|at| (f64::from(at) * 4096.0, 1900.0 + f64::from(at) * 150.0)).collect();
        points[3].1 *= 20.0;
        points[11].1 = 1.0;
        let line = line_through(&points).expect("a line");
        assert!((line.base_ns - 1900.0).abs() < 100.0 && (line.ns_per_byte * 4096.0 - 150.0).abs() < 5.0);
        assert_eq!(line_through(&[(4096.0, 7.0)]), None, "one size is no line");
        assert_eq!(line_through(&[(1.0, 7.0), (2.0, 6.0)]), None, "larger copies are not faster");
    }

    /// Copies of known cost, each followed at once by the next in most cases and by a pause in the others.
    #[test]
    fn what_things_cost_is_found_again() {
        let truth = Cost {
            copy_in_ns: 1900,
            copy_in_bytes_per_us: 26_800,
            copy_out_ns: 1700,
            copy_out_bytes_per_us: 12_000,
            interrupt_ns: 9000,
            cpu_fault_ns: 33_000,
            ..Cost::FREE
        };
        let (mut now, mut events) = (1_000_000, Vec::new());
        for at in 0..40_000 {
            let pages = [1, 15, 31, 63, 127, 255, 512][seed::below(1, at, 7) as usize];
            let to_device = seed::below(2, at, 3) > 0;
            let page = at * 512;
            let (kind, wait) = match to_device {
                true => (EventKind::DeviceFault, truth.interrupt_ns),
                false => (EventKind::CpuFault, truth.cpu_fault_ns),
            };
            let noise = |salt: u64| seed::below(salt, at, 200);
            let fault = Event { kind, ..Event::access(0, page, crate::trace::Access::Read, 0) };
            events.push(Event { time_ns: now.max(wait) - wait - noise(3), ..fault });
            let migration = Event::range(now, page, pages, EventKind::Migration);
            events.push(Event {
                detail: MigrationCause::Fault as u8,
                engine: u16::from(to_device),
                ..migration
            });
            let bytes = u64::from(pages) * PAGE_BYTES;
            now += if to_device { truth.copy_in(1, bytes) } else { truth.copy_out(1, bytes) } + noise(4);
            if seed::below(5, at, 3) == 0 {
                now += seed::below(6, at, 1_000_000);
            }
        }
        let mut measured = Measured::default();
        events.chunks(1000).for_each(|events| measured.feed(events));
        let (found, figures) = measured.fitted(&Cost::FREE);
        let near = |found: u64, truth: u64| found.abs_diff(truth) * 20 <= truth;
        assert!(near(found.copy_in_ns, 1900) && near(found.copy_out_ns, 1700), "{found:?}");
        assert!(near(found.copy_in_bytes_per_us, 26_800), "{found:?}");
        assert!(near(found.copy_out_bytes_per_us, 12_000), "{found:?}");
        assert!(near(found.interrupt_ns, 9000) && near(found.cpu_fault_ns, 33_000), "{found:?}");
        assert_eq!((figures.len(), found.map_ns), (4, 0));
    }

    #[test]
    fn a_trace_without_migrations_shows_nothing() {
        let mut measured = Measured::default();
        measured.feed(&[
            Event::access(0, 1, crate::trace::Access::Read, 0),
            Event::cpu(1, 2, crate::trace::Access::Read),
        ]);
        let base = crate::replay::PROFILES[1].cost;
        assert_eq!(measured.fitted(&base), (base, Vec::new()));
    }
}
