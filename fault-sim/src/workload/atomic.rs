//! CPU and device count in the same pages at the same time, and nothing is lost. Each page holds one counter
//! among words that nobody changes.

use std::sync::atomic::{AtomicU64, Ordering};

use granule_backends::software::{AccessError, Engine};

use super::{Mismatch, PrepareError, Setup, Workload, address, check, span};
use crate::accelerator::{Accelerator, WorkError};
use crate::alloc::Arena;
use crate::seed;
use crate::shaders::Shader;
use crate::split::among_threads;

const WORDS_PER_PAGE: usize = 512;
/// How often each thread and each engine counts in each page while the others do.
const ROUNDS: u64 = 4;

pub struct Atomic<'a> {
    setup: Setup<'a>,
    data: &'a [AtomicU64],
}

impl<'a> Atomic<'a> {
    pub fn new(arena: &'a Arena<'_>, setup: Setup<'a>) -> Result<Self, PrepareError> {
        let data = arena.words(setup.bytes as usize / 8)?;
        among_threads(setup.threads, data.len(), |range| {
            range.for_each(|i| data[i].store(seed::word(setup.seed, i as u64), Ordering::Relaxed));
            Ok::<_, PrepareError>(())
        })?;
        Ok(Self { setup, data })
    }

    fn counters(&self) -> impl Iterator<Item = &AtomicU64> {
        self.data.iter().step_by(WORDS_PER_PAGE)
    }

    /// Counts once in every page.
    fn kernel(&self, engine: &mut Engine<'_>) -> Result<(), AccessError> {
        for counter in self.counters() {
            engine.fetch_add_u64(address(counter), 1)?;
        }
        self.setup.progress.add(span(self.data).1 / self.setup.engines as u64);
        Ok(())
    }

    /// Has every engine count so often.
    fn count(&self, device: &Accelerator, rounds: u64) -> Result<(), WorkError> {
        match device {
            Accelerator::Software(device) => {
                Ok(device.run(|engine| (0..rounds).try_for_each(|_| self.kernel(engine)))?)
            }
            Accelerator::Shaders(device) => {
                let counters = self.counters().count();
                let arguments = [span(self.data).0, counters as u64, rounds];
                Ok(device.launch(Shader::Count, counters * self.setup.engines, &arguments)?)
            }
        }
    }

    /// What is added to a counter by everybody together.
    fn added(&self) -> u64 {
        let Setup { engines, threads, .. } = self.setup;
        // Behind the rounds, the engines count once more by themselves.
        ROUNDS * (engines + threads) as u64 + engines as u64
    }
}

impl Workload for Atomic<'_> {
    fn work_bytes(&self) -> u64 {
        span(self.data).1 * (ROUNDS + 1)
    }

    fn run(&self, device: &Accelerator) -> Result<(), WorkError> {
        std::thread::scope(|scope| {
            for _ in 0..self.setup.threads {
                scope.spawn(|| {
                    for counter in (0..ROUNDS).flat_map(|_| self.counters()) {
                        counter.fetch_add(1, Ordering::Relaxed);
                    }
                });
            }
            self.count(device, ROUNDS)
        })?;
        self.count(device, 1)
    }

    fn shader(&self) -> Shader {
        Shader::Count
    }

    fn verify(&self) -> Result<(), Mismatch> {
        let added = self.added();
        among_threads(self.setup.threads, self.data.len(), |mut range| {
            range.try_for_each(|i| {
                let before = seed::word(self.setup.seed, i as u64);
                if i.is_multiple_of(WORDS_PER_PAGE) {
                    check("a counter", &self.data[i], before.wrapping_add(added))
                } else {
                    check("a word beside a counter", &self.data[i], before)
                }
            })
        })
    }

    fn spans(&self, found: &mut dyn FnMut(u64, u64) -> bool) {
        let (at, bytes) = span(self.data);
        found(at, bytes);
    }
}
