//! Linked lists whose nodes the CPU allocated one by one. Each engine walks a list of its own, adds up the
//! values, and writes into every node; with `malloc`, that is the application's heap, 32 bytes at a time.

use std::sync::atomic::{AtomicU64, Ordering};

use granule_backends::software::{AccessError, Engine};

use super::{Mismatch, PrepareError, Setup, Workload, address, check, share, span};
use crate::accelerator::{Accelerator, WorkError};
use crate::alloc::{Arena, Node, Nodes};
use crate::seed;
use crate::shaders::Shader;
use crate::split::{among_threads, part};

/// Words of a node: the next node's address (0 at the end), a value, what the device made of it, a tag.
const NEXT: usize = 0;
const VALUE: usize = 1;
const MADE: usize = 2;
const TAG: usize = 3;
const NODE_BYTES: u64 = size_of::<Node>() as u64;

/// A list jumps about within this many nodes and then goes on to the next ones, as the lists of programs do that
/// have run for a while.
const WINDOW: usize = 4096;

pub struct List<'a> {
    setup: Setup<'a>,
    /// The nodes in the order of the lists, list by list.
    order: Nodes<'a>,
    /// One sum per engine.
    sums: &'a [AtomicU64],
}

/// What the device makes of a value, so that a node that was skipped or done twice shows.
fn made_of(value: u64, before: u64) -> u64 {
    before.wrapping_add(value.rotate_left(7) ^ 0xa5a5)
}

impl<'a> List<'a> {
    pub fn new(arena: &'a Arena<'_>, setup: Setup<'a>) -> Result<Self, PrepareError> {
        let count = (setup.bytes / NODE_BYTES) as usize;
        let sums = arena.words(setup.engines)?;
        let order = Nodes::new(count)?;
        let mut window = Vec::with_capacity(WINDOW);
        for index in 0..setup.engines {
            let list = part(count, index, setup.engines);
            let mut last: Option<&Node> = None;
            for piece in super::pieces(list, WINDOW) {
                window.clear();
                for _ in piece.clone() {
                    window.push(arena.node()?);
                }
                seed::shuffle(setup.seed ^ piece.start as u64, &mut window);
                for (at, node) in piece.zip(window.iter().copied()) {
                    node[NEXT].store(0, Ordering::Relaxed);
                    node[VALUE].store(seed::word(setup.seed, at as u64), Ordering::Relaxed);
                    node[MADE].store(at as u64, Ordering::Relaxed);
                    node[TAG].store(!(at as u64), Ordering::Relaxed);
                    order.keep(at, node);
                    if let Some(last) = last.replace(node) {
                        last[NEXT].store(span(node).0, Ordering::Relaxed);
                    }
                }
            }
        }
        Ok(Self { setup, order, sums })
    }

    fn kernel(&self, engine: &mut Engine<'_>) -> Result<(), AccessError> {
        let list = share(engine, self.order.count());
        // The kernel is told where its list begins, and finds the rest by itself.
        let mut node = if list.is_empty() { 0 } else { self.order.address(list.start) };
        let mut sum = 0u64;
        while node != 0 {
            let value: u64 = engine.load(node + 8 * VALUE as u64)?;
            let made: u64 = engine.load(node + 8 * MADE as u64)?;
            engine.store(node + 8 * MADE as u64, made_of(value, made))?;
            sum = sum.wrapping_add(value);
            node = engine.load(node + 8 * NEXT as u64)?;
            self.setup.progress.add(NODE_BYTES);
        }
        engine.store(address(&self.sums[engine.index()]), sum)
    }

    fn check_node(&self, at: usize, list_end: usize) -> Result<(), Mismatch> {
        let node = self.order.get(at);
        let next = if at + 1 < list_end { self.order.address(at + 1) } else { 0 };
        let value = seed::word(self.setup.seed, at as u64);
        check("the link of a node", &node[NEXT], next)?;
        check("the value of a node", &node[VALUE], value)?;
        check("what the device wrote into a node", &node[MADE], made_of(value, at as u64))?;
        check("the tag of a node", &node[TAG], !(at as u64))
    }
}

impl Workload for List<'_> {
    fn work_bytes(&self) -> u64 {
        self.order.count() as u64 * NODE_BYTES
    }

    fn run(&self, device: &Accelerator) -> Result<(), WorkError> {
        match device {
            Accelerator::Software(device) => Ok(device.run(|engine| self.kernel(engine))?),
            Accelerator::Shaders(device) => {
                let mut arguments = [0; 1 + crate::commands::run::MOST_WORKERS];
                arguments[0] = span(self.sums).0;
                for index in 0..self.setup.engines {
                    let list = part(self.order.count(), index, self.setup.engines);
                    arguments[1 + index] = if list.is_empty() { 0 } else { self.order.address(list.start) };
                }
                Ok(device.launch(Shader::List, self.setup.engines, &arguments[..1 + self.setup.engines])?)
            }
        }
    }

    fn shader(&self) -> Shader {
        Shader::List
    }

    fn verify(&self) -> Result<(), Mismatch> {
        for (index, sum) in self.sums.iter().enumerate() {
            let list = part(self.order.count(), index, self.setup.engines);
            let values = list.clone().map(|at| seed::word(self.setup.seed, at as u64));
            check("the sum of a list", sum, values.fold(0, u64::wrapping_add))?;
            among_threads(self.setup.threads, list.len(), |range| {
                range.into_iter().try_for_each(|at| self.check_node(list.start + at, list.end))
            })?;
        }
        Ok(())
    }

    fn spans(&self, found: &mut dyn FnMut(u64, u64) -> bool) {
        let _ = (0..self.order.count()).any(|at| found(self.order.address(at), NODE_BYTES));
    }
}
