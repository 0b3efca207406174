//! CPU and device take turns on the same pages: each turn changes every word in a way that depends on what the
//! turn before left there, so that a lost turn cannot be made good by a later one.

use std::sync::atomic::{AtomicU64, Ordering};

use granule_backends::software::{AccessError, Engine};

use super::{CHUNK, Mismatch, PrepareError, Setup, Workload, address, check, pages, pieces, share, span};
use crate::accelerator::{Accelerator, WorkError};
use crate::alloc::Arena;
use crate::seed;
use crate::shaders::Shader;
use crate::split::among_threads;

/// Turns of the device; the CPU has one between each two of them.
const DEVICE_TURNS: usize = 4;

pub struct PingPong<'a> {
    setup: Setup<'a>,
    data: &'a [AtomicU64],
}

fn device_turn(word: u64) -> u64 {
    word.wrapping_mul(0x2545_f491_4f6c_dd1d).wrapping_add(1)
}

fn cpu_turn(word: u64) -> u64 {
    word.rotate_left(17) ^ 0x5555
}

fn after_all_turns(word: u64) -> u64 {
    (1..DEVICE_TURNS).fold(device_turn(word), |word, _| device_turn(cpu_turn(word)))
}

impl<'a> PingPong<'a> {
    pub fn new(arena: &'a Arena<'_>, setup: Setup<'a>) -> Result<Self, PrepareError> {
        let data = arena.words(setup.bytes as usize / 8)?;
        among_threads(setup.threads, data.len(), |range| {
            range.for_each(|i| data[i].store(seed::word(setup.seed, i as u64), Ordering::Relaxed));
            Ok::<_, PrepareError>(())
        })?;
        Ok(Self { setup, data })
    }

    fn kernel(&self, engine: &mut Engine<'_>) -> Result<(), AccessError> {
        let mut buffer = [0u64; CHUNK];
        for piece in pieces(share(engine, self.data.len()), CHUNK) {
            let words = &mut buffer[..piece.len()];
            let at = address(&self.data[piece.start]);
            engine.load_slice(at, words)?;
            words.iter_mut().for_each(|word| *word = device_turn(*word));
            engine.store_slice(at, words)?;
            self.setup.progress.add(size_of_val(words) as u64);
        }
        Ok(())
    }
}

impl Workload for PingPong<'_> {
    fn work_bytes(&self) -> u64 {
        span(self.data).1 * DEVICE_TURNS as u64
    }

    fn run(&self, device: &Accelerator) -> Result<(), WorkError> {
        for turn in 0..DEVICE_TURNS {
            if turn > 0 {
                among_threads(self.setup.threads, self.data.len(), |range| {
                    for word in &self.data[range] {
                        word.store(cpu_turn(word.load(Ordering::Relaxed)), Ordering::Relaxed);
                    }
                    Ok::<_, WorkError>(())
                })?;
            }
            match device {
                Accelerator::Software(device) => device.run(|engine| self.kernel(engine))?,
                Accelerator::Shaders(device) => {
                    let arguments = [span(self.data).0, self.data.len() as u64];
                    device.launch(Shader::PingPong, pages(self.data), &arguments)?;
                }
            }
        }
        Ok(())
    }

    fn shader(&self) -> Shader {
        Shader::PingPong
    }

    fn verify(&self) -> Result<(), Mismatch> {
        among_threads(self.setup.threads, self.data.len(), |mut range| {
            range.try_for_each(|i| {
                let expected = after_all_turns(seed::word(self.setup.seed, i as u64));
                check("a word after all turns", &self.data[i], expected)
            })
        })
    }

    fn spans(&self, found: &mut dyn FnMut(u64, u64) -> bool) {
        let (at, bytes) = span(self.data);
        found(at, bytes);
    }
}
