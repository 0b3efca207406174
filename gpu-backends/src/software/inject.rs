//! Latency and failures, by seed: the same calls in the same order meet the same fate.

use core::time::Duration;

use granule::os::{FutexPark, MonotonicClock};
use granule::ports::Clock;
use granule::sync::{AtomicU32, AtomicU64, Ordering};

/// What device operations cost beyond the work itself, in nanoseconds. All zero by default.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Latency {
    /// Each `copy_in` and `copy_out`, per call.
    pub copy_call_ns: u64,
    /// The same, per page.
    pub copy_page_ns: u64,
    /// Each `map`.
    pub map_ns: u64,
    /// From a fault to its place in the fault buffer.
    pub fault_ns: u64,
    /// Up to so much more, drawn for each.
    pub jitter_ns: u64,
}

/// Failures that the device commits. None by default.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Inject {
    /// Copies to the device that fail, of a million.
    pub copy_in_fails_per_million: u32,
    /// Copies from the device that fail, of a million. The data stay on the device.
    pub copy_out_fails_per_million: u32,
    /// The first so many copies from the device fail, then they go well (as far as nothing else fails them).
    pub first_copy_outs_fail: u64,
    /// The host has no view of device memory: `window` is always `None`.
    pub no_window: bool,
    /// Calls of `map` that find no memory for tables, of a million.
    pub map_fails_per_million: u32,
    /// Every copy fails after so many copies of both kinds went well.
    pub copies_fail_after: Option<u64>,
    /// Every `map` fails after so many went well.
    pub maps_fail_after: Option<u64>,
    /// The device is lost at the copy of this number (counted from 0 over both kinds); its memory stays readable.
    pub lost_at_copy: Option<u64>,
    /// One bit of one byte of what the `copy_in` of this number (from 0) wrote is turned over afterwards.
    pub flip_byte_at_copy_in: Option<u64>,
}

/// What a call draws its fate for; also the stream of random numbers that it draws from.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Step {
    CopyIn,
    CopyOut,
    Map,
    Fault,
    Flip,
}

pub(crate) struct Fate {
    seed: u64,
    latency: Latency,
    inject: Inject,
    steps: [AtomicU64; 5],
    copies: AtomicU64,
    /// What long waits sleep on: never changes.
    still: AtomicU32,
}

/// What is to happen at a copy.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum CopyFate {
    Good,
    Fails,
    Loses,
}

/// Waits shorter than this are spun: a sleep is not that exact.
const SPIN_NS: u64 = 50_000;

impl Fate {
    pub(crate) fn new(seed: u64, latency: Latency, inject: Inject) -> Self {
        let zero = || AtomicU64::new(0);
        let steps = [zero(), zero(), zero(), zero(), zero()];
        Self { seed, latency, inject, steps, copies: zero(), still: AtomicU32::new(0) }
    }

    fn next(&self, step: Step) -> u64 {
        self.steps[step as usize].fetch_add(1, Ordering::Relaxed)
    }

