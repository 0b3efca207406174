//! Models: the library's real state machine under loom, over simulated ports, with an application thread, a reader and
//! one or two workers. A block has 64 pages, a granule two blocks; one or two pages are used. Bound: two preemptions
//! per run (`PREEMPTIONS`), which reaches every one of the rules below, as their twins show.
//!
//! Each model has a twin: the same run with one rule of the real code switched off, which must fail, by an assertion
//! on data. The simulated kernel keeps its promises in both.
#![cfg(granule_loom)]

mod support;

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::{Mutex, OnceLock};

use granule::fault::{BlockFault, CpuFault, Reader, RoundEnd, round, serve};
use granule::granule::{BlockIndex, check_block};
use granule::migrate::{Space, to_ram};
use granule::policy::{Granularity, MigrateOnFault};
use granule::ports::{HostEvent, NoProbe, VmaKind, Word};
use granule::sync::{AtomicU32, Ordering, Rule, switch_off};
use granule::units::{Access, BlockNo, DeviceId, PAGES_PER_BLOCK, PageMask, Seat, VirtRange};
use loom::sync::Arc;
use support::{Faulted, Mapping, SimDevice, SimHost, SimMemory, TickClock, one, page_at, words, yield_now};

const PREEMPTIONS: usize = 2;
const RW: Mapping = Mapping { access: Access::Write, kind: VmaKind::Movable };
const RO: Mapping = Mapping { access: Access::Read, kind: VmaKind::Movable };
const POLICY: MigrateOnFault = MigrateOnFault { granularity: Granularity::Kib4 };

/// One space with everything that it borrows, shared by the threads of a run.
struct World {
    host: &'static SimHost,
    device: &'static SimDevice,
    space: &'static Space<'static, SimHost>,
    /// Threads that still need the reader.
    needing: AtomicU32,
    /// Frees what was leaked for the run.
    _leaked: Leaked,
}

/// What a run leaks to get simple lifetimes, given back at its end.
struct Leaked(
    *mut SimHost,
    *mut SimDevice,
    *mut SimMemory,
    *mut [granule::migrate::SpaceDevice<'static>; 1],
    *mut Space<'static, SimHost>,
);

#[allow(unsafe_code, reason = "a run's world is leaked and freed by its last owner")]
mod leak {
    use super::Leaked;
    // SAFETY: only the last owner of the world touches the pointers.
    unsafe impl Send for Leaked {}
    // SAFETY: as above.
    unsafe impl Sync for Leaked {}
    impl Drop for Leaked {
        fn drop(&mut self) {
            // SAFETY: each came from Box::into_raw once; the space goes before what it borrows from.
            unsafe {
                drop(Box::from_raw(self.4));
                drop(Box::from_raw(self.3));
                drop(Box::from_raw(self.2));
                drop(Box::from_raw(self.1));
                drop(Box::from_raw(self.0));
            }
        }
    }
    /// Lends what a raw box holds.
    pub fn lend<T>(at: *mut T) -> &'static T {
        // SAFETY: freed by `Leaked` when the last thread of the run has dropped the world.
        unsafe { &*at }
    }
}

fn staging() -> &'static [Word] {
    static WORDS: OnceLock<&'static [Word]> = OnceLock::new();
    WORDS.get_or_init(|| words(3 * PAGES_PER_BLOCK))
}
fn device_memory() -> &'static [Word] {
    static WORDS: OnceLock<&'static [Word]> = OnceLock::new();
    WORDS.get_or_init(|| words(PAGES_PER_BLOCK))
}

impl World {
    fn new(needing: u32) -> Arc<Self> {
        let host = Box::into_raw(Box::new(SimHost::new(staging())));
        let device = Box::into_raw(Box::new(SimDevice::new(device_memory())));
        let memory = Box::into_raw(Box::new(SimMemory::new(2, 2, leak::lend(device))));
        let devices = Box::into_raw(Box::new([leak::lend(memory).device(leak::lend(device))]));
        let space = Box::into_raw(Box::new(leak::lend(memory).space(
            leak::lend(host),
            leak::lend::<[_; 1]>(devices),
            &POLICY,
            &NoProbe,
        )));
        Arc::new(Self {
            host: leak::lend(host),
            device: leak::lend(device),
            space: leak::lend(space),
            needing: AtomicU32::new(needing),
            _leaked: Leaked(host, device, memory, devices, space),
        })
    }

    fn done(&self) {
        self.needing.fetch_sub(1, Ordering::AcqRel);
    }

