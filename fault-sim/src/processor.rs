//! What the processor and the kernel can be told so that the same result comes sooner: which memory will be looked at, in
//! no order, and which work may use instructions that not every processor has.
//!
//! # Rules
//! 1. Nothing here changes contents or results.
//! 2. A program built for every processor of its architecture runs on every one: what more one of them has is asked for
//!    at run time.

#![allow(
    unsafe_code,
    reason = "hints are an instruction and a system call that take addresses; whether a processor has more \
              instructions is known at run time only"
)]

/// The size of a huge page.
const HUGE_BYTES: usize = 2 << 20;

/// The cache line of `what` will be read soon: it is fetched while the processor goes on.
#[inline(always)]
pub fn fetch<T>(what: &T) {
    #[cfg(target_arch = "x86_64")]
    // SAFETY: the instruction is in every processor of this architecture, reads nothing that the program sees and cannot
    // fault; the address is that of a reference.
    unsafe {
        use core::arch::x86_64::{_MM_HINT_T0, _mm_prefetch};
        _mm_prefetch::<_MM_HINT_T0>(std::ptr::from_ref(what).cast());
    }
    #[cfg(not(target_arch = "x86_64"))]
    let _ = what;
}

/// A vector with a new allocation will be looked at all over: the kernel may give it huge pages, which it then fills as
/// they are first touched. What it refuses stays as it is.
pub fn huge<T>(all: &mut Vec<T>) {
    let start = all.as_mut_ptr() as usize;
    let end = start + all.capacity() * size_of::<T>();
    let (first, last) = (start.next_multiple_of(HUGE_BYTES), end / HUGE_BYTES * HUGE_BYTES);
    if first < last {
        // SAFETY: the whole huge pages between `first` and `last` belong to the vector's allocation, which is borrowed
        // for the call; the advice changes how the kernel backs them and no byte of them.
        unsafe { libc::madvise(first as *mut libc::c_void, last - first, libc::MADV_HUGEPAGE) };
    }
}

/// Work on page masks, most of which is counting bits.
///
/// `run` and all that it calls for that have to be `#[inline(always)]`: what is not stays as it is built for every
/// processor.
pub trait Work {
    /// What comes out.
    type Found;
    /// Does it.
    fn run(self) -> Self::Found;
}

/// Does the work with the widest instructions that this processor has.
#[inline(always)]
pub fn fast<W: Work>(work: W) -> W::Found {
    #[cfg(target_arch = "x86_64")]
    if is_x86_feature_detected!("avx2")
        && is_x86_feature_detected!("bmi1")
        && is_x86_feature_detected!("bmi2")
        && is_x86_feature_detected!("lzcnt")
        && is_x86_feature_detected!("popcnt")
    {
        // SAFETY: the processor has all features that the function is built with, by the condition above.
        return unsafe { with_features(work) };
    }
    work.run()
}

#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx2,bmi1,bmi2,lzcnt,popcnt")]
fn with_features<W: Work>(work: W) -> W::Found {
    work.run()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn hints_change_nothing() {
        let mut all: Vec<u64> = (0..1 << 20).collect();
        huge(&mut all);
        all.iter().step_by(512).for_each(fetch);
        assert!(all.iter().copied().eq(0..1 << 20));
        huge(&mut Vec::<u64>::new());
    }
}
