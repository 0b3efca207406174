use granule::units::PAGE_BYTES;
use plotters::prelude::{BLACK, DrawingBackend, RGBColor};

use super::canvas::{Anchor, Canvas, Failed, Frame, Scale, Unit};
use crate::result::{shown_bytes, shown_ns};
use crate::view::{Row, Timeline};

/// Which addresses were touched when: darker where more often. Addresses that nobody touched are left out.
#[derive(Clone, Debug)]
pub struct Map {
    /// Its name in files.
    pub name: String,
    /// What stands above it.
    pub title: String,
    /// What it shows.
    pub caption: String,
    rows: Vec<Row>,
    pages_each: u64,
    bin_ns: u64,
}

/// Ranges of addresses that are drawn.
const MOST_ROWS: usize = 150;
/// Grey for the first to the last level; more touches are darker.
const LEVELS: [RGBColor; 5] = [
    RGBColor(222, 222, 222),
    RGBColor(176, 176, 176),
    RGBColor(125, 125, 125),
    RGBColor(70, 70, 70),
    RGBColor(0, 0, 0),
];

impl Map {
    /// Of a timeline.
    pub fn new(name: String, title: String, caption: String, timeline: Timeline) -> Self {
        let (_, bin_ns) = timeline.times();
        let (rows, pages_each) = timeline.rows(MOST_ROWS);
        Self { name, title, caption, rows, pages_each, bin_ns }
    }

    pub(super) fn draw<DB: DrawingBackend>(&self, canvas: &Canvas<'_, DB>) -> Result<(), Failed<DB>> {
        let (width, height) = canvas.size();
        canvas.text(&self.title, width / 2, 18, 22, Anchor::Middle)?;
        let frame = Frame { left: 150, top: 38, right: width - 24, bottom: height - 92 };
        let used = self.rows.iter().flat_map(|row| row.device.iter().zip(&row.cpu).enumerate());
        let bins = used.filter(|(_, (device, cpu))| **device + **cpu > 0).map(|(at, _)| at + 1).max();
        let bins = bins.unwrap_or(1);
        let most = self.rows.iter().flat_map(|row| &row.device).copied().max().unwrap_or(0);
        let x =
            |bin: usize| frame.left + (bin as f64 / bins as f64 * f64::from(frame.width())).round() as i32;
        let count = self.rows.len().max(1);
        let y = |row: usize| {
            frame.bottom - (row as f64 / count as f64 * f64::from(frame.height())).round() as i32
        };
        for (at, row) in self.rows.iter().enumerate() {
            let (bottom, top) = (y(at), y(at + 1));
            let mut from = 0;
            while from < bins {
                let shade = level(row.device[from], most);
                let length = row.device[from..bins].iter().take_while(|n| level(**n, most) == shade).count();
                if let Some(shade) = shade {
                    let cell = Frame { left: x(from), top, right: x(from + length), bottom };
                    canvas.fill(cell, LEVELS[shade])?;
                }
                from += length;
            }
        }
        self.draw_cpu(canvas, bins, &x, &y)?;
        self.draw_addresses(canvas, frame, &y)?;
        let scale = Scale { most: (bins as u64 * self.bin_ns) as f64, unit: Unit::Ns };
        for mark in scale.marks(8) {
            let at = frame.left + (mark / scale.most * f64::from(frame.width())).round() as i32;
            canvas.line(vec![(at, frame.bottom), (at, frame.bottom + 5)], BLACK, 1)?;
            canvas.text(&scale.unit.shown(mark), at, frame.bottom + 16, 16, Anchor::Middle)?;
        }
        canvas.edge(frame)?;
        let middle = (frame.left + frame.right) / 2;
        canvas.text("time of the trace", middle, frame.bottom + 36, 18, Anchor::Middle)?;
        canvas.upwards("address", 14, (frame.top + frame.bottom) / 2, 14)?;
        self.draw_legend(canvas, frame, most)
    }

