//! Huge pages leave the CPU whole and come back whole, at the level of the host.
#![allow(unsafe_code, reason = "asks for huge pages, and splits them")]

mod os_support;

use std::time::Instant;

use granule::os::{LinuxHost, TakeWay};
use granule::ports::{Give, Host, HostEvent, StagingId, WORDS_PER_PAGE};
use granule::units::{BlockNo, PageMask};
use os_support::*;

const BLOCKS: u64 = 4;
const PAGES: u64 = 512;

/// Memory of huge pages, filled, or `None` (with a word why) where the kernel gives none.
fn huge(host: &LinuxHost, seed: u64) -> Option<Memory> {
    let memory = Memory::blocks(BLOCKS);
    memory.advise(memory.range, libc::MADV_HUGEPAGE);
    memory.fill(0..BLOCKS * PAGES, seed);
    if (0..BLOCKS).all(|block| host.pagemap().is_huge(memory.block(block))) {
        return Some(memory);
    }
    let enabled = std::fs::read_to_string("/sys/kernel/mm/transparent_hugepage/enabled").unwrap_or_default();
    assert!(enabled.is_empty() || enabled.contains("[never]"), "the kernel has huge pages ({enabled})");
    eprintln!("skipped: this kernel gives no huge pages");
    None
}

fn check_slot(host: &LinuxHost, staging: StagingId, block: u64, seed: u64) {
    for (page, words) in host.staging_words(staging).chunks(WORDS_PER_PAGE).enumerate() {
        check_words(words, block * PAGES + page as u64, seed);
    }
}

/// What a device does to a slot between the two moves.
fn rewrite_slot(host: &LinuxHost, staging: StagingId, block: u64, seed: u64) {
    for (page, words) in host.staging_words(staging).chunks(WORDS_PER_PAGE).enumerate() {
        for (index, word) in words.iter().enumerate() {
            let value = expected(block * PAGES + page as u64, index, seed);
            word.store(value, std::sync::atomic::Ordering::Relaxed);
        }
    }
}

/// The block that holds a slot.
fn slot_block(host: &LinuxHost, staging: StagingId) -> BlockNo {
    let at = host.staging_words(staging).as_ptr() as u64;
    BlockNo::of(granule::units::VirtAddr(at))
}

#[test]
fn a_huge_page_goes_and_comes_as_a_whole() {
    let host = open(TakeWay::Move);
    let Some(memory) = huge(&host, 1) else { return };
    let _reader = Reader::zero_filling(&host);
    arm(&host, &memory);
    // More rounds than slots, so that slots with huge pages, with small ones and without any are met.
    for round in 1..8u64 {
        for block in 0..BLOCKS {
            let number = memory.block(block);
            assert!(host.pagemap().is_huge(number), "round {round} begins with a huge page");
            let (staging, taken) = take(&host, number, &PageMask::FULL);
            assert_eq!((taken.taken, taken.stopped), (PageMask::FULL, None));
            assert_eq!(host.pagemap().is_absent(number.range()), Ok(true));
            assert!(host.pagemap().is_huge(slot_block(&host, staging)), "it left whole, round {round}");
            check_slot(&host, staging, block, round);
            host.staging_done(staging);

            let staging = host.staging_for(number, &PageMask::FULL).expect("a slot");
            rewrite_slot(&host, staging, block, round + 1);
            assert_eq!(give(&host, number, &PageMask::FULL, staging), Give::all(PageMask::FULL));
            host.staging_done(staging);
            assert!(host.pagemap().is_huge(number), "it came back whole, round {round}");
            memory.check(block * PAGES..(block + 1) * PAGES, round + 1);
        }
        // Small moves of memory of another kind wear the slots.
        let small = Memory::blocks(1);
        small.fill(0..PAGES, round);
        arm(&host, &small);
        for pages in [mask(0..16), PageMask::FULL] {
            let (staging, taken) = take(&host, small.block(0), &pages);
            assert_eq!(taken.taken, pages);
            assert_eq!(give(&host, small.block(0), &pages, staging), Give::all(pages));
            host.staging_done(staging);
        }
        small.check(0..PAGES, round);
    }
}

