//! Engines: threads that execute kernels.
//!
//! # A run
//! [`SoftwareDevice::run`] publishes a kernel and wakes every engine; each calls it once; the caller sleeps until
//! all have ended. One kernel runs at a time; further callers wait their turn. A kernel must not call `run` on
//! its own device.
//!
//! # Rules
//! 1. Engines have private stacks. A kernel is code of the application: outside of its accesses it may touch
//!    anything, the heap too, and may sleep in a page fault like any other thread.
//! 2. A kernel that panics has left its access (accesses do not panic), and the engine goes on with the next run.
#![allow(unsafe_code, reason = "a borrowed kernel is lent to threads for the length of a run")]

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::{Mutex, PoisonError};

use granule::os::FutexPark;
use granule::os::guarded;
use granule::os::private::{PrivateArc, PrivateBytes};
use granule::os::thread::{ServiceThread, spawn_with_stack};
use granule::sync::{AtomicU32, AtomicU64, Ordering, Park};

use super::access::{CHUNK_BYTES, Engine};
use super::builder::BuildError;
use super::device::{Inner, PARK, SoftwareDevice};
use super::scalar::AccessError;
use super::space::Space;
use super::tlb::Tlb;

/// What an engine is told to call.
type Call = unsafe fn(*const (), &mut Engine<'_>);

/// The kernel that runs, if any.
#[derive(Default)]
pub(crate) struct Job {
    /// Changes with each kernel, and when the engines are to end.
    number: AtomicU32,
    ending: AtomicU32,
    /// Engines that have not finished.
    running: AtomicU32,
    kernel: AtomicU64,
    call: AtomicU64,
    /// The space in which it runs.
    space: AtomicU64,
}

/// The threads; the last handle of the device ends them.
pub(crate) struct EngineThreads {
    inner: PrivateArc<Inner>,
    threads: Vec<ServiceThread>,
}

impl EngineThreads {
    pub(super) fn start(inner: &PrivateArc<Inner>, stack_bytes: u64) -> Result<Self, BuildError> {
        let mut all = Self { inner: inner.clone(), threads: Vec::new() };
        for index in 0..inner.engines.len() {
            let (own, bounce) = (inner.clone(), PrivateBytes::new(CHUNK_BYTES as u64)?);
            let name = format!("engine-{index}");
            all.threads.push(spawn_with_stack(&name, stack_bytes, move || serve(&own, index, &bounce))?);
        }
        Ok(all)
    }

    pub(super) fn len(&self) -> usize {
        self.threads.len()
    }
}

impl Drop for EngineThreads {
    fn drop(&mut self) {
        self.inner.job.ending.store(1, Ordering::SeqCst);
        self.inner.job.number.fetch_add(1, Ordering::SeqCst);
        FutexPark.unpark_all(&self.inner.job.number);
        for thread in self.threads.drain(..) {
            // An engine catches the panics of its kernels; its own would have been reported there.
            let _ = thread.join();
        }
    }
}

/// The life of an engine.
fn serve(inner: &Inner, index: usize, bounce: &PrivateBytes) {
    guarded::admit_this_thread();
    let record = &inner.engines[index];
    // SAFETY: no arguments.
    record.tid.store(unsafe { libc::syscall(libc::SYS_gettid) } as u32, Ordering::Release);
    let (mut tlb, mut iotlb) = (Tlb::new(), Tlb::new());
    let mut done = 0;
    let mut last_space = &raw const inner.space;
    loop {
        let number = inner.job.number.load(Ordering::Acquire);
        if inner.job.ending.load(Ordering::SeqCst) != 0 {
            return;
        }
        if number == done {
            FutexPark.park(&inner.job.number, number);
            continue;
        }
        done = number;
        let kernel = inner.job.kernel.load(Ordering::Relaxed) as *const ();
        let call = inner.job.call.load(Ordering::Relaxed) as *const ();
        let at = inner.job.space.load(Ordering::Relaxed) as *const Space;
        if at != last_space {
            // Another space: what was remembered is not true there.
            (tlb, iotlb, last_space) = (Tlb::new(), Tlb::new(), at);
        }
        // SAFETY: as below: `run_in` borrows the space for as long as the kernel.
        let space = unsafe { &*at };
        // SeqCst pairs with the load of whoever answers faults of one space only.
        record.space.store(space.pasid.0, Ordering::SeqCst);
        let mut engine = Engine { inner, space, record, index, bounce, tlb: &mut tlb, iotlb: &mut iotlb };
        // SAFETY: `run` stored a `Call` and the kernel that goes with it before it changed `number` (acquired
        // above), and keeps the kernel alive until `running` is zero, which this engine counts down below.
        unsafe { core::mem::transmute::<*const (), Call>(call)(kernel, &mut engine) };
        inner.entry.leave_if_inside(record);
        if inner.job.running.fetch_sub(1, Ordering::AcqRel) == 1 {
            FutexPark.unpark_all(&inner.job.running);
        }
    }
}

/// A kernel and what became of it.
struct Run<'a, F> {
    kernel: &'a F,
    /// The error of the engine with the lowest number.
    failed: Mutex<Option<(usize, AccessError)>>,
}

