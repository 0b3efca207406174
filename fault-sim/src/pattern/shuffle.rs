//! A permutation of `0..len` without a table: four rounds of a Feistel network over the next power of four, walked
//! until the value is inside.

use crate::seed;

/// One permutation.
#[derive(Clone, Copy, Debug)]
pub(super) struct Shuffle {
    len: u64,
    half_bits: u32,
    seed: u64,
}

impl Shuffle {
    pub(super) fn new(len: u64, seed: u64) -> Self {
        let bits = u64::BITS - len.max(2).saturating_sub(1).leading_zeros();
        Self { len, half_bits: bits.div_ceil(2), seed }
    }

    /// Where `index` goes. `index` is below the length.
    pub(super) fn at(&self, index: u64) -> u64 {
        let mut value = index;
        loop {
            value = self.round_trip(value);
            if value < self.len {
                return value;
            }
        }
    }

    fn round_trip(&self, value: u64) -> u64 {
        let mask = (1 << self.half_bits) - 1;
        let (mut left, mut right) = (value >> self.half_bits, value & mask);
        for round in 0..4 {
            (left, right) = (right, left ^ (seed::word(self.seed.wrapping_add(round), right) & mask));
        }
        left << self.half_bits | right
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_value_comes_once() {
        for len in [1, 2, 3, 16, 17, 1000] {
            let shuffle = Shuffle::new(len, 9);
            let mut all: Vec<_> = (0..len).map(|at| shuffle.at(at)).collect();
            all.sort_unstable();
            assert!(all.into_iter().eq(0..len), "{len}");
        }
    }
}