#[test]
fn without_a_huge_page_in_the_pool_a_fresh_one_comes_back() {
    let host = open(TakeWay::Move);
    let Some(memory) = huge(&host, 1) else { return };
    let _reader = Reader::zero_filling(&host);
    arm(&host, &memory);
    // All away at once: the slots that hold what was taken are all in use.
    let held: Vec<_> = (0..3).map(|block| take(&host, memory.block(block), &PageMask::FULL).0).collect();
    for (block, from) in held.iter().enumerate() {
        let (number, block) = (memory.block(block as u64), block as u64);
        let staging = host.staging_for(number, &PageMask::FULL).expect("the large slot is free");
        assert!(!held.contains(&staging));
        check_slot(&host, *from, block, 1);
        rewrite_slot(&host, staging, block, 2);
        assert_eq!(give(&host, number, &PageMask::FULL, staging), Give::all(PageMask::FULL));
        host.staging_done(staging);
        assert!(host.pagemap().is_huge(number), "block {block}");
        memory.check(block * PAGES..(block + 1) * PAGES, 2);
    }
    held.into_iter().for_each(|slot| host.staging_done(slot));
}

#[test]
fn a_block_that_came_back_in_part_comes_back_right() {
    let host = open(TakeWay::Move);
    let Some(memory) = huge(&host, 5) else { return };
    let _reader = Reader::zero_filling(&host);
    arm(&host, &memory);
    let number = memory.block(1);
    let (staging, taken) = take(&host, number, &PageMask::FULL);
    assert!(taken.taken.is_full());
    let some = mask(100..116);
    assert_eq!(give(&host, number, &some, staging), Give::all(some));
    memory.check(PAGES + 100..PAGES + 116, 5);
    // Nothing is given over what stands there.
    let found = give(&host, number, &PageMask::FULL, staging);
    assert_eq!(found, Give { given: PageMask::FULL - some, present: some, stopped: None });
    host.staging_done(staging);
    memory.check(0..BLOCKS * PAGES, 5);
    // Of small pages now: leaves and comes as such.
    let (staging, taken) = take(&host, number, &PageMask::FULL);
    assert!(taken.taken.is_full());
    assert_eq!(give(&host, number, &PageMask::FULL, staging), Give::all(PageMask::FULL));
    host.staging_done(staging);
    memory.check(0..BLOCKS * PAGES, 5);
}

/// A touch of an absent block before it is given: in a mapping with huge pages it leaves no page table.
#[test]
fn a_fault_that_waits_gets_the_huge_page() {
    let host = open(TakeWay::Move);
    let Some(memory) = huge(&host, 3) else { return };
    let reader = Reader::start(&host, Box::new(|_, _| {}));
    arm(&host, &memory);
    let number = memory.block(2);
    let (staging, taken) = take(&host, number, &PageMask::FULL);
    assert!(taken.taken.is_full());
    std::thread::scope(|scope| {
        let seen = scope.spawn(|| memory.word(2 * PAGES + 77).load(std::sync::atomic::Ordering::Relaxed));
        while !matches!(reader.faults().first(), Some(HostEvent::Fault { .. })) {
            std::thread::yield_now();
        }
        assert_eq!(give(&host, number, &PageMask::FULL, staging), Give::all(PageMask::FULL));
        assert_eq!(seen.join().expect("it is woken"), expected(2 * PAGES + 77, 0, 3));
    });
    host.staging_done(staging);
    assert!(host.pagemap().is_huge(number));
}

/// Prints what both moves of 2 MiB cost, whole and in small pages, without any copy.
#[test]
fn whole_is_cheaper_than_512_pages() {
    const ROUNDS: u32 = 64;
    let host = open(TakeWay::Move);
    let Some(whole) = huge(&host, 1) else { return };
    let small = Memory::blocks(BLOCKS);
    small.fill(0..BLOCKS * PAGES, 1);
    let _reader = Reader::zero_filling(&host);
    let mut best = [[u128::MAX; 2]; 2];
    for (memory, best) in [&whole, &small].into_iter().zip(&mut best) {
        arm(&host, memory);
        for _ in 0..ROUNDS {
            let begin = Instant::now();
            let (staging, taken) = take(&host, memory.block(0), &PageMask::FULL);
            best[0] = best[0].min(begin.elapsed().as_nanos());
            assert!(taken.taken.is_full());
            let begin = Instant::now();
            assert_eq!(give(&host, memory.block(0), &PageMask::FULL, staging), Give::all(PageMask::FULL));
            best[1] = best[1].min(begin.elapsed().as_nanos());
            host.staging_done(staging);
        }
    }
    println!("2 MiB out and back, ns: whole {:?}, 512 pages {:?}", best[0], best[1]);
    assert!(best[0][0] < best[1][0] && best[0][1] < best[1][1], "{best:?}");
}
