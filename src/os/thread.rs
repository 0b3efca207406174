//! Threads of the service: their stacks, with the thread-local storage that the C library puts on top of them,
//! lie in private memory, so that they run on while any page of the heap is on a device.
//!
//! # Rules
//! 1. A thread that falls under design rule 2 uses no dynamic thread-local storage (the C library keeps its index
//!    on the heap), and therefore not `std::thread::current` and what calls it.
//! 2. Every signal is blocked but those that the thread itself causes (SIGSEGV, SIGBUS, ...): the application's
//!    handlers do not run on a service stack. A thread that wants another signal unblocks it for itself.
//! 3. The stack and the closure are gone when `join` has returned, not before.
#![allow(unsafe_code, reason = "pthreads with stacks of our own")]

use core::ffi::c_void;
use core::mem::MaybeUninit;
use core::sync::atomic::{AtomicI32, AtomicU32, Ordering};
use core::{fmt, ptr};
use std::panic::{AssertUnwindSafe, catch_unwind};

use thiserror::Error;

use super::park::FutexPark;
use super::private::reservation::pid;
use super::private::{PrivateArc, PrivateBytes, PrivateError};
use crate::sync::Park;

/// What a stack has by default, besides the guard page below it: 256 KiB.
pub const STACK_BYTES: u64 = 256 << 10;

/// Why a thread did not start or did not end well.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Error)]
#[non_exhaustive]
pub enum ThreadError {
    /// No private memory for its stack.
    #[error("no stack for a service thread: {0}")]
    NoStack(#[from] PrivateError),
    /// The system refused.
    #[error(
        "a service thread cannot be started (errno {0}); raise RLIMIT_NPROC or threads-max, or free memory"
    )]
    Refused(i32),
    /// Its closure panicked.
    #[error("a service thread panicked; what it served is not served any more, so shut the service down")]
    Panicked,
}

/// A running thread of the service. Dropping it joins it.
pub struct ServiceThread {
    handle: libc::pthread_t,
    shared: PrivateArc<Shared>,
    // Declared last: freed after the join in `drop`.
    stack: PrivateBytes,
    pid: i32,
}

// SAFETY: a pthread_t may be joined from any thread; the rest is shared memory.
unsafe impl Send for ServiceThread {}
// SAFETY: `tid` reads an atomic; joining needs ownership.
unsafe impl Sync for ServiceThread {}

#[derive(Default)]
struct Shared {
    tid: AtomicI32,
    started: AtomicU32,
    panicked: AtomicU32,
}

struct Start<F> {
    body: F,
    shared: PrivateArc<Shared>,
    name: [u8; 16],
}

/// Starts a thread with a stack of [`STACK_BYTES`]. Returns once it runs. Of `name`, 15 bytes are shown by tools.
///
/// # Errors
/// [`ThreadError`].
pub fn spawn(name: &str, body: impl FnOnce() + Send + 'static) -> Result<ServiceThread, ThreadError> {
    spawn_with_stack(name, STACK_BYTES, body)
}

/// As [`spawn`], with a stack of at least `stack_bytes` (and no less than 64 KiB) plus the thread-local storage.
///
/// # Errors
/// [`ThreadError`].
pub fn spawn_with_stack<F: FnOnce() + Send + 'static>(
    name: &str,
    stack_bytes: u64,
    body: F,
) -> Result<ServiceThread, ThreadError> {
    let stack = PrivateBytes::stack(stack_bytes.max(64 << 10))?;
    let shared = PrivateArc::new(Shared::default())?;
    let mut short = [0; 16];
    let shown = name.len().min(15);
    short[..shown].copy_from_slice(&name.as_bytes()[..shown]);
    let mut start = MaybeUninit::new(Start { body, shared: shared.clone(), name: short });

    let mut attr = MaybeUninit::<libc::pthread_attr_t>::uninit();
    let mut handle: libc::pthread_t = 0;
    // SAFETY: `attr` is initialised first and destroyed once; the stack outlives the thread (`ServiceThread` joins
    // before it frees it). `start` lives in this frame until the thread has moved it out: this function waits for
    // `started`. The mask is restored on this thread whatever happens.
    let rc = unsafe {
        libc::pthread_attr_init(attr.as_mut_ptr());
        let mut rc = libc::pthread_attr_setstack(
            attr.as_mut_ptr(),
            stack.base().0 as *mut c_void,
            stack.range().bytes() as usize,
        );
        if rc == 0 {
            let before = block_signals();
            rc = libc::pthread_create(&mut handle, attr.as_ptr(), main_of::<F>, start.as_mut_ptr().cast());
            libc::pthread_sigmask(libc::SIG_SETMASK, &before, ptr::null_mut());
        }
        libc::pthread_attr_destroy(attr.as_mut_ptr());
        rc
    };
    if rc != 0 {
        // SAFETY: no thread was made, so `start` is still whole and ours.
        unsafe { start.assume_init_drop() };
        return Err(ThreadError::Refused(rc));
    }
    // Acquire pairs with the release in `main_of`.
    while shared.started.load(Ordering::Acquire) == 0 {
        FutexPark.park(&shared.started, 0);
    }
    Ok(ServiceThread { handle, shared, stack, pid: pid() })
}

