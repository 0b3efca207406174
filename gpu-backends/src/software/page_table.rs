//! A page table over 47 bits of addresses with leaves of 4 KiB, 64 KiB and 2 MiB: the device's (targets are
//! device memory or IOVAs) and the IOMMU's (targets are addresses of the process).
//!
//! # Shape
//! Four levels of 512 entries (bits 39, 30, 21, 12), in one lazily filled private slab; node 0 is the root. A
//! 2 MiB leaf stands in level 1. A 64 KiB leaf is 16 neighbouring entries of level 0 that carry `JOINED`: their
//! targets are consecutive, aligned to 64 KiB, with the same permission.
//!
//! Their bits are explained in `page_entry`.
//!
//! # Rules
//! 1. Changes are made under the table's lock; walkers take no lock. An entry is stored with release after the
//!    node behind it is filled, and loaded with acquire.
//! 2. A node that is taken out may still be walked. It is used again only after a flush that began later has
//!    completed: its stamp is the generation at which it was taken out, and `Quiet` can force such a flush.
//!    Whoever holds the lock may wait for engines, for engines never take it.
//! 3. Every 2 MiB leaf keeps one node in reserve, so that splitting it, and with it `clear`, cannot fail.
//! 4. `set` finds out what it needs before it changes anything.
//! 5. Leaves are merged when their parts fit together again after a change.

use granule::os::FutexPark;
use granule::os::private::{PrivateError, Slab};
use granule::sync::{AtomicU32, AtomicU64, Ordering, WordLock};
use granule::units::{Access, BLOCK_BYTES, PAGE_BYTES, SPACE_BYTES};

use super::page_entry::{
    Edit, FANOUT, JOINED, JOINED_BYTES, JOINED_PAGES, LEAF, SYSTEM, TARGET, VALID, WRITE, block_end, index,
    join, leaf,
};
pub(crate) use super::page_entry::{Found, Leaf};

/// The table's lock is all that is waited for, so no memory is left.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct OutOfNodes;

/// How many leaves of each size a table holds.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct LeafCounts {
    /// Leaves of 4 KiB.
    pub small: u64,
    /// Leaves of 64 KiB.
    pub medium: u64,
    /// Leaves of 2 MiB.
    pub large: u64,
}

/// What the table asks of whoever stops engines.
pub(crate) trait Quiet {
    /// The number of the latest flush that has begun.
    fn generation(&self) -> u64;
    /// The number up to which flushes are complete.
    fn completed(&self) -> u64;
    /// A whole flush.
    fn flush_all(&self);
}

pub(crate) struct PageTable {
    entries: Slab<AtomicU64>,
    /// Valid entries per node.
    live: Slab<AtomicU32>,
    /// Ring of nodes that were taken out, oldest first, each with its stamp.
    out: Slab<AtomicU32>,
    out_stamp: Slab<AtomicU64>,
    lock: WordLock,
    // Under `lock`; atomics only because the table is shared.
    fresh: AtomicU64,
    out_put: AtomicU64,
    out_get: AtomicU64,
    reserved: AtomicU64,
    nodes: u64,
}

impl PageTable {
    /// An empty table of at most `nodes` nodes (of 4 KiB) of which none but the root costs memory yet.
    pub(crate) fn new(nodes: usize) -> Result<Self, PrivateError> {
        Ok(Self {
            entries: Slab::new(nodes * FANOUT)?,
            live: Slab::new(nodes)?,
            out: Slab::new(nodes)?,
            out_stamp: Slab::new(nodes)?,
            lock: WordLock::new(),
            fresh: AtomicU64::new(1),
            out_put: AtomicU64::new(0),
            out_get: AtomicU64::new(0),
            reserved: AtomicU64::new(0),
            nodes: nodes as u64,
        })
    }

    /// Every node, one page each, for a device that walks the table itself.
    #[cfg(feature = "vulkan")]
    pub(crate) fn nodes(&self) -> &[AtomicU64] {
        &self.entries
    }

