//! Everything at once, and every write counted: CPU writers, device writers, migrations, evictions, invalidations, on
//! a device whose memory is smaller than what is worked on.
//!
//! Runs for 20 s in the way of taking pages that the kernel offers, and for a quarter of that by protecting and discarding
//! them; `GRANULE_STRESS_SECONDS` says otherwise.
#![cfg(not(granule_loom))]
#![allow(unsafe_code, reason = "words of raw mappings, counted by both sides")]

mod real;

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use granule::os::TakeWay;
use granule::ports::Count;
use granule_backends::software::{AccessError, Engine};
use real::{DEVICE, MIB, PAGE, World, advise, alone, map, map_aligned, peek, poke, range, unmap};

/// What is worked on: four times the device's memory.
const PAGES: usize = 4096;
const DEVICE_BYTES: usize = 4 * MIB;
const CPU_THREADS: usize = 2;
const ENGINES: usize = 2;

/// Words of each page, by their place.
mod word {
    /// Both sides add to it, atomically.
    pub const COUNTER: usize = 0;
    /// Each CPU thread, and each engine, has a word that it alone writes.
    pub const OF_CPU: usize = 64;
    pub const OF_ENGINE: usize = 2048;
    /// The side whose turn it is adds one.
    pub const TURN: usize = 4000;
}

/// What must be reached, for each second of the run.
const LEAST_ALTERNATIONS: u64 = 10;
const LEAST_MOVED: u64 = 2_000;

fn seconds() -> u64 {
    std::env::var("GRANULE_STRESS_SECONDS").ok().and_then(|seconds| seconds.parse().ok()).unwrap_or(20)
}

/// Numbers that look random, from a seed.
struct Random(u64);

impl Random {
    fn next(&mut self) -> usize {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        (self.0 >> 16) as usize
    }
}

struct Stress {
    world: World,
    base: usize,
    stop: AtomicBool,
    /// The page on which both sides take turns.
    turns: usize,
    alternations: AtomicU64,
    added: AtomicU64,
    invalidated: AtomicU64,
    asked: AtomicU64,
}

fn add(at: usize) {
    // SAFETY: an aligned word of the mapping that the test keeps until the end; all sides use atomics there.
    unsafe { AtomicU64::from_ptr(at as *mut u64) }.fetch_add(1, Ordering::SeqCst);
}

impl Stress {
    fn page(&self, random: &mut Random) -> usize {
        self.base + random.next() % PAGES * PAGE
    }

    /// Adds to counters, and counts in a word of its own; keeps what it wrote on its stack of the heap.
    fn cpu(&self, thread: usize) -> Vec<u64> {
        let mut own = vec![0u64; PAGES];
        let mut random = Random(0x9e37_79b9 + thread as u64);
        let mut adds = 0;
        while !self.stop.load(Ordering::Relaxed) {
            let page = self.page(&mut random);
            for step in 0..8 {
                let at = self.base + (page - self.base + step * PAGE) % (PAGES * PAGE);
                add(at + word::COUNTER);
                adds += 1;
                let number = (at - self.base) / PAGE;
                let before = peek(at + word::OF_CPU + 8 * thread);
                assert_eq!(before, own[number], "page {number}: a write of CPU thread {thread} is gone");
                own[number] += 1;
                poke(at + word::OF_CPU + 8 * thread, own[number]);
            }
        }
        self.added.fetch_add(adds, Ordering::Relaxed);
        own
    }