/// Calls a kernel on one engine.
///
/// # Safety
/// `run` points to a live `Run<F>`.
unsafe fn call<F>(run: *const (), engine: &mut Engine<'_>)
where
    F: Fn(&mut Engine<'_>) -> Result<(), AccessError> + Sync,
{
    // SAFETY: the caller's promise.
    let run = unsafe { &*run.cast::<Run<'_, F>>() };
    let index = engine.index();
    let ended = catch_unwind(AssertUnwindSafe(|| (run.kernel)(engine)));
    if let Err(error) = ended.unwrap_or(Err(AccessError::KernelPanicked { engine: index })) {
        let mut failed = run.failed.lock().unwrap_or_else(PoisonError::into_inner);
        if failed.is_none_or(|(engine, _)| index < engine) {
            *failed = Some((index, error));
        }
    }
}

impl SoftwareDevice {
    /// Runs a kernel once on every engine and waits until all have ended. The kernel may borrow.
    ///
    /// # Errors
    /// The error of the failing engine with the lowest number. The others run to their end.
    ///
    /// Blocks while another kernel runs, and while faults are served. Must not be called from a kernel of the
    /// same device.
    pub fn run<F>(&self, kernel: F) -> Result<(), AccessError>
    where
        F: Fn(&mut Engine<'_>) -> Result<(), AccessError> + Sync,
    {
        self.run_in(&self.inner.space, kernel)
    }

    /// Runs a kernel in a space of this device.
    pub(super) fn run_in<F>(&self, space: &Space, kernel: F) -> Result<(), AccessError>
    where
        F: Fn(&mut Engine<'_>) -> Result<(), AccessError> + Sync,
    {
        let job = &self.inner.job;
        let run = Run { kernel: &kernel, failed: Mutex::new(None) };
        {
            let _turn = self.inner.turn.lock(PARK);
            job.kernel.store((&raw const run) as u64, Ordering::Relaxed);
            job.call.store(call::<F> as *const () as u64, Ordering::Relaxed);
            job.space.store((&raw const *space) as u64, Ordering::Relaxed);
            job.running.store(self.inner.engines.len() as u32, Ordering::Relaxed);
            // Release publishes the four stores to the engines' acquire.
            job.number.fetch_add(1, Ordering::Release);
            FutexPark.unpark_all(&job.number);
            loop {
                // Acquire pairs with the engines' last use of `run`.
                match job.running.load(Ordering::Acquire) {
                    0 => break,
                    running => FutexPark.park(&job.running, running),
                }
            }
        }
        match run.failed.into_inner().unwrap_or_else(PoisonError::into_inner) {
            Some((_, error)) => Err(error),
            None => Ok(()),
        }
    }
}