    fn entry(&self, node: u64, index: usize) -> &AtomicU64 {
        &self.entries[node as usize * FANOUT + index]
    }

    /// What stands at an address. Takes no lock.
    pub(crate) fn find(&self, at: u64) -> Found {
        if at >= SPACE_BYTES {
            return Found::Hole(u64::MAX);
        }
        let mut node = 0;
        for shift in [39, 30, 21] {
            let entry = self.entry(node, index(at, shift)).load(Ordering::Acquire);
            if entry & VALID == 0 {
                return Found::Hole(((at >> shift) + 1) << shift);
            }
            if entry & LEAF != 0 {
                return Found::Leaf(leaf(at, BLOCK_BYTES, entry, entry & TARGET));
            }
            node = entry >> 12;
        }
        let entry = self.entry(node, index(at, 12)).load(Ordering::Acquire);
        if entry & VALID == 0 {
            return Found::Hole((at | (PAGE_BYTES - 1)) + 1);
        }
        let target = entry & TARGET;
        if entry & JOINED != 0 {
            return Found::Leaf(leaf(at, JOINED_BYTES, entry, target & !(JOINED_BYTES - 1)));
        }
        Found::Leaf(leaf(at, PAGE_BYTES, entry, target))
    }

    /// The first page of the range that is (or is not) mapped.
    pub(crate) fn first(&self, at: u64, bytes: u64, mapped: bool) -> Option<u64> {
        let (mut here, end) = (at, at + bytes);
        while here < end {
            let next = match self.find(here) {
                Found::Leaf(_) if mapped => return Some(here),
                Found::Hole(_) if !mapped => return Some(here),
                Found::Leaf(leaf) => leaf.base + leaf.bytes,
                Found::Hole(until) => until,
            };
            here = next;
        }
        None
    }

    /// Maps a range to consecutive targets, over whatever was there.
    pub(crate) fn set(
        &self,
        at: u64,
        bytes: u64,
        target: u64,
        system: bool,
        access: Access,
        quiet: &dyn Quiet,
    ) -> Result<(), OutOfNodes> {
        let _held = self.lock.lock(&FutexPark);
        self.set_locked(at, bytes, target, system, access, quiet)
    }

    fn set_locked(
        &self,
        at: u64,
        bytes: u64,
        target: u64,
        system: bool,
        access: Access,
        quiet: &dyn Quiet,
    ) -> Result<(), OutOfNodes> {
        let needed = self.nodes_needed(at, bytes);
        let free = self.nodes - self.fresh.load(Ordering::Relaxed) + self.out_len();
        if needed + self.reserved.load(Ordering::Relaxed) > free {
            return Err(OutOfNodes);
        }
        let bits = VALID | if system { SYSTEM } else { 0 } | if access == Access::Write { WRITE } else { 0 };
        self.edit(at, bytes, Edit::Set { target, bits }, quiet);
        Ok(())
    }

    /// Removes a range; holes are fine.
    pub(crate) fn clear(&self, at: u64, bytes: u64, quiet: &dyn Quiet) {
        let _held = self.lock.lock(&FutexPark);
        self.edit(at, bytes, Edit::Clear, quiet);
    }

    /// Removes a range that is wholly mapped; else says which page is not, and changes nothing.
    pub(crate) fn clear_present(&self, at: u64, bytes: u64, quiet: &dyn Quiet) -> Result<(), u64> {
        let _held = self.lock.lock(&FutexPark);
        if let Some(page) = self.first(at, bytes, false) {
            return Err(page);
        }
        self.edit(at, bytes, Edit::Clear, quiet);
        Ok(())
    }

