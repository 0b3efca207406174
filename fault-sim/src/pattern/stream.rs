use super::{Touch, Walk, lay_out};

/// Reads a source and writes a destination, page by page, and begins again at the end.
pub(super) struct Stream {
    half: u64,
    destination: u64,
    allocations: Vec<(u64, u64)>,
    at: u64,
    writes: bool,
}

impl Stream {
    pub(super) fn new(pages: u64) -> Self {
        let half = pages / 2;
        let allocations = lay_out(&[half, half]);
        Self { half, destination: allocations[1].0, allocations, at: 0, writes: false }
    }
}

impl Walk for Stream {
    fn allocations(&self) -> Vec<(u64, u64)> {
        self.allocations.clone()
    }

    fn step(&mut self) -> Touch {
        let touch = if self.writes { Touch::write(self.destination + self.at) } else { Touch::read(self.at) };
        if self.writes {
            self.at = (self.at + 1) % self.half;
        }
        self.writes = !self.writes;
        touch
    }
}

/// Pages between two touches of a stride: more than a 64 KiB unit, and no divisor of a block.
const STRIDE: u64 = 17;

/// Every 17th page, then those beside them.
pub(super) struct Stride {
    pages: u64,
    lane: u64,
    at: u64,
}

impl Stride {
    pub(super) fn new(pages: u64) -> Self {
        Self { pages, lane: 0, at: 0 }
    }
}

impl Walk for Stride {
    fn allocations(&self) -> Vec<(u64, u64)> {
        vec![(0, self.pages)]
    }

    fn step(&mut self) -> Touch {
        let touch = Touch::read(self.at);
        self.at += STRIDE;
        if self.at >= self.pages {
            self.lane = (self.lane + 1) % STRIDE.min(self.pages);
            self.at = self.lane;
        }
        touch
    }
}
