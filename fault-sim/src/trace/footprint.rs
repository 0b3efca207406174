use std::collections::HashMap;

use granule::units::{PAGES_PER_BLOCK, PageIndex, PageMask};

/// log2 of the blocks in a leaf of the map.
const LEAF_SHIFT: u32 = 8;
/// Leaf numbers below this are looked up in an array: 128 TiB of addresses from 0 on.
const NEAR_LEAVES: usize = 1 << 18;

/// Numbers the blocks (2 MiB) of a 64-bit address space in the order in which they are first asked for.
///
/// A look-up is two loads for addresses below 2^47 and one hash for those beyond; nothing is kept for what was never
/// asked for but the leaf (512 MiB) around what was.
#[derive(Debug)]
pub struct BlockMap {
    /// Leaf number to position in `leaves`, plus one.
    near: Vec<u32>,
    far: HashMap<u64, u32>,
    /// Block to number, plus one.
    leaves: Vec<[u32; 1 << LEAF_SHIFT]>,
    /// Number to block.
    blocks: Vec<u64>,
}

impl Default for BlockMap {
    fn default() -> Self {
        Self { near: vec![0; NEAR_LEAVES], far: HashMap::new(), leaves: Vec::new(), blocks: Vec::new() }
    }
}

impl BlockMap {
    /// The number of a block (address / 2 MiB), if it was asked for before.
    #[inline]
    pub fn get(&self, block: u64) -> Option<u32> {
        let leaf = block >> LEAF_SHIFT;
        let at = match self.near.get(leaf as usize) {
            Some(at) => *at,
            None => self.far.get(&leaf).copied().unwrap_or(0),
        };
        let leaf = self.leaves.get((at as usize).wrapping_sub(1))?;
        leaf[block as usize % (1 << LEAF_SHIFT)].checked_sub(1)
    }

    /// The number of a block; the next free one if it has none yet.
    #[inline]
    pub fn get_or_add(&mut self, block: u64) -> u32 {
        match self.get(block) {
            Some(number) => number,
            None => self.add(block),
        }
    }

    #[cold]
    fn add(&mut self, block: u64) -> u32 {
        let leaf = block >> LEAF_SHIFT;
        let at = match self.near.get_mut(leaf as usize) {
            Some(at) => at,
            None => self.far.entry(leaf).or_insert(0),
        };
        if *at == 0 {
            self.leaves.push([0; 1 << LEAF_SHIFT]);
            *at = self.leaves.len() as u32;
        }
        self.blocks.push(block);
        let number = self.blocks.len() as u32;
        self.leaves[*at as usize - 1][block as usize % (1 << LEAF_SHIFT)] = number;
        number - 1
    }

    /// How many blocks have a number.
    pub fn len(&self) -> usize {
        self.blocks.len()
    }

    /// Whether none has.
    pub fn is_empty(&self) -> bool {
        self.blocks.is_empty()
    }

    /// The block with a number. Asserts that there is one.
    #[inline]
    pub fn block(&self, number: u32) -> u64 {
        self.blocks[number as usize]
    }
}

/// Which pages were touched: 64 bytes for each block that was.
#[derive(Debug, Default)]
pub struct Footprint {
    map: BlockMap,
    pages: Vec<PageMask>,
}

impl Footprint {
    /// Adds a page (address / 4096).
    #[inline]
    pub fn add(&mut self, page: u64) {
        let block = self.map.get_or_add(page / PAGES_PER_BLOCK as u64) as usize;
        if block == self.pages.len() {
            self.pages.push(PageMask::EMPTY);
        }
        self.pages[block].insert(PageIndex((page % PAGES_PER_BLOCK as u64) as u16));
    }

    /// Distinct pages.
    pub fn pages(&self) -> u64 {
        self.pages.iter().map(|mask| mask.count() as u64).sum()
    }

    /// Blocks with a touched page.
    pub fn blocks(&self) -> u64 {
        self.pages.len() as u64
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn blocks_are_numbered_once_wherever_they_lie() {
        let mut map = BlockMap::default();
        let last = u64::MAX >> 21;
        let blocks = [0, last, 5, 1 << 26, (1 << 26) - 1, last - 1, 256];
        for (number, block) in (0..).zip(blocks) {
            assert_eq!(map.get(block), None);
            assert_eq!(map.get_or_add(block), number);
        }
        for (number, block) in (0..).zip(blocks) {
            assert_eq!(
                (map.get(block), map.get_or_add(block), map.block(number)),
                (Some(number), number, block)
            );
        }
        assert_eq!((map.len(), map.get(6)), (7, None));
    }

    #[test]
    fn pages_count_once() {
        let mut footprint = Footprint::default();
        for page in [0, 1, 0, 511, 512, u64::MAX >> 12, u64::MAX >> 12] {
            footprint.add(page);
        }
        assert_eq!((footprint.pages(), footprint.blocks()), (5, 3));
    }
}
