use super::{Touch, Walk};
use crate::seed;

/// Sequences that are decoded at the same time.
const SEQUENCES: u64 = 8;

/// Each step picks a sequence, reads its whole cache, and every few steps appends a page. A sequence that has filled
/// its part of memory ends, and another one begins there.
pub(super) struct KvCache {
    /// Pages of one sequence's part.
    part: u64,
    lengths: [u64; SEQUENCES as usize],
    seed: u64,
    draws: u64,
    sequence: usize,
    at: u64,
}

impl KvCache {
    pub(super) fn new(pages: u64, seed: u64) -> Self {
        let part = pages / SEQUENCES;
        let lengths = std::array::from_fn(|sequence| 1 + seed::below(seed ^ 0x6b76, sequence as u64, part));
        let mut this = Self { part, lengths, seed, draws: 0, sequence: 0, at: 0 };
        this.choose();
        this
    }

    fn choose(&mut self) {
        self.sequence = seed::below(self.seed, self.draws, SEQUENCES) as usize;
        self.draws += 1;
        self.at = 0;
    }
}

impl Walk for KvCache {
    fn allocations(&self) -> Vec<(u64, u64)> {
        vec![(0, self.part * SEQUENCES)]
    }

    fn step(&mut self) -> Touch {
        let first = self.sequence as u64 * self.part;
        let length = self.lengths[self.sequence];
        if self.at < length {
            self.at += 1;
            return Touch::read(first + self.at - 1);
        }
        // The token's own keys and values go to the end; one in four fills its page.
        let touch = Touch::write(first + length - 1);
        if seed::below(self.seed ^ 0x0074_6f6b, self.draws, 4) == 0 {
            self.lengths[self.sequence] = if length == self.part { 1 } else { length + 1 };
        }
        self.choose();
        touch
    }
}
