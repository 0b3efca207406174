//! How often each byte value occurs: each engine counts on its own and adds its counts with atomic additions.

use std::sync::atomic::{AtomicU64, Ordering};

use granule::os::private::Slab;
use granule_backends::software::{AccessError, Engine};

use super::{CHUNK, Mismatch, PrepareError, Setup, Workload, address, check, pieces, share, span};
use crate::accelerator::{Accelerator, WorkError};
use crate::alloc::Arena;
use crate::seed;
use crate::shaders::Shader;
use crate::split::among_threads;

const BINS: usize = 256;
/// Words per item of the shader.
const SHADER_ITEM: usize = 8192;

pub struct Histogram<'a> {
    setup: Setup<'a>,
    data: &'a [AtomicU64],
    bins: &'a [AtomicU64],
    expected: Slab<AtomicU64>,
}

impl<'a> Histogram<'a> {
    pub fn new(arena: &'a Arena<'_>, setup: Setup<'a>) -> Result<Self, PrepareError> {
        let data = arena.words(setup.bytes as usize / 8)?;
        let bins = arena.words(BINS)?;
        let expected = Slab::<AtomicU64>::new(BINS)?;
        among_threads(setup.threads, data.len(), |range| {
            let mut counts = [0u64; BINS];
            for i in range {
                let word = seed::word(setup.seed, i as u64);
                data[i].store(word, Ordering::Relaxed);
                word.to_ne_bytes().into_iter().for_each(|byte| counts[usize::from(byte)] += 1);
            }
            for (bin, count) in expected.iter().zip(counts) {
                bin.fetch_add(count, Ordering::Relaxed);
            }
            Ok::<_, PrepareError>(())
        })?;
        Ok(Self { setup, data, bins, expected })
    }

    fn kernel(&self, engine: &mut Engine<'_>) -> Result<(), AccessError> {
        let mut buffer = [0u64; CHUNK];
        let mut counts = [0u64; BINS];
        for piece in pieces(share(engine, self.data.len()), CHUNK) {
            let words = &mut buffer[..piece.len()];
            engine.load_slice(address(&self.data[piece.start]), words)?;
            words.iter().flat_map(|word| word.to_ne_bytes()).for_each(|byte| counts[usize::from(byte)] += 1);
            self.setup.progress.add(size_of_val(words) as u64);
        }
        for (bin, count) in self.bins.iter().zip(counts) {
            engine.fetch_add_u64(address(bin), count)?;
        }
        Ok(())
    }
}

impl Workload for Histogram<'_> {
    fn work_bytes(&self) -> u64 {
        span(self.data).1
    }

    fn run(&self, device: &Accelerator) -> Result<(), WorkError> {
        match device {
            Accelerator::Software(device) => Ok(device.run(|engine| self.kernel(engine))?),
            Accelerator::Shaders(device) => {
                let arguments = [span(self.data).0, self.data.len() as u64, span(self.bins).0];
                Ok(device.launch(Shader::Histogram, self.data.len().div_ceil(SHADER_ITEM), &arguments)?)
            }
        }
    }

    fn shader(&self) -> Shader {
        Shader::Histogram
    }

    fn verify(&self) -> Result<(), Mismatch> {
        for (bin, expected) in self.bins.iter().zip(self.expected.iter()) {
            check("a bin", bin, expected.load(Ordering::Relaxed))?;
        }
        among_threads(self.setup.threads, self.data.len(), |mut range| {
            range
                .try_for_each(|i| check("counted data", &self.data[i], seed::word(self.setup.seed, i as u64)))
        })
    }

    fn spans(&self, found: &mut dyn FnMut(u64, u64) -> bool) {
        let _ = [self.data, self.bins].into_iter().map(span).any(|(at, bytes)| found(at, bytes));
    }
}
