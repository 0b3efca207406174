use plotters::prelude::{BLACK, DrawingBackend, RGBColor};

use super::canvas::{Anchor, Canvas, Failed, Frame, Scale, Unit};
use super::style::hatch;

/// One bar.
#[derive(Clone, Debug)]
pub struct Bar {
    /// What it stands for.
    pub name: String,
    /// How long it is; `None` if there is no such number.
    pub value: Option<f64>,
}

/// Bars side by side, in groups with a scale of their own.
#[derive(Clone, Debug)]
pub struct Bars {
    /// Its name in files.
    pub name: String,
    /// What stands above it.
    pub title: String,
    /// What it shows.
    pub caption: String,
    /// What each group shows, what its numbers are, and its bars.
    pub groups: Vec<(String, Unit, Vec<Bar>)>,
}

const BAR: i32 = 20;
const GAP: i32 = 6;
const NAMES: i32 = 260;

impl Bars {
    pub(super) fn height(&self) -> u32 {
        let bars = |bars: &Vec<Bar>| bars.len() as i32 * (BAR + GAP) + 40;
        (40 + self.groups.iter().map(|(_, _, all)| bars(all)).sum::<i32>()) as u32
    }

    pub(super) fn draw<DB: DrawingBackend>(&self, canvas: &Canvas<'_, DB>) -> Result<(), Failed<DB>> {
        let (width, _) = canvas.size();
        canvas.text(&self.title, width / 2, 18, 22, Anchor::Middle)?;
        let mut top = 40;
        for (group, unit, bars) in &self.groups {
            canvas.text(group, 16, top + 10, 18, Anchor::Left)?;
            top += 26;
            let scale = Scale::of(bars.iter().filter_map(|bar| bar.value), *unit);
            let room = f64::from(width - NAMES - 120);
            let bottom = top + bars.len() as i32 * (BAR + GAP);
            for bar in bars {
                canvas.text(&bar.name, NAMES - 8, top + BAR / 2, 16, Anchor::Right)?;
                let long = bar.value.map_or(0, |value| (value / scale.most * room).round() as i32);
                let frame = Frame { left: NAMES, top, right: NAMES + long, bottom: top + BAR };
                canvas.fill(frame, RGBColor(170, 170, 170))?;
                canvas.edge(frame)?;
                let said = bar.value.map_or("-".to_owned(), |value| unit.shown(value));
                canvas.text(&said, NAMES + long + 6, top + BAR / 2, 16, Anchor::Left)?;
                top += BAR + GAP;
            }
            canvas.line(
                vec![(NAMES, bottom - bars.len() as i32 * (BAR + GAP) - 4), (NAMES, bottom)],
                BLACK,
                1,
            )?;
            top += 14;
        }
        Ok(())
    }
}

/// One part of a bar.
#[derive(Clone, Debug)]
pub struct Part {
    /// What it stands for. The same name has the same look in every bar.
    pub name: String,
    /// How long it is.
    pub value: f64,
}

/// Bars that are made of parts, on one scale.
#[derive(Clone, Debug)]
pub struct Parts {
    /// Its name in files.
    pub name: String,
    /// What stands above it.
    pub title: String,
    /// What it shows.
    pub caption: String,
    /// What the numbers are.
    pub unit: Unit,
    /// What each bar stands for, and its parts from the left.
    pub bars: Vec<(String, Vec<Part>)>,
}

const THICK: i32 = 30;

impl Parts {
    /// Names of the parts that are anywhere longer than nothing, each once.
    fn names(&self) -> Vec<&str> {
        let mut names: Vec<&str> = Vec::new();
        for part in self.bars.iter().flat_map(|(_, parts)| parts) {
            if part.value > 0.0 && !names.contains(&part.name.as_str()) {
                names.push(&part.name);
            }
        }
        names
    }

    pub(super) fn height(&self) -> u32 {
        let legend = self.names().len().div_ceil(5) as i32 * 26;
        (40 + self.bars.len() as i32 * (THICK + 12) + 30 + legend + 16) as u32
    }

    pub(super) fn draw<DB: DrawingBackend>(&self, canvas: &Canvas<'_, DB>) -> Result<(), Failed<DB>> {
        let (width, _) = canvas.size();
        canvas.text(&self.title, width / 2, 18, 22, Anchor::Middle)?;
        let names = self.names();
        let sum = |parts: &Vec<Part>| parts.iter().map(|part| part.value).sum::<f64>();
        let scale = Scale::of(self.bars.iter().map(|(_, parts)| sum(parts)), self.unit);
        let room = f64::from(width - NAMES - 120);
        let mut top = 40;
        for (name, parts) in &self.bars {
            canvas.text(name, NAMES - 8, top + THICK / 2, 16, Anchor::Right)?;
            let (mut from, total) = (0.0, sum(parts));
            let place = |value: f64| NAMES + (value / scale.most * room).round() as i32;
            for part in parts {
                let style = names.iter().position(|name| *name == part.name);
                let frame =
                    Frame { left: place(from), top, right: place(from + part.value), bottom: top + THICK };
                if let Some(style) = style {
                    hatch(canvas, style, frame)?;
                }
                from += part.value;
            }
            canvas.text(&self.unit.shown(total), place(total) + 6, top + THICK / 2, 16, Anchor::Left)?;
            top += THICK + 12;
        }
        canvas.line(vec![(NAMES, 36), (NAMES, top - 6)], BLACK, 1)?;
        top += 14;
        for (at, name) in names.iter().enumerate() {
            let (left, y) = (40 + (at % 5) as i32 * 180, top + (at / 5) as i32 * 26);
            hatch(canvas, at, Frame { left, top: y, right: left + 36, bottom: y + 18 })?;
            canvas.text(name, left + 44, y + 9, 16, Anchor::Left)?;
        }
        Ok(())
    }
}