    /// A cross in each cell that the CPU touched, as far as they stand apart.
    fn draw_cpu<DB: DrawingBackend>(
        &self,
        canvas: &Canvas<'_, DB>,
        bins: usize,
        x: &impl Fn(usize) -> i32,
        y: &impl Fn(usize) -> i32,
    ) -> Result<(), Failed<DB>> {
        let colour = RGBColor(200, 60, 0);
        let mut taken = std::collections::HashSet::new();
        for (at, row) in self.rows.iter().enumerate() {
            for bin in (0..bins).filter(|bin| row.cpu[*bin] > 0) {
                let (left, top) = ((x(bin) + x(bin + 1)) / 2, (y(at) + y(at + 1)) / 2);
                if taken.insert((left / 12, top / 12)) {
                    canvas.line(vec![(left - 3, top - 3), (left + 3, top + 3)], colour, 1)?;
                    canvas.line(vec![(left - 3, top + 3), (left + 3, top - 3)], colour, 1)?;
                }
            }
        }
        Ok(())
    }

    /// Addresses where a stretch of neighbouring ranges begins, as far as there is room, and lines between stretches.
    fn draw_addresses<DB: DrawingBackend>(
        &self,
        canvas: &Canvas<'_, DB>,
        frame: Frame,
        y: &impl Fn(usize) -> i32,
    ) -> Result<(), Failed<DB>> {
        let mut last = i32::MAX;
        let regular = self.rows.len().div_ceil(8).max(1);
        let mut since = 0;
        for (at, row) in self.rows.iter().enumerate() {
            let begins = at == 0 || self.rows[at - 1].page + self.pages_each != row.page;
            if begins && at > 0 {
                canvas.line(vec![(frame.left, y(at)), (frame.right, y(at))], RGBColor(120, 150, 200), 1)?;
            }
            since = if begins { 0 } else { since + 1 };
            if (begins || since % regular == 0) && y(at) < last - 14 {
                let address = format!("{:#x}", row.page.saturating_mul(PAGE_BYTES));
                canvas.text(&address, frame.left - 8, y(at) - 3, 14, Anchor::Right)?;
                last = y(at);
            }
        }
        Ok(())
    }

    fn draw_legend<DB: DrawingBackend>(
        &self,
        canvas: &Canvas<'_, DB>,
        frame: Frame,
        most: u64,
    ) -> Result<(), Failed<DB>> {
        let y = frame.bottom + 60;
        let mut left = frame.left;
        for (shade, colour) in LEVELS.iter().enumerate() {
            let Some(least) =
                (1..=u64::BITS).map(|bits| 1u64 << (bits - 1)).find(|n| level(*n, most) == Some(shade))
            else {
                continue;
            };
            let cell = Frame { left, top: y - 7, right: left + 22, bottom: y + 7 };
            canvas.fill(cell, *colour)?;
            canvas.edge(cell)?;
            let said = format!("{} or more", Unit::Count.shown(least as f64));
            canvas.text(&said, left + 28, y, 14, Anchor::Left)?;
            left += 118;
        }
        let each =
            format!("touches of {} in {}", shown_bytes(self.pages_each * PAGE_BYTES), shown_ns(self.bin_ns));
        canvas.text(&each, left, y, 14, Anchor::Left)?;
        let note = "x: touched by the CPU.  A line across: addresses in between were not touched.";
        canvas.text(note, frame.left, y + 20, 14, Anchor::Left)
    }
}

/// Which of the levels a count has, by its logarithm; `None` for nothing.
fn level(count: u64, most: u64) -> Option<usize> {
    if count == 0 {
        return None;
    }
    let part = f64::from(count.ilog2()) / (f64::from(most.max(2).ilog2()) + 1.0);
    Some(((part * LEVELS.len() as f64) as usize).min(LEVELS.len() - 1))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn more_touches_are_never_paler() {
        for most in [1, 2, 5, 100, 1 << 40] {
            assert_eq!(level(0, most), None);
            let levels: Vec<_> = (1..=most.min(1000)).map(|count| level(count, most)).collect();
            assert!(levels.is_sorted(), "{most}");
            assert!(level(1, most) == Some(0) && level(most, most) <= Some(4));
        }
        assert_eq!(level(1 << 40, 1 << 40), Some(4));
    }
}
