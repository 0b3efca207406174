#![allow(unsafe_code, reason = "fresh zero pages are handed out as values")]

use core::marker::PhantomData;
use core::ops::Deref;
use core::sync::atomic::{
    AtomicBool, AtomicI32, AtomicI64, AtomicU8, AtomicU16, AtomicU32, AtomicU64, AtomicUsize,
};

use super::PrivateError;
use super::reservation::{Carve, Mapping, carve, release};
use crate::sync::WordLock;
use crate::units::PAGE_BYTES;

/// Types of which all-zero bytes are a valid value.
///
/// # Safety
/// All-zero bytes are a valid value; the type has no `Drop` that matters, is `Send` and `Sync`, and holds no
/// pointer to the heap.
pub unsafe trait ZeroValid: Send + Sync {}

macro_rules! zero_valid {
    ($($of:ty),*) => {
        // SAFETY: plain integers, or cells of them: zero is a value, nothing is dropped.
        $(unsafe impl ZeroValid for $of {})*
    };
}
zero_valid!(u8, u16, u32, u64, usize, i32, i64);
zero_valid!(AtomicBool, AtomicU8, AtomicU16, AtomicU32, AtomicU64, AtomicUsize, AtomicI32, AtomicI64);
// SAFETY: a zeroed word is a free lock (`WordLock::new` says so).
unsafe impl ZeroValid for WordLock {}
// SAFETY: each element is valid when zero.
unsafe impl<T: ZeroValid, const N: usize> ZeroValid for [T; N] {}

/// A lazily filled array in private memory: reading or writing an element for the first time costs a page.
/// Unmapped on drop.
#[derive(Debug)]
pub struct Slab<T: ZeroValid> {
    mapping: Mapping,
    len: usize,
    of: PhantomData<T>,
}

impl<T: ZeroValid> Slab<T> {
    /// `len` elements, each of all-zero bytes.
    ///
    /// # Errors
    /// [`PrivateError`] if `len` is zero, or addresses or mappings have run out.
    pub fn new(len: usize) -> Result<Self, PrivateError> {
        const { assert!(align_of::<T>() as u64 <= PAGE_BYTES) };
        let bytes = len.checked_mul(size_of::<T>()).ok_or(PrivateError::BadSize)?;
        Ok(Self { mapping: carve(Carve::zeroed(bytes as u64))?, len, of: PhantomData })
    }

    /// Bytes of it that are backed by memory now, in whole pages: asked from the kernel, a call per 16 MiB.
    pub fn resident_bytes(&self) -> u64 {
        self.mapping.resident_bytes()
    }

    /// Bytes of address space that it occupies.
    pub fn reserved_bytes(&self) -> u64 {
        self.mapping.bytes
    }
}

impl<T: ZeroValid> Deref for Slab<T> {
    type Target = [T];
    fn deref(&self) -> &[T] {
        // SAFETY: the mapping holds `len` elements, page aligned, readable and writable until `self` is dropped,
        // all zero at first, which `ZeroValid` makes valid.
        unsafe { core::slice::from_raw_parts(self.mapping.start as *const T, self.len) }
    }
}

impl<T: ZeroValid> Drop for Slab<T> {
    fn drop(&mut self) {
        // SAFETY: every reference into it borrows `self`, which nobody does any more.
        unsafe { release(&self.mapping) }
    }
}

#[cfg(test)]
mod tests {
    use core::sync::atomic::Ordering;

    use super::*;
    use crate::os::private;
    use crate::units::{VirtAddr, VirtRange};

    #[test]
    fn pages_are_filled_when_touched_and_only_then() {
        let slab = Slab::<AtomicU64>::new(1 << 30).expect("8 GiB of addresses");
        assert_eq!(slab.reserved_bytes(), 8 << 30);
        let small = Slab::<AtomicU64>::new(512 * 600).expect("600 pages");
        assert_eq!(small.resident_bytes(), 0);
        small[512 * 7].store(1, Ordering::Relaxed);
        small[512 * 599].store(1, Ordering::Relaxed);
        assert_eq!(small.resident_bytes(), 2 * PAGE_BYTES);
        assert_eq!(small[512 * 7 + 1].load(Ordering::Relaxed), 0);
    }

    #[test]
    fn it_lies_in_the_reservation_and_comes_back_zeroed() {
        let slab = Slab::<AtomicU64>::new(512 * 3).expect("three pages");
        let range = VirtRange::of_pages(VirtAddr(slab.as_ptr() as u64), 3);
        assert!(private::contains(range) && private::overlaps(range));
        let heap = Box::new(0u64);
        let heap = VirtRange::covering(VirtAddr(&raw const *heap as u64), 8).expect("a page");
        assert!(!private::contains(heap) && !private::overlaps(heap));
        slab[0].store(7, Ordering::Relaxed);
        drop(slab);
        for _ in 0..64 {
            let again = Slab::<AtomicU64>::new(512 * 3).expect("three pages");
            assert_eq!(again[0].load(Ordering::Relaxed), 0);
        }
    }

    #[test]
    fn threads_carve_disjoint_parts() {
        std::thread::scope(|scope| {
            for mark in 1..=4u64 {
                scope.spawn(move || {
                    for round in 0..200usize {
                        let slabs: [_; 3] = core::array::from_fn(|i| {
                            Slab::<AtomicU64>::new(512 * (1 + (round + i) % 5)).unwrap()
                        });
                        for slab in &slabs {
                            slab.iter().for_each(|word| assert_eq!(word.swap(mark, Ordering::Relaxed), 0));
                        }
                        for slab in &slabs {
                            assert!(slab.iter().all(|word| word.load(Ordering::Relaxed) == mark));
                        }
                    }
                });
            }
        });
    }

    #[test]
    fn sizes_that_cannot_be_are_refused() {
        assert_eq!(Slab::<AtomicU64>::new(0).unwrap_err(), PrivateError::BadSize);
        assert_eq!(Slab::<AtomicU64>::new(usize::MAX).unwrap_err(), PrivateError::BadSize);
        assert!(matches!(Slab::<AtomicU64>::new(1 << 37).unwrap_err(), PrivateError::Exhausted { .. }));
    }

    #[test]
    fn a_child_inherits_none_of_it_and_can_make_its_own() {
        let slab = Slab::<AtomicU64>::new(512).expect("a page");
        // SAFETY: the child makes system calls only (mmap, mprotect, madvise, getpid) and leaves by _exit.
        let child = unsafe { libc::fork() };
        if child == 0 {
            drop(slab);
            let fine = Slab::<AtomicU64>::new(512).is_ok_and(|own| own[0].swap(5, Ordering::Relaxed) == 0);
            // SAFETY: ends the child without running anything of the parent's.
            unsafe { libc::_exit(if fine { 42 } else { 1 }) };
        }
        let mut status = 0;
        // SAFETY: `status` lives on this stack.
        assert_eq!(unsafe { libc::waitpid(child, &mut status, 0) }, child);
        assert!(libc::WIFEXITED(status) && libc::WEXITSTATUS(status) == 42, "status {status:#x}");
        assert_eq!(slab[0].load(Ordering::Relaxed), 0);
    }
}