    /// The same on an engine.
    fn engine(&self, engine: &mut Engine<'_>) -> Result<(), AccessError> {
        let index = engine.index();
        let mut own = vec![0u64; PAGES];
        let mut random = Random(0x1234_5678 + index as u64);
        let mut adds = 0;
        while !self.stop.load(Ordering::Relaxed) {
            let page = self.page(&mut random);
            for step in 0..8 {
                let at = (self.base + (page - self.base + step * PAGE) % (PAGES * PAGE)) as u64;
                engine.fetch_add_u64(at + word::COUNTER as u64, 1)?;
                adds += 1;
                let number = (at as usize - self.base) / PAGE;
                let place = at + (word::OF_ENGINE + 8 * index) as u64;
                let before: u64 = engine.load(place)?;
                assert_eq!(before, own[number], "page {number}: a write of engine {index} is gone");
                own[number] += 1;
                engine.store(place, own[number])?;
                if index == 0 {
                    self.device_turn(engine)?;
                }
            }
        }
        self.added.fetch_add(adds, Ordering::Relaxed);
        // What it wrote is checked here once more, through the device.
        for (number, own) in own.iter().enumerate() {
            let place = (self.base + number * PAGE + word::OF_ENGINE + 8 * index) as u64;
            assert_eq!(engine.load::<u64>(place)?, *own, "page {number}: a write of engine {index} is gone");
        }
        Ok(())
    }

    /// Odd numbers are the device's.
    fn device_turn(&self, engine: &mut Engine<'_>) -> Result<(), AccessError> {
        let at = (self.turns + word::TURN) as u64;
        let now: u64 = engine.load(at)?;
        if now % 2 == 1 {
            engine.store(at, now + 1)?;
        }
        Ok(())
    }

    /// Even numbers are the CPU's.
    fn take_turns(&self) -> u64 {
        let mut last = 0;
        while !self.stop.load(Ordering::Relaxed) {
            let now = peek(self.turns + word::TURN);
            assert!(now == last || now == last + 1, "after {last} nobody writes {now}");
            if now.is_multiple_of(2) {
                poke(self.turns + word::TURN, now + 1);
                self.alternations.fetch_add(1, Ordering::Relaxed);
                last = now + 1;
            }
            std::thread::yield_now();
        }
        last
    }

    /// Moves parts of it, whoever works there.
    fn migrate(&self) {
        let mut random = Random(77);
        while !self.stop.load(Ordering::Relaxed) {
            let (first, pages) = (random.next() % PAGES, 1 + random.next() % 600);
            let part = range(self.base + first * PAGE, pages.min(PAGES - first));
            let moved = if random.next().is_multiple_of(2) {
                self.world.svm.prefetch(part, DEVICE)
            } else {
                self.world.svm.to_ram(part)
            };
            self.asked.fetch_add(moved.expect("the device thread answers"), Ordering::Relaxed);
        }
    }

    /// Memory of its own that changes under the device all the time.
    fn invalidate(&self) {
        let mut round = 0;
        while !self.stop.load(Ordering::Relaxed) {
            round += 1;
            let at = map(MIB);
            for page in 0..256 {
                poke(at + page * PAGE, round + page as u64);
            }
            self.world.prefetch(at + 32 * PAGE, 100);
            advise(at + 64 * PAGE, 64 * PAGE, libc::MADV_DONTNEED);
            unmap(at + 192 * PAGE, 32 * PAGE);
            for page in (0..192).chain(224..256) {
                let want = if (64..128).contains(&page) { 0 } else { round + page as u64 };
                assert_eq!(peek(at + page * PAGE), want, "scratch page {page} of round {round}");
            }
            unmap(at, 192 * PAGE);
            unmap(at + 224 * PAGE, 32 * PAGE);
            self.invalidated.fetch_add(1, Ordering::Relaxed);
        }
    }
}

struct Stop<'a>(&'a AtomicBool);

impl Drop for Stop<'_> {
    fn drop(&mut self) {
        self.0.store(true, Ordering::SeqCst);
    }
}

#[test]
fn no_write_of_either_side_is_lost() {
    stress(seconds(), TakeWay::Move);
}

/// A quarter of the time in the way of a kernel without `UFFDIO_MOVE`.
#[test]
fn nor_where_pages_are_protected_and_discarded() {
    stress(seconds().div_ceil(4), TakeWay::WriteProtect);
}

