//! The sum of an array of `u64`: each engine adds up its part and stores it; the CPU adds the parts.

use std::sync::atomic::{AtomicU64, Ordering};

use granule_backends::software::{AccessError, Engine};

use super::{CHUNK, Mismatch, PrepareError, Setup, Workload, address, check, pages, pieces, share, span};
use crate::accelerator::{Accelerator, WorkError};
use crate::alloc::Arena;
use crate::seed;
use crate::shaders::Shader;
use crate::split::{among_threads, part};

pub struct Sum<'a> {
    setup: Setup<'a>,
    data: &'a [AtomicU64],
    /// One sum per engine.
    sums: &'a [AtomicU64],
}

impl<'a> Sum<'a> {
    pub fn new(arena: &'a Arena<'_>, setup: Setup<'a>) -> Result<Self, PrepareError> {
        let data = arena.words(setup.bytes as usize / 8)?;
        let sums = arena.words(setup.engines)?;
        let fill = |range: std::ops::Range<usize>| {
            range.for_each(|i| data[i].store(seed::word(setup.seed, i as u64), Ordering::Relaxed));
            Ok::<_, PrepareError>(())
        };
        among_threads(setup.threads, data.len(), fill)?;
        Ok(Self { setup, data, sums })
    }

    fn kernel(&self, engine: &mut Engine<'_>) -> Result<(), AccessError> {
        let mut buffer = [0u64; CHUNK];
        let mut sum = 0u64;
        for piece in pieces(share(engine, self.data.len()), CHUNK) {
            let values = &mut buffer[..piece.len()];
            engine.load_slice(address(&self.data[piece.start]), values)?;
            sum = values.iter().fold(sum, |sum, value| sum.wrapping_add(*value));
            self.setup.progress.add(size_of_val(values) as u64);
        }
        engine.store(address(&self.sums[engine.index()]), sum)
    }
}

impl Workload for Sum<'_> {
    fn work_bytes(&self) -> u64 {
        span(self.data).1
    }

    fn run(&self, device: &Accelerator) -> Result<(), WorkError> {
        match device {
            Accelerator::Software(device) => Ok(device.run(|engine| self.kernel(engine))?),
            Accelerator::Shaders(device) => {
                let (sums, parts) = (span(self.sums).0, self.sums.len() as u64);
                let arguments = [span(self.data).0, self.data.len() as u64, sums, parts];
                Ok(device.launch(Shader::Sum, pages(self.data), &arguments)?)
            }
        }
    }

    fn shader(&self) -> Shader {
        Shader::Sum
    }

    fn verify(&self) -> Result<(), Mismatch> {
        let Setup { seed, engines, threads, .. } = self.setup;
        for (index, sum) in self.sums.iter().enumerate() {
            let values = part(self.data.len(), index, engines).map(|i| seed::word(seed, i as u64));
            check("the sum of an engine", sum, values.fold(0, u64::wrapping_add))?;
        }
        among_threads(threads, self.data.len(), |mut range| {
            range.try_for_each(|i| check("a summand", &self.data[i], seed::word(seed, i as u64)))
        })
    }

    fn spans(&self, found: &mut dyn FnMut(u64, u64) -> bool) {
        let _ = [self.data, self.sums].into_iter().map(span).any(|(at, bytes)| found(at, bytes));
    }
}
