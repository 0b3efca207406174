//! The bounded buffer of replayable faults, and the answer that each engine waits for.
//!
//! # An engine's fault word
//! From bit 8 on the number of its fault (wrapping), below it a state:
//!
//! | state | set by | means |
//! |---|---|---|
//! | 0 | | no fault so far |
//! | `RECORDED` | engine | on its way into the buffer, or in it |
//! | `FETCHED` | `fetch` | somebody has it and owes an answer |
//! | `REPLAYED` | `replay` | execute the access again |
//! | `LOST` | `lose` | the device is gone |
//! | `CANCELLED` + cause | `cancel`, `detach` | give the access up |
//!
//! # Rules
//! 1. The buffer keeps every record, also several for one page. An engine that finds it full waits until
//!    `fetch` has made room; nothing is dropped.
//! 2. `replay` answers fetched faults only. Each answer is one compare-and-exchange on the engine's word, on
//!    which the engine sleeps, so an answer that comes before the engine sleeps is seen, and one that comes for
//!    an older fault (whose number differs) does nothing.
//! 3. The doorbell changes after a record is in the buffer and after an interrupt is noted; a waiter samples it
//!    before it looks at either.
//! 4. Each address space has a buffer. An engine is of the space in which its kernel runs, and only its buffer
//!    answers it; what says that there is room again is one word for all of them.
//! 5. Faults while nobody is attached end at once. A record whose engine was answered already may still be in the
//!    buffer; whoever fetches it serves a page that nobody waits for.

use granule::os::FutexPark;
use granule::os::private::{PrivateError, Slab};
use granule::ports::{DeviceFault, FaultCause};
use granule::sync::{AtomicU32, AtomicU64, Ordering, Park, WordLock};
use granule::units::{Access, DevAddr};

use super::entry::EngineRecord;

const RECORDED: u32 = 1;
const FETCHED: u32 = 2;
const REPLAYED: u32 = 3;
const LOST: u32 = 4;
const CANCELLED: u32 = 16;
const STATE: u32 = 0xff;

/// How a fault ended.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Answer {
    Again,
    Cancelled(FaultCause),
    DeviceLost,
}

pub(crate) struct FaultBuffer {
    /// Two words per record: the address; engine, number and access.
    records: Slab<[AtomicU64; 2]>,
    lock: WordLock,
    put: AtomicU32,
    get: AtomicU32,
    /// The space whose faults these are.
    space: u32,
    /// Changes when there is something to fetch or to be interrupted by.
    doorbell: AtomicU32,
    interrupts: AtomicU32,
    /// 1 while somebody serves faults.
    attached: AtomicU32,
    pub(super) recorded: AtomicU64,
    pub(super) overflowed: AtomicU64,
    pub(super) cancelled: AtomicU64,
    pub(super) replays: AtomicU64,
    /// Test switch: every so many-th record is dropped; 0 for none.
    pub(super) drop_every: AtomicU32,
}

impl FaultBuffer {
    pub(crate) fn new(entries: usize, space: u32) -> Result<Self, PrivateError> {
        Ok(Self {
            records: Slab::new(entries)?,
            lock: WordLock::new(),
            put: AtomicU32::new(0),
            get: AtomicU32::new(0),
            space,
            doorbell: AtomicU32::new(0),
            interrupts: AtomicU32::new(0),
            attached: AtomicU32::new(0),
            recorded: AtomicU64::new(0),
            overflowed: AtomicU64::new(0),
            cancelled: AtomicU64::new(0),
            replays: AtomicU64::new(0),
            drop_every: AtomicU32::new(0),
        })
    }

    fn len(&self) -> u32 {
        self.put.load(Ordering::Acquire).wrapping_sub(self.get.load(Ordering::Acquire))
    }

    fn ring(&self) {
        self.doorbell.fetch_add(1, Ordering::SeqCst);
        FutexPark.unpark_all(&self.doorbell);
    }

    /// Records a fault of an engine and waits for its answer. The engine is outside of any access.
    pub(crate) fn raise(
        &self,
        engine: u32,
        record: &EngineRecord,
        lost: &AtomicU32,
        room: &AtomicU32,
        at: u64,
        access: Access,
    ) -> Answer {
        let number = (record.fault.load(Ordering::Relaxed) & !STATE).wrapping_add(STATE + 1);
        record.fault.store(number | RECORDED, Ordering::SeqCst);
        // SeqCst pairs with the stores before `end_all`: it sees this fault, or this sees that nobody serves.
        if lost.load(Ordering::SeqCst) != 0 {
            return Answer::DeviceLost;
        }
        if self.attached.load(Ordering::SeqCst) == 0 {
            return Answer::Cancelled(FaultCause::ShuttingDown);
        }
        let words =
            [at, u64::from(number) << 32 | u64::from(engine) << 1 | u64::from(access == Access::Write)];
        while let Err(sampled) = self.try_put(room, words) {
            self.overflowed.fetch_add(1, Ordering::Relaxed);
            FutexPark.park(room, sampled);
            if record.fault.load(Ordering::SeqCst) & STATE != RECORDED {
                break;
            }
        }
        self.ring();
        loop {
            let word = record.fault.load(Ordering::Acquire);
            match word & STATE {
                RECORDED | FETCHED => FutexPark.park(&record.fault, word),
                REPLAYED => return Answer::Again,
                LOST => return Answer::DeviceLost,
                state => return Answer::Cancelled(FaultCause::ALL[(state - CANCELLED) as usize - 1]),
            }
        }
    }

