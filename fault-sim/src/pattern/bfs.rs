use std::collections::VecDeque;

use super::{Touch, Walk, lay_out};
use crate::seed;

/// Bytes of an offset, of an edge and of a level.
const OFFSET: u64 = 8;
const EDGE: u64 = 4;
const LEVEL: u64 = 4;
/// Neighbours of every vertex.
const DEGREE: u64 = 16;
/// Bytes that one vertex takes in the three arrays.
const VERTEX: u64 = OFFSET + DEGREE * EDGE + LEVEL;

/// Breadth-first search from one vertex after the other through a graph whose edges follow from the seed.
pub(super) struct Bfs {
    vertices: u64,
    seed: u64,
    source: u64,
    offsets: u64,
    edges: u64,
    levels: u64,
    allocations: Vec<(u64, u64)>,
    seen: Vec<u64>,
    queue: VecDeque<u64>,
    /// The vertex being expanded and its next edge; edge 0 is preceded by the look-up of the offset.
    vertex: u64,
    edge: u64,
    pending: VecDeque<Touch>,
}

impl Bfs {
    pub(super) fn new(pages: u64, seed: u64) -> Self {
        // Three arrays each lose less than a page to rounding.
        let vertices = ((pages - 3) * 4096 / VERTEX).max(1);
        let of = |bytes: u64| (vertices * bytes).div_ceil(4096);
        let allocations = lay_out(&[of(OFFSET), of(DEGREE * EDGE), of(LEVEL)]);
        let [offsets, edges, levels] = [0, 1, 2].map(|array: usize| allocations[array].0);
        let seen = vec![0; vertices.div_ceil(64) as usize];
        let mut this = Self {
            vertices,
            seed,
            source: 0,
            offsets,
            edges,
            levels,
            allocations,
            seen,
            queue: VecDeque::new(),
            vertex: 0,
            edge: DEGREE,
            pending: VecDeque::new(),
        };
        this.begin();
        this
    }

    fn begin(&mut self) {
        self.seen.fill(0);
        let source = seed::below(self.seed ^ 0x0062_6673, self.source, self.vertices);
        self.source += 1;
        self.see(source);
    }

    fn see(&mut self, vertex: u64) -> bool {
        let (word, bit) = ((vertex / 64) as usize, 1 << (vertex % 64));
        let new = self.seen[word] & bit == 0;
        if new {
            self.seen[word] |= bit;
            self.queue.push_back(vertex);
        }
        new
    }
}

impl Walk for Bfs {
    fn allocations(&self) -> Vec<(u64, u64)> {
        self.allocations.clone()
    }

    fn step(&mut self) -> Touch {
        loop {
            if let Some(touch) = self.pending.pop_front() {
                return touch;
            }
            if self.edge == DEGREE {
                let Some(vertex) = self.queue.pop_front() else {
                    self.begin();
                    continue;
                };
                (self.vertex, self.edge) = (vertex, 0);
                self.pending.push_back(Touch::read(self.offsets + vertex * OFFSET / 4096));
                let row = vertex * DEGREE * EDGE;
                self.pending.push_back(Touch::read(self.edges + row / 4096));
                continue;
            }
            let neighbour =
                seed::below(self.seed, self.vertex.wrapping_mul(DEGREE) + self.edge, self.vertices);
            self.edge += 1;
            let level = self.levels + neighbour * LEVEL / 4096;
            self.pending.push_back(Touch::read(level));
            if self.see(neighbour) {
                self.pending.push_back(Touch::write(level));
            }
        }
    }
}
