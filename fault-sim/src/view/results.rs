use std::collections::BTreeSet;

use super::Series;
use crate::picture::{Bar, Bars, Line, Lines, Part, Parts, Picture, Unit};
use crate::replay::PHASE_NAMES;
use crate::result::{Metric, Outcome, Row, shown_bytes};

/// What a picture makes of results: each has one row.
pub struct Results<'a> {
    /// What stands before the names of pictures.
    pub name: &'a str,
    /// The results.
    pub outcomes: &'a [Outcome],
}

/// The value of a number of a row; `None` where there is none.
fn value(row: &Row, name: &str) -> Option<f64> {
    row.metrics.iter().find(|Metric(other, _)| other == name).and_then(|Metric(_, number)| number.value())
}

/// Bytes that went in either direction.
fn moved(row: &Row) -> Option<f64> {
    let names = ["demand_bytes", "prefetch_bytes", "evicted_bytes", "homecoming_bytes", "duplicated_bytes"];
    names.iter().map(|name| value(row, name)).sum()
}

/// Which part of the touches did not find its page, in percent.
fn missed(row: &Row) -> Option<f64> {
    let (hits, touches) = (value(row, "hits")?, value(row, "touches")?);
    (touches > 0.0).then(|| 100.0 * (1.0 - hits / touches))
}

/// A policy with all in which its row differs from others.
fn label(outcomes: &[Outcome], of: &Outcome, row: &Row) -> String {
    let mut label = row.policy.clone();
    let parameters = row.parameters.iter().map(|(name, value)| format!("{name}={value}"));
    let differ = |get: &dyn Fn(&Outcome) -> String| outcomes.iter().any(|other| get(other) != get(of));
    let mut more: Vec<String> = parameters.collect();
    let mut add = |get: &dyn Fn(&Outcome) -> String| {
        if differ(get) {
            more.push(get(of));
        }
    };
    add(&|of| of.profile.clone());
    add(&|of| format!("outstanding {}", of.outstanding));
    add(&|of| format!("seed {}", of.seed));
    add(&|of| of.trace.clone());
    if !more.is_empty() {
        label.push_str(&format!(" ({})", more.join(", ")));
    }
    label
}

