//! The entries of a page table: their bits, what they say, and how a run of them changes. The table around them
//! is in `page_table`.
//!
//! | bit of an entry | set means |
//! |---|---|
//! | `VALID` | it leads somewhere |
//! | `WRITE` | writes are permitted |
//! | `SYSTEM` | the target is an address on the far side, not device memory |
//! | `LEAF` | in level 1: a leaf of 2 MiB, not a table |
//! | `JOINED` | in level 0: part of a leaf of 64 KiB |
//! | from 12 | the target's page, or the number of the next node |

use granule::sync::{AtomicU64, Ordering};
use granule::units::{Access, BLOCK_BYTES, PAGE_BYTES};

pub(super) const VALID: u64 = 1;
pub(super) const WRITE: u64 = 2;
pub(super) const SYSTEM: u64 = 4;
pub(super) const LEAF: u64 = 8;
pub(super) const JOINED: u64 = 16;
pub(super) const TARGET: u64 = !(PAGE_BYTES - 1);

pub(super) const FANOUT: usize = 512;
pub(super) const JOINED_PAGES: usize = 16;
pub(super) const JOINED_BYTES: u64 = JOINED_PAGES as u64 * PAGE_BYTES;

/// A translation.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub(crate) struct Leaf {
    /// First address that it translates.
    pub base: u64,
    /// How many bytes it translates: 4 KiB, 64 KiB or 2 MiB.
    pub bytes: u64,
    /// What `base` leads to.
    pub target: u64,
    /// The target lies on the far side, not in device memory.
    pub system: bool,
    /// Writes are permitted.
    pub write: bool,
}

impl Leaf {
    pub(crate) fn covers(&self, access: Access) -> bool {
        self.write || access == Access::Read
    }
}

/// What stands at an address: a leaf, or a hole up to an address (exclusive).
pub(crate) enum Found {
    Leaf(Leaf),
    Hole(u64),
}

/// One change of a run of pages.
#[derive(Clone, Copy)]
pub(super) enum Edit {
    /// To consecutive targets: what the first page gets, and the bits.
    Set {
        target: u64,
        bits: u64,
    },
    Clear,
    Protect {
        write: bool,
    },
}

impl Edit {
    pub(super) fn advanced(self, bytes: u64) -> Self {
        match self {
            Edit::Set { target, bits } => Edit::Set { target: target + bytes, bits },
            other => other,
        }
    }
    pub(super) fn apply(self, index: usize, old: u64) -> u64 {
        match self {
            Edit::Set { target, bits } => (target + index as u64 * PAGE_BYTES) | bits,
            Edit::Clear => 0,
            Edit::Protect { .. } if old & VALID == 0 => 0,
            Edit::Protect { write } => (old & !(WRITE | JOINED)) | if write { WRITE } else { 0 },
        }
    }
}

/// Makes 16 entries a leaf of 64 KiB if they fit together.
pub(super) fn join(entries: &[AtomicU64]) {
    let head = entries[0].load(Ordering::Relaxed) & !JOINED;
    if head & VALID == 0 || !(head & TARGET).is_multiple_of(JOINED_BYTES) {
        return;
    }
    let fits = |(entry, page): (&AtomicU64, u64)| {
        entry.load(Ordering::Relaxed) & !JOINED == head + page * PAGE_BYTES
    };
    if entries.iter().zip(0..).all(fits) {
        for entry in entries {
            entry.store(entry.load(Ordering::Relaxed) | JOINED, Ordering::Release);
        }
    }
}

pub(super) fn index(at: u64, shift: u32) -> usize {
    (at >> shift) as usize % FANOUT
}

pub(super) fn block_end(at: u64) -> u64 {
    (at | (BLOCK_BYTES - 1)) + 1
}

pub(super) fn leaf(at: u64, bytes: u64, entry: u64, target: u64) -> Leaf {
    let (system, write) = (entry & SYSTEM != 0, entry & WRITE != 0);
    Leaf { base: at & !(bytes - 1), bytes, target, system, write }
}
