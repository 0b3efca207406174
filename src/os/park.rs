//! Sleeping on a word in the kernel: futex(2), private to the process. Keeps no state of its own, so it may be
//! used by whoever may touch private memory only (the word itself must lie there).
#![allow(unsafe_code, reason = "futex is a raw system call")]

use core::ptr;
use core::time::Duration;

use crate::sync::{AtomicU32, Park};

/// The parking that every lock of the service uses.
#[derive(Clone, Copy, Debug, Default)]
pub struct FutexPark;

impl FutexPark {
    /// Sleeps while `*word == expected`, at most for `limit`; may return early. Says whether the limit passed.
    pub fn park_for(self, word: &AtomicU32, expected: u32, limit: Duration) -> bool {
        let limit = libc::timespec {
            tv_sec: libc::time_t::try_from(limit.as_secs()).unwrap_or(libc::time_t::MAX),
            tv_nsec: i64::from(limit.subsec_nanos()),
        };
        wait(word, expected, &limit) == libc::ETIMEDOUT
    }
}

impl Park for FutexPark {
    fn park(&self, word: &AtomicU32, expected: u32) {
        wait(word, expected, ptr::null());
    }

    fn unpark_all(&self, word: &AtomicU32) {
        let op = libc::FUTEX_WAKE | libc::FUTEX_PRIVATE_FLAG;
        // SAFETY: the kernel uses the address as a key only; the borrow keeps it alive for the call.
        unsafe { libc::syscall(libc::SYS_futex, word.as_ptr(), op, i32::MAX) };
    }
}

/// Zero, or the errno. EAGAIN (the word differs) and EINTR are early returns.
fn wait(word: &AtomicU32, expected: u32, limit: *const libc::timespec) -> i32 {
    let op = libc::FUTEX_WAIT | libc::FUTEX_PRIVATE_FLAG;
    // SAFETY: the borrow keeps the word alive for the call; `limit` is null or lives in the caller's frame.
    let rc = unsafe { libc::syscall(libc::SYS_futex, word.as_ptr(), op, expected, limit) };
    if rc == 0 { 0 } else { super::errno() }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::Ordering;

    use super::*;

    #[test]
    fn a_word_that_differs_is_not_slept_on() {
        FutexPark.park(&AtomicU32::new(1), 0);
    }

    #[test]
    fn the_limit_ends_a_sleep() {
        let word = AtomicU32::new(0);
        let start = std::time::Instant::now();
        while !FutexPark.park_for(&word, 0, Duration::from_millis(5)) {}
        assert!(start.elapsed() >= Duration::from_millis(5));
    }

    #[test]
    fn a_sleeper_is_woken() {
        let word = AtomicU32::new(0);
        std::thread::scope(|scope| {
            scope.spawn(|| {
                while word.load(Ordering::Acquire) == 0 {
                    FutexPark.park(&word, 0);
                }
            });
            word.store(1, Ordering::Release);
            FutexPark.unpark_all(&word);
        });
    }
}
