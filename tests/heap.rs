//! Every page of the heap is taken away again and again while all threads allocate, free, fault and invalidate.
#![cfg(not(granule_loom))]

mod real;

use std::collections::{BTreeMap, HashMap};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Condvar, Mutex};
use std::time::{Duration, Instant};

use granule::Granularity;
use granule::ports::Count;
use granule_backends::software::SoftwareDevice;
use real::{MIB, PAGE, World, advise, alone, map, peek, poke, present_pages, unmap};

/// Pages of the heap that must have been seen to leave the CPU.
const LEAST_AWAY: u64 = 2_000;

fn seconds() -> u64 {
    std::env::var("GRANULE_HEAP_SECONDS").ok().and_then(|seconds| seconds.parse().ok()).unwrap_or(8)
}

/// The brk heap and the arenas of threads: address and pages of each. Arenas are the writable anonymous mappings
/// that begin at a multiple of 64 MiB, as the C library makes them.
fn heaps(into: &mut [(usize, usize); 64]) -> usize {
    let maps = std::fs::read("/proc/self/maps").expect("/proc is mounted");
    let mut found = 0;
    for line in maps.split(|&byte| byte == b'\n') {
        let text = std::str::from_utf8(line).expect("maps are text");
        let mut fields = text.split_whitespace();
        let (Some(range), Some(rights)) = (fields.next(), fields.next()) else { continue };
        let (start, end) = range.split_once('-').expect("a range");
        let (start, end) =
            (usize::from_str_radix(start, 16).expect("hex"), usize::from_str_radix(end, 16).expect("hex"));
        let name = fields.nth(3).unwrap_or("");
        let is_arena = name.is_empty() && start.is_multiple_of(64 << 20) && end - start < 64 << 20;
        if rights == "rw-p" && (name == "[heap]" || is_arena) && found < into.len() {
            into[found] = (start, (end - start) / PAGE);
            found += 1;
        }
    }
    found
}

/// Collections, strings, sharing and small threads, with results that are known.
fn work(seed: u64, stop: &AtomicBool, rounds: &AtomicU64) {
    let mut kept: Vec<Vec<u64>> = Vec::new();
    let mut state = seed | 1;
    let mut random = || {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        state
    };
    while !stop.load(Ordering::Relaxed) {
        let base = random();
        let words: HashMap<String, u64> =
            (0..200).map(|at| (format!("word {}", base.wrapping_add(at)), at)).collect();
        let sorted: BTreeMap<&str, u64> = words.iter().map(|(word, at)| (word.as_str(), *at)).collect();
        assert_eq!(sorted.values().sum::<u64>(), 199 * 200 / 2);
        assert!((0..200).all(|at| words[&format!("word {}", base.wrapping_add(at))] == at));
        let len = (random() % 20_000) as usize;
        kept.push((0..len as u64).map(|at| at ^ base).collect());
        kept.last_mut().expect("just pushed").push(base);
        if kept.len() > 40 {
            let old = kept.swap_remove((random() % 40) as usize);
            let base = *old.last().expect("it has its base");
            assert!(old[..old.len() - 1].iter().enumerate().all(|(at, word)| *word == at as u64 ^ base));
        }
        if random() % 8 == 0 {
            let shared = Arc::new((Mutex::new(0u64), Condvar::new()));
            let threads: Vec<_> = (0..3)
                .map(|_| {
                    let shared = shared.clone();
                    std::thread::spawn(move || {
                        let text = "x".repeat(5_000);
                        *shared.0.lock().expect("no panic") += text.len() as u64;
                        shared.1.notify_all();
                    })
                })
                .collect();
            let mut sum = shared.0.lock().expect("no panic");
            while *sum < 15_000 {
                sum = shared.1.wait(sum).expect("no panic");
            }
            drop(sum);
            threads.into_iter().for_each(|thread| thread.join().expect("it ends"));
        }
        rounds.fetch_add(1, Ordering::Relaxed);
    }
}

/// Maps, discards and unmaps memory of its own.
fn invalidate(stop: &AtomicBool) {
    while !stop.load(Ordering::Relaxed) {
        let at = map(MIB);
        for page in 0..256 {
            poke(at + page * PAGE, page as u64);
        }
        advise(at, MIB / 2, libc::MADV_DONTNEED);
        assert!((0..256).all(|page| peek(at + page * PAGE) == if page < 128 { 0 } else { page as u64 }));
        unmap(at, MIB);
    }
}

