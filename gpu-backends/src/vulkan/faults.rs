//! Misses that launches announced, on their way to the service and back.
//!
//! # A launch's turn
//! After each pass (one dispatch) a launch puts what its items announced into its *seat* and sleeps until every record
//! has its answer. Records go through these states:
//!
//! | state | set by | means |
//! |---|---|---|
//! | `ANNOUNCED` | `raise` | waits to be fetched |
//! | `FETCHED` | `fetch` | somebody has it and owes an answer |
//! | `REPLAYED` | `replay` | the item looks again in the next pass |
//! | a cause | `cancel`, `detach` | the item ends |
//!
//! # Rules
//! 1. A pass is answered as a whole: the next dispatch begins when the last record has its answer, so that everything
//!    that was announced is there at once.
//! 2. `replay` answers fetched records only. A cookie holds the number of the pass: an answer that comes for an earlier
//!    one does nothing.
//! 3. Everything is under one lock and in private memory. Whoever holds it waits for nothing.
//! 4. The doorbell changes after a record was announced and after an interrupt was noted; a waiter samples it before it
//!    looks at either.
//! 5. While nobody is attached, records end at once.

use granule::os::FutexPark;
use granule::os::private::{PrivateError, Slab, ZeroValid};
use granule::ports::{DeviceFault, FaultCause};
use granule::sync::{AtomicU32, AtomicU64, Ordering, Park, WordLock};
use granule::units::{Access, DevAddr};

/// Launches that may have faults at once; others wait for a seat.
const SEATS: usize = 32;
/// The most records of one pass; what is left over is announced again.
pub(super) const MOST_RECORDS: usize = 1 << 16;

const ANNOUNCED: u32 = 0;
const FETCHED: u32 = 1;
const REPLAYED: u32 = 2;
/// States from here on are causes.
const CANCELLED: u32 = 16;

/// A miss.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug, Default)]
#[repr(C)]
pub(super) struct Miss {
    /// The item that announced it.
    pub(super) item: u32,
    /// The byte.
    pub(super) at: u64,
    /// Whether it was to be written.
    pub(super) write: bool,
}

/// A launch's place. Zeroed: free.
struct SeatRecord {
    taken: AtomicU32,
    /// Changes with each pass.
    pass: AtomicU32,
    /// Records without an answer; the launch sleeps on it.
    open: AtomicU32,
    count: AtomicU32,
    fetched: AtomicU32,
    replayed: AtomicU32,
    /// When the pass was announced, to fetch the oldest first.
    ticket: AtomicU64,
}

// SAFETY: atomics only; a zeroed record is a free seat.
#[allow(unsafe_code, reason = "seats are valid when zero")]
unsafe impl ZeroValid for SeatRecord {}

pub(super) struct FaultQueue {
    seats: Slab<SeatRecord>,
    /// Per seat `MOST_RECORDS` of: the byte; item and access.
    records: Slab<[AtomicU64; 2]>,
    states: Slab<AtomicU32>,
    lock: WordLock,
    /// Changes when a seat was left.
    left: AtomicU32,
    tickets: AtomicU64,
    doorbell: AtomicU32,
    interrupts: AtomicU32,
    announced: AtomicU32,
    attached: AtomicU32,
    /// Counters, for people.
    pub(super) recorded: AtomicU64,
    pub(super) cancelled: AtomicU64,
    /// Test switch: every so many-th record is dropped; 0 for none.
    pub(super) drop_every: AtomicU32,
}

/// A launch's claim on a seat; given back when dropped.
pub(super) struct Seat<'q> {
    queue: &'q FaultQueue,
    index: usize,
}

impl FaultQueue {
    pub(super) fn new() -> Result<Self, PrivateError> {
        Ok(Self {
            seats: Slab::new(SEATS)?,
            records: Slab::new(SEATS * MOST_RECORDS)?,
            states: Slab::new(SEATS * MOST_RECORDS)?,
            lock: WordLock::new(),
            left: AtomicU32::new(0),
            tickets: AtomicU64::new(1),
            doorbell: AtomicU32::new(0),
            interrupts: AtomicU32::new(0),
            announced: AtomicU32::new(0),
            attached: AtomicU32::new(0),
            recorded: AtomicU64::new(0),
            cancelled: AtomicU64::new(0),
            drop_every: AtomicU32::new(0),
        })
    }

