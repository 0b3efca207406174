//! Mapping what is not mapped yet: many runs with one walk.

use granule::os::FutexPark;
use granule::sync::Ordering;
use granule::units::{Access, BLOCK_BYTES, PAGE_BYTES};

use super::super::page_entry::{
    FANOUT, JOINED_PAGES, LEAF, SYSTEM, TARGET, VALID, WRITE, block_end, index, join,
};
use super::{Edit, OutOfNodes, PageTable, Quiet};

/// Why runs were not mapped; what was is gone again.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum NotSet {
    /// This page is mapped already.
    Present(u64),
    OutOfNodes,
    /// The runs go on beyond the last address.
    Beyond,
}

impl PageTable {
    /// Maps runs (target, bytes) one behind the other from `at` on, below `end`, if nothing is mapped there; says how
    /// many bytes that were. All or nothing. With an error after which something was mapped for a moment, the caller
    /// flushes: the bytes are said then, too.
    pub(crate) fn set_absent(
        &self,
        at: u64,
        end: u64,
        runs: &mut dyn Iterator<Item = (u64, u64)>,
        access: Access,
        quiet: &dyn Quiet,
    ) -> Result<u64, (NotSet, u64)> {
        let _held = self.lock.lock(&FutexPark);
        let mut done = 0;
        for (target, bytes) in runs {
            let here = at + done;
            let result = match here.checked_add(bytes) {
                Some(until) if until <= end => self.set_run(here, bytes, target, access, quiet),
                _ => Err(NotSet::Beyond),
            };
            if let Err(why) = result {
                if done > 0 {
                    self.edit(at, done, Edit::Clear, quiet);
                }
                return Err((why, done));
            }
            done += bytes;
        }
        Ok(done)
    }

    fn set_run(
        &self,
        at: u64,
        bytes: u64,
        target: u64,
        access: Access,
        quiet: &dyn Quiet,
    ) -> Result<(), NotSet> {
        if at + bytes <= block_end(at) && bytes < BLOCK_BYTES && self.put(at, bytes, target, access, quiet) {
            return Ok(());
        }
        if let Some(page) = self.first(at, bytes, true) {
            return Err(NotSet::Present(page));
        }
        self.set_locked(at, bytes, target, true, access, quiet).map_err(|OutOfNodes| NotSet::OutOfNodes)
    }

    /// Enters absent pages of one block that has a table; `false`, with nothing changed, if it is not as simple as that.
    fn put(&self, at: u64, bytes: u64, target: u64, access: Access, quiet: &dyn Quiet) -> bool {
        let Some(path) = self.path(at, false, quiet) else { return false };
        let slot = self.entry(path[2], index(at, 21));
        let table = slot.load(Ordering::Relaxed);
        if table & VALID == 0 || table & LEAF != 0 {
            return false;
        }
        let node = table >> 12;
        let (first, pages) = (index(at, 12), (bytes / PAGE_BYTES) as usize);
        let all = &self.entries[node as usize * FANOUT..][..FANOUT];
        let entries = &all[first..first + pages];
        if entries.iter().any(|entry| entry.load(Ordering::Relaxed) & VALID != 0) {
            return false;
        }
        let bits = VALID | SYSTEM | if access == Access::Write { WRITE } else { 0 };
        for (entry, page) in entries.iter().zip(0..) {
            entry.store(((target + page * PAGE_BYTES) & TARGET) | bits, Ordering::Release);
        }
        // A group with an absent page was no leaf of 64 KiB before; it may be one now.
        for group in first / JOINED_PAGES..(first + pages).div_ceil(JOINED_PAGES) {
            join(&all[group * JOINED_PAGES..][..JOINED_PAGES]);
        }
        let live = &self.live[node as usize];
        let now = live.load(Ordering::Relaxed) + pages as u32;
        live.store(now, Ordering::Relaxed);
        if now as usize == FANOUT {
            // Takes one node out and none in: the reserve of the leaf is the node that goes.
            self.merge(slot, node, quiet);
        }
        true
    }
}
