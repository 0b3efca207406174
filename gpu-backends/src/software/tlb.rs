//! The translations that one engine remembers.
//!
//! Lives on the engine's own (private) stack and is touched by that engine alone. Nothing is ever invalidated
//! entry by entry: a translation carries the generation in which it was looked up and is good in that one only,
//! so a flush is one increment and a whole engine's TLB is void at once. Filling it again costs a walk of some
//! tens of nanoseconds per leaf.

use granule::units::{BLOCK_BYTES, PAGE_BYTES};

use super::page_table::Leaf;

const SLOTS: usize = 64;
/// log2 of the leaf sizes, largest first.
const SHIFTS: [u32; 3] = [21, 16, 12];

#[derive(Clone, Copy, Default)]
struct Slot {
    /// Generations count from 1, so that an empty slot is never good.
    generation: u64,
    leaf: Leaf,
}

/// Direct-mapped, one array per leaf size.
pub(crate) struct Tlb {
    slots: [[Slot; SLOTS]; 3],
    last: (usize, usize),
}

impl Tlb {
    pub(crate) fn new() -> Self {
        Self { slots: [[Slot::default(); SLOTS]; 3], last: (0, 0) }
    }

    /// The translation of an address, if it is known in this generation.
    #[inline]
    pub(crate) fn get(&mut self, at: u64, generation: u64) -> Option<Leaf> {
        let last = &self.slots[self.last.0][self.last.1];
        if last.generation == generation && at.wrapping_sub(last.leaf.base) < last.leaf.bytes {
            return Some(last.leaf);
        }
        for (size, shift) in SHIFTS.into_iter().enumerate() {
            let place = (at >> shift) as usize % SLOTS;
            let slot = &self.slots[size][place];
            if slot.generation == generation && at.wrapping_sub(slot.leaf.base) < slot.leaf.bytes {
                self.last = (size, place);
                return Some(slot.leaf);
            }
        }
        None
    }

    /// Remembers a translation that was looked up in this generation.
    pub(crate) fn put(&mut self, leaf: Leaf, generation: u64) {
        let size = match leaf.bytes {
            BLOCK_BYTES => 0,
            PAGE_BYTES => 2,
            _ => 1,
        };
        let place = (leaf.base >> SHIFTS[size]) as usize % SLOTS;
        self.slots[size][place] = Slot { generation, leaf };
        self.last = (size, place);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_translation_is_good_in_its_generation_and_range_only() {
        let mut tlb = Tlb::new();
        for (bytes, base) in [(BLOCK_BYTES, 0x40_0000), (1 << 16, 0x81_0000), (PAGE_BYTES, 0x90_3000)] {
            let leaf = Leaf { base, bytes, target: 0x1000, system: false, write: true };
            assert_eq!(tlb.get(base, 0), None, "an empty slot is never good");
            tlb.put(leaf, 5);
            assert_eq!(tlb.get(base + bytes - 1, 5), Some(leaf));
            assert_eq!(tlb.get(base + bytes, 5), None);
            assert_eq!(tlb.get(base - 1, 5), None);
            assert_eq!(tlb.get(base, 6), None);
        }
        assert!(tlb.get(0x40_0000, 5).is_some(), "sizes do not displace one another");
    }
}
