//! An address that is unmapped and mapped again while engines write to it: nothing of the old life is found in the
//! new one, and nothing of the new one is lost.
#![cfg(not(granule_loom))]
#![allow(unsafe_code, reason = "maps where another thread has just unmapped")]

mod real;

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use granule::FaultMode;
use granule::ports::{Count, FaultCause};
use granule_backends::software::{AccessError, Engine};
use real::{MIB, PAGE, World, alone, map_aligned, peek, poke, range, unmap};

const PAGES: usize = 48;
const ENGINES: usize = 2;
/// The word of each page that the CPU writes.
const CPU_WORD: usize = 2048;

/// What engines and CPU tell one another. Lies on the stack of the test, which is linked, not taken.
struct Shared {
    base: usize,
    stop: AtomicBool,
    /// The life of the mapping.
    life: AtomicU64,
    /// Per engine: the tag of its last store that succeeded.
    done: [AtomicU64; ENGINES],
    refused: AtomicU64,
    /// The engines have ended.
    ended: AtomicBool,
}

/// Life and number of a store.
fn tag(life: u64, number: u64) -> u64 {
    life << 32 | number & 0xffff_ffff
}

/// Where store `number` of an engine goes.
fn place(base: usize, engine: usize, number: u64) -> usize {
    let page = number as usize / 4 % PAGES;
    base + page * PAGE + (engine * 4 + number as usize % 4) * 8
}

impl Shared {
    fn new(base: usize) -> Self {
        Self {
            base,
            stop: AtomicBool::new(false),
            life: AtomicU64::new(0),
            done: [AtomicU64::new(0), AtomicU64::new(0)],
            refused: AtomicU64::new(0),
            ended: AtomicBool::new(false),
        }
    }

    /// Has all engines store until told to stop.
    fn run(&self, world: &World) {
        let ended = world.device.run(|engine| {
            let ended = self.write(engine);
            self.ended.store(true, Ordering::SeqCst);
            self.stop.store(true, Ordering::SeqCst);
            ended
        });
        ended.expect("no error but holes");
    }

    /// Stores tag after tag until told to stop. A hole is what it expects now and then.
    fn write(&self, engine: &mut Engine<'_>) -> Result<(), AccessError> {
        let mut number = 0;
        while !self.stop.load(Ordering::SeqCst) {
            number += 1;
            // The life is read first: a store of an old life may be under way while the mapping changes, one
            // per engine.
            let tag = tag(self.life.load(Ordering::SeqCst), number);
            match engine.store(place(self.base, engine.index(), number) as u64, tag) {
                Ok(()) => self.done[engine.index()].store(tag, Ordering::SeqCst),
                Err(AccessError::Fault { cause: FaultCause::NoMapping, .. }) => {
                    self.refused.fetch_add(1, Ordering::Relaxed);
                }
                Err(error) => return Err(error),
            }
        }
        Ok(())
    }

    /// Until each engine has made some stores in this life.
    fn await_stores(&self, life: u64, stores: u64) {
        for done in &self.done {
            let mut first = None;
            loop {
                let now = done.load(Ordering::SeqCst);
                if now >> 32 == life {
                    let first = *first.get_or_insert(now);
                    if now >= first + stores {
                        break;
                    }
                }
                assert!(!self.ended.load(Ordering::SeqCst), "life {life}: the engines have ended");
                std::thread::yield_now();
            }
        }
    }

    /// Looks at everything that the CPU finds in this life.
    fn check(&self, life: u64) {
        let last: Vec<u64> = self.done.iter().map(|done| done.load(Ordering::SeqCst)).collect();
        for page in 0..PAGES {
            let found = peek(self.base + page * PAGE + CPU_WORD);
            assert_eq!(found, life, "life {life}: what the CPU wrote to page {page} is gone");
        }
        for (engine, &last) in last.iter().enumerate() {
            let mut old = 0;
            for page in 0..PAGES {
                for word in 0..4 {
                    let found = peek(self.base + page * PAGE + (engine * 4 + word) * 8);
                    match found >> 32 {
                        _ if found == 0 => {}
                        of if of == life => {}
                        of if of + 1 == life => old += 1,
                        of => panic!("life {life}: page {page} holds a store of life {of}"),
                    }
                }
            }
            assert!(old <= 1, "life {life}: {old} stores of the life before, by engine {engine}");
            if last >> 32 == life {
                let found = peek(place(self.base, engine, last & 0xffff_ffff));
                assert!(
                    found >= last,
                    "life {life}: the store {last:#x} was acknowledged and is gone: {found:#x}"
                );
            }
        }
    }
}

/// Whether a system call reads a word there.
fn kernel_can_read(at: usize) -> bool {
    let mut word = 0u64;
    let local = libc::iovec { iov_base: (&raw mut word).cast(), iov_len: 8 };
    let remote = libc::iovec { iov_base: at as *mut _, iov_len: 8 };
    // SAFETY: one word of this stack is written; the kernel checks the other side.
    (unsafe { libc::process_vm_readv(libc::getpid(), &local, 1, &remote, 1, 0) }) == 8
}

