use std::sync::Once;

use plotters::coord::Shift;
use plotters::prelude::*;
use plotters::style::text_anchor::{HPos, Pos, VPos};

use super::PictureError;
use super::style::Dash;
use crate::result::{shown_bytes, shown_ns};

/// What a backend's refusal looks like.
pub(super) type Failed<DB> = DrawingAreaErrorKind<<DB as DrawingBackend>::ErrorType>;

/// The name under which the font is known, and the browser's own one where a page shows an SVG.
const FONT: &str = "sans-serif";

/// Does something that draws text.
pub(super) fn with_font<R>(draw: impl FnOnce() -> Result<R, PictureError>) -> Result<R, PictureError> {
    static ONCE: Once = Once::new();
    ONCE.call_once(|| {
        // Bytes that are part of the program; a test draws with them.
        let known = plotters::style::register_font(FONT, FontStyle::Normal, ttf_noto_sans::REGULAR);
        assert!(known.is_ok(), "the font that is part of the program cannot be read");
    });
    draw()
}

/// What numbers on an axis are.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Unit {
    /// Nanoseconds.
    Ns,
    /// Bytes.
    Bytes,
    /// Percent.
    Percent,
    /// Anything else.
    Count,
}

impl Unit {
    /// A number as people read it.
    pub fn shown(self, value: f64) -> String {
        match self {
            Self::Ns => shown_ns(value.max(0.0) as u64),
            Self::Bytes => shown_bytes(value.max(0.0) as u64),
            Self::Percent if value > 0.0 && value < 9.95 => format!("{value:.1} %"),
            Self::Percent => format!("{value:.0} %"),
            Self::Count => match value {
                v if v >= 1e9 => format!("{:.1} G", v / 1e9),
                v if v >= 1e6 => format!("{:.1} M", v / 1e6),
                v if v >= 1e4 => format!("{:.1} k", v / 1e3),
                v => format!("{v:.0}"),
            },
        }
    }
}

/// An axis from 0 on.
#[derive(Clone, Copy, Debug)]
pub struct Scale {
    /// Its end.
    pub most: f64,
    /// What its numbers are.
    pub unit: Unit,
}

impl Scale {
    /// The smallest one that holds these values.
    pub fn of(values: impl Iterator<Item = f64>, unit: Unit) -> Self {
        let most = values.fold(0.0, f64::max);
        Self { most: if most > 0.0 { most } else { 1.0 }, unit }
    }

    /// Where marks stand, about so many of them.
    pub(super) fn marks(&self, about: usize) -> Vec<f64> {
        let rough = self.most / about as f64;
        // Bytes are marked at powers of two, all else at 1, 2 or 5 times a power of ten.
        let step = if self.unit == Unit::Bytes {
            rough.log2().ceil().exp2().max(1.0)
        } else {
            let power = 10f64.powf(rough.log10().floor());
            let times = [1.0, 2.0, 5.0, 10.0].into_iter().find(|times| times * power >= rough);
            times.unwrap_or(10.0) * power
        };
        let count = (self.most / step + 1e-9) as usize;
        (0..=count).map(|at| at as f64 * step).collect()
    }
}

/// A rectangle in pixels: left, top, right, bottom.
#[derive(Clone, Copy, Debug)]
pub(super) struct Frame {
    pub left: i32,
    pub top: i32,
    pub right: i32,
    pub bottom: i32,
}

impl Frame {
    pub fn width(&self) -> i32 {
        self.right - self.left
    }
    pub fn height(&self) -> i32 {
        self.bottom - self.top
    }
}

/// Which point of a text stands where it is asked to.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Anchor {
    Left,
    Middle,
    Right,
}

/// What is drawn on.
pub(super) struct Canvas<'a, DB: DrawingBackend> {
    root: &'a DrawingArea<DB, Shift>,
}

impl<'a, DB: DrawingBackend> Canvas<'a, DB> {
    pub fn new(root: &'a DrawingArea<DB, Shift>) -> Self {
        Self { root }
    }

    pub fn size(&self) -> (i32, i32) {
        let (width, height) = self.root.dim_in_pixel();
        (width as i32, height as i32)
    }