    fn ring(&self) {
        self.doorbell.fetch_add(1, Ordering::SeqCst);
        FutexPark.unpark_all(&self.doorbell);
    }

    /// Claims a seat; waits while all are taken.
    pub(super) fn seat(&self) -> Seat<'_> {
        loop {
            let sampled = self.left.load(Ordering::SeqCst);
            let free = |record: &SeatRecord| {
                record.taken.compare_exchange(0, 1, Ordering::SeqCst, Ordering::Relaxed).is_ok()
            };
            if let Some(index) = self.seats.iter().position(free) {
                return Seat { queue: self, index };
            }
            FutexPark.park(&self.left, sampled);
        }
    }

    fn state(&self, seat: usize, index: u32) -> &AtomicU32 {
        &self.states[seat * MOST_RECORDS + index as usize]
    }

    /// Takes `records` answers off what a launch waits for. Under the lock.
    fn answer(&self, seat: &SeatRecord, records: u32) {
        if records > 0 && seat.open.fetch_sub(records, Ordering::SeqCst) == records {
            FutexPark.unpark_all(&seat.open);
        }
    }

    pub(super) fn fetch(&self, out: &mut [DeviceFault]) -> usize {
        let _held = self.lock.lock(&FutexPark);
        let mut taken = 0;
        while taken < out.len() {
            let waiting = |index: &usize| {
                let seat = &self.seats[*index];
                seat.fetched.load(Ordering::Relaxed) < seat.count.load(Ordering::Relaxed)
            };
            let oldest = |index: &usize| self.seats[*index].ticket.load(Ordering::Relaxed);
            let Some(index) = (0..SEATS).filter(waiting).min_by_key(oldest) else { break };
            let seat = &self.seats[index];
            let record = seat.fetched.load(Ordering::Relaxed);
            seat.fetched.store(record + 1, Ordering::Relaxed);
            self.state(index, record).store(FETCHED, Ordering::Relaxed);
            let words = &self.records[index * MOST_RECORDS + record as usize];
            let word = words[1].load(Ordering::Relaxed);
            let pass = u64::from(seat.pass.load(Ordering::Relaxed));
            out[taken] = DeviceFault {
                at: DevAddr(words[0].load(Ordering::Relaxed)),
                access: if word & 1 != 0 { Access::Write } else { Access::Read },
                engine: (word >> 1) as u32,
                cookie: pass << 32 | (index * MOST_RECORDS) as u64 | u64::from(record),
            };
            taken += 1;
        }
        self.announced.fetch_sub(taken as u32, Ordering::SeqCst);
        taken
    }

    pub(super) fn replay(&self) {
        let _held = self.lock.lock(&FutexPark);
        for (index, seat) in self.seats.iter().enumerate() {
            let (from, until) = (seat.replayed.load(Ordering::Relaxed), seat.fetched.load(Ordering::Relaxed));
            let mut answered = 0;
            for record in from..until {
                let state = self.state(index, record);
                if state.load(Ordering::Relaxed) == FETCHED {
                    state.store(REPLAYED, Ordering::Relaxed);
                    answered += 1;
                }
            }
            seat.replayed.store(until, Ordering::Relaxed);
            self.answer(seat, answered);
        }
    }

    pub(super) fn cancel(&self, fault: &DeviceFault, cause: FaultCause) {
        let _held = self.lock.lock(&FutexPark);
        let place = fault.cookie as u32 as usize;
        assert!(place < self.states.len(), "a fault is cancelled on the device that raised it");
        let seat = &self.seats[place / MOST_RECORDS];
        let is_current = seat.pass.load(Ordering::Relaxed) == (fault.cookie >> 32) as u32;
        if is_current && self.states[place].load(Ordering::Relaxed) == FETCHED {
            self.states[place].store(CANCELLED + cause as u32, Ordering::Relaxed);
            self.cancelled.fetch_add(1, Ordering::Relaxed);
            self.answer(seat, 1);
        }
    }

    pub(super) fn attach(&self) {
        self.attached.store(1, Ordering::SeqCst);
    }

    /// Faults are not served any more; those that wait have ended when this returns.
    pub(super) fn detach(&self) {
        let _held = self.lock.lock(&FutexPark);
        self.attached.store(0, Ordering::SeqCst);
        for (index, seat) in self.seats.iter().enumerate() {
            let mut ended = 0;
            for record in seat.replayed.load(Ordering::Relaxed)..seat.count.load(Ordering::Relaxed) {
                let state = self.state(index, record);
                if matches!(state.load(Ordering::Relaxed), ANNOUNCED | FETCHED) {
                    state.store(CANCELLED + FaultCause::ShuttingDown as u32, Ordering::Relaxed);
                    ended += 1;
                }
            }
            let count = seat.count.load(Ordering::Relaxed);
            seat.fetched.store(count, Ordering::Relaxed);
            seat.replayed.store(count, Ordering::Relaxed);
            self.answer(seat, ended);
        }
        self.announced.store(0, Ordering::SeqCst);
    }

    pub(super) fn wait(&self) {
        loop {
            let sampled = self.doorbell.load(Ordering::SeqCst);
            let waiting = self.interrupts.load(Ordering::SeqCst);
            if waiting > 0 {
                let took = self.interrupts.compare_exchange(
                    waiting,
                    waiting - 1,
                    Ordering::SeqCst,
                    Ordering::SeqCst,
                );
                if took.is_ok() {
                    return;
                }
                continue;
            }
            if self.announced.load(Ordering::SeqCst) > 0 {
                return;
            }
            FutexPark.park(&self.doorbell, sampled);
        }
    }

    pub(super) fn interrupt(&self) {
        self.interrupts.fetch_add(1, Ordering::SeqCst);
        self.ring();
    }
}

