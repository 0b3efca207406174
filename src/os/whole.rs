//! Which blocks left the CPU as one huge page and have not come back since: they come back as one.
//!
//! A hint, never a truth: the kernel may split a huge page at any moment. A wrong bit costs time, not data.

use core::sync::atomic::{AtomicU64, Ordering};

use super::private::{PrivateError, Slab};
use crate::units::{BLOCK_BYTES, BlockNo, SPACE_BYTES};

const WORD_BITS: u64 = u64::BITS as u64;

/// One bit per block of the address space, filled as blocks move.
pub(super) struct WholeBlocks(Slab<AtomicU64>);

impl WholeBlocks {
    pub(super) fn new() -> Result<Self, PrivateError> {
        Ok(Self(Slab::new((SPACE_BYTES / BLOCK_BYTES / WORD_BITS) as usize)?))
    }

    fn place(&self, block: BlockNo) -> (&AtomicU64, u64) {
        let number = u64::from(block.0);
        (&self.0[(number / WORD_BITS) as usize], 1 << (number % WORD_BITS))
    }

    pub(super) fn contains(&self, block: BlockNo) -> bool {
        let (word, bit) = self.place(block);
        word.load(Ordering::Relaxed) & bit != 0
    }

    /// Enters a block, or takes it out.
    pub(super) fn set(&self, block: BlockNo, whole: bool) {
        if self.contains(block) == whole {
            return;
        }
        let (word, bit) = self.place(block);
        if whole {
            word.fetch_or(bit, Ordering::Relaxed);
        } else {
            word.fetch_and(!bit, Ordering::Relaxed);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_block_has_a_bit_of_its_own() {
        let whole = WholeBlocks::new().expect("private memory");
        let last = BlockNo((SPACE_BYTES / BLOCK_BYTES - 1) as u32);
        for block in [BlockNo(64), BlockNo(65), last] {
            whole.set(block, true);
            whole.set(block, true);
        }
        assert!(whole.contains(BlockNo(64)) && whole.contains(last) && !whole.contains(BlockNo(63)));
        whole.set(BlockNo(65), false);
        assert!(whole.contains(BlockNo(64)) && !whole.contains(BlockNo(65)));
    }
}
