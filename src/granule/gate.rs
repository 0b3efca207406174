//! The gate of design rule 3: from before a read of events until the events it returned are applied, no other
//! thread registers, takes, links or commits in this address space.
//!
//! Each worker has a seat, a word in a cache line of its own: 0 outside, 1 inside. The reader has the `closed`
//! word. Entering is a store to the own seat and a load of `closed`; closing is a store to `closed` and a load
//! of every seat. Both are sequentially consistent, so at least one of the two sees the other (Dekker). A worker
//! that sees the gate closed steps back and parks; the reader waits for seats that are taken.
//!
//! # Rules
//! 1. One thread closes: the reader. It closes before it reads, and opens after the last event is applied.
//! 2. Inside, a worker touches private memory only and waits for nothing but a block lock.
//! 3. A worker enters without any lock held, and does not enter twice.
//! 4. Engines are stopped through [`Device::quiesce`](crate::ports::Device::quiesce) by whoever closes.

use crate::sync::{AtomicU32, Ordering, Park, Rule, holds};
use crate::units::Seat;

const OUTSIDE: u32 = 0;
const INSIDE: u32 = 1;

/// A worker's place at the gate.
#[derive(Debug, Default)]
#[repr(C, align(64))]
pub struct GateSeat(AtomicU32);

/// The gate of one address space.
#[derive(Debug)]
pub struct Gate<'m> {
    closed: AtomicU32,
    seats: &'m [GateSeat],
}

impl<'m> Gate<'m> {
    /// An open gate with one seat per worker.
    pub fn new(seats: &'m [GateSeat]) -> Self {
        Self { closed: AtomicU32::new(0), seats }
    }

    /// How many workers may have a seat.
    pub fn seats(&self) -> usize {
        self.seats.len()
    }

    /// Goes in; parks while the gate is closed. Asserts that this seat is outside.
    #[inline]
    pub fn enter<'a>(&'a self, seat: Seat, park: &'a dyn Park) -> GateInside<'a> {
        let word = &self.seats[seat.0 as usize].0;
        loop {
            // Sequentially consistent, pairs with the store and the loads in `close`.
            let before = word.swap(INSIDE, Ordering::SeqCst);
            assert!(before == OUTSIDE, "a worker enters the gate that is inside already");
            if self.closed.load(Ordering::SeqCst) == 0 || !holds(Rule::GateIsLookedAt) {
                return GateInside { gate: self, word, park };
            }
            self.step_out(word, park);
            park.park(&self.closed, 1);
        }
    }

    #[inline]
    fn step_out(&self, word: &AtomicU32, park: &dyn Park) {
        word.swap(OUTSIDE, Ordering::SeqCst);
        if self.closed.load(Ordering::SeqCst) != 0 {
            park.unpark_all(word);
        }
    }

    /// Closes the gate and waits until every seat is outside. Asserts that it was open.
    pub fn close<'a>(&'a self, park: &'a dyn Park) -> GateClosed<'a> {
        let before = self.closed.swap(1, Ordering::SeqCst);
        assert!(before == 0, "the gate is closed twice");
        for seat in self.seats {
            while holds(Rule::GateWaits) && seat.0.load(Ordering::SeqCst) != OUTSIDE {
                park.park(&seat.0, INSIDE);
            }
        }
        GateClosed { gate: self, park }
    }
}

/// Proof that a worker is inside. Dropping it leaves.
pub struct GateInside<'a> {
    gate: &'a Gate<'a>,
    word: &'a AtomicU32,
    park: &'a dyn Park,
}

impl Drop for GateInside<'_> {
    #[inline]
    fn drop(&mut self) {
        self.gate.step_out(self.word, self.park);
    }
}

/// Proof that the gate is closed. Dropping it opens.
pub struct GateClosed<'a> {
    gate: &'a Gate<'a>,
    park: &'a dyn Park,
}

impl Drop for GateClosed<'_> {
    fn drop(&mut self) {
        self.gate.closed.store(0, Ordering::SeqCst);
        self.park.unpark_all(&self.gate.closed);
    }
}
