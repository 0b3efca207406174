//! The sizes of page, block and granule. Under the loom build a block has 64 pages, so that a bitmap is one
//! word and a model stays small; every algorithm is written in terms of these constants.

/// log2 of the page size in bytes.
pub const PAGE_SHIFT: u32 = 12;
/// The page size: 4 KiB. The only unit in which state is kept.
pub const PAGE_BYTES: u64 = 1 << PAGE_SHIFT;
/// log2 of the block size in bytes.
pub const BLOCK_SHIFT: u32 = if cfg!(granule_loom) { 18 } else { 21 };
/// The block size: 2 MiB (256 KiB under loom).
pub const BLOCK_BYTES: u64 = 1 << BLOCK_SHIFT;
/// Pages in a block: 512 (64 under loom).
pub const PAGES_PER_BLOCK: usize = 1 << (BLOCK_SHIFT - PAGE_SHIFT);
/// 64-bit words in a bitmap of one block.
pub const MASK_WORDS: usize = PAGES_PER_BLOCK / 64;
/// log2 of the granule size in bytes.
pub const GRANULE_SHIFT: u32 = if cfg!(granule_loom) { 19 } else { 29 };
/// The granule size: 512 MiB (512 KiB under loom).
pub const GRANULE_BYTES: u64 = 1 << GRANULE_SHIFT;
/// Blocks in a granule: 256 (2 under loom).
pub const BLOCKS_PER_GRANULE: usize = 1 << (GRANULE_SHIFT - BLOCK_SHIFT);
/// Pages in a granule: 131,072 (128 under loom).
pub const PAGES_PER_GRANULE: usize = PAGES_PER_BLOCK * BLOCKS_PER_GRANULE;
/// Pages in a 64 KiB slot of device memory.
pub const PAGES_PER_SLOT_64K: usize = 16;
/// 64 KiB slots that cover a block: 32 (4 under loom).
pub const SLOTS_64K_PER_BLOCK: usize = PAGES_PER_BLOCK / PAGES_PER_SLOT_64K;
/// Bytes of user address space that the table covers: 47 bits.
pub const SPACE_BYTES: u64 = 1 << 47;
