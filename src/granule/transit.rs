use thiserror::Error;

use super::Bitmap;
use crate::ports::StagingId;
use crate::sync::{LockedU32, Ordering};

/// Which way pages travel.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Direction {
    /// Out of the application, through staging, into device memory. Once taken, staging holds the data.
    ToDevice,
    /// Out of device memory, through staging, to the application. Device memory holds the data until the commit.
    ToRam,
}

/// The transit of one worker, one per seat. Guarded by the lock of the block that the worker is moving (a seat
/// moves one block at a time).
///
/// `pages` is what the mover still owns. An invalidation removes pages from it and from the block's `in_transit`;
/// the mover commits what is left (rule 4 of the module).
#[derive(Debug, Default)]
#[repr(C, align(64))]
pub struct TransitRecord {
    pub(super) pages: Bitmap,
    staging: LockedU32,
    direction: LockedU32,
}

impl TransitRecord {
    pub(super) fn set(&self, staging: StagingId, direction: Direction) {
        self.staging.store(staging.0, Ordering::Relaxed);
        self.direction.store(u32::from(direction == Direction::ToRam), Ordering::Relaxed);
    }

    /// The staging slot that the pages pass through.
    pub fn staging(&self) -> StagingId {
        StagingId(self.staging.load(Ordering::Relaxed))
    }

    /// Which way they travel.
    pub fn direction(&self) -> Direction {
        if self.direction.load(Ordering::Relaxed) == 0 { Direction::ToDevice } else { Direction::ToRam }
    }
}

/// The block is being moved by somebody else; wait until the transit ends.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Error)]
#[error("the block is in transit; wait until the transit ends")]
pub struct TransitBusy {
    /// The value of the block's transit word before the wait.
    pub seen: u32,
}
