//! The workers that help device threads. They are the threads of a rayon pool, each inside one broadcast job from the
//! start of the service to its end: the pool's own queues lie on the heap, and nobody may touch that between serving a
//! fault and its replay (see [`Board`]).
//!
//! # Rules
//! 1. A worker sleeps on a bell of its own. It looks at the bell first, then at the boards: who rings after opening a
//!    board either is seen, or changes the word on which the worker would sleep.
//! 2. A worker leaves faults that failed alone. The device thread serves them again, and cancels them.

use super::core::Core;
use crate::fault::{BOARD_BLOCKS, BlockFault, Board, serve};
use crate::granule::MAX_DEVICES;
use crate::os::FutexPark;
use crate::os::private::{PrivateArc, PrivateError};
use crate::sync::{AtomicU32, Ordering, Park};
use crate::units::{DeviceId, Seat};

/// Bells; workers beyond that share.
const BELLS: usize = 64;

/// In a cache line of its own.
#[derive(Default)]
#[repr(align(64))]
struct Bell(AtomicU32);

/// Boards and bells of one space.
pub(super) struct Crew {
    boards: [Option<PrivateArc<Board>>; MAX_DEVICES],
    bells: [Bell; BELLS],
    workers: usize,
    stopping: AtomicU32,
}

impl Crew {
    /// A board for each of `devices` devices; bells for `workers` workers. Fails as private memory does.
    pub(super) fn new(devices: usize, workers: usize) -> Result<Self, PrivateError> {
        let mut boards = [const { None }; MAX_DEVICES];
        for board in &mut boards[..devices] {
            *board = Some(PrivateArc::new(Board::new())?);
        }
        Ok(Self {
            boards,
            bells: std::array::from_fn(|_| Bell::default()),
            workers,
            stopping: AtomicU32::new(0),
        })
    }

    /// Has every block of `faults` (two or more, of one device) tried by `serve_own` on this thread or by a worker;
    /// `serve_own` gets a position. Waits until all are done.
    pub(super) fn share(&self, device: DeviceId, faults: &[BlockFault], mut serve_own: impl FnMut(usize)) {
        let board = self.boards[device.0 as usize].as_ref().expect("a board for each device");
        for (part, faults) in faults.chunks(BOARD_BLOCKS).enumerate() {
            board.post(faults);
            for bell in self.bells.iter().take(self.workers.min(faults.len() - 1)) {
                ring(&bell.0);
            }
            while let Some(at) = board.take() {
                serve_own(part * BOARD_BLOCKS + at);
            }
            board.close(&FutexPark);
        }
    }

    /// What a worker does, from the service's start to its end.
    pub(super) fn work(&self, core: &Core, worker: usize) {
        let bell = &self.bells[worker % BELLS].0;
        loop {
            // Acquire pairs with the release in `ring`.
            let heard = bell.load(Ordering::Acquire);
            if self.stopping.load(Ordering::Relaxed) != 0 {
                return;
            }
            for board in self.boards.iter().flatten() {
                let Some(helping) = board.join(&FutexPark) else { continue };
                while let Some(fault) = helping.take() {
                    let _ = serve(&core.space, Seat(worker as u16), &fault);
                }
            }
            FutexPark.park(bell, heard);
        }
    }

    /// Lets all workers go home. Nobody shares anything any more.
    pub(super) fn stop(&self) {
        self.stopping.store(1, Ordering::Relaxed);
        self.bells.iter().for_each(|bell| ring(&bell.0));
    }
}

/// Release publishes the board that was opened before, or the end.
fn ring(bell: &AtomicU32) {
    bell.fetch_add(1, Ordering::Release);
    FutexPark.unpark_all(bell);
}
