use super::Count;
use crate::sync::{AtomicU64, Ordering};

/// Copies of every counter. A power of two.
const SHARDS: usize = 16;

/// Stacks lie at least so far apart: 64 KiB.
const STACK_SHIFT: u32 = 16;

/// All counters once, in cache lines of their own.
#[derive(Debug)]
#[repr(C, align(128))]
struct Shard([AtomicU64; Count::ALL.len()]);

/// Counters that many threads add to without meeting: each thread adds to the copy that the address of its stack picks,
/// and whoever reads adds the copies up. (Not by thread-local storage: on the stack of a fault handler that of the
/// application's thread is out of bounds, design rule 2.) Two threads may pick the same copy; that costs time and no
/// count.
#[derive(Debug)]
pub struct Counts {
    shards: [Shard; SHARDS],
}

impl Counts {
    /// All zero.
    pub fn new() -> Self {
        let zeros = || Shard(core::array::from_fn(|_| AtomicU64::new(0)));
        Self { shards: core::array::from_fn(|_| zeros()) }
    }

    /// Adds `n` to a counter. Wraps at 2^64.
    #[inline]
    pub fn add(&self, what: Count, n: u64) {
        if n > 0 {
            self.shards[own_shard()].0[what as usize].fetch_add(n, Ordering::Relaxed);
        }
    }

    /// The sum of a counter's copies. Additions under way may or may not be in it.
    pub fn get(&self, what: Count) -> u64 {
        self.shards.iter().map(|shard| shard.0[what as usize].load(Ordering::Relaxed)).sum()
    }
}

impl Default for Counts {
    fn default() -> Self {
        Self::new()
    }
}

/// The copy of the thread that calls: its stack's number, mixed by a multiplication (Knuth, The Art of Computer
/// Programming, volume 3, 6.4).
#[inline]
fn own_shard() -> usize {
    let on_stack = 0u8;
    let stack = (&raw const on_stack).addr() >> STACK_SHIFT;
    (stack as u32).wrapping_mul(0x9E37_79B1) as usize >> (32 - SHARDS.ilog2())
}