    /// The random number of a step: a function of seed, kind and position only.
    pub(crate) fn draw(&self, step: Step, number: u64) -> u64 {
        // SplitMix64.
        let mut z = self.seed ^ (step as u64 + 1).wrapping_mul(0xd1b5_4a32_d192_ed03);
        z = z.wrapping_add((number + 1).wrapping_mul(0x9e37_79b9_7f4a_7c15));
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    fn wait(&self, step: Step, number: u64, ns: u64) {
        if ns == 0 && self.latency.jitter_ns == 0 {
            return;
        }
        let jitter = match self.latency.jitter_ns {
            0 => 0,
            most => self.draw(step, number.rotate_left(32)) % most,
        };
        let until = MonotonicClock.now_ns() + ns + jitter;
        loop {
            let left = until.saturating_sub(MonotonicClock.now_ns());
            if left == 0 {
                return;
            } else if left < SPIN_NS {
                core::hint::spin_loop();
            } else {
                FutexPark.park_for(&self.still, 0, Duration::from_nanos(left));
            }
        }
    }

    fn is_drawn(&self, step: Step, number: u64, per_million: u32) -> bool {
        per_million != 0 && self.draw(step, number) % 1_000_000 < u64::from(per_million)
    }

    /// One copy of `pages` pages.
    pub(crate) fn copy(&self, step: Step, pages: u64) -> (CopyFate, u64) {
        let number = self.next(step);
        self.wait(step, number, self.latency.copy_call_ns + pages * self.latency.copy_page_ns);
        let all = self.copies.fetch_add(1, Ordering::Relaxed);
        let per_million = match step {
            Step::CopyIn => self.inject.copy_in_fails_per_million,
            _ => self.inject.copy_out_fails_per_million,
        };
        let fate = if self.inject.lost_at_copy.is_some_and(|at| all == at) {
            CopyFate::Loses
        } else if self.inject.copies_fail_after.is_some_and(|after| all >= after)
            || (step == Step::CopyOut && number < self.inject.first_copy_outs_fail)
            || self.is_drawn(step, number, per_million)
        {
            CopyFate::Fails
        } else {
            CopyFate::Good
        };
        (fate, number)
    }

    /// Whether one `map` may go on.
    pub(crate) fn map(&self) -> bool {
        let number = self.next(Step::Map);
        self.wait(Step::Map, number, self.latency.map_ns);
        self.inject.maps_fail_after.is_none_or(|after| number < after)
            && !self.is_drawn(Step::Map, number, self.inject.map_fails_per_million)
    }

    /// Whether the host sees device memory.
    pub(crate) fn has_window(&self) -> bool {
        !self.inject.no_window
    }

    /// Delays a fault on its way into the buffer.
    pub(crate) fn fault(&self) {
        if self.latency.fault_ns != 0 {
            self.wait(Step::Fault, self.next(Step::Fault), self.latency.fault_ns);
        }
    }

    /// Which byte of the copy of this number is to be turned over, if any.
    pub(crate) fn flip(&self, number: u64, bytes: u64) -> Option<(u64, u8)> {
        let drawn = self.draw(Step::Flip, number);
        (self.inject.flip_byte_at_copy_in == Some(number)).then(|| (drawn % bytes, 1 << (drawn >> 61)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_same_seed_meets_the_same_fate_and_another_one_does_not() {
        let inject = Inject { copy_in_fails_per_million: 300_000, ..Inject::default() };
        let run = |seed| {
            let fate = Fate::new(seed, Latency::default(), inject);
            (0..200).map(|_| fate.copy(Step::CopyIn, 1).0).collect::<Vec<_>>()
        };
        assert_eq!(run(1), run(1));
        assert_ne!(run(1), run(2));
        let failed = run(1).iter().filter(|&&fate| fate == CopyFate::Fails).count();
        assert!((30..90).contains(&failed), "{failed} of 200 at 30 %");
    }

    #[test]
    fn failures_begin_where_they_are_told_to() {
        let inject = Inject {
            copies_fail_after: Some(3),
            maps_fail_after: Some(1),
            lost_at_copy: Some(1),
            flip_byte_at_copy_in: Some(2),
            ..Inject::default()
        };
        let fate = Fate::new(9, Latency::default(), inject);
        let copies: Vec<_> = (0..5).map(|_| fate.copy(Step::CopyOut, 1).0).collect();
        use CopyFate::{Fails, Good, Loses};
        assert_eq!(copies, [Good, Loses, Good, Fails, Fails]);
        assert_eq!([fate.map(), fate.map()], [true, false]);
        assert_eq!(fate.flip(1, 4096), None);
        let (at, bit) = fate.flip(2, 4096).expect("the third");
        assert!(at < 4096 && bit.is_power_of_two());
    }

    #[test]
    fn latency_is_at_least_what_was_asked() {
        let latency = Latency { map_ns: 200_000, ..Latency::default() };
        let fate = Fate::new(0, latency, Inject::default());
        let begin = MonotonicClock.now_ns();
        assert!(fate.map());
        assert!(MonotonicClock.now_ns() - begin >= 200_000);
    }
}
