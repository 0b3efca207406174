use std::path::PathBuf;

use serde::Serialize;

use super::rounds::{Pairs, median, quantile};

/// What a figure has to keep.
#[derive(Clone, Copy, Serialize)]
#[serde(tag = "kind", content = "value", rename_all = "snake_case")]
pub enum Bound {
    AtMost(f64),
    AtLeast(f64),
    /// Reported only.
    None,
}

/// What the bound is a bound of.
#[derive(Clone, Copy, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Value {
    Ratio,
    Figure,
}

/// One line of the report.
#[derive(Serialize)]
pub struct Row {
    pub question: String,
    pub unit: &'static str,
    pub floor: Option<f64>,
    pub figure: f64,
    pub ratio: Option<f64>,
    /// 10th and 90th percentile of the ratio, or of the figure where there is no floor.
    pub spread: [f64; 2],
    pub bound_of: Value,
    pub bound: Bound,
    pub rounds: usize,
    pub note: String,
}

impl Row {
    /// Time against time: the ratio says how many times as long as the floor. `scale` turns nanoseconds into `unit`.
    pub fn slower_by(question: &str, unit: &'static str, scale: f64, pairs: &Pairs, bound: Bound) -> Self {
        let ratios: Vec<f64> = pairs.0.iter().map(|(floor, figure)| figure / floor).collect();
        Self::of(question, unit, pairs, ratios, bound, |ns| ns * scale)
    }

    /// Speed against speed: the ratio says which part of the floor's speed is reached. Times become GB/s of `bytes`.
    pub fn speed(question: &str, bytes: u64, pairs: &Pairs, bound: Bound) -> Self {
        let ratios: Vec<f64> = pairs.0.iter().map(|(floor, figure)| floor / figure).collect();
        Self::of(question, "GB/s", pairs, ratios, bound, |ns| bytes as f64 / ns)
    }

    fn of(
        question: &str,
        unit: &'static str,
        pairs: &Pairs,
        ratios: Vec<f64>,
        bound: Bound,
        show: impl Fn(f64) -> f64,
    ) -> Self {
        let (floors, figures): (Vec<f64>, Vec<f64>) = pairs.0.iter().copied().unzip();
        Self {
            question: question.into(),
            unit,
            floor: Some(show(median(&floors))),
            figure: show(median(&figures)),
            ratio: Some(median(&ratios)),
            spread: [quantile(&ratios, 0.1), quantile(&ratios, 0.9)],
            bound_of: Value::Ratio,
            bound,
            rounds: ratios.len(),
            note: String::new(),
        }
    }

    /// A figure by itself: the best round.
    pub fn best(question: &str, unit: &'static str, rounds: &[f64], bound: Bound) -> Self {
        Self {
            question: question.into(),
            unit,
            floor: None,
            figure: quantile(rounds, 0.0),
            ratio: None,
            spread: [quantile(rounds, 0.1), quantile(rounds, 0.9)],
            bound_of: Value::Figure,
            bound,
            rounds: rounds.len(),
            note: format!("best round; median {:.4}", median(rounds)),
        }
    }

    /// A figure that is counted, not timed.
    pub fn exact(question: &str, unit: &'static str, figure: f64, bound: Bound) -> Self {
        let mut row = Self::best(question, unit, &[figure], bound);
        row.note.clear();
        row
    }

    pub fn note(mut self, note: impl Into<String>) -> Self {
        let note = note.into();
        self.note = if self.note.is_empty() { note } else { format!("{}; {note}", self.note) };
        self
    }
}

/// The rows of one bench. Written when it is dropped, so that a bench that ends early leaves what it has.
pub struct Report {
    bench: &'static str,
    rows: Vec<Row>,
}

impl Report {
    pub fn new(bench: &'static str) -> Self {
        Self { bench, rows: Vec::new() }
    }

    /// Enters a row and prints it.
    pub fn push(&mut self, row: Row) {
        let floor = row.floor.map_or(String::new(), |floor| format!("floor {floor:.3}, "));
        let ratio = row.ratio.map_or(String::new(), |ratio| format!(", ratio {ratio:.3}"));
        println!("{}: {floor}figure {:.3} {}{ratio} {:.3?}", row.question, row.figure, row.unit, row.spread);
        self.rows.push(row);
    }
}

impl Drop for Report {
    fn drop(&mut self) {
        if self.rows.is_empty() {
            return;
        }
        let folder = std::env::var_os("GRANULE_MEASURE_DIR")
            .map_or_else(|| PathBuf::from(env!("CARGO_TARGET_TMPDIR")).join("../measure"), PathBuf::from);
        let path = folder.join(format!("{}.json", self.bench));
        let text = serde_json::to_string_pretty(&self.rows).expect("rows are plain data");
        if let Err(error) = std::fs::create_dir_all(&folder).and_then(|()| std::fs::write(&path, text)) {
            eprintln!("the rows of {} cannot be written to {}: {error}", self.bench, path.display());
            std::process::abort();
        }
    }
}