fn stress(seconds: u64, way: TakeWay) {
    let _alone = alone(120 + 3 * seconds as u32);
    let stress = Stress {
        world: World::new(DEVICE_BYTES, |builder| builder.take_way(way)),
        base: map_aligned(PAGES * PAGE),
        stop: AtomicBool::new(false),
        turns: map(PAGE),
        alternations: AtomicU64::new(0),
        added: AtomicU64::new(0),
        invalidated: AtomicU64::new(0),
        asked: AtomicU64::new(0),
    };
    let own: Vec<Vec<u64>> = std::thread::scope(|scope| {
        let stress = &stress;
        let _stops = Stop(&stress.stop);
        let engines = scope.spawn(|| stress.world.device.run(|engine| stress.engine(engine)));
        let cpus: Vec<_> = (0..CPU_THREADS).map(|thread| scope.spawn(move || stress.cpu(thread))).collect();
        let turns = scope.spawn(|| stress.take_turns());
        scope.spawn(|| stress.migrate());
        scope.spawn(|| stress.invalidate());
        let end = Instant::now() + Duration::from_secs(seconds);
        while Instant::now() < end && !engines.is_finished() {
            std::thread::park_timeout(Duration::from_millis(50));
        }
        stress.stop.store(true, Ordering::SeqCst);
        engines.join().expect("no engine missed a write").expect("every access is allowed");
        let last = turns.join().expect("turns in order");
        assert!(peek(stress.turns + word::TURN) >= last);
        cpus.into_iter().map(|cpu| cpu.join().expect("no CPU thread missed a write")).collect()
    });
    let stats = stress.world.svm.stats();
    let counters = stress.world.device.counters();
    let Stress { world, base, turns, alternations, added, invalidated, asked, .. } = stress;
    // The drop brings everything to RAM.
    drop(world);
    for (thread, own) in own.iter().enumerate() {
        for (page, own) in own.iter().enumerate() {
            let found = peek(base + page * PAGE + word::OF_CPU + 8 * thread);
            assert_eq!(found, *own, "page {page}: a write of CPU thread {thread} is gone");
        }
    }
    let counted: u64 = (0..PAGES).map(|page| peek(base + page * PAGE + word::COUNTER)).sum();
    let (alternations, added) = (alternations.into_inner(), added.into_inner());
    let moved = stats.count(Count::PagesToDevice) + stats.count(Count::PagesToRam);
    println!(
        "{way:?}, {seconds} s: {added} adds, {counted} counted; {alternations} alternations on one page; {} pages to the \
         device, {} home, {} linked, {} evictions, {} invalidations in {} rounds, {} pages asked for; {} device and \
         {} CPU faults",
        stats.count(Count::PagesToDevice),
        stats.count(Count::PagesToRam),
        stats.count(Count::PagesLinked),
        stats.count(Count::Evictions),
        stats.count(Count::Invalidations),
        invalidated.into_inner(),
        asked.into_inner(),
        stats.count(Count::DeviceFaults),
        stats.count(Count::CpuFaults),
    );
    assert_eq!(counted, added, "adds of {CPU_THREADS} CPU threads and {ENGINES} engines");
    assert_eq!(counters.iommu_errors, 0, "{:?}", counters.first_iommu_errors);
    // A take by protection waits for the reader twice: on a busy machine the sides meet less often.
    let least = if way == TakeWay::Move { LEAST_ALTERNATIONS } else { LEAST_ALTERNATIONS / 5 };
    assert!(alternations >= least * seconds, "only {alternations} alternations");
    assert!(moved >= LEAST_MOVED * seconds, "only {moved} pages moved");
    assert!(stats.count(Count::Evictions) > seconds, "the device is smaller than what is worked on");
    unmap(base, PAGES * PAGE);
    unmap(turns, PAGE);
}
