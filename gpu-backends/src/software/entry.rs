//! Who is inside an access, and how to get them out: flush, quiesce, stop.
//!
//! # Roles
//! * An *engine* makes one access at a time. Its [`EngineRecord`] says how far it is: outside, inside (it uses
//!   translations and device memory), or inside system memory.
//! * A *closer* runs `flush` or `quiesce`. Any number of flushes may run at once, and one quiesce beside them.
//!   (One per address space of the device: the gate counts.) Both wait for every access, to device memory, too: while events of the CPU's address space are read and
//!   applied, a translation to device memory may be one of a mapping that is gone already.
//!
//! # The phase word of an engine
//! Bits 0 and 1: 0 outside, 1 inside, 2 inside system memory. From bit 2 on: a count of accesses that have
//! ended, so that a closer sees that *this* access ended even if the next one has begun.
//!
//! # Rules
//! 1. An engine publishes its phase (sequentially consistent) and *then* reads the generation, or the gate. A
//!    closer changes the generation, or the gate, and *then* reads the phases. So either the closer sees the
//!    engine inside and waits, or the engine sees the change: it looks translations up anew, or stays out.
//! 2. An engine that is inside touches private memory only, so it ends by itself. An engine that is inside
//!    system memory may sleep in a page fault of the CPU: its accesses go through `guarded`, and the closer sets
//!    its stop word before it reads its phase, and signals it. It then ends its access and waits for the stop
//!    word to clear before the next one.
//! 3. An engine that ends an access wakes closers if its stop word is set: both are sequentially consistent, so
//!    a closer that set the word and then saw the old phase is woken.
//! 4. Nothing here touches the heap; every wait is a futex on a word in private memory.
#![allow(unsafe_code, reason = "engine records are valid when zero")]

use granule::os::FutexPark;
use granule::os::guarded;
use granule::os::private::ZeroValid;
use granule::sync::{AtomicU32, AtomicU64, Ordering, Park};

use super::page_table::Quiet;

const OUTSIDE: u32 = 0;
const INSIDE: u32 = 1;
const INSIDE_SYSTEM: u32 = 2;
const PHASE: u32 = 3;
const ONE_ACCESS: u32 = 4;

/// How often a closer looks again before it stops an engine: most accesses are shorter than a signal.
const LOOKS: u32 = 20;

/// How often an engine looks again at a closed gate before it sleeps: most rounds of the reader are shorter than
/// a wake-up.
const GATE_LOOKS: u32 = 200;

/// What everybody knows of one engine. Two cache lines, so that engines do not disturb one another.
#[repr(C, align(128))]
pub(crate) struct EngineRecord {
    phase: AtomicU32,
    /// How many closers want it out of system memory.
    pub(super) stop: AtomicU32,
    /// The kernel's number of its thread.
    pub(super) tid: AtomicU32,
    /// Its one outstanding fault; see `fault_buffer`.
    pub(super) fault: AtomicU32,
    // Counters, written by the engine alone.
    pub(super) tlb_hits: AtomicU64,
    pub(super) tlb_misses: AtomicU64,
    pub(super) iotlb_hits: AtomicU64,
    pub(super) iotlb_misses: AtomicU64,
    pub(super) stopped: AtomicU64,
    pub(super) vanished: AtomicU64,
    pub(super) dma_read: AtomicU64,
    pub(super) dma_written: AtomicU64,
    /// The PASID of the space in which its kernel runs.
    pub(super) space: AtomicU32,
}

// SAFETY: atomics only; a zeroed record is an engine outside of any access, without a fault.
unsafe impl ZeroValid for EngineRecord {}

/// Adds to a counter that only the calling thread writes.
#[inline]
pub(super) fn count(counter: &AtomicU64) {
    counter.store(counter.load(Ordering::Relaxed) + 1, Ordering::Relaxed);
}

/// The words that engines read at each access.
#[repr(C, align(128))]
#[derive(Default)]
pub(crate) struct Entry {
    generation: AtomicU64,
    completed: AtomicU64,
    /// How many services have closed the device.
    gate: AtomicU32,
    gate_waiters: AtomicU32,
    /// 1 when the device is lost.
    pub(super) lost: AtomicU32,
    /// Test switch: closers do not wait.
    pub(super) hasty: AtomicU32,
}

impl Entry {
    pub(crate) fn new() -> Self {
        Self { generation: AtomicU64::new(1), ..Self::default() }
    }

    /// Begins an access and returns the generation in which its translations are good; `None` if the device is
    /// closed (the access is inside even then, and is to be left).
    #[inline]
    pub(crate) fn enter(&self, record: &EngineRecord) -> Option<u64> {
        let phase = record.phase.load(Ordering::Relaxed);
        // SeqCst pairs with the increment in `flush` and the store in `quiesce`: rule 1.
        record.phase.swap(phase | INSIDE, Ordering::SeqCst);
        (self.gate.load(Ordering::SeqCst) == 0).then(|| self.generation.load(Ordering::SeqCst))
    }

