//! Chance that follows from a seed, as a stream. Values by position are [`crate::seed`]'s.

use crate::seed;

/// A stream of well-mixed words.
#[derive(Clone, Debug)]
pub struct Stream {
    seed: u64,
    next: u64,
}

impl Stream {
    /// The stream of a seed; `salt` tells streams of one seed apart.
    pub fn new(seed: u64, salt: u64) -> Self {
        Self { seed: seed::word(seed, salt), next: 0 }
    }

    /// The next word.
    pub fn word(&mut self) -> u64 {
        self.next += 1;
        seed::word(self.seed, self.next)
    }

    /// A number below `end`, which must not be zero.
    pub fn below(&mut self, end: u64) -> u64 {
        ((u128::from(self.word()) * u128::from(end)) >> 64) as u64
    }

    /// True once in `times` calls on average; never for 0.
    pub fn once_in(&mut self, times: u64) -> bool {
        times != 0 && self.below(times) == 0
    }
}
