//! y = a * x + y over two arrays of `f32`, in place.

use std::sync::atomic::{AtomicU32, Ordering};

use granule_backends::software::{AccessError, Engine};

use super::{CHUNK, Mismatch, PrepareError, Setup, Workload, address, check_half, pieces, share, span};
use crate::accelerator::{Accelerator, WorkError};
use crate::alloc::Arena;
use crate::seed;
use crate::shaders::Shader;
use crate::split::among_threads;

/// The factor: exact in binary, so that nothing depends on how it is written.
const A: f32 = 2.5;
/// Elements per item of the shader.
const SHADER_ITEM: usize = 1024;

pub struct Saxpy<'a> {
    setup: Setup<'a>,
    x: &'a [AtomicU32],
    y: &'a [AtomicU32],
}

/// The values of x and y at a position: whole numbers below 65,536.
fn inputs(seed: u64, index: usize) -> (f32, f32) {
    let word = seed::word(seed, index as u64);
    (f32::from(word as u16), f32::from((word >> 16) as u16))
}

impl<'a> Saxpy<'a> {
    pub fn new(arena: &'a Arena<'_>, setup: Setup<'a>) -> Result<Self, PrepareError> {
        let len = setup.bytes as usize / 8;
        let (x, y) = (arena.halves(len)?, arena.halves(len)?);
        among_threads(setup.threads, len, |range| {
            for i in range {
                let (of_x, of_y) = inputs(setup.seed, i);
                x[i].store(of_x.to_bits(), Ordering::Relaxed);
                y[i].store(of_y.to_bits(), Ordering::Relaxed);
            }
            Ok::<_, PrepareError>(())
        })?;
        Ok(Self { setup, x, y })
    }

    fn kernel(&self, engine: &mut Engine<'_>) -> Result<(), AccessError> {
        let (mut x, mut y) = ([0f32; CHUNK], [0f32; CHUNK]);
        for piece in pieces(share(engine, self.x.len()), CHUNK) {
            let (x, y) = (&mut x[..piece.len()], &mut y[..piece.len()]);
            engine.load_slice(address(&self.x[piece.start]), x)?;
            engine.load_slice(address(&self.y[piece.start]), y)?;
            y.iter_mut().zip(x.iter()).for_each(|(y, x)| *y += A * *x);
            engine.store_slice(address(&self.y[piece.start]), y)?;
            self.setup.progress.add((size_of_val(x) + size_of_val(y)) as u64);
        }
        Ok(())
    }
}

impl Workload for Saxpy<'_> {
    fn work_bytes(&self) -> u64 {
        span(self.x).1 + span(self.y).1
    }

    fn run(&self, device: &Accelerator) -> Result<(), WorkError> {
        match device {
            Accelerator::Software(device) => Ok(device.run(|engine| self.kernel(engine))?),
            Accelerator::Shaders(device) => {
                let (x, y) = (span(self.x).0, span(self.y).0);
                let arguments = [x, y, self.x.len() as u64, A.to_bits().into()];
                Ok(device.launch(Shader::Saxpy, self.x.len().div_ceil(SHADER_ITEM), &arguments)?)
            }
        }
    }

    fn shader(&self) -> Shader {
        Shader::Saxpy
    }

    fn verify(&self) -> Result<(), Mismatch> {
        among_threads(self.setup.threads, self.x.len(), |range| {
            for i in range {
                let (x, y) = inputs(self.setup.seed, i);
                check_half("y", &self.y[i], (y + A * x).to_bits())?;
                check_half("x", &self.x[i], x.to_bits())?;
            }
            Ok(())
        })
    }

    fn spans(&self, found: &mut dyn FnMut(u64, u64) -> bool) {
        let _ = [self.x, self.y].into_iter().map(span).any(|(at, bytes)| found(at, bytes));
    }
}