    /// The reader, until nobody needs it and nothing is left. A thread that waits although every worker has ended
    /// and nothing is left to read waits for ever.
    fn read(&self, workers_and_app: &AtomicU32) {
        let mut waiting = [CpuFault::NONE; 2];
        let mut events = [HostEvent::Unmap(VirtRange::default()); 2];
        let mut reader = Reader::new(&mut waiting, &mut events);
        loop {
            let alone = workers_and_app.load(Ordering::Acquire);
            let end = if self.host.has_events() || alone == 0 {
                round(self.space, &TickClock::new(), &mut reader)
            } else {
                RoundEnd::Idle
            };
            if end == RoundEnd::Idle && !self.host.has_events() {
                if alone == 0 {
                    return;
                }
                if alone == APP_ONLY {
                    assert!(!self.host.is_stuck(), "a thread waits, and nobody is left to wake it");
                }
            }
            yield_now();
        }
    }

    /// An engine's access: faults are served by the worker at `seat`, then it is made again.
    fn engine(&self, seat: Seat, page: u64, access: Access, change: impl Fn(u64) -> u64) -> Option<u64> {
        loop {
            match self.device.touch(self.host, page, access, &change) {
                Ok(old) => return Some(old),
                Err(Faulted) => {
                    let written = if access == Access::Write { one(page) } else { PageMask::EMPTY };
                    let fault =
                        BlockFault { block: block(), device: DeviceId(0), faulted: one(page), written };
                    let answer = serve(self.space, seat, &fault);
                    if !answer.failed().is_empty() {
                        return None;
                    }
                }
            }
        }
    }

    fn index(&self) -> BlockIndex {
        self.space.tables.block_or_make(block(), self.space.park).unwrap()
    }

    /// The page's value, wherever it is, after everything.
    fn final_value(&self, page: u64) -> Option<u64> {
        let index = self.index();
        check_block(&self.space.tables.lock(index, self.space.park)).unwrap();
        let _ = to_ram(self.space, Seat(0), index, &PageMask::FULL).expect("nothing moves any more");
        self.host.present(page)
    }
}

fn block() -> BlockNo {
    BlockNo::of(page_at(0))
}

/// `needing` when only the application thread is left.
const APP_ONLY: u32 = 1;

fn explore(model: impl Fn() + Sync + Send + 'static) {
    let mut builder = loom::model::Builder::new();
    builder.preemption_bound = Some(PREEMPTIONS);
    builder.max_branches = 20_000;
    builder.check(model);
}

/// Runs the model with every rule on, then its twin.
fn holds_and_twin_fails(rule: Rule, model: fn()) {
    static ONE_AT_A_TIME: Mutex<()> = Mutex::new(());
    let _turn = ONE_AT_A_TIME.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
    switch_off(None);
    explore(model);
    switch_off(Some(rule));
    let caught = catch_unwind(AssertUnwindSafe(|| explore(model)));
    switch_off(None);
    let why = caught.expect_err("the twin without the rule passes: the model does not see the rule");
    let text = why.downcast_ref::<String>().cloned().or(why.downcast_ref::<&str>().map(|s| (*s).to_owned()));
    let text = text.unwrap_or_default();
    assert!(text.contains("DATA:") || text.contains("a thread waits"), "caught, but not by its data: {text}");
}

/// A CPU thread and an engine both add one to a page: neither is lost, though the CPU finds it in transit.
fn cpu_fault_on_a_page_in_transit() {
    let world = World::new(2);
    world.host.mmap(0, RW);
    world.host.put(0, 7);
    let worker = {
        let world = world.clone();
        loom::thread::spawn(move || {
            world.engine(Seat(0), 0, Access::Write, |v| v + 1);
            world.done();
        })
    };
    let app = {
        let world = world.clone();
        loom::thread::spawn(move || {
            world.host.touch(0, |v| v + 10);
            world.done();
        })
    };
    world.read(&world.needing);
    worker.join().unwrap();
    app.join().unwrap();
    assert_eq!(world.final_value(0), Some(18), "DATA: an increment was lost");
}

#[test]
fn a_cpu_fault_on_a_page_in_transit_is_queued_not_filled() {
    holds_and_twin_fails(Rule::InTransitBeforeTake, cpu_fault_on_a_page_in_transit);
}

#[test]
fn whoever_ends_a_transit_wakes_the_block() {
    holds_and_twin_fails(Rule::WakeAfterTransit, cpu_fault_on_a_page_in_transit);
}

/// An eviction runs while an engine writes and the CPU touches: all three increments are there.
fn eviction_against_cpu_and_engine() {
    let world = World::new(2);
    world.host.mmap(0, RW);
    world.host.put(0, 7);
    world.engine(Seat(0), 0, Access::Write, |v| v + 1);
    let worker = {
        let world = world.clone();
        loom::thread::spawn(move || {
            let _ = to_ram(world.space, Seat(0), world.index(), &PageMask::FULL);
            world.done();
        })
    };
    let engine = {
        let world = world.clone();
        loom::thread::spawn(move || {
            let written = world.device.touch(world.host, 0, Access::Write, |v| v + 100).is_ok();
            world.done();
            written
        })
    };
    world.read(&world.needing);
    worker.join().unwrap();
    let written = engine.join().unwrap();
    let expected = 8 + if written { 100 } else { 0 };
    assert_eq!(world.final_value(0), Some(expected), "DATA: a device write that was acknowledged is lost");
}

