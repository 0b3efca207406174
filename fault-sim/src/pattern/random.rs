use super::shuffle::Shuffle;
use super::{Touch, Walk};

/// Every page once in one order, then in another one.
pub(super) struct Random {
    pages: u64,
    seed: u64,
    order: Shuffle,
    at: u64,
}

impl Random {
    pub(super) fn new(pages: u64, seed: u64) -> Self {
        Self { pages, seed, order: Shuffle::new(pages, seed), at: 0 }
    }
}

impl Walk for Random {
    fn allocations(&self) -> Vec<(u64, u64)> {
        vec![(0, self.pages)]
    }

    fn step(&mut self) -> Touch {
        if self.at == self.pages {
            self.at = 0;
            self.seed = self.seed.wrapping_add(0x9e37_79b9_7f4a_7c15);
            self.order = Shuffle::new(self.pages, self.seed);
        }
        let page = self.order.at(self.at);
        self.at += 1;
        Touch::read(page)
    }
}
