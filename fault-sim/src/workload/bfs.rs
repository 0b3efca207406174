//! Breadth-first search over a graph in compressed rows, one level per launch: every engine looks through its
//! part of the vertices for those of the current level and gives their unseen neighbours the next one.

use std::sync::atomic::{AtomicU32, AtomicU64, Ordering};

use granule::os::private::Slab;
use granule_backends::software::{AccessError, Engine};

use super::{CHUNK, Mismatch, PrepareError, Setup, Workload, address, check_half, pieces, share, span};
use crate::accelerator::{Accelerator, WorkError};
use crate::alloc::Arena;
use crate::seed;
use crate::shaders::Shader;
use crate::split::among_threads;

/// Edges that leave a vertex.
const DEGREE: usize = 8;
/// Bytes per vertex: its row, its edges, its distance.
const VERTEX_BYTES: u64 = 4 + 4 * DEGREE as u64 + 4;
const UNSEEN: u32 = u32::MAX;
/// Vertices per item of the shader.
const SHADER_ITEM: usize = 64;

pub struct Bfs<'a> {
    setup: Setup<'a>,
    /// Where the edges of a vertex begin; one more than there are vertices.
    rows: &'a [AtomicU32],
    edges: &'a [AtomicU32],
    distances: &'a [AtomicU32],
    /// How many vertices the last level found.
    found: &'a AtomicU64,
    expected: Slab<AtomicU32>,
}

/// Where an edge leads: half of them near by, half anywhere.
fn target(seed: u64, edge: usize, vertices: usize) -> u32 {
    let word = seed::word(seed, edge as u64);
    let near = (edge / DEGREE + 1 + (word >> 32) as usize % 64) % vertices;
    if edge.is_multiple_of(2) { near as u32 } else { seed::below(!seed, edge as u64, vertices as u64) as u32 }
}

impl<'a> Bfs<'a> {
    pub fn new(arena: &'a Arena<'_>, setup: Setup<'a>) -> Result<Self, PrepareError> {
        // Vertex numbers have 32 bits.
        let vertices = ((setup.bytes / VERTEX_BYTES) as usize).clamp(1, (u32::MAX / DEGREE as u32) as usize);
        let rows = arena.halves(vertices + 1)?;
        let edges = arena.halves(vertices * DEGREE)?;
        let distances = arena.halves(vertices)?;
        let found = &arena.words(1)?[0];
        rows[vertices].store((vertices * DEGREE) as u32, Ordering::Relaxed);
        among_threads(setup.threads, vertices, |range| {
            for vertex in range {
                rows[vertex].store((vertex * DEGREE) as u32, Ordering::Relaxed);
                distances[vertex].store(UNSEEN, Ordering::Relaxed);
                let own = vertex * DEGREE..(vertex + 1) * DEGREE;
                for (edge, leads_to) in own.clone().zip(&edges[own]) {
                    leads_to.store(target(setup.seed, edge, vertices), Ordering::Relaxed);
                }
            }
            Ok::<_, PrepareError>(())
        })?;
        distances[0].store(0, Ordering::Relaxed);
        let expected = expected(setup.seed, vertices)?;
        Ok(Self { setup, rows, edges, distances, found, expected })
    }

    fn kernel(&self, engine: &mut Engine<'_>, level: u32) -> Result<(), AccessError> {
        let mut buffer = [0u32; CHUNK];
        let mut found = 0u64;
        for piece in pieces(share(engine, self.distances.len()), CHUNK) {
            let distances = &mut buffer[..piece.len()];
            engine.load_slice(address(&self.distances[piece.start]), distances)?;
            for (vertex, _) in piece.zip(distances).filter(|(_, distance)| **distance == level) {
                found += self.visit(engine, vertex, level + 1)?;
            }
        }
        engine.fetch_add_u64(address(self.found), found)?;
        Ok(())
    }

