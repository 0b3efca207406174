use super::Bitmap;
use crate::ports::StagingId;
use crate::sync::{LockedU32, Ordering};
use crate::units::{BlockNo, PageMask};

/// Pages of one block whose data waits in a staging slot until the kernel lets them be given to the application:
/// mremap moved them while they were on a device. Only the reader touches it.
#[derive(Debug, Default)]
#[repr(C, align(64))]
pub struct HomecomingRecord {
    pages: Bitmap,
    /// Of these, the pages whose data could not be read.
    broken: Bitmap,
    block: LockedU32,
    staging: LockedU32,
}

/// The list of homecomings of one space. Owned by the reader: no lock.
#[derive(Debug)]
pub struct Homecomings<'m> {
    records: &'m [HomecomingRecord],
    used: LockedU32,
}

impl<'m> Homecomings<'m> {
    /// An empty list with room for one entry per record.
    pub fn new(records: &'m [HomecomingRecord]) -> Self {
        Self { records, used: LockedU32::new(0) }
    }

    /// How many entries there are.
    pub fn len(&self) -> usize {
        self.used.load(Ordering::Relaxed) as usize
    }

    /// Whether nothing waits.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Whether another entry fits.
    pub fn has_room(&self) -> bool {
        self.len() < self.records.len()
    }

    /// Adds an entry. Asserts that there is room.
    pub fn push(&self, block: BlockNo, pages: &PageMask, staging: StagingId) {
        let at = self.len();
        self.records[at].pages.store(pages);
        self.records[at].broken.store(&PageMask::EMPTY);
        self.records[at].block.store(block.0, Ordering::Relaxed);
        self.records[at].staging.store(staging.0, Ordering::Relaxed);
        self.used.store(at as u32 + 1, Ordering::Relaxed);
    }

    /// Entry `at`: block, pages, staging.
    pub fn get(&self, at: usize) -> (BlockNo, PageMask, StagingId) {
        let record = &self.records[at];
        (
            BlockNo(record.block.load(Ordering::Relaxed)),
            record.pages.load(),
            StagingId(record.staging.load(Ordering::Relaxed)),
        )
    }

    /// The pages of entry `at` of which there are no data: nothing of them can come home but that they are lost.
    pub fn broken(&self, at: usize) -> PageMask {
        self.records[at].broken.load()
    }

    /// Notes that pages of entry `at` could not be read.
    pub fn mark_broken(&self, at: usize, pages: &PageMask) {
        debug_assert!(self.records[at].pages.load().covers(pages));
        self.records[at].broken.insert(pages);
    }

    /// Adds pages to entry `at`.
    pub fn add_pages(&self, at: usize, pages: &PageMask) {
        self.records[at].pages.insert(pages);
    }

    /// Takes pages out of entry `at`.
    pub fn remove_pages(&self, at: usize, pages: &PageMask) {
        self.records[at].pages.remove(pages);
        self.records[at].broken.remove(pages);
    }

    /// Removes entry `at`; the last one takes its place.
    pub fn swap_remove(&self, at: usize) {
        let last = self.len() - 1;
        if at != last {
            let (block, pages, staging) = self.get(last);
            self.records[at].pages.store(&pages);
            self.records[at].broken.store(&self.broken(last));
            self.records[at].block.store(block.0, Ordering::Relaxed);
            self.records[at].staging.store(staging.0, Ordering::Relaxed);
        }
        self.used.store(last as u32, Ordering::Relaxed);
    }
}
