use super::shuffle::Shuffle;
use super::{Touch, Walk};
use crate::seed;

/// One over (1 - 0.99): the exponent of the inverse. A whole number, so that only multiplications are needed, whose
/// results are the same on every machine.
const INVERSE: u32 = 100;

fn power(base: f64) -> f64 {
    (0..INVERSE).fold(1.0, |product, _| product * base)
}

/// Page of rank r with a probability that falls as r^-0.99, ranks spread over all of memory. Drawn by inverting the
/// integral of the density, which is within one rank of the exact distribution.
pub(super) struct Zipf {
    pages: u64,
    /// The root of the number of pages, less one.
    most: f64,
    seed: u64,
    places: Shuffle,
    step: u64,
}

impl Zipf {
    pub(super) fn new(pages: u64, seed: u64) -> Self {
        let (mut low, mut high) = (1.0, 2.0);
        for _ in 0..60 {
            let middle = (low + high) / 2.0;
            *(if power(middle) < (pages + 1) as f64 { &mut low } else { &mut high }) = middle;
        }
        Self { pages, most: low - 1.0, seed, places: Shuffle::new(pages, seed ^ 0x7a69_7066), step: 0 }
    }

    fn rank(&self, uniform: f64) -> u64 {
        ((power(uniform * self.most + 1.0) - 1.0) as u64).min(self.pages - 1)
    }
}

impl Walk for Zipf {
    fn allocations(&self) -> Vec<(u64, u64)> {
        vec![(0, self.pages)]
    }

    fn step(&mut self) -> Touch {
        let word = seed::word(self.seed, self.step);
        self.step += 1;
        let page = self.places.at(self.rank((word >> 11) as f64 / (1u64 << 53) as f64));
        // One in four is a write.
        if word.is_multiple_of(4) { Touch::write(page) } else { Touch::read(page) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_first_of_a_thousand_ranks_takes_its_share() {
        let zipf = Zipf::new(1000, 1);
        let draws = 100_000;
        let first = (0..draws).filter(|at| zipf.rank(f64::from(*at) / f64::from(draws)) == 0).count();
        // The integral from 1 to 2 over that from 1 to 1001: 0.693 / 7.15.
        assert!((9_400..10_000).contains(&first), "{first}");
    }
}