    /// Gives `distance` to the unseen neighbours of a vertex and says how many there were. Two engines may both
    /// find one; they store the same.
    fn visit(&self, engine: &mut Engine<'_>, vertex: usize, distance: u32) -> Result<u64, AccessError> {
        let mut row = [0u32; 2];
        engine.load_slice(address(&self.rows[vertex]), &mut row)?;
        let mut edges = [0u32; DEGREE];
        let edges = &mut edges[..(row[1] - row[0]) as usize];
        engine.load_slice(address(&self.edges[row[0] as usize]), edges)?;
        let mut found = 0;
        for edge in edges.iter() {
            let neighbour = address(&self.distances[*edge as usize]);
            if engine.load::<u32>(neighbour)? == UNSEEN {
                engine.store(neighbour, distance)?;
                found += 1;
            }
        }
        self.setup.progress.add(VERTEX_BYTES);
        Ok(found)
    }
}

/// The distances, by an ordinary search over the same edges in memory of its own.
fn expected(seed: u64, vertices: usize) -> Result<Slab<AtomicU32>, PrepareError> {
    let distances = Slab::<AtomicU32>::new(vertices)?;
    let queue = Slab::<AtomicU32>::new(vertices)?;
    distances.iter().skip(1).for_each(|distance| distance.store(UNSEEN, Ordering::Relaxed));
    let (mut first, mut end) = (0, 1);
    while first < end {
        let vertex = queue[first].load(Ordering::Relaxed) as usize;
        first += 1;
        let next = distances[vertex].load(Ordering::Relaxed) + 1;
        for edge in vertex * DEGREE..(vertex + 1) * DEGREE {
            let neighbour = target(seed, edge, vertices);
            let distance = &distances[neighbour as usize];
            if distance.load(Ordering::Relaxed) == UNSEEN {
                distance.store(next, Ordering::Relaxed);
                queue[end].store(neighbour, Ordering::Relaxed);
                end += 1;
            }
        }
    }
    Ok(distances)
}

impl Workload for Bfs<'_> {
    fn work_bytes(&self) -> u64 {
        self.distances.len() as u64 * VERTEX_BYTES
    }

    fn run(&self, device: &Accelerator) -> Result<(), WorkError> {
        for level in 0..UNSEEN {
            self.found.store(0, Ordering::Relaxed);
            match device {
                Accelerator::Software(device) => device.run(|engine| self.kernel(engine, level))?,
                Accelerator::Shaders(device) => {
                    let [rows, edges, distances] =
                        [self.rows, self.edges, self.distances].map(|of| span(of).0);
                    let vertices = self.distances.len();
                    let arguments =
                        [rows, edges, distances, vertices as u64, level.into(), address(self.found)];
                    device.launch(Shader::Bfs, vertices.div_ceil(SHADER_ITEM), &arguments)?;
                }
            }
            if self.found.load(Ordering::Relaxed) == 0 {
                break;
            }
        }
        Ok(())
    }

    fn shader(&self) -> Shader {
        Shader::Bfs
    }

    fn verify(&self) -> Result<(), Mismatch> {
        let vertices = self.distances.len();
        check_half("the end of the rows", &self.rows[vertices], (vertices * DEGREE) as u32)?;
        among_threads(self.setup.threads, vertices, |range| {
            for vertex in range {
                let expected = self.expected[vertex].load(Ordering::Relaxed);
                check_half("a distance", &self.distances[vertex], expected)?;
                check_half("a row", &self.rows[vertex], (vertex * DEGREE) as u32)?;
                for edge in vertex * DEGREE..(vertex + 1) * DEGREE {
                    check_half("an edge", &self.edges[edge], target(self.setup.seed, edge, vertices))?;
                }
            }
            Ok(())
        })
    }

    fn spans(&self, found: &mut dyn FnMut(u64, u64) -> bool) {
        let _ = [self.edges, self.distances, self.rows].into_iter().map(span).any(|(at, len)| found(at, len));
    }
}