/// The pool that serves a batch of several blocks keeps its state on the heap, and touches it after it served: the page
/// that was just moved comes home again before its engine goes on. That must not happen for ever.
#[test]
fn an_engine_gets_the_pages_that_the_pool_itself_uses_while_another_faults_without_end() {
    const ENGINES: usize = 6;
    const BLOCKS: usize = 8;
    const BLOCK_BYTES: usize = 2 * MIB;
    const ROUNDS: usize = 20;
    const MOST: u64 = 4_000;
    let _alone = alone(120);
    // Memory for half of what the other engines go through: each of their accesses faults.
    let all = ENGINES * BLOCKS * BLOCK_BYTES;
    let device = SoftwareDevice::builder().memory_bytes(all as u64 / 2).engines(ENGINES).build();
    let world =
        World::over(device.expect("a software device"), |builder| builder.granularity(Granularity::Kib4));
    let stream = map(all);
    // The heap on which this thread, which started the pool, allocates.
    let near = std::ptr::from_ref(Box::leak(Box::new(0u64))) as usize;
    let mut ranges = [(0, 0); 64];
    let found = heaps(&mut ranges);
    let (heap, pages) = ranges[..found]
        .iter()
        .copied()
        .find(|&(at, pages)| (at..at + pages * PAGE).contains(&near))
        .expect("the heap of this thread");
    let ended = AtomicBool::new(false);
    let accesses = AtomicU64::new(0);
    world
        .device
        .run(|engine| {
            if engine.index() > 0 {
                let own = stream + engine.index() * BLOCKS * BLOCK_BYTES;
                let pages = BLOCKS * BLOCK_BYTES / PAGE;
                // One page of each block after the other.
                for at in (0..pages).cycle().map(|at| at % BLOCKS * BLOCK_BYTES + at / BLOCKS * PAGE) {
                    if ended.load(Ordering::Relaxed) || accesses.load(Ordering::Relaxed) >= MOST {
                        break;
                    }
                    engine.store((own + at) as u64, at as u64)?;
                    accesses.fetch_add(1, Ordering::Relaxed);
                }
            } else {
                for _ in 0..20 {
                    for page in (0..pages).cycle().take(ROUNDS * pages) {
                        // Whoever allocates may have given the end of the heap back since.
                        let _ = engine.load::<u64>((heap + page * PAGE) as u64);
                    }
                }
                ended.store(true, Ordering::Relaxed);
            }
            Ok(())
        })
        .expect("writable memory");
    let accesses = accesses.into_inner();
    println!("the heap was read while another engine made {accesses} accesses");
    assert!(accesses < MOST, "the heap was read only when nothing else faulted any more");
    unmap(stream, all);
}

#[test]
fn the_heap_may_leave_at_any_moment() {
    let seconds = seconds();
    let _alone = alone(60 + 4 * seconds as u32);
    let world = World::new(32 * MIB, |builder| builder);
    let (stop, rounds) = (AtomicBool::new(false), AtomicU64::new(0));
    let (mut away, mut sweeps) = (0, 0u64);
    std::thread::scope(|scope| {
        for seed in 1..=3 {
            let (stop, rounds) = (&stop, &rounds);
            scope.spawn(move || work(0x9e37_79b9_7f4a_7c15 << seed, stop, rounds));
        }
        scope.spawn(|| invalidate(&stop));
        let end = Instant::now() + Duration::from_secs(seconds);
        let mut ranges = [(0, 0); 64];
        while Instant::now() < end {
            let found = heaps(&mut ranges);
            assert!(found >= 2, "the heap and an arena");
            for &(at, pages) in &ranges[..found] {
                let before = present_pages(at, pages);
                world.prefetch(at, pages);
                let after = present_pages(at, pages);
                away +=
                    before.iter().zip(&after).filter(|(before, after)| **before && !**after).count() as u64;
            }
            sweeps += 1;
        }
        stop.store(true, Ordering::Relaxed);
    });
    let (to_device, to_ram) = (world.count(Count::PagesToDevice), world.count(Count::PagesToRam));
    let rounds = rounds.load(Ordering::Relaxed);
    drop(world);
    println!(
        "{sweeps} sweeps over the heap: {away} times a page was away by pagemap; {to_device} pages to the device, \
         {to_ram} home; {rounds} rounds of work"
    );
    assert!(away >= LEAST_AWAY, "only {away} pages were seen to leave the CPU");
    assert!(rounds >= 20, "only {rounds} rounds of work");
}