    /// A text whose middle line is at `y`. Sizes are even: with others the library that draws puts letters of different
    /// heights on different lines.
    pub fn text(&self, text: &str, x: i32, y: i32, size: u32, anchor: Anchor) -> Result<(), Failed<DB>> {
        let at = match anchor {
            Anchor::Left => HPos::Left,
            Anchor::Middle => HPos::Center,
            Anchor::Right => HPos::Right,
        };
        let style = (FONT, size).into_font().color(&BLACK).pos(Pos::new(at, VPos::Center));
        self.root.draw(&Text::new(text.to_owned(), (x, y), style))
    }

    /// A text that reads upwards, with its middle at `(x, y)`.
    pub fn upwards(&self, text: &str, x: i32, y: i32, size: u32) -> Result<(), Failed<DB>> {
        let style = (FONT, size).into_font().transform(FontTransform::Rotate270).color(&BLACK);
        let style = style.pos(Pos::new(HPos::Center, VPos::Center));
        self.root.draw(&Text::new(text.to_owned(), (x, y), style))
    }

    /// A filled rectangle.
    pub fn fill(&self, frame: Frame, colour: RGBColor) -> Result<(), Failed<DB>> {
        let corners = [(frame.left, frame.top), (frame.right, frame.bottom)];
        self.root.draw(&Rectangle::new(corners, colour.filled()))
    }

    /// The edge of a rectangle.
    pub fn edge(&self, frame: Frame) -> Result<(), Failed<DB>> {
        let corners = [(frame.left, frame.top), (frame.right, frame.bottom)];
        self.root.draw(&Rectangle::new(corners, BLACK.stroke_width(1)))
    }

    /// A line through points, of one colour.
    pub fn line(&self, points: Vec<(i32, i32)>, colour: RGBColor, width: u32) -> Result<(), Failed<DB>> {
        self.root.draw(&PathElement::new(points, colour.stroke_width(width)))
    }

    /// A dashed line through points.
    pub fn dashed(&self, points: &[(i32, i32)], colour: RGBColor, dash: Dash) -> Result<(), Failed<DB>> {
        for piece in dash.pieces(points) {
            self.line(piece, colour, 2)?;
        }
        Ok(())
    }

    /// A filled polygon.
    pub fn polygon(&self, points: Vec<(i32, i32)>, colour: RGBColor) -> Result<(), Failed<DB>> {
        self.root.draw(&Polygon::new(points, colour.filled()))
    }

    /// A circle, filled or not.
    pub fn circle(
        &self,
        at: (i32, i32),
        radius: i32,
        colour: RGBColor,
        full: bool,
    ) -> Result<(), Failed<DB>> {
        let style = if full { colour.filled() } else { colour.stroke_width(2) };
        self.root.draw(&Circle::new(at, radius, style))
    }

    /// Marks and numbers of two axes around a frame, with faint lines across.
    pub fn axes(&self, frame: Frame, x: &Scale, y: &Scale, names: (&str, &str)) -> Result<(), Failed<DB>> {
        const FAINT: RGBColor = RGBColor(215, 215, 215);
        for mark in x.marks(8) {
            let at = frame.left + (mark / x.most * f64::from(frame.width())).round() as i32;
            self.line(vec![(at, frame.top), (at, frame.bottom)], FAINT, 1)?;
            self.text(&x.unit.shown(mark), at, frame.bottom + 14, 16, Anchor::Middle)?;
        }
        for mark in y.marks(5) {
            let at = frame.bottom - (mark / y.most * f64::from(frame.height())).round() as i32;
            self.line(vec![(frame.left, at), (frame.right, at)], FAINT, 1)?;
            self.text(&y.unit.shown(mark), frame.left - 6, at, 16, Anchor::Right)?;
        }
        self.edge(frame)?;
        self.text(names.0, (frame.left + frame.right) / 2, frame.bottom + 34, 18, Anchor::Middle)?;
        self.upwards(names.1, 16, (frame.top + frame.bottom) / 2, 14)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn marks_are_round_and_within() {
        let marks = |most, unit| Scale { most, unit }.marks(5);
        assert_eq!(marks(100.0, Unit::Percent), [0.0, 20.0, 40.0, 60.0, 80.0, 100.0]);
        assert_eq!(marks(7.3, Unit::Count), [0.0, 2.0, 4.0, 6.0]);
        let mib = f64::from(1 << 20);
        assert_eq!(marks(24.0 * mib, Unit::Bytes), [0.0, 8.0 * mib, 16.0 * mib, 24.0 * mib]);
        assert_eq!(Scale::of(std::iter::empty(), Unit::Ns).most, 1.0);
    }
}