impl Results<'_> {
    /// Distinct amounts of device memory, ascending.
    pub fn capacities(&self) -> BTreeSet<u64> {
        self.outcomes.iter().map(|outcome| outcome.device_memory_bytes).collect()
    }

    /// The amount of device memory whose rows are set side by side: the one nearest to half of the footprint.
    pub fn middle(&self) -> Option<u64> {
        let half = self.outcomes.first()?.footprint_bytes / 2;
        self.capacities().into_iter().min_by_key(|bytes| bytes.abs_diff(half))
    }

    /// The rows with an amount of device memory, each with its name.
    pub fn rows(&self, bytes: u64) -> Vec<(String, &Row)> {
        let mine = self.outcomes.iter().filter(|outcome| outcome.device_memory_bytes == bytes);
        mine.flat_map(|of| of.rows.iter().map(|row| (label(self.outcomes, of, row), row))).collect()
    }

    /// Misses, time and traffic over device memory; `lru` is a curve of misses to set beside them. `None` if there is but
    /// one amount of device memory and no curve.
    pub fn over_capacity(&self, lru: &[(f64, f64)], sampled: f64) -> Option<Picture> {
        if self.capacities().len() < 2 && lru.is_empty() {
            return None;
        }
        let mut lines: Vec<Line> = Vec::new();
        if !lru.is_empty() {
            let points = lru.iter().map(|(pages, part)| (pages * 4096.0, part * 100.0)).collect();
            let name = "LRU in 4 KiB, no prefetch".to_owned();
            lines.push(Line { name, points, panel: 0, marked: false });
        }
        let many = self.capacities().len() > 1;
        type Get = fn(&Row) -> Option<f64>;
        let mut panels = vec![("touches that miss".to_owned(), Unit::Percent)];
        let mut gets: Vec<Get> = vec![missed];
        if many {
            panels.push(("total time".to_owned(), Unit::Ns));
            panels.push(("moved in both directions".to_owned(), Unit::Bytes));
            gets.push(|row| value(row, "total_ns"));
            gets.push(moved);
        }
        for (panel, get) in gets.into_iter().enumerate() {
            for bytes in self.capacities() {
                for (name, row) in self.rows(bytes) {
                    let Some(value) = get(row) else { continue };
                    let point = (bytes as f64, value);
                    match lines.iter_mut().find(|line| line.name == name && line.panel == panel) {
                        Some(line) => line.points.push(point),
                        None => lines.push(Line { name, points: vec![point], panel, marked: true }),
                    }
                }
            }
        }
        let mut caption = "What more device memory is good for, policy by policy.".to_owned();
        if !lru.is_empty() {
            caption.push_str(" The line for LRU follows from the distances between touches of the same page");
            if sampled < 1.0 {
                caption.push_str(&format!(", of {:.2} percent of the pages", sampled * 100.0));
            }
            caption.push('.');
        }
        Some(Picture::Lines(Lines {
            name: format!("{}misses", self.name),
            title: "Misses by device memory".to_owned(),
            caption,
            x: ("device memory".to_owned(), Unit::Bytes),
            panels,
            lines,
        }))
    }

    /// The policies side by side, with one amount of device memory.
    pub fn side_by_side(&self, bytes: u64) -> Picture {
        type Get = fn(&Row) -> Option<f64>;
        let groups: [(&str, Unit, Get); 5] = [
            ("total time", Unit::Ns, |row| value(row, "total_ns")),
            ("faults that were served", Unit::Count, |row| value(row, "faults_unique")),
            ("moved in both directions", Unit::Bytes, moved),
            ("of prefetched pages, touched", Unit::Percent, |row| {
                value(row, "prefetch_accuracy").map(|part| part * 100.0)
            }),
            ("a fault takes, at the 99th percentile", Unit::Ns, |row| value(row, "fault_p99_ns")),
        ];
        let rows = self.rows(bytes);
        let bars = |get: Get| -> Vec<Bar> {
            rows.iter().map(|(name, row)| Bar { name: name.clone(), value: get(row) }).collect()
        };
        Picture::Bars(Bars {
            name: format!("{}comparison", self.name),
            title: format!("Policies side by side, {} of device memory", shown_bytes(bytes)),
            caption: "Each group of bars has its own scale, from 0 on.".to_owned(),
            groups: groups.map(|(group, unit, get)| (group.to_owned(), unit, bars(get))).into(),
        })
    }

    /// Where the driver's time goes, with one amount of device memory.
    pub fn breakdown(&self, bytes: u64) -> Picture {
        let parts = |row: &Row| -> Vec<Part> {
            let part = |name: &&str| Part {
                name: name.replace('_', " "),
                value: value(row, &format!("driver_{name}_ns")).unwrap_or(0.0),
            };
            PHASE_NAMES.iter().map(part).collect()
        };
        let bars = self.rows(bytes).into_iter().map(|(name, row)| (name, parts(row))).collect();
        Picture::Parts(Parts {
            name: format!("{}costs", self.name),
            title: format!("Where the driver's time goes, {} of device memory", shown_bytes(bytes)),
            caption: "The sum may be more than the total time: the device goes on while the driver works."
                .to_owned(),
            unit: Unit::Ns,
            bars,
        })
    }
}

/// Device memory in use, and what was moved, over the time of the device.
pub fn over_time(name: &str, of: &[(String, Series)]) -> [Picture; 2] {
    let bytes = |pages: u64| pages as f64 * 4096.0;
    let held = of.iter().map(|(name, series)| Line {
        name: name.clone(),
        points: series.samples.iter().map(|s| (s.time_ns as f64, bytes(s.held_pages))).collect(),
        panel: 0,
        marked: false,
    });
    let residency = Lines {
        name: format!("{name}residency"),
        title: "Device memory in use".to_owned(),
        caption: "Over the device's own time: who makes it wait longer ends further to the right.".to_owned(),
        x: ("time of the device".to_owned(), Unit::Ns),
        panels: vec![("in use".to_owned(), Unit::Bytes)],
        lines: held.collect(),
    };
    type Get = fn(&super::Sample) -> u64;
    let panels: [(&str, Get); 3] = [
        ("brought by faults", |sample| sample.demand_pages),
        ("brought by prefetches", |sample| sample.prefetch_pages),
        ("to system memory", |sample| sample.out_pages),
    ];
    let lines = panels.iter().enumerate().flat_map(|(panel, (_, get))| {
        of.iter().map(move |(name, series)| Line {
            name: name.clone(),
            points: series.samples.iter().map(|s| (s.time_ns as f64, bytes(get(s)))).collect(),
            panel,
            marked: false,
        })
    });
    let traffic = Lines {
        name: format!("{name}traffic"),
        title: "Traffic, summed up since the beginning".to_owned(),
        caption: "The steeper a line, the more is moved at that moment.".to_owned(),
        x: ("time of the device".to_owned(), Unit::Ns),
        panels: panels.map(|(panel, _)| (panel.to_owned(), Unit::Bytes)).into(),
        lines: lines.collect(),
    };
    [Picture::Lines(residency), Picture::Lines(traffic)]
}
