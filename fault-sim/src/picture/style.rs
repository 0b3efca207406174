use plotters::prelude::*;

use super::canvas::{Canvas, Failed, Frame};

/// Colours that people with any kind of colour vision tell apart, from dark to light as they come (Okabe and Ito).
const COLOURS: [RGBColor; 8] = [
    RGBColor(0, 0, 0),
    RGBColor(0, 114, 178),
    RGBColor(213, 94, 0),
    RGBColor(0, 158, 115),
    RGBColor(204, 121, 167),
    RGBColor(86, 180, 233),
    RGBColor(150, 100, 0),
    RGBColor(110, 110, 110),
];

/// The colour of the n-th of several things.
pub(super) fn colour(at: usize) -> RGBColor {
    COLOURS[at % COLOURS.len()]
}

/// Lengths of what is drawn and what is left out by turns, in pixels.
#[derive(Clone, Copy, Debug)]
pub(super) struct Dash(&'static [f64]);

/// As many as have no common measure with the marks, so that thirty lines are all different.
const DASHES: [Dash; 5] = [
    Dash(&[]),
    Dash(&[9.0, 5.0]),
    Dash(&[2.0, 4.0]),
    Dash(&[12.0, 4.0, 2.0, 4.0]),
    Dash(&[6.0, 3.0, 2.0, 3.0, 2.0, 3.0]),
];

/// How the n-th of several lines is dashed; the first is not.
pub(super) fn dash(at: usize) -> Dash {
    DASHES[at % DASHES.len()]
}

impl Dash {
    /// What of a line through points is drawn.
    pub fn pieces(self, points: &[(i32, i32)]) -> Vec<Vec<(i32, i32)>> {
        if self.0.is_empty() {
            return vec![points.to_vec()];
        }
        let (mut pieces, mut piece) = (Vec::new(), Vec::new());
        let (mut turn, mut left) = (0, self.0[0]);
        for pair in points.windows(2) {
            let (from, to) = (pair[0], pair[1]);
            let (dx, dy) = (f64::from(to.0 - from.0), f64::from(to.1 - from.1));
            let length = dx.hypot(dy);
            let point = |done: f64| {
                let part = if length > 0.0 { done / length } else { 0.0 };
                (from.0 + (dx * part).round() as i32, from.1 + (dy * part).round() as i32)
            };
            let mut done = 0.0;
            while done < length {
                let now = left.min(length - done);
                if turn % 2 == 0 {
                    if piece.is_empty() {
                        piece.push(point(done));
                    }
                    piece.push(point(done + now));
                }
                done += now;
                left -= now;
                if left <= 0.0 {
                    if !piece.is_empty() {
                        pieces.push(std::mem::take(&mut piece));
                    }
                    turn += 1;
                    left = self.0[turn % self.0.len()];
                }
            }
        }
        if !piece.is_empty() {
            pieces.push(piece);
        }
        pieces
    }
}

/// A mark of the n-th of several lines.
pub(super) fn mark<DB: DrawingBackend>(
    canvas: &Canvas<'_, DB>,
    at: usize,
    (x, y): (i32, i32),
) -> Result<(), Failed<DB>> {
    let colour = colour(at);
    match at % 6 {
        0 => canvas.circle((x, y), 4, colour, true),
        1 => canvas.polygon(vec![(x, y - 5), (x + 5, y + 4), (x - 5, y + 4)], colour),
        2 => {
            canvas.line(vec![(x - 4, y - 4), (x + 4, y + 4)], colour, 2)?;
            canvas.line(vec![(x - 4, y + 4), (x + 4, y - 4)], colour, 2)
        }
        3 => canvas.fill(Frame { left: x - 4, top: y - 4, right: x + 4, bottom: y + 4 }, colour),
        4 => canvas.circle((x, y), 4, colour, false),
        _ => canvas.polygon(vec![(x, y - 5), (x + 5, y), (x, y + 5), (x - 5, y)], colour),
    }
}

/// What is drawn inside of a part.
#[derive(Clone, Copy)]
enum Inside {
    Plain,
    Slanted(&'static [i32], i32),
    Upright(i32),
}

/// The insides of parts: shades of grey that stand far apart, and lines in several directions and distances. The colours of
/// those with lines are equally light.
const INSIDES: [(Inside, RGBColor); 13] = [
    (Inside::Plain, RGBColor(90, 110, 150)),
    (Inside::Slanted(&[1], 7), RGBColor(250, 225, 180)),
    (Inside::Plain, RGBColor(255, 255, 255)),
    (Inside::Slanted(&[-1], 7), RGBColor(195, 235, 205)),
    (Inside::Slanted(&[0], 6), RGBColor(225, 225, 225)),
    (Inside::Slanted(&[1, -1], 8), RGBColor(240, 215, 230)),
    (Inside::Upright(5), RGBColor(205, 225, 245)),
    (Inside::Plain, RGBColor(205, 190, 150)),
    (Inside::Slanted(&[1], 4), RGBColor(255, 255, 255)),
    (Inside::Plain, RGBColor(30, 30, 30)),
    (Inside::Slanted(&[-1], 4), RGBColor(255, 255, 255)),
    (Inside::Slanted(&[0], 3), RGBColor(255, 235, 220)),
    (Inside::Upright(10), RGBColor(235, 245, 255)),
];

/// How the inside of the n-th of several parts is drawn.
pub(super) fn hatch<DB: DrawingBackend>(
    canvas: &Canvas<'_, DB>,
    at: usize,
    frame: Frame,
) -> Result<(), Failed<DB>> {
    if frame.width() <= 0 || frame.height() <= 0 {
        return Ok(());
    }
    let (inside, colour) = INSIDES[at % INSIDES.len()];
    canvas.fill(frame, colour)?;
    let lines: Vec<_> = match inside {
        Inside::Plain => Vec::new(),
        Inside::Slanted(slopes, step) => {
            slopes.iter().flat_map(|slope| slanted(frame, *slope, step)).collect()
        }
        Inside::Upright(step) => {
            let upright = |x| vec![(x, frame.top), (x, frame.bottom)];
            (frame.left + step..frame.right).step_by(step as usize).map(upright).collect()
        }
    };
    for line in lines {
        canvas.line(line, BLACK, 1)?;
    }
    canvas.edge(frame)
}

/// Lines across a frame: rising (1), falling (-1) or level (0).
fn slanted(frame: Frame, slope: i32, step: i32) -> Vec<Vec<(i32, i32)>> {
    if slope == 0 {
        let level = |y| vec![(frame.left, y), (frame.right, y)];
        return (frame.top + step..frame.bottom).step_by(step as usize).map(level).collect();
    }
    let (width, height) = (frame.width(), frame.height());
    (0..width + height)
        .step_by(step as usize)
        .map(|offset| {
            // From the left or the bottom edge to the right or the top one, then mirrored for the other slope.
            let (x0, y0) = if offset < height { (0, offset) } else { (offset - height, height) };
            let run = y0.min(width - x0);
            let (x1, y1) = (x0 + run, y0 - run);
            let put = |x: i32, y: i32| match slope {
                1 => (frame.left + x, frame.top + y),
                _ => (frame.right - x, frame.top + y),
            };
            vec![put(x0, y0), put(x1, y1)]
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn dashes_are_as_long_as_they_say() {
        let line = [(0, 0), (10, 0), (30, 0)];
        assert_eq!(dash(0).pieces(&line), [line.to_vec()]);
        let pieces = dash(1).pieces(&line);
        assert_eq!(pieces, [vec![(0, 0), (9, 0)], vec![(14, 0), (23, 0)], vec![(28, 0), (30, 0)]]);
    }

    /// In grey, every inside differs from every other one by its shade or by its lines.
    #[test]
    fn insides_differ_without_colour() {
        const SIZE: (u32, u32) = (48, 24);
        let grey = |at: usize| -> Vec<i32> {
            let mut pixels = vec![255; (SIZE.0 * SIZE.1 * 3) as usize];
            let root = BitMapBackend::with_buffer(&mut pixels, SIZE).into_drawing_area();
            let frame = Frame { left: 0, top: 0, right: SIZE.0 as i32, bottom: SIZE.1 as i32 };
            hatch(&Canvas::new(&root), at, frame).expect("it can be drawn");
            drop(root);
            let shade = |rgb: &[u8]| {
                (i32::from(rgb[0]) * 299 + i32::from(rgb[1]) * 587 + i32::from(rgb[2]) * 114) / 1000
            };
            pixels.chunks(3).map(shade).collect()
        };
        let all: Vec<_> = (0..INSIDES.len()).map(grey).collect();
        for one in 0..all.len() {
            for other in 0..one {
                let apart: i32 = all[one].iter().zip(&all[other]).map(|(a, b)| (a - b).abs()).sum();
                let apart = apart / all[one].len() as i32;
                assert!(apart >= 25, "{one} and {other} are {apart} of 255 apart");
            }
        }
        assert_eq!(crate::replay::PHASE_NAMES.len(), INSIDES.len());
    }

    #[test]
    fn slanted_lines_stay_in_their_frame() {
        let frame = Frame { left: 10, top: 20, right: 45, bottom: 38 };
        for slope in [1, -1, 0] {
            let lines = slanted(frame, slope, 7);
            assert!(lines.len() >= 2);
            for (x, y) in lines.into_iter().flatten() {
                assert!((10..=45).contains(&x) && (20..=38).contains(&y), "{slope}: {x} {y}");
            }
        }
    }
}
