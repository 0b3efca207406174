//! Private stacks on which a thread of the application serves its own fault.
//!
//! The stack on which the application faulted may lie in memory that is about to be taken (a coroutine's, on the
//! heap): whoever holds a block lock or is inside the gate must not touch it. So the handler changes to a private stack
//! first; what it needs there goes over in registers. Each stack has a number, by which its user has a seat at the gate.
//!
//! Only x86_64 so far, as the accessors.
#![allow(unsafe_code, reason = "changes the stack pointer")]

use core::sync::atomic::Ordering;

use super::park::FutexPark;
use super::private::{PrivateBytes, PrivateError};
use crate::sync::{AtomicU32, Park};

/// Threads that serve their own faults at once; further ones wait.
pub const FAULT_STACKS: usize = 8;
const STACK_BYTES: u64 = 128 << 10;
const ALL: u32 = (1 << FAULT_STACKS) - 1;

/// What runs on a private stack: a word of the caller's, the stack's number, and the fault.
pub type OnStack = extern "C" fn(context: usize, number: usize, at: u64, write: bool) -> bool;

/// The stacks of one space. Lives in private memory.
#[derive(Debug)]
pub struct FaultStacks {
    stacks: [PrivateBytes; FAULT_STACKS],
    /// A bit per stack in use.
    taken: AtomicU32,
}

impl FaultStacks {
    /// All of them, free.
    ///
    /// # Errors
    /// [`PrivateError`].
    pub fn new() -> Result<Self, PrivateError> {
        let stack = || PrivateBytes::stack(STACK_BYTES);
        let stacks = [stack()?, stack()?, stack()?, stack()?, stack()?, stack()?, stack()?, stack()?];
        Ok(Self { stacks, taken: AtomicU32::new(0) })
    }

    /// Bytes of all stacks that are backed by memory now.
    pub fn resident_bytes(&self) -> u64 {
        self.stacks.iter().map(PrivateBytes::resident_bytes).sum()
    }

    /// What `act` returns on a free stack; sleeps while none is free. `act` does not unwind and returns. The caller has
    /// blocked signals: a handler that ran on a private stack would have it to itself until it returned.
    pub fn run(&self, act: OnStack, context: usize, at: u64, write: bool) -> bool {
        let number = self.claim();
        let result: u64;
        let top = self.stacks[number].range().end().0;
        // SAFETY: the stack is this thread's until it is given back below; its top is a page boundary, as the calling
        // convention wants it. The callee restores r12, which holds our stack pointer, and everything else that the
        // convention does not let it change is declared.
        unsafe {
            core::arch::asm!(
                "xchg rsp, r12",
                "call {act}",
                "mov rsp, r12",
                act = in(reg) act,
                inout("r12") top => _,
                in("rdi") context,
                in("rsi") number,
                in("rdx") at,
                in("rcx") u64::from(write),
                lateout("rax") result,
                clobber_abi("C"),
            );
        }
        self.give_back(number);
        // The convention says nothing of the bits above a boolean's.
        result & 1 != 0
    }

    fn claim(&self) -> usize {
        loop {
            let taken = self.taken.load(Ordering::Relaxed);
            if taken == ALL {
                FutexPark.park(&self.taken, ALL);
                continue;
            }
            let number = taken.trailing_ones();
            // Acquire pairs with the release of who had it before.
            let claimed = self.taken.compare_exchange_weak(
                taken,
                taken | 1 << number,
                Ordering::Acquire,
                Ordering::Relaxed,
            );
            if claimed.is_ok() {
                return number as usize;
            }
        }
    }

    fn give_back(&self, number: usize) {
        if self.taken.fetch_and(!(1 << number), Ordering::Release) == ALL {
            FutexPark.unpark_all(&self.taken);
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicU64, AtomicUsize};

    use super::*;
    use crate::units::{VirtAddr, VirtRange};

    struct Seen {
        stacks: FaultStacks,
        inside: [AtomicU32; FAULT_STACKS],
        sum: AtomicU64,
        elsewhere: AtomicUsize,
    }

    extern "C" fn look(context: usize, number: usize, at: u64, write: bool) -> bool {
        // SAFETY: the test passes a reference that outlives the call.
        let seen = unsafe { &*(context as *const Seen) };
        let here = VirtRange::of_pages(VirtAddr(&raw const number as u64).page_floor(), 1);
        let private = crate::os::private::contains(here);
        let alone = seen.inside[number].fetch_add(1, Ordering::SeqCst) == 0;
        seen.elsewhere.fetch_add(usize::from(!private || !alone), Ordering::Relaxed);
        // Deep enough for the calls that a fault makes, and floating point, which a stack off its alignment breaks.
        let deep: f64 = std::hint::black_box([1.5f64; 4096]).iter().sum();
        seen.sum.fetch_add(at + u64::from(write) + deep as u64 - 6144, Ordering::Relaxed);
        seen.inside[number].fetch_sub(1, Ordering::SeqCst);
        write
    }

    #[test]
    fn more_threads_than_stacks_each_have_one_for_themselves() {
        let seen = Seen {
            stacks: FaultStacks::new().expect("private memory"),
            inside: Default::default(),
            sum: AtomicU64::new(0),
            elsewhere: AtomicUsize::new(0),
        };
        std::thread::scope(|scope| {
            for _ in 0..2 * FAULT_STACKS {
                scope.spawn(|| {
                    (0..1000).for_each(|at| {
                        let write = at % 3 == 0;
                        assert_eq!(seen.stacks.run(look, &raw const seen as usize, at, write), write);
                    });
                });
            }
        });
        assert_eq!(seen.elsewhere.into_inner(), 0, "calls off a private stack, or two on one");
        assert_eq!(seen.sum.into_inner(), 2 * FAULT_STACKS as u64 * (999 * 1000 / 2 + 334));
    }
}
