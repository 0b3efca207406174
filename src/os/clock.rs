//! Time from the kernel's monotonic clock.
#![allow(unsafe_code, reason = "clock_gettime is a C function")]

use crate::ports::Clock;

/// CLOCK_MONOTONIC, read through the vDSO: no system call, no memory but the stack.
#[derive(Clone, Copy, Debug, Default)]
pub struct MonotonicClock;

impl Clock for MonotonicClock {
    fn now_ns(&self) -> u64 {
        let mut now = libc::timespec { tv_sec: 0, tv_nsec: 0 };
        // SAFETY: the target lives on this stack until the call returns.
        let rc = unsafe { libc::clock_gettime(libc::CLOCK_MONOTONIC, &mut now) };
        debug_assert_eq!(rc, 0, "every Linux has a monotonic clock");
        now.tv_sec as u64 * 1_000_000_000 + now.tv_nsec as u64
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn it_advances_and_never_goes_back() {
        let start = MonotonicClock.now_ns();
        let mut last = start;
        while last == start {
            let now = MonotonicClock.now_ns();
            assert!(now >= last);
            last = now;
        }
        assert!(last - start < 10_000_000_000, "two readings in a row are not ten seconds apart");
    }
}
