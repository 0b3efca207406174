use plotters::prelude::DrawingBackend;

use super::canvas::{Anchor, Canvas, Failed, Frame, Scale, Unit};
use super::style::{colour, dash, mark};

/// One line.
#[derive(Clone, Debug)]
pub struct Line {
    /// What it stands for.
    pub name: String,
    /// Its points, in the order in which they are joined.
    pub points: Vec<(f64, f64)>,
    /// Which of the panels it is in, from the top.
    pub panel: usize,
    /// Every point has a mark; otherwise a few on the way have.
    pub marked: bool,
}

/// Lines over one axis, in one panel or in several ones below one another.
#[derive(Clone, Debug)]
pub struct Lines {
    /// Its name in files.
    pub name: String,
    /// What stands above it.
    pub title: String,
    /// What it shows.
    pub caption: String,
    /// What the axis is.
    pub x: (String, Unit),
    /// What each panel shows, and what its numbers are.
    pub panels: Vec<(String, Unit)>,
    /// The lines.
    pub lines: Vec<Line>,
}

const PANEL: i32 = 230;
const ALONE: i32 = 340;
/// Marks on a line that is not marked at every point.
const FEW: usize = 7;

impl Lines {
    fn panel_height(&self) -> i32 {
        if self.panels.len() == 1 { ALONE } else { PANEL }
    }

    /// Names of the lines, each once, in their order.
    fn names(&self) -> Vec<&str> {
        let mut names: Vec<&str> = Vec::new();
        self.lines.iter().for_each(|line| {
            if !names.contains(&line.name.as_str()) {
                names.push(&line.name);
            }
        });
        names
    }

    /// Columns of the legend.
    fn columns(&self) -> usize {
        let longest = self.names().iter().map(|name| name.len()).max().unwrap_or(0);
        (840 / (70 + 8 * longest)).clamp(1, 4)
    }

    pub(super) fn height(&self) -> u32 {
        (48 + self.panels.len() as i32 * self.panel_height()
            + self.names().len().div_ceil(self.columns()) as i32 * 22
            + 24) as u32
    }

    pub(super) fn draw<DB: DrawingBackend>(&self, canvas: &Canvas<'_, DB>) -> Result<(), Failed<DB>> {
        let (width, _) = canvas.size();
        canvas.text(&self.title, width / 2, 18, 22, Anchor::Middle)?;
        let x = Scale::of(self.lines.iter().flat_map(|line| &line.points).map(|point| point.0), self.x.1);
        let names = self.names();
        for (number, (panel, unit)) in self.panels.iter().enumerate() {
            let mine = || self.lines.iter().filter(|line| line.panel == number);
            let y = Scale::of(mine().flat_map(|line| &line.points).map(|point| point.1), *unit);
            let top = 38 + number as i32 * self.panel_height();
            let frame = Frame { left: 96, top, right: width - 24, bottom: top + self.panel_height() - 56 };
            canvas.axes(frame, &x, &y, (&self.x.0, panel))?;
            let place = |(at, value): (f64, f64)| {
                (
                    frame.left + (at / x.most * f64::from(frame.width())).round() as i32,
                    frame.bottom - (value / y.most * f64::from(frame.height())).round() as i32,
                )
            };
            for line in mine() {
                let style = names.iter().position(|name| *name == line.name).unwrap_or(0);
                let mut points: Vec<_> = line.points.iter().map(|point| place(*point)).collect();
                let marks: Vec<_> = if line.marked {
                    points.clone()
                } else {
                    // Those of several lines stand apart.
                    let step = (points.len() / FEW).max(1);
                    points.iter().skip(step * style % names.len().max(1)).step_by(step).copied().collect()
                };
                points.dedup();
                canvas.dashed(&points, colour(style), dash(style))?;
                for at in marks {
                    mark(canvas, style, at)?;
                }
            }
        }
        let top = 48 + self.panels.len() as i32 * self.panel_height();
        for (at, name) in names.iter().enumerate() {
            let columns = self.columns();
            let (left, y) =
                (96 + (at % columns) as i32 * (840 / columns as i32), top + (at / columns) as i32 * 22);
            canvas.dashed(&[(left, y), (left + 44, y)], colour(at), dash(at))?;
            mark(canvas, at, (left + 22, y))?;
            canvas.text(name, left + 52, y, 16, Anchor::Left)?;
        }
        Ok(())
    }
}