    /// Changes the permission of a range that is wholly mapped; else says which page is not.
    pub(crate) fn protect(&self, at: u64, bytes: u64, access: Access, quiet: &dyn Quiet) -> Result<(), u64> {
        let _held = self.lock.lock(&FutexPark);
        if let Some(page) = self.first(at, bytes, false) {
            return Err(page);
        }
        self.edit(at, bytes, Edit::Protect { write: access == Access::Write }, quiet);
        Ok(())
    }

    /// Nodes that mapping the range may take, reserves included.
    fn nodes_needed(&self, at: u64, bytes: u64) -> u64 {
        let (mut here, end) = (at, at + bytes);
        let (mut upper_39, mut upper_30) = (u64::MAX, u64::MAX);
        let mut needed = 0;
        while here < end {
            let mut node = Some(0);
            for (shift, seen) in [(39, &mut upper_39), (30, &mut upper_30)] {
                let entry = node.map(|node| self.entry(node, index(here, shift)).load(Ordering::Relaxed));
                node = entry.filter(|entry| entry & VALID != 0).map(|entry| entry >> 12);
                if node.is_none() && *seen != here >> shift {
                    *seen = here >> shift;
                    needed += 1;
                }
            }
            let entry = node.map_or(0, |node| self.entry(node, index(here, 21)).load(Ordering::Relaxed));
            // Nothing there: a node or a reserve. A table that a large leaf may replace: a reserve.
            needed += u64::from(entry & LEAF == 0);
            here = block_end(here);
        }
        needed
    }

    fn edit(&self, at: u64, bytes: u64, edit: Edit, quiet: &dyn Quiet) {
        let (mut here, end) = (at, at + bytes);
        while here < end {
            let until = end.min(block_end(here));
            let step = edit.advanced(here - at);
            if matches!(edit, Edit::Set { .. }) {
                self.edit_block(here, until, step, quiet);
            } else if let Found::Hole(next) = self.find(here & !(BLOCK_BYTES - 1))
                && next >= until
                && next - here > BLOCK_BYTES
            {
                // A whole upper table is missing: nothing to clear or to protect in it.
                here = next;
                continue;
            } else {
                self.edit_block(here, until, step, quiet);
            }
            here = until;
        }
    }

    /// One block's part of an edit.
    fn edit_block(&self, from: u64, until: u64, edit: Edit, quiet: &dyn Quiet) {
        let Some(path) = self.path(from, matches!(edit, Edit::Set { .. }), quiet) else { return };
        let slot = self.entry(path[2], index(from, 21));
        let old = slot.load(Ordering::Relaxed);
        let whole = until - from == BLOCK_BYTES;
        match (old & VALID != 0, old & LEAF != 0, edit) {
            (_, _, Edit::Set { target, bits }) if whole && target % BLOCK_BYTES == 0 => {
                slot.store(target | bits | LEAF, Ordering::Release);
                if old & LEAF == 0 {
                    self.reserved.fetch_add(1, Ordering::Relaxed);
                }
                self.count_live(path[2], old & VALID != 0, true);
                if old & VALID != 0 && old & LEAF == 0 {
                    self.take_out(old >> 12, quiet);
                }
                return;
            }
            (true, _, Edit::Clear) if whole => {
                slot.store(0, Ordering::Release);
                if old & LEAF != 0 {
                    self.reserved.fetch_sub(1, Ordering::Relaxed);
                } else {
                    self.take_out(old >> 12, quiet);
                }
                self.count_live(path[2], true, false);
                self.prune(from, path, quiet);
                return;
            }
            (true, true, Edit::Protect { write }) if whole => {
                slot.store((old & !WRITE) | if write { WRITE } else { 0 }, Ordering::Release);
                return;
            }
            (false, _, Edit::Clear | Edit::Protect { .. }) => return,
            // What the large leaf says already.
            (true, true, Edit::Set { target, bits })
                if old == (target.wrapping_sub(from % BLOCK_BYTES) | bits | LEAF) =>
            {
                return;
            }
            _ => {}
        }
        let node = match (old & VALID != 0, old & LEAF != 0) {
            (false, _) => {
                let node = self.take_node(quiet);
                self.count_live(path[2], false, true);
                slot.store(node << 12 | VALID, Ordering::Release);
                node
            }
            (true, true) => self.split(slot, old, quiet),
            (true, false) => old >> 12,
        };
        self.edit_pages(node, index(from, 12), ((until - from) / PAGE_BYTES) as usize, edit);
        match self.live[node as usize].load(Ordering::Relaxed) as usize {
            0 => {
                slot.store(0, Ordering::Release);
                self.take_out(node, quiet);
                self.count_live(path[2], true, false);
                self.prune(from, path, quiet);
            }
            FANOUT => self.merge(slot, node, quiet),
            _ => {}
        }
    }