#[test]
fn an_eviction_loses_no_device_write() {
    holds_and_twin_fails(Rule::UnmapBeforeCopy, eviction_against_cpu_and_engine);
}

/// CPU fault against eviction of the same page: the CPU's value survives.
fn eviction_against_cpu_fault() {
    let world = World::new(2);
    world.host.mmap(0, RW);
    world.host.put(0, 7);
    world.engine(Seat(0), 0, Access::Write, |v| v + 1);
    let worker = {
        let world = world.clone();
        loom::thread::spawn(move || {
            let _ = to_ram(world.space, Seat(0), world.index(), &PageMask::FULL);
            world.done();
        })
    };
    let app = {
        let world = world.clone();
        loom::thread::spawn(move || {
            world.host.touch(0, |v| v + 10);
            world.host.touch(0, |v| v + 10);
            world.done();
        })
    };
    world.read(&world.needing);
    worker.join().unwrap();
    app.join().unwrap();
    assert_eq!(world.final_value(0), Some(28), "DATA: a CPU write is lost");
}

#[test]
fn an_eviction_wakes_the_thread_that_found_its_page_in_transit() {
    holds_and_twin_fails(Rule::WakeAfterTransit, eviction_against_cpu_fault);
}

/// munmap, then a new mapping at the same address: the engine sees nothing of the old page any more, and the CPU
/// nothing but its own new value. (Rule 3 of the design: address reuse.)
fn address_reuse() {
    let world = World::new(2);
    world.host.mmap(0, RW);
    world.host.put(0, 7);
    let worker = {
        let world = world.clone();
        loom::thread::spawn(move || {
            world.engine(Seat(0), 0, Access::Read, |v| v);
            world.done();
        })
    };
    let app = {
        let world = world.clone();
        loom::thread::spawn(move || {
            world.host.munmap(0);
            world.host.mmap(0, RW);
            world.host.touch(0, |_| 100);
            let seen = world.device.touch(world.host, 0, Access::Read, |v| v);
            assert!(!matches!(seen, Ok(7 | 0)), "DATA: the device reads {seen:?} where 100 was written");
            let seen = world.host.touch(0, |v| v);
            assert_eq!(seen, Some(100), "DATA: the old page came back, or the new one is lost");
            world.done();
        })
    };
    world.read(&world.needing);
    worker.join().unwrap();
    app.join().unwrap();
    assert_eq!(world.final_value(0), Some(100), "DATA: the new page is lost");
}

#[test]
fn a_commit_leaves_pages_alone_that_an_invalidation_took() {
    holds_and_twin_fails(Rule::CommitWhatIsOwned, address_reuse);
}

#[test]
fn nobody_is_inside_the_gate_while_events_are_read() {
    holds_and_twin_fails(Rule::GateWaits, address_reuse);
}

/// A mapping is replaced by a read-only one while a write fault on it is served: the device does not write it.
fn commit_against_invalidation() {
    let world = World::new(2);
    world.host.mmap(0, RW);
    world.host.put(0, 7);
    // The block is known and mirrored, as after any earlier fault.
    world.host.mmap(1, RW);
    world.engine(Seat(0), 1, Access::Write, |v| v);
    let worker = {
        let world = world.clone();
        loom::thread::spawn(move || {
            world.engine(Seat(0), 0, Access::Write, |_| 5);
            world.done();
        })
    };
    let app = {
        let world = world.clone();
        loom::thread::spawn(move || {
            world.host.munmap(0);
            world.host.mmap(0, RO);
            world.host.put(0, 50);
            world.done();
        })
    };
    world.read(&world.needing);
    worker.join().unwrap();
    app.join().unwrap();
    assert_eq!(world.final_value(0), Some(50), "DATA: the device wrote to a read-only mapping");
}

#[test]
fn a_fault_does_not_commit_what_it_saw_before_an_invalidation() {
    holds_and_twin_fails(Rule::SequenceAtCommit, commit_against_invalidation);
}

/// Two workers serve faults on one page of one block: the page moves once.
fn two_faults_on_one_block() {
    let world = World::new(2);
    world.host.mmap(0, RW);
    world.host.put(0, 7);
    let engines: Vec<_> = (0..2)
        .map(|seat| {
            let world = world.clone();
            loom::thread::spawn(move || {
                world.engine(Seat(seat), 0, Access::Write, |v| v + 1);
                world.done();
            })
        })
        .collect();
    for engine in engines {
        engine.join().unwrap();
    }
    assert_eq!(world.final_value(0), Some(9), "DATA: an increment was lost, or the page was taken twice");
}

#[test]
fn two_faults_on_one_block_move_a_page_once() {
    holds_and_twin_fails(Rule::OneMover, two_faults_on_one_block);
}
