//! A long churn of an IOVA space: what it does to what is free.

use std::fmt;

use granule::dma::IovaSpace;
use granule::units::{GRANULE_BYTES, Iova, PAGE_BYTES};

use super::Dice;

/// Reservations that are made in all.
pub const MADE: u64 = 1_000_000;

/// What a million reservations left behind that came and went at nine tenths of use.
pub struct Churned {
    pub total_bytes: u64,
    pub live: usize,
    /// Reservations that found no place: granules, and all others.
    pub failed_granules: u64,
    pub failed: u64,
    pub granules: u64,
    pub free_bytes: u64,
    pub free_ranges: usize,
    pub largest_bytes: u64,
    /// The largest free range when it was smallest.
    pub least_largest_bytes: u64,
    pub state_bytes: usize,
}

impl fmt::Display for Churned {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mib = |bytes: u64| bytes >> 20;
        write!(
            f,
            "{MADE} reservations in {} GiB, {} live at the end; {} failed and {} of {} granules; {} MiB free in {} ranges, \
             the largest {} MiB, never less than {} MiB; {} bytes of state",
            self.total_bytes >> 30,
            self.live,
            self.failed,
            self.failed_granules,
            self.granules,
            mib(self.free_bytes),
            self.free_ranges,
            mib(self.largest_bytes),
            mib(self.least_largest_bytes),
            self.state_bytes,
        )
    }
}

/// What userptrs are, 4 KiB to 16 MiB: mostly small, some of megabytes.
pub fn userptr_bytes(dice: &mut Dice) -> u64 {
    PAGE_BYTES
        * match dice.below(1000) {
            0..=19 => 1 + dice.below(4096),
            20..=199 => 1 + dice.below(512),
            _ => 1 + dice.below(32),
        }
}

/// Userptrs, and among a thousand reservations one granule: half of all bytes.
pub fn userptr_or_granule_bytes(dice: &mut Dice) -> u64 {
    if dice.one_in(1000) { GRANULE_BYTES } else { userptr_bytes(dice) }
}

/// A million reservations come and go in `total` bytes of which nine tenths are in use.
pub fn churn(seed: u64, total: u64, size: impl Fn(&mut Dice) -> u64) -> Churned {
    let mut dice = Dice(seed);
    let base = 4 << 30;
    let mut space = IovaSpace::new((Iova(base), Iova(base + total - 1)), &[]);
    let mut held: Vec<(Iova, u64)> = Vec::new();
    let (mut made, mut failed, mut failed_granules, mut granules) = (0, 0, 0, 0);
    let mut least_largest_bytes = u64::MAX;
    while made < MADE {
        if space.reserved_bytes() < total / 10 * 9 {
            let bytes = size(&mut dice);
            let is_granule = bytes == GRANULE_BYTES;
            made += 1;
            granules += u64::from(is_granule);
            match space.reserve(bytes, if is_granule { 2 << 20 } else { PAGE_BYTES }) {
                Ok(at) => held.push((at, bytes)),
                Err(_) if is_granule => failed_granules += 1,
                Err(_) => failed += 1,
            }
        }
        if space.reserved_bytes() >= total / 10 * 9 {
            least_largest_bytes = least_largest_bytes.min(space.largest_free_bytes());
            let (at, bytes) = held.swap_remove(dice.below(held.len() as u64) as usize);
            space.free(at, bytes).expect("it is held");
        }
    }
    let churned = Churned {
        total_bytes: total,
        live: held.len(),
        failed_granules,
        failed,
        granules,
        free_bytes: space.free_bytes(),
        free_ranges: space.free_ranges().count(),
        largest_bytes: space.largest_free_bytes(),
        least_largest_bytes,
        state_bytes: space.state_bytes(),
    };
    for (at, bytes) in held {
        space.free(at, bytes).expect("it is held");
    }
    assert_eq!(space.largest_free_bytes(), total, "what is free is one range again");
    churned
}