    /// Changes entries of level 0 and makes the 64 KiB leaves right around them.
    fn edit_pages(&self, node: u64, first: usize, pages: usize, edit: Edit) {
        let entries = &self.entries[node as usize * FANOUT..][..FANOUT];
        let groups = (first / JOINED_PAGES)..(first + pages).div_ceil(JOINED_PAGES);
        // A leaf that is hit in part is none any more, before any of its entries changes.
        for group in groups.clone() {
            let group = group * JOINED_PAGES;
            if group >= first && group + JOINED_PAGES <= first + pages {
                continue;
            }
            for entry in &entries[group..group + JOINED_PAGES] {
                entry.store(entry.load(Ordering::Relaxed) & !JOINED, Ordering::Release);
            }
        }
        let (mut came, mut went) = (0, 0);
        for (page, entry) in entries[first..first + pages].iter().enumerate() {
            let old = entry.load(Ordering::Relaxed);
            let new = edit.apply(page, old);
            entry.store(new, Ordering::Release);
            came += (new & VALID) as u32;
            went += (old & VALID) as u32;
        }
        let live = &self.live[node as usize];
        live.store(live.load(Ordering::Relaxed) + came - went, Ordering::Relaxed);
        if !matches!(edit, Edit::Clear) {
            groups.for_each(|group| join(&entries[group * JOINED_PAGES..][..JOINED_PAGES]));
        }
    }

    /// Replaces a full node by a leaf of 2 MiB if its entries fit together. The node that goes is the reserve.
    fn merge(&self, slot: &AtomicU64, node: u64, quiet: &dyn Quiet) {
        let head = self.entry(node, 0).load(Ordering::Relaxed);
        if head & JOINED == 0 || !(head & TARGET).is_multiple_of(BLOCK_BYTES) {
            return;
        }
        let fits = |group: usize| {
            let entry = self.entry(node, group * JOINED_PAGES).load(Ordering::Relaxed);
            entry == head + group as u64 * JOINED_BYTES
        };
        if (1..FANOUT / JOINED_PAGES).all(fits) {
            slot.store((head & !JOINED) | LEAF, Ordering::Release);
            self.reserved.fetch_add(1, Ordering::Relaxed);
            self.take_out(node, quiet);
        }
    }

    /// Replaces a leaf of 2 MiB by a table that says the same.
    fn split(&self, slot: &AtomicU64, leaf: u64, quiet: &dyn Quiet) -> u64 {
        self.reserved.fetch_sub(1, Ordering::Relaxed);
        let node = self.take_node(quiet);
        for page in 0..FANOUT {
            let entry = ((leaf & !LEAF) + page as u64 * PAGE_BYTES) | JOINED;
            self.entry(node, page).store(entry, Ordering::Relaxed);
        }
        self.live[node as usize].store(FANOUT as u32, Ordering::Relaxed);
        slot.store(node << 12 | VALID, Ordering::Release);
        node
    }

