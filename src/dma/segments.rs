use thiserror::Error;

use super::list::Piece;
use crate::units::PhysRange;

/// What a device can take in one descriptor and in one request.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct SegmentLimits {
    max_bytes: u32,
    boundary_bytes: u64,
    max_count: usize,
}

/// Why limits are none, or why ranges do not fit them.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Error)]
#[non_exhaustive]
pub enum SegmentError {
    /// A size of zero or of more than 4 GiB less a page.
    #[error("segments of {0} bytes are none; pass 1 byte to 4 GiB less a page")]
    BadSize(u64),
    /// A boundary that is no power of two.
    #[error("a boundary of {0} bytes is no power of two; pass one, or 0 for none")]
    BadBoundary(u64),
    /// A count of zero.
    #[error("a request of no segments holds nothing; pass a count of at least 1")]
    BadCount,
    /// A range whose end lies beyond the last address.
    #[error("{bytes} bytes from {at:#x} wrap around the end of the address space; pass a shorter range")]
    Wraps {
        /// First address.
        at: u64,
        /// Length in bytes.
        bytes: u64,
    },
    /// More segments are needed than a request may have.
    #[error("more than {0} segments are needed; split the request")]
    TooMany(usize),
}

impl SegmentLimits {
    /// No limit but that of a range.
    pub const NONE: Self =
        Self { max_bytes: PhysRange::MAX_BYTES as u32, boundary_bytes: 0, max_count: usize::MAX };

    /// Segments of at most `max_bytes`, none across a multiple of `boundary_bytes` (a power of two; 0: no such
    /// boundary), at most `max_count` of them.
    ///
    /// # Errors
    /// [`SegmentError::BadSize`], [`SegmentError::BadBoundary`], [`SegmentError::BadCount`].
    pub const fn new(max_bytes: u64, boundary_bytes: u64, max_count: usize) -> Result<Self, SegmentError> {
        if max_bytes == 0 || max_bytes > PhysRange::MAX_BYTES {
            return Err(SegmentError::BadSize(max_bytes));
        }
        if boundary_bytes != 0 && !boundary_bytes.is_power_of_two() {
            return Err(SegmentError::BadBoundary(boundary_bytes));
        }
        if max_count == 0 {
            return Err(SegmentError::BadCount);
        }
        Ok(Self { max_bytes: max_bytes as u32, boundary_bytes, max_count })
    }

    /// The longest segment that begins at an address.
    fn room(&self, at: u64) -> u64 {
        let max = u64::from(self.max_bytes);
        match self.boundary_bytes {
            0 => max,
            boundary => max.min(boundary - (at & (boundary - 1))),
        }
    }
}

/// Ranges as a device takes them: neighbours that touch and have the same flags merged, and cut at its limits. After an
/// error there is nothing more. Keeps nothing but the range in hand.
#[derive(Clone, Debug)]
pub struct Segments<R, I> {
    ranges: I,
    limits: SegmentLimits,
    /// The merged run in hand: a range that says its flags, its start, and what is left of it.
    run: Option<(R, u64, u64)>,
    given: usize,
    is_done: bool,
}

/// Merges and cuts ranges, in order; see [`Segments`]. Empty ranges are passed over.
pub fn segments<R: Piece, I: IntoIterator<Item = R>>(
    ranges: I,
    limits: SegmentLimits,
) -> Segments<R, I::IntoIter> {
    Segments { ranges: ranges.into_iter(), limits, run: None, given: 0, is_done: false }
}

impl<R: Piece, I: Iterator<Item = R>> Segments<R, I> {
    /// The longest run of ranges that touch: at least as long as a segment may be, if there is so much.
    #[expect(clippy::type_complexity, reason = "a run in hand, and the range that does not go on with it")]
    fn fill(&mut self) -> Result<(Option<(R, u64, u64)>, Option<R>), SegmentError> {
        let mut run = self.run.take();
        for range in self.ranges.by_ref().filter(|range| range.bytes() > 0) {
            let (at, bytes) = (range.start(), range.bytes());
            at.checked_add(bytes).ok_or(SegmentError::Wraps { at, bytes })?;
            match &mut run {
                None => run = Some((range, range.start(), range.bytes())),
                Some((kind, start, bytes))
                    if start.checked_add(*bytes) == Some(range.start()) && kind.flags() == range.flags() =>
                {
                    *bytes += range.bytes();
                }
                Some(_) => return Ok((run, Some(range))),
            }
            if run.is_some_and(|(_, start, bytes)| bytes > self.limits.room(start)) {
                break;
            }
        }
        Ok((run, None))
    }
}

impl<R: Piece, I: Iterator<Item = R>> Iterator for Segments<R, I> {
    type Item = Result<R, SegmentError>;

    fn next(&mut self) -> Option<Self::Item> {
        if self.is_done {
            return None;
        }
        let full = |(_, start, bytes): &(R, u64, u64)| *bytes > self.limits.room(*start);
        let filled =
            if self.run.as_ref().is_some_and(full) { Ok((self.run.take(), None)) } else { self.fill() };
        let (run, next) = match filled {
            Ok(filled) => filled,
            Err(error) => {
                self.is_done = true;
                return Some(Err(error));
            }
        };
        let Some((kind, start, bytes)) = run else {
            self.is_done = true;
            return None;
        };
        if self.given == self.limits.max_count {
            self.is_done = true;
            return Some(Err(SegmentError::TooMany(self.limits.max_count)));
        }
        self.given += 1;
        let part = bytes.min(self.limits.room(start));
        self.run = match next {
            Some(range) if part == bytes => Some((range, range.start(), range.bytes())),
            Some(_) => unreachable!("a run that is followed by another fits in one segment"),
            None => (bytes > part).then(|| (kind, start + part, bytes - part)),
        };
        Some(Ok(kind.moved(start, part as u32)))
    }
}