    /// Goes on to system memory.
    #[inline]
    pub(crate) fn enter_system(&self, record: &EngineRecord) {
        let phase = record.phase.load(Ordering::Relaxed) & !PHASE;
        // SeqCst pairs with the increment of the stop word in `expel`: either the closer sees where the engine is,
        // or the engine's guarded access sees the stop word.
        record.phase.swap(phase | INSIDE_SYSTEM, Ordering::SeqCst);
    }

    /// Ends an access.
    #[inline]
    pub(crate) fn leave(&self, record: &EngineRecord) {
        let phase = record.phase.load(Ordering::Relaxed) & !PHASE;
        // SeqCst pairs with the increment of the stop word in `expel`: rule 3.
        record.phase.swap(phase.wrapping_add(ONE_ACCESS), Ordering::SeqCst);
        if record.stop.load(Ordering::SeqCst) != 0 {
            FutexPark.unpark_all(&record.phase);
        }
    }

    /// Ends an access that a panic left open, if there is one.
    pub(crate) fn leave_if_inside(&self, record: &EngineRecord) {
        if record.phase.load(Ordering::Relaxed) & PHASE != OUTSIDE {
            self.leave(record);
        }
    }

    /// Waits, outside, until the device is open.
    pub(crate) fn wait_open(&self) {
        for _ in 0..GATE_LOOKS {
            if self.gate.load(Ordering::SeqCst) == 0 {
                return;
            }
            core::hint::spin_loop();
        }
        self.gate_waiters.fetch_add(1, Ordering::SeqCst);
        loop {
            match self.gate.load(Ordering::SeqCst) {
                0 => break,
                closers => FutexPark.park(&self.gate, closers),
            }
        }
        self.gate_waiters.fetch_sub(1, Ordering::SeqCst);
    }

    /// Waits, outside, until no closer wants this engine out of system memory.
    pub(crate) fn wait_unstopped(&self, record: &EngineRecord) {
        loop {
            match record.stop.load(Ordering::SeqCst) {
                0 => return,
                closers => FutexPark.park(&record.stop, closers),
            }
        }
    }

    /// Voids every translation and waits for accesses that use one.
    pub(crate) fn flush(&self, engines: &[EngineRecord]) {
        let mine = self.generation.fetch_add(1, Ordering::SeqCst) + 1;
        self.expel_all(engines);
        self.completed.fetch_max(mine, Ordering::SeqCst);
    }

    /// Closes the device and waits until no engine is inside an access.
    pub(crate) fn quiesce(&self, engines: &[EngineRecord]) {
        self.gate.fetch_add(1, Ordering::SeqCst);
        self.expel_all(engines);
    }

    /// Opens the device.
    pub(crate) fn resume(&self) {
        let before = self.gate.fetch_sub(1, Ordering::SeqCst);
        debug_assert_ne!(before, 0, "resume comes after quiesce");
        if before == 1 && self.gate_waiters.load(Ordering::SeqCst) != 0 {
            FutexPark.unpark_all(&self.gate);
        }
    }

    fn expel_all(&self, engines: &[EngineRecord]) {
        if self.hasty.load(Ordering::Relaxed) == 0 {
            engines.iter().for_each(expel);
        }
    }

    /// The latest flush that has begun, and the latest that is complete.
    pub(crate) fn flushes(&self) -> (u64, u64) {
        (self.generation.load(Ordering::SeqCst), self.completed.load(Ordering::SeqCst))
    }
}

/// Returns when the access in which the engine is now, if any, has ended.
fn expel(record: &EngineRecord) {
    let seen = record.phase.load(Ordering::SeqCst);
    let is_out = |now: u32| now & !PHASE != seen & !PHASE || now & PHASE == OUTSIDE;
    if is_out(seen) {
        return;
    }
    for _ in 0..LOOKS {
        core::hint::spin_loop();
        if is_out(record.phase.load(Ordering::SeqCst)) {
            return;
        }
    }
    record.stop.fetch_add(1, Ordering::SeqCst);
    let mut signalled = false;
    loop {
        let now = record.phase.load(Ordering::SeqCst);
        if is_out(now) {
            break;
        }
        if now & PHASE == INSIDE_SYSTEM && !signalled {
            // Once is enough: what it does after this finds the stop word set.
            guarded::interrupt(record.tid.load(Ordering::Relaxed) as i32);
            signalled = true;
        }
        FutexPark.park(&record.phase, now);
    }
    if record.stop.fetch_sub(1, Ordering::SeqCst) == 1 {
        FutexPark.unpark_all(&record.stop);
    }
}

/// The engines of a device, for a page table that wants a node back.
pub(crate) struct Engines<'a>(pub &'a Entry, pub &'a [EngineRecord]);

impl Quiet for Engines<'_> {
    fn generation(&self) -> u64 {
        self.0.flushes().0
    }
    fn completed(&self) -> u64 {
        self.0.flushes().1
    }
    fn flush_all(&self) {
        self.0.flush(self.1);
    }
}