    /// The nodes of levels 3, 2 and 1 on the way to an address.
    fn path(&self, at: u64, make: bool, quiet: &dyn Quiet) -> Option<[u64; 3]> {
        let mut path = [0; 3];
        for (level, shift) in [(0, 39), (1, 30)] {
            let slot = self.entry(path[level], index(at, shift));
            let mut entry = slot.load(Ordering::Relaxed);
            if entry & VALID == 0 {
                if !make {
                    return None;
                }
                entry = self.take_node(quiet) << 12 | VALID;
                self.count_live(path[level], false, true);
                slot.store(entry, Ordering::Release);
            }
            path[level + 1] = entry >> 12;
        }
        Some(path)
    }

    /// Takes out nodes on the way to `at` that became empty.
    fn prune(&self, at: u64, path: [u64; 3], quiet: &dyn Quiet) {
        for (level, shift) in [(2, 30), (1, 39)] {
            if self.live[path[level] as usize].load(Ordering::Relaxed) != 0 {
                return;
            }
            self.entry(path[level - 1], index(at, shift)).store(0, Ordering::Release);
            self.count_live(path[level - 1], true, false);
            self.take_out(path[level], quiet);
        }
    }

    fn count_live(&self, node: u64, before: bool, after: bool) {
        let live = &self.live[node as usize];
        let now = live.load(Ordering::Relaxed) + u32::from(after) - u32::from(before);
        live.store(now, Ordering::Relaxed);
    }

    fn out_len(&self) -> u64 {
        self.out_put.load(Ordering::Relaxed) - self.out_get.load(Ordering::Relaxed)
    }

    fn take_out(&self, node: u64, quiet: &dyn Quiet) {
        let put = self.out_put.load(Ordering::Relaxed);
        let place = (put % self.nodes) as usize;
        self.out[place].store(node as u32, Ordering::Relaxed);
        self.out_stamp[place].store(quiet.generation(), Ordering::Relaxed);
        self.out_put.store(put + 1, Ordering::Relaxed);
    }

    /// An empty node. The caller has made sure that there is one.
    fn take_node(&self, quiet: &dyn Quiet) -> u64 {
        let get = self.out_get.load(Ordering::Relaxed);
        let place = (get % self.nodes) as usize;
        let fresh = self.fresh.load(Ordering::Relaxed);
        let is_quiet = || self.out_stamp[place].load(Ordering::Relaxed) < quiet.completed();
        if self.out_len() == 0 || (fresh < self.nodes && !is_quiet()) {
            assert!(fresh < self.nodes, "a page table takes more nodes than it reserved");
            self.fresh.store(fresh + 1, Ordering::Relaxed);
            return fresh;
        }
        if !is_quiet() {
            quiet.flush_all();
        }
        let node = u64::from(self.out[place].load(Ordering::Relaxed));
        self.out_get.store(get + 1, Ordering::Relaxed);
        for index in 0..FANOUT {
            self.entry(node, index).store(0, Ordering::Relaxed);
        }
        self.live[node as usize].store(0, Ordering::Relaxed);
        node
    }

    /// Counts leaves by looking at all of them; a moving picture while others change the table.
    pub(crate) fn leaves(&self) -> LeafCounts {
        let mut counts = LeafCounts::default();
        let mut at = 0;
        while at < SPACE_BYTES {
            at = match self.find(at) {
                Found::Hole(until) => until,
                Found::Leaf(leaf) => {
                    match leaf.bytes {
                        BLOCK_BYTES => counts.large += 1,
                        JOINED_BYTES => counts.medium += 1,
                        _ => counts.small += 1,
                    }
                    leaf.base + leaf.bytes
                }
            };
        }
        counts
    }

    /// Memory that the table occupies now.
    pub(crate) fn resident_bytes(&self) -> u64 {
        self.entries.resident_bytes()
            + self.live.resident_bytes()
            + self.out.resident_bytes()
            + self.out_stamp.resident_bytes()
    }
}

#[path = "page_table_runs.rs"]
mod runs;
pub(crate) use runs::NotSet;

#[cfg(test)]
#[path = "page_table_tests.rs"]
mod tests;
