use super::{Touch, Walk, lay_out};

/// Sweeps a grid row by row: for each page of a row its own page, the ones above and below, and the result's page.
/// Then the grids change places.
pub(super) struct Stencil {
    /// Pages of a row, and rows.
    width: u64,
    rows: u64,
    grids: [u64; 2],
    allocations: Vec<(u64, u64)>,
    at: u64,
    part: u8,
    into: usize,
}

impl Stencil {
    pub(super) fn new(pages: u64) -> Self {
        let grid = pages / 2;
        let width = grid.isqrt().clamp(1, 64);
        let rows = grid / width;
        let allocations = lay_out(&[rows * width, rows * width]);
        let grids = [allocations[0].0, allocations[1].0];
        Self { width, rows, grids, allocations, at: 0, part: 0, into: 1 }
    }
}

impl Walk for Stencil {
    fn allocations(&self) -> Vec<(u64, u64)> {
        self.allocations.clone()
    }

    fn step(&mut self) -> Touch {
        let (row, last) = (self.at / self.width, self.rows - 1);
        let from = self.grids[1 - self.into];
        let touch = match self.part {
            0 if row > 0 => Touch::read(from + self.at - self.width),
            2 if row < last => Touch::read(from + self.at + self.width),
            3 => Touch::write(self.grids[self.into] + self.at),
            _ => Touch::read(from + self.at),
        };
        self.part = (self.part + 1) % 4;
        if self.part == 0 {
            self.at += 1;
            if self.at == self.width * self.rows {
                (self.at, self.into) = (0, 1 - self.into);
            }
        }
        touch
    }
}
