use super::{Touch, Walk, lay_out};

/// C = A * B over square matrices whose tiles are a few pages each: for each tile of C, the row of tiles of A and the
/// column of tiles of B, tile by tile, then the tile of C is written.
pub(super) struct Gemm {
    /// Tiles in a row of a matrix, and pages in a tile.
    tiles: u64,
    tile: u64,
    starts: [u64; 3],
    allocations: Vec<(u64, u64)>,
    row: u64,
    column: u64,
    inner: u64,
    /// Page within the pair of tiles (A, then B), or within the tile of C.
    at: u64,
    writing: bool,
}

impl Gemm {
    pub(super) fn new(pages: u64) -> Self {
        let matrix = pages / 3;
        let tile = if matrix >= 256 { 16 } else { 1 };
        let tiles = (matrix / tile).isqrt();
        let one = tiles * tiles * tile;
        let allocations = lay_out(&[one, one, one]);
        let starts = [0, 1, 2].map(|matrix: usize| allocations[matrix].0);
        Self { tiles, tile, starts, allocations, row: 0, column: 0, inner: 0, at: 0, writing: false }
    }

    fn page(&self, matrix: usize, row: u64, column: u64, at: u64) -> u64 {
        self.starts[matrix] + (row * self.tiles + column) * self.tile + at
    }
}

impl Walk for Gemm {
    fn allocations(&self) -> Vec<(u64, u64)> {
        self.allocations.clone()
    }

    fn step(&mut self) -> Touch {
        let at = self.at;
        self.at += 1;
        if self.writing {
            let touch = Touch::write(self.page(2, self.row, self.column, at));
            if self.at == self.tile {
                (self.at, self.writing) = (0, false);
                self.column += 1;
                if self.column == self.tiles {
                    self.column = 0;
                    self.row = (self.row + 1) % self.tiles;
                }
            }
            return touch;
        }
        let page = if at < self.tile {
            self.page(0, self.row, self.inner, at)
        } else {
            self.page(1, self.inner, self.column, at - self.tile)
        };
        if self.at == 2 * self.tile {
            self.at = 0;
            self.inner += 1;
            if self.inner == self.tiles {
                (self.inner, self.writing) = (0, true);
            }
        }
        Touch::read(page)
    }
}