    /// Puts a record in, or says on which value of `room` to wait.
    fn try_put(&self, room: &AtomicU32, words: [u64; 2]) -> Result<(), u32> {
        let sampled = room.load(Ordering::SeqCst);
        let _held = self.lock.lock(&FutexPark);
        if self.len() as usize == self.records.len() {
            return Err(sampled);
        }
        let count = self.recorded.fetch_add(1, Ordering::Relaxed) + 1;
        let drop_every = u64::from(self.drop_every.load(Ordering::Relaxed));
        if drop_every != 0 && count.is_multiple_of(drop_every) {
            return Ok(());
        }
        let put = self.put.load(Ordering::Relaxed);
        let place = &self.records[put as usize % self.records.len()];
        place[0].store(words[0], Ordering::Relaxed);
        place[1].store(words[1], Ordering::Relaxed);
        self.put.store(put.wrapping_add(1), Ordering::Release);
        Ok(())
    }

    pub(crate) fn fetch(&self, engines: &[EngineRecord], room: &AtomicU32, out: &mut [DeviceFault]) -> usize {
        let _held = self.lock.lock(&FutexPark);
        let taken = out.len().min(self.len() as usize);
        for fault in &mut out[..taken] {
            let get = self.get.load(Ordering::Relaxed);
            let place = &self.records[get as usize % self.records.len()];
            let (at, word) = (place[0].load(Ordering::Relaxed), place[1].load(Ordering::Relaxed));
            self.get.store(get.wrapping_add(1), Ordering::Release);
            let (number, engine) = ((word >> 32) as u32, word as u32 >> 1);
            let access = if word & 1 != 0 { Access::Write } else { Access::Read };
            let cookie = u64::from(engine) << 32 | u64::from(number);
            *fault = DeviceFault { at: DevAddr(at), access, engine, cookie };
            // Fails only if the device was lost meanwhile: the engine is on its way out then.
            let _ = engines[engine as usize].fault.compare_exchange(
                number | RECORDED,
                number | FETCHED,
                Ordering::SeqCst,
                Ordering::Relaxed,
            );
        }
        if taken > 0 {
            room.fetch_add(1, Ordering::SeqCst);
            FutexPark.unpark_all(room);
        }
        taken
    }

    pub(crate) fn replay(&self, engines: &[EngineRecord]) {
        self.replays.fetch_add(1, Ordering::Relaxed);
        for record in engines.iter().filter(|record| self.is_here(record)) {
            let word = record.fault.load(Ordering::SeqCst);
            if word & STATE == FETCHED {
                answer(record, word & !STATE, REPLAYED);
            }
        }
    }

    pub(crate) fn cancel(&self, engines: &[EngineRecord], fault: &DeviceFault, cause: FaultCause) {
        let engine = (fault.cookie >> 32) as usize;
        assert!(engine < engines.len(), "a fault is cancelled on the device that raised it");
        if answer(&engines[engine], fault.cookie as u32, CANCELLED + cause as u32) {
            self.cancelled.fetch_add(1, Ordering::Relaxed);
        }
    }

    /// Ends every wait of every engine: the device is gone.
    pub(crate) fn lose(engines: &[EngineRecord], room: &AtomicU32) {
        end_all(engines.iter(), room, LOST);
    }

    /// Faults are served from now on.
    pub(crate) fn attach(&self) {
        self.attached.store(1, Ordering::SeqCst);
    }

    /// Faults are not served any more; those that wait have ended when this returns.
    pub(crate) fn detach(&self, engines: &[EngineRecord], room: &AtomicU32) {
        self.attached.store(0, Ordering::SeqCst);
        {
            let _held = self.lock.lock(&FutexPark);
            self.get.store(self.put.load(Ordering::Relaxed), Ordering::Release);
        }
        let here = engines.iter().filter(|record| self.is_here(record));
        end_all(here, room, CANCELLED + FaultCause::ShuttingDown as u32);
    }

    /// Whether the engine's kernel runs in this space.
    fn is_here(&self, record: &EngineRecord) -> bool {
        record.space.load(Ordering::SeqCst) == self.space
    }

    pub(crate) fn wait(&self) {
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
            if self.len() > 0 {
                return;
            }
            FutexPark.park(&self.doorbell, sampled);
        }
    }

    pub(crate) fn interrupt(&self) {
        self.interrupts.fetch_add(1, Ordering::SeqCst);
        self.ring();
    }
}

/// Ends every fault that these engines wait for.
fn end_all<'e>(engines: impl Iterator<Item = &'e EngineRecord>, room: &AtomicU32, state: u32) {
    let end = |word: u32| matches!(word & STATE, RECORDED | FETCHED).then_some(word & !STATE | state);
    for record in engines {
        if record.fault.fetch_update(Ordering::SeqCst, Ordering::SeqCst, end).is_ok() {
            FutexPark.unpark_all(&record.fault);
        }
    }
    room.fetch_add(1, Ordering::SeqCst);
    FutexPark.unpark_all(room);
}

/// Answers a fetched fault; `false` if it is not waiting any more.
fn answer(record: &EngineRecord, number: u32, state: u32) -> bool {
    let answered = record
        .fault
        .compare_exchange(number | FETCHED, number | state, Ordering::SeqCst, Ordering::Relaxed)
        .is_ok();
    if answered {
        FutexPark.unpark_all(&record.fault);
    }
    answered
}