impl Seat<'_> {
    /// Announces the misses of a pass, at most [`MOST_RECORDS`], and waits until each has its answer. Then calls
    /// `cancelled` for each one that ends.
    pub(super) fn raise(&self, misses: &[Miss], mut cancelled: impl FnMut(&Miss, FaultCause)) {
        let queue = self.queue;
        let seat = &queue.seats[self.index];
        debug_assert!(misses.len() <= MOST_RECORDS);
        {
            let _held = queue.lock.lock(&FutexPark);
            if queue.attached.load(Ordering::SeqCst) == 0 {
                drop(_held);
                return misses.iter().for_each(|miss| cancelled(miss, FaultCause::ShuttingDown));
            }
            let mut count = 0;
            for miss in misses {
                let number = queue.recorded.fetch_add(1, Ordering::Relaxed) + 1;
                let drop_every = u64::from(queue.drop_every.load(Ordering::Relaxed));
                if drop_every != 0 && number.is_multiple_of(drop_every) {
                    continue;
                }
                let words = &queue.records[self.index * MOST_RECORDS + count as usize];
                words[0].store(miss.at, Ordering::Relaxed);
                words[1].store(u64::from(miss.item) << 1 | u64::from(miss.write), Ordering::Relaxed);
                queue.state(self.index, count).store(ANNOUNCED, Ordering::Relaxed);
                count += 1;
            }
            seat.pass.store(seat.pass.load(Ordering::Relaxed).wrapping_add(1), Ordering::Relaxed);
            // A record that the test switch dropped is never answered.
            seat.open.store(misses.len() as u32, Ordering::SeqCst);
            seat.fetched.store(0, Ordering::Relaxed);
            seat.replayed.store(0, Ordering::Relaxed);
            seat.count.store(count, Ordering::Relaxed);
            seat.ticket.store(queue.tickets.fetch_add(1, Ordering::Relaxed), Ordering::Relaxed);
            queue.announced.fetch_add(count, Ordering::SeqCst);
        }
        queue.ring();
        loop {
            // SeqCst pairs with the subtraction in `answer`: the states behind it are seen.
            match seat.open.load(Ordering::SeqCst) {
                0 => break,
                open => FutexPark.park(&seat.open, open),
            }
        }
        for (record, miss) in misses.iter().enumerate() {
            let state = queue.state(self.index, record as u32).load(Ordering::Relaxed);
            if state >= CANCELLED {
                cancelled(miss, FaultCause::ALL[(state - CANCELLED) as usize - 1]);
            }
        }
    }
}

impl Drop for Seat<'_> {
    fn drop(&mut self) {
        let queue = self.queue;
        {
            let _held = queue.lock.lock(&FutexPark);
            queue.seats[self.index].count.store(0, Ordering::Relaxed);
            queue.seats[self.index].fetched.store(0, Ordering::Relaxed);
            queue.seats[self.index].replayed.store(0, Ordering::Relaxed);
            queue.seats[self.index].taken.store(0, Ordering::SeqCst);
        }
        queue.left.fetch_add(1, Ordering::SeqCst);
        FutexPark.unpark_all(&queue.left);
    }
}
