//! Pictures: drawn once, written as SVG and as PNG, readable in black and white.
//!
//! | file | is |
//! |---|---|
//! | `canvas` | what is drawn on: text, lines, rectangles, in pixels; the scale of an axis |
//! | `style` | dashes, marks, hatching: what tells lines and bars apart without colour |
//! | `map` | which addresses were touched when |
//! | `lines` | lines over one axis: residency, traffic, miss ratios |
//! | `bars` | bars side by side, and bars that are made of parts |
//!
//! # Rules
//! 1. Nothing is told apart by colour alone.
//! 2. The font is part of the program: a PNG looks the same on a machine without any.
//! 3. The size of a picture does not depend on how long a trace is.

mod bars;
mod canvas;
mod lines;
mod map;
mod style;

use plotters::coord::Shift;
use plotters::prelude::{BitMapBackend, DrawingArea, DrawingBackend, IntoDrawingArea, SVGBackend, WHITE};
use thiserror::Error;

pub use bars::{Bar, Bars, Part, Parts};
pub use canvas::{Scale, Unit};
pub use lines::{Line, Lines};
pub use map::Map;

use canvas::{Canvas, Failed};

/// Why a picture cannot be drawn.
#[derive(Debug, Error)]
pub enum PictureError {
    /// The library that draws refuses.
    #[error("the picture {0} cannot be drawn: {1}")]
    Draw(String, String),
    /// The pixels cannot be packed.
    #[error("the picture {0} cannot be written as PNG: {1}")]
    Png(String, png::EncodingError),
}

/// What can be drawn.
pub enum Picture {
    /// Addresses over time.
    Map(Map),
    /// Lines.
    Lines(Lines),
    /// Bars side by side.
    Bars(Bars),
    /// Bars made of parts.
    Parts(Parts),
}

/// Width of every picture in pixels.
const WIDTH: u32 = 960;

impl Picture {
    /// Its name in files.
    pub fn name(&self) -> &str {
        match self {
            Self::Map(map) => &map.name,
            Self::Lines(lines) => &lines.name,
            Self::Bars(bars) => &bars.name,
            Self::Parts(parts) => &parts.name,
        }
    }

    /// What it shows, in one sentence or two.
    pub fn caption(&self) -> &str {
        match self {
            Self::Map(map) => &map.caption,
            Self::Lines(lines) => &lines.caption,
            Self::Bars(bars) => &bars.caption,
            Self::Parts(parts) => &parts.caption,
        }
    }

    fn height(&self) -> u32 {
        match self {
            Self::Map(_) => 560,
            Self::Lines(lines) => lines.height(),
            Self::Bars(bars) => bars.height(),
            Self::Parts(parts) => parts.height(),
        }
    }

    fn draw<DB: DrawingBackend>(&self, root: &DrawingArea<DB, Shift>) -> Result<(), Failed<DB>> {
        root.fill(&WHITE)?;
        let canvas = Canvas::new(root);
        match self {
            Self::Map(map) => map.draw(&canvas),
            Self::Lines(lines) => lines.draw(&canvas),
            Self::Bars(bars) => bars.draw(&canvas),
            Self::Parts(parts) => parts.draw(&canvas),
        }?;
        root.present()
    }

    /// As SVG, to stand in a file or in a page.
    ///
    /// # Errors
    /// The picture cannot be drawn.
    pub fn svg(&self) -> Result<String, PictureError> {
        canvas::with_font(|| {
            let mut text = String::new();
            let root = SVGBackend::with_string(&mut text, (WIDTH, self.height())).into_drawing_area();
            self.draw(&root)
                .map_err(|error| PictureError::Draw(self.name().to_owned(), error.to_string()))?;
            drop(root);
            Ok(text)
        })
    }

    /// As PNG.
    ///
    /// # Errors
    /// The picture cannot be drawn or packed.
    pub fn png(&self) -> Result<Vec<u8>, PictureError> {
        let size = (WIDTH, self.height());
        let mut pixels = vec![0; (size.0 * size.1 * 3) as usize];
        canvas::with_font(|| {
            let root = BitMapBackend::with_buffer(&mut pixels, size).into_drawing_area();
            self.draw(&root).map_err(|error| PictureError::Draw(self.name().to_owned(), error.to_string()))
        })?;
        let wrong = |error| PictureError::Png(self.name().to_owned(), error);
        let mut bytes = Vec::new();
        let mut encoder = png::Encoder::new(&mut bytes, size.0, size.1);
        encoder.set_color(png::ColorType::Rgb);
        encoder.set_depth(png::BitDepth::Eight);
        let mut writer = encoder.write_header().map_err(wrong)?;
        writer.write_image_data(&pixels).map_err(wrong)?;
        writer.finish().map_err(wrong)?;
        Ok(bytes)
    }
}