/// Maps at `base` if nothing stands there.
fn try_map(base: usize) -> bool {
    // SAFETY: maps only where nothing is.
    let got = unsafe {
        libc::mmap(
            base as *mut _,
            PAGES * PAGE,
            libc::PROT_READ | libc::PROT_WRITE,
            libc::MAP_PRIVATE | libc::MAP_ANONYMOUS | libc::MAP_FIXED_NOREPLACE,
            -1,
            0,
        )
    };
    got as usize == base
}

fn hole() -> usize {
    let base = map_aligned(2 * MIB) + 5 * PAGE;
    unmap(base, PAGES * PAGE);
    base
}

fn lives() -> u64 {
    std::env::var("GRANULE_LIVES").ok().and_then(|lives| lives.parse().ok()).unwrap_or(700)
}

#[test]
fn one_thread_unmaps_and_maps_again() {
    unmap_and_map(FaultMode::Blocking, lives());
}

/// The same where the thread that touches a page serves its own fault: nothing that the old mapping's userfaultfd still
/// says of the address counts for the new one.
#[test]
fn so_does_one_that_serves_its_own_faults() {
    unmap_and_map(FaultMode::Sigbus, lives());
}

fn unmap_and_map(mode: FaultMode, lives: u64) {
    let _alone = alone(240);
    let world = World::new(8 * MIB, |builder| builder);
    let shared = Shared::new(hole());
    let base = shared.base;
    let mut trapped = 0;
    std::thread::scope(|scope| {
        let engines = scope.spawn(|| shared.run(&world));
        let _stops = Stop(&shared.stop);
        for life in 1..=lives {
            shared.life.store(life, Ordering::SeqCst);
            if mode == FaultMode::Sigbus {
                // Before anything is mapped: the engines touch it at once.
                // (Until the event of the last unmap is applied the old mapping is followed.)
                while world.svm.fault_mode(range(base, PAGES), mode).is_err() {
                    std::thread::yield_now();
                }
            }
            assert!(try_map(base), "life {life}: nobody else maps here");
            for page in 0..PAGES {
                poke(base + page * PAGE + CPU_WORD, life);
            }
            shared.await_stores(life, life % 40);
            if mode == FaultMode::Sigbus {
                // What the kernel itself cannot touch is away, and of this mode.
                trapped += (0..PAGES).filter(|page| !kernel_can_read(base + page * PAGE)).count() as u64;
            }
            shared.check(life);
            unmap(base, PAGES * PAGE);
        }
        shared.stop.store(true, Ordering::SeqCst);
        engines.join().expect("the engines meet no error but holes");
    });
    assert!(world.load(base).is_err(), "what is unmapped cannot be read");
    report(&world, &shared);
    println!("{trapped} pages found away that only a thread of the application may touch");
    assert_eq!(trapped > lives, mode == FaultMode::Sigbus, "{mode:?}");
}

#[test]
fn another_thread_maps_what_was_unmapped_before_the_first_one_is_told() {
    let _alone = alone(240);
    let world = World::new(8 * MIB, |builder| builder);
    let shared = Shared::new(hole());
    let base = shared.base;
    let mapped = AtomicU64::new(0);
    std::thread::scope(|scope| {
        let engines = scope.spawn(|| shared.run(&world));
        let _stops = Stop(&shared.stop);
        scope.spawn(|| {
            // Maps as soon as the address is free, which is before `munmap` has returned in the other thread.
            for life in 1..=lives() {
                while !try_map(base) {
                    if shared.stop.load(Ordering::SeqCst) {
                        return;
                    }
                }
                for page in 0..PAGES {
                    poke(base + page * PAGE + CPU_WORD, life);
                }
                mapped.store(life, Ordering::SeqCst);
            }
        });
        for life in 1..=lives() {
            while mapped.load(Ordering::SeqCst) != life {
                std::thread::yield_now();
            }
            // Now both have returned: this life's engines begin.
            shared.life.store(life, Ordering::SeqCst);
            shared.await_stores(life, life % 20);
            for page in 0..PAGES {
                let found = peek(base + page * PAGE + CPU_WORD);
                assert_eq!(found, life, "life {life}: what the CPU wrote to page {page} is gone");
            }
            unmap(base, PAGES * PAGE);
        }
        shared.stop.store(true, Ordering::SeqCst);
        engines.join().expect("the engines meet no error but holes");
    });
    report(&world, &shared);
}

fn report(world: &World, shared: &Shared) {
    let stats = world.svm.stats();
    let (away, home) = (stats.count(Count::PagesToDevice), stats.count(Count::PagesToRam));
    println!(
        "{} lives, {away} pages to the device, {home} home, {} dropped on it, {} stores met a hole, {} retries",
        lives(),
        stats.count(Count::InvalidatedPages),
        shared.refused.load(Ordering::Relaxed),
        stats.count(Count::RetrySequence),
    );
    assert!(away > lives() * 8, "only {away} pages went to the device in {} lives", lives());
    assert_eq!(world.device.counters().iommu_errors, 0);
}

struct Stop<'a>(&'a AtomicBool);

impl Drop for Stop<'_> {
    fn drop(&mut self) {
        self.0.store(true, Ordering::SeqCst);
    }
}
