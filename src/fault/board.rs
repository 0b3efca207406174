//! Where a device thread lays out the blocks of a batch for the workers that help it.
//!
//! Everything lies in private memory, so nobody who takes part touches the heap between the moment at which a block is
//! served and the replay of its fault: what is touched there comes home again, and the engine that wants it would fault
//! for ever.
//!
//! # States
//! `state` is [`OPEN`] and the number of helpers inside.
//!
//! # Rules
//! 1. The blocks are written while the board is closed and nobody is inside.
//! 2. A helper joins an open board only, and is counted in the same step: whoever closes knows of it.
//! 3. Each block is taken once, by a helper that is inside or by the poster.
//! 4. The poster closes, and waits until nobody is inside, before it lays out the next blocks or relies on what was done.

use super::BlockFault;
use crate::granule::Bitmap;
use crate::sync::{AtomicU32, LockedU32, Ordering, Park, Rule, holds};
use crate::units::{BlockNo, DeviceId};

/// Blocks that are laid out at once (2 under loom).
pub const BOARD_BLOCKS: usize = if cfg!(granule_loom) { 2 } else { 64 };

const OPEN: u32 = 1 << 31;

/// One device's board. Closed and empty at the start.
#[derive(Debug)]
#[repr(C, align(128))]
pub struct Board {
    state: AtomicU32,
    /// The next block to take.
    next: AtomicU32,
    used: LockedU32,
    device: LockedU32,
    blocks: [Posted; BOARD_BLOCKS],
}

/// A [`BlockFault`], as words that threads may share.
#[derive(Debug, Default)]
struct Posted {
    block: LockedU32,
    faulted: Bitmap,
    written: Bitmap,
}

impl Board {
    /// An empty board.
    pub fn new() -> Self {
        Self {
            state: AtomicU32::new(0),
            next: AtomicU32::new(0),
            used: LockedU32::new(0),
            device: LockedU32::new(0),
            blocks: core::array::from_fn(|_| Posted::default()),
        }
    }

    /// Lays out up to [`BOARD_BLOCKS`] blocks of one device, and opens. Asserts that the board is closed, and that the
    /// faults are of devices that wait for them (no prefetch).
    pub fn post(&self, faults: &[BlockFault]) {
        assert!(faults.len() <= BOARD_BLOCKS && self.state.load(Ordering::Relaxed) & OPEN == 0);
        for (posted, fault) in self.blocks.iter().zip(faults) {
            debug_assert!(!fault.prefetch && fault.device == faults[0].device);
            posted.block.store(fault.block.0, Ordering::Relaxed);
            posted.faulted.store(&fault.faulted);
            posted.written.store(&fault.written);
        }
        self.device.store(faults.first().map_or(0, |fault| u32::from(fault.device.0)), Ordering::Relaxed);
        self.used.store(faults.len() as u32, Ordering::Relaxed);
        self.next.store(0, Ordering::Relaxed);
        // Release pairs with the acquire in `join`: whoever joins sees the blocks.
        self.state.store(OPEN, Ordering::Release);
    }

    /// The position of the next block that nobody has taken. Asked by the poster while the board is open, and by
    /// helpers through [`Helping::take`].
    pub fn take(&self) -> Option<usize> {
        // Relaxed: one word, each value is handed out once; the blocks are ordered by `state`.
        let at = self.next.fetch_add(1, Ordering::Relaxed);
        (at < self.used.load(Ordering::Relaxed)).then_some(at as usize)
    }

    /// Helps, if the board is open.
    pub fn join<'a>(&'a self, park: &'a dyn Park) -> Option<Helping<'a>> {
        let mut state = self.state.load(Ordering::Relaxed);
        while state & OPEN != 0 {
            // Acquire pairs with the release in `post`.
            match self.state.compare_exchange(state, state + 1, Ordering::Acquire, Ordering::Relaxed) {
                Ok(_) => return Some(Helping { board: self, park }),
                Err(now) => state = now,
            }
        }
        None
    }

    /// Closes, and waits until nobody is inside. What helpers did is done then.
    pub fn close(&self, park: &dyn Park) {
        // Acquire pairs with the release in the drop of `Helping`, here and below.
        let mut inside = self.state.fetch_and(!OPEN, Ordering::Acquire) & !OPEN;
        while inside != 0 && holds(Rule::PosterWaits) {
            park.park(&self.state, inside);
            inside = self.state.load(Ordering::Acquire);
        }
    }
}

impl Default for Board {
    fn default() -> Self {
        Self::new()
    }
}

/// A helper inside. Dropping it leaves.
pub struct Helping<'a> {
    board: &'a Board,
    park: &'a dyn Park,
}

impl Helping<'_> {
    /// The next block that nobody has taken.
    pub fn take(&self) -> Option<BlockFault> {
        let posted = &self.board.blocks[self.board.take()?];
        Some(BlockFault {
            block: BlockNo(posted.block.load(Ordering::Relaxed)),
            device: DeviceId(self.board.device.load(Ordering::Relaxed) as u8),
            faulted: posted.faulted.load(),
            written: posted.written.load(),
            prefetch: false,
        })
    }
}

impl Drop for Helping<'_> {
    fn drop(&mut self) {
        // Release pairs with the acquire in `close`.
        if self.board.state.fetch_sub(1, Ordering::Release) == 1 {
            self.park.unpark_all(&self.board.state);
        }
    }
}