/// Blocks everything but what a thread does to itself; returns the mask before.
fn block_signals() -> libc::sigset_t {
    let (mut all, mut before) = (MaybeUninit::uninit(), MaybeUninit::uninit());
    // SAFETY: both sets live in this frame; sigfillset and pthread_sigmask initialise them.
    unsafe {
        libc::sigfillset(all.as_mut_ptr());
        for own in [libc::SIGSEGV, libc::SIGBUS, libc::SIGFPE, libc::SIGILL, libc::SIGTRAP, libc::SIGABRT] {
            libc::sigdelset(all.as_mut_ptr(), own);
        }
        libc::pthread_sigmask(libc::SIG_SETMASK, all.as_ptr(), before.as_mut_ptr());
        before.assume_init()
    }
}

extern "C" fn main_of<F: FnOnce() + Send + 'static>(start: *mut c_void) -> *mut c_void {
    // SAFETY: `spawn_with_stack` passes a whole Start<F> and lets go of it; it waits for `started` below.
    let Start { body, shared, name } = unsafe { start.cast::<Start<F>>().read() };
    // SAFETY: `name` ends in a zero and lives here; gettid takes nothing.
    let tid = unsafe {
        libc::prctl(libc::PR_SET_NAME, name.as_ptr());
        libc::syscall(libc::SYS_gettid) as i32
    };
    shared.tid.store(tid, Ordering::Relaxed);
    // Release publishes the tid and the end of reading `start`.
    shared.started.store(1, Ordering::Release);
    FutexPark.unpark_all(&shared.started);
    if catch_unwind(AssertUnwindSafe(body)).is_err() {
        shared.panicked.store(1, Ordering::Relaxed);
    }
    ptr::null_mut()
}

impl ServiceThread {
    /// The kernel's number of the thread.
    pub fn tid(&self) -> i32 {
        self.shared.tid.load(Ordering::Relaxed)
    }

    /// Bytes of its stack, thread-local storage included, that are backed by memory now.
    pub fn stack_resident_bytes(&self) -> u64 {
        self.stack.resident_bytes()
    }

    /// Waits until the thread has ended. The one who calls makes sure that it ends.
    ///
    /// # Errors
    /// [`ThreadError::Panicked`].
    pub fn join(self) -> Result<(), ThreadError> {
        let shared = self.shared.clone();
        drop(self);
        // The join in `drop` orders the thread's stores before this.
        if shared.panicked.load(Ordering::Relaxed) == 0 { Ok(()) } else { Err(ThreadError::Panicked) }
    }
}

impl Drop for ServiceThread {
    fn drop(&mut self) {
        // A child after fork has no such thread and no such stack.
        if self.pid == pid() {
            // SAFETY: the handle is joined once, here.
            unsafe { libc::pthread_join(self.handle, ptr::null_mut()) };
        }
    }
}

impl fmt::Debug for ServiceThread {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ServiceThread").field("tid", &self.tid()).finish()
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;
    use std::sync::atomic::AtomicU64;

    use super::*;
    use crate::os::private;
    use crate::units::{VirtAddr, VirtRange};

    #[test]
    fn it_runs_on_a_private_stack_with_its_thread_locals() {
        thread_local!(static LOCAL: u64 = const { 7 });
        let seen = Arc::new([const { AtomicU64::new(0) }; 4]);
        let tell = seen.clone();
        let thread = spawn("granule-test-with-a-long-name", move || {
            let here = 0u64;
            tell[0].store(&raw const here as u64, Ordering::Relaxed);
            tell[1].store(LOCAL.with(|local| local as *const u64 as u64), Ordering::Relaxed);
            // SAFETY: no arguments.
            tell[2].store(unsafe { libc::syscall(libc::SYS_gettid) } as u64, Ordering::Relaxed);
            let mut mask = MaybeUninit::<libc::sigset_t>::uninit();
            // SAFETY: the set lives here and is initialised by the call.
            let usr1 = unsafe {
                libc::pthread_sigmask(libc::SIG_BLOCK, ptr::null(), mask.as_mut_ptr());
                libc::sigismember(mask.as_ptr(), libc::SIGUSR1)
            };
            tell[3].store(usr1 as u64, Ordering::Relaxed);
        })
        .expect("a thread");
        let tid = thread.tid();
        assert!(thread.stack_resident_bytes() > 0, "it has run");
        thread.join().expect("it ends well");
        for at in &seen[..2] {
            let page = VirtRange::covering(VirtAddr(at.load(Ordering::Relaxed)), 8).expect("a page");
            assert!(private::contains(page), "{page}");
        }
        assert_eq!(seen[2].load(Ordering::Relaxed), tid as u64);
        assert_eq!(seen[3].load(Ordering::Relaxed), 1, "foreign signals are blocked");
        assert_eq!(LOCAL.with(|local| *local), 7);
    }

    #[test]
    fn a_panic_is_reported_by_join() {
        let thread = spawn("panics", || panic!("on purpose")).expect("a thread");
        assert_eq!(thread.join(), Err(ThreadError::Panicked));
    }

    #[test]
    fn what_the_closure_owns_is_dropped() {
        let owned = Arc::new(());
        let inner = owned.clone();
        spawn("drops", move || drop(inner)).expect("a thread").join().expect("it ends");
        assert_eq!(Arc::strong_count(&owned), 1);
    }
}
