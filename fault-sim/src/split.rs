//! Sharing work out: among engines, and among threads of the CPU.

use std::ops::Range;

/// Part `index` of `count` nearly equal parts of `0..len`, in order and without a gap.
pub fn part(len: usize, index: usize, count: usize) -> Range<usize> {
    let edge = |n: usize| (len as u128 * n as u128 / count as u128) as usize;
    edge(index)..edge(index + 1)
}

/// Calls `work` once for each of `threads` parts of `0..len`, all at the same time, and returns the first error
/// in the order of the parts.
///
/// # Errors
/// What `work` returned.
///
/// # Panics
/// If `work` does.
pub fn among_threads<E: Send>(
    threads: usize,
    len: usize,
    work: impl Fn(Range<usize>) -> Result<(), E> + Sync,
) -> Result<(), E> {
    let work = &work;
    std::thread::scope(|scope| {
        let parts = (0..threads).map(|index| scope.spawn(move || work(part(len, index, threads))));
        let parts: Vec<_> = parts.collect();
        let ends = parts.into_iter().map(|thread| match thread.join() {
            Ok(result) => result,
            Err(panic) => std::panic::resume_unwind(panic),
        });
        // All are joined before the first error is looked for.
        ends.collect::<Vec<_>>().into_iter().collect()
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::atomic::{AtomicUsize, Ordering};

    #[test]
    fn parts_cover_everything_once() {
        for (len, count) in [(0, 3), (2, 5), (10, 3), (1000, 7)] {
            let all: Vec<usize> = (0..count).flat_map(|index| part(len, index, count)).collect();
            assert!(all.into_iter().eq(0..len));
        }
    }

    #[test]
    fn every_thread_works_and_the_first_error_is_told() {
        let done = AtomicUsize::new(0);
        let result = among_threads(4, 100, |range| {
            done.fetch_add(range.len(), Ordering::Relaxed);
            if range.start >= 50 { Err(range.start) } else { Ok(()) }
        });
        assert_eq!((result, done.into_inner()), (Err(50), 100));
    }
}
