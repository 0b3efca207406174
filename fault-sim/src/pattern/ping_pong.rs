use super::{Touch, Walk};
use crate::trace::Access;

/// Pages of one turn: a 64 KiB unit.
const TURN: u64 = 16;

/// The device writes 16 pages, the CPU writes the same 16, eight times; then the next 16.
pub(super) struct PingPong {
    pages: u64,
    first: u64,
    turn: u64,
    at: u64,
}

impl PingPong {
    pub(super) fn new(pages: u64) -> Self {
        Self { pages, first: 0, turn: 0, at: 0 }
    }
}

impl Walk for PingPong {
    fn allocations(&self) -> Vec<(u64, u64)> {
        vec![(0, self.pages)]
    }

    fn step(&mut self) -> Touch {
        let length = TURN.min(self.pages - self.first);
        let touch = Touch { page: self.first + self.at, access: Access::Write, by_cpu: self.turn % 2 == 1 };
        self.at += 1;
        if self.at == length {
            self.at = 0;
            self.turn += 1;
            if self.turn == 16 {
                self.turn = 0;
                self.first += length;
                if self.first == self.pages {
                    self.first = 0;
                }
            }
        }
        touch
    }
}
