use alloc::vec::Vec;

use super::iova_space::{Entry, NONE};

/// First page of a reservation -> its entry: open addressing, linear probing, at most half full.
#[derive(Debug)]
pub(super) struct IovaIndex {
    slots: Vec<u32>,
    used: usize,
}

impl IovaIndex {
    pub(super) const fn new() -> Self {
        Self { slots: Vec::new(), used: 0 }
    }

    pub(super) fn state_bytes(&self) -> usize {
        self.slots.capacity() * size_of::<u32>()
    }

    /// Where a page is looked for first. The slots are a power of two.
    fn home(&self, first: u64) -> usize {
        // The golden ratio's bits spread neighbours; the upper half of the product is the mixed one.
        let mixed = first.wrapping_mul(0x9e37_79b9_7f4a_7c15) >> 32;
        mixed as usize & (self.slots.len() - 1)
    }

    /// The slot of a page's entry, or the vacant one where it would stand.
    fn slot(&self, entries: &[Entry], first: u64) -> usize {
        let mut at = self.home(first);
        while self.slots[at] != NONE && entries[self.slots[at] as usize].first != first {
            at = (at + 1) & (self.slots.len() - 1);
        }
        at
    }

    pub(super) fn find(&self, entries: &[Entry], first: u64) -> Option<u32> {
        if self.slots.is_empty() {
            return None;
        }
        let no = self.slots[self.slot(entries, first)];
        (no != NONE).then_some(no)
    }

    pub(super) fn insert(&mut self, entries: &[Entry], no: u32) {
        if (self.used + 1) * 2 > self.slots.len() {
            let old = core::mem::take(&mut self.slots);
            self.slots = alloc::vec![NONE; (old.len() * 2).max(16)];
            for no in old.into_iter().filter(|no| *no != NONE) {
                let at = self.slot(entries, entries[no as usize].first);
                self.slots[at] = no;
            }
        }
        let at = self.slot(entries, entries[no as usize].first);
        self.slots[at] = no;
        self.used += 1;
    }

    pub(super) fn remove(&mut self, entries: &[Entry], first: u64) -> Option<u32> {
        let no = self.find(entries, first)?;
        let mask = self.slots.len() - 1;
        let mut hole = self.slot(entries, first);
        let mut at = hole;
        // Whoever was pushed past the hole moves back into it.
        loop {
            at = (at + 1) & mask;
            if self.slots[at] == NONE {
                break;
            }
            let home = self.home(entries[self.slots[at] as usize].first);
            if at.wrapping_sub(home) & mask >= at.wrapping_sub(hole) & mask {
                self.slots[hole] = self.slots[at];
                hole = at;
            }
        }
        self.slots[hole] = NONE;
        self.used -= 1;
        Some(no)
    }
}
