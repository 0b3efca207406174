//! Pages leave the CPU and come back, in both ways of taking them, on real memory.
#![allow(unsafe_code, reason = "locks, protects and forks real memory")]

mod os_support;

use std::sync::atomic::{AtomicBool, Ordering};

use granule::os::{Pagemap, TakeWay};
use granule::ports::{Give, Host, HostError, HostEvent, WORDS_PER_PAGE};
use granule::units::{Access, PageIndex, PageMask};
use os_support::*;

#[test]
fn data_leaves_the_cpu_and_comes_back() {
    for way in WAYS {
        let host = open(way);
        let _reader = Reader::zero_filling(&host);
        let memory = Memory::blocks(2);
        arm(&host, &memory);
        for (from, count) in [(0, 1), (511, 1), (32, 16), (0, 512)] {
            memory.fill(0..512, 7);
            let pages = mask(from..from + count);
            let (staging, taken) = take(&host, memory.block(0), &pages);
            assert_eq!(
                (taken.taken, taken.refused, taken.stopped),
                (pages, PageMask::EMPTY, None),
                "{way:?}"
            );

            let present = host.pagemap().present(memory.block(0), &PageMask::FULL).expect("pagemap");
            assert_eq!(present, PageMask::FULL - pages, "{way:?}: exactly these pages left");
            let by_flags = Pagemap::open_without_scan().expect("pagemap");
            assert_eq!(by_flags.present(memory.block(0), &PageMask::FULL), Ok(present));

            for page in from..from + count {
                let words = &host.staging_words(staging)[page * WORDS_PER_PAGE..][..WORDS_PER_PAGE];
                check_words(words, page as u64, 7);
                words.iter().enumerate().for_each(|(index, word)| {
                    word.store(expected(page as u64, index, 8), Ordering::Relaxed);
                });
            }
            assert_eq!(give(&host, memory.block(0), &pages, staging), Give::all(pages), "{way:?}");
            host.staging_done(staging);
            assert!(host.pagemap().present(memory.block(0), &PageMask::FULL).expect("pagemap").is_full());
            memory.check(from as u64..(from + count) as u64, 8);
            memory.check(0..from as u64, 7);
            memory.check((from + count) as u64..512, 7);
        }
    }
}

#[test]
fn holes_are_taken_as_zeros_and_slots_are_clean_again() {
    for way in WAYS {
        let host = open(way);
        let reader = Reader::zero_filling(&host);
        let memory = Memory::blocks(1);
        arm(&host, &memory);
        // Several times, so that a take finds slots with old pages in them.
        for round in 0..6 {
            memory.advise(memory.range, libc::MADV_DONTNEED);
            reader.wait_for_changes(round as usize + 1);
            host.settle_removed();
            for page in (0..512).step_by(3) {
                memory.fill(page..page + 1, round);
            }
            let (staging, taken) = take(&host, memory.block(0), &PageMask::FULL);
            assert!(taken.taken.is_full(), "{way:?} {taken:?}");
            assert_eq!(host.pagemap().is_absent(memory.range), Ok(true));
            for page in 0..512usize {
                let words = &host.staging_words(staging)[page * WORDS_PER_PAGE..][..WORDS_PER_PAGE];
                if page.is_multiple_of(3) {
                    check_words(words, page as u64, round);
                } else {
                    assert!(words.iter().all(|word| word.load(Ordering::Relaxed) == 0), "{way:?} {page}");
                }
            }
            assert_eq!(give(&host, memory.block(0), &PageMask::FULL, staging), Give::all(PageMask::FULL));
            host.staging_done(staging);
            for page in 0..512 {
                if page % 3 == 0 {
                    memory.check(page..page + 1, round);
                } else {
                    assert_eq!(memory.word(page).load(Ordering::Relaxed), 0);
                }
            }
        }
    }
}

/// A slot may be given back with pages in it that nobody was given: an event took them from whoever was to bring them.
#[test]
fn what_was_left_in_a_slot_is_not_taken_for_an_absent_page() {
    for way in WAYS {
        let host = open(way);
        let _reader = Reader::zero_filling(&host);
        let memory = Memory::blocks(1);
        arm(&host, &memory);
        // All four slots, so that it does not matter which one is found again.
        let slots: Vec<_> = (0..4).map(|_| host.staging(&PageMask::EMPTY).expect("a slot")).collect();
        for slot in slots {
            host.staging_words(slot)
                .iter()
                .step_by(WORDS_PER_PAGE)
                .for_each(|word| word.store(66, Ordering::Relaxed));
            host.staging_done(slot);
        }
        memory.fill(0..1, 6);
        let (staging, taken) = take(&host, memory.block(0), &mask(0..64));
        assert_eq!(taken.taken, mask(0..64), "{way:?}");
        let words = host.staging_words(staging);
        check_words(&words[..WORDS_PER_PAGE], 0, 6);
        assert!(
            words[WORDS_PER_PAGE..64 * WORDS_PER_PAGE].iter().all(|word| word.load(Ordering::Relaxed) == 0),
            "{way:?}"
        );
        assert_eq!(give(&host, memory.block(0), &taken.taken, staging), Give::all(taken.taken));
        host.staging_done(staging);
    }
}

#[test]
fn what_the_kernel_refuses_stays_and_its_neighbours_go() {
    let host = open(TakeWay::Move);
    let _reader = Reader::zero_filling(&host);
    let memory = Memory::blocks(1);
    arm(&host, &memory);
    memory.fill(0..512, 3);
    let (locked, read_only) = (memory.pages(10, 3), memory.pages(100, 1));
    // SAFETY: locking and protecting the test's own pages.
    unsafe {
        assert_eq!(libc::mlock(locked.start().0 as *const _, locked.bytes() as usize), 0);
        assert_eq!(libc::mprotect(read_only.start().0 as *mut _, 4096, libc::PROT_READ), 0);
    }
    let refused = mask(10..13) | mask(100..101);
    let (staging, taken) = take(&host, memory.block(0), &PageMask::FULL);
    assert_eq!((taken.refused, taken.taken, taken.stopped), (refused, PageMask::FULL - refused, None));
    memory.check(10..13, 3);
    memory.check(100..101, 3);
    assert_eq!(give(&host, memory.block(0), &taken.taken, staging), Give::all(taken.taken));
    host.staging_done(staging);
    memory.check(0..512, 3);
}

#[test]
fn a_page_whose_protection_changed_while_it_was_away_comes_back_by_copy() {
    let host = open(TakeWay::Move);
    let _reader = Reader::zero_filling(&host);
    let memory = Memory::blocks(1);
    arm(&host, &memory);
    memory.fill(0..64, 4);
    let (staging, taken) = take(&host, memory.block(0), &mask(0..64));
    assert_eq!(taken.taken, mask(0..64));
    // SAFETY: protecting the test's own pages.
    unsafe {
        assert_eq!(libc::mprotect(memory.pages(8, 4).start().0 as *mut _, 4 * 4096, libc::PROT_READ), 0);
        // Locked when it is touched next: this populates nothing.
        assert_eq!(libc::mlock2(memory.pages(40, 1).start().0 as *const _, 4096, libc::MLOCK_ONFAULT), 0);
    }
    assert_eq!(give(&host, memory.block(0), &mask(0..64), staging), Give::all(mask(0..64)));
    host.staging_done(staging);
    memory.check(0..64, 4);
}

#[test]
fn a_present_page_is_never_overwritten() {
    for way in WAYS {
        let host = open(way);
        let _reader = Reader::zero_filling(&host);
        let memory = Memory::blocks(1);
        arm(&host, &memory);
        memory.fill(0..4, 6);
        let (staging, _) = take(&host, memory.block(0), &mask(0..4));
        memory.word(2).store(99, Ordering::Relaxed);
        let present = PageMask::of(PageIndex(2));
        let want = Give { given: mask(0..4) - present, present, stopped: None };
        assert_eq!(give(&host, memory.block(0), &mask(0..4), staging), want, "{way:?}");
        host.staging_done(staging);
        assert_eq!(memory.word(2).load(Ordering::Relaxed), 99);
        memory.check(0..2, 6);
        memory.check(3..4, 6);
        assert_eq!(
            host.give_words(memory.pages(0, 1).start(), words_at(memory.pages(1, 1).start())).1,
            Err(HostError::Present)
        );
        assert_eq!(host.fill_zero(memory.pages(0, 8)), (0, Err(HostError::Present)));
        assert_eq!(host.fill_zero(memory.pages(4, 8)), (8, Ok(())));
    }
}

/// Present pages between pages that cannot be given: each is told apart, in whatever order they come.
#[test]
fn several_reasons_not_to_give_are_told_apart() {
    for way in WAYS {
        let host = open(way);
        let reader = Reader::zero_filling(&host);
        let memory = Memory::blocks(1);
        arm(&host, &memory);
        memory.fill(0..16, 6);
        let (staging, _) = take(&host, memory.block(0), &mask(0..16));
        // The first and the last of these find a page of the application's; between them is a hole.
        [2, 9, 15].into_iter().for_each(|page| memory.word(page).store(90 + page, Ordering::Relaxed));
        memory.unmap(memory.pages(5, 3));
        reader.wait_for_changes(1);
        let present =
            [2, 9, 15].into_iter().fold(PageMask::EMPTY, |all, page| all | PageMask::of(PageIndex(page)));
        let found = give(&host, memory.block(0), &mask(0..16), staging);
        assert_eq!((found.given, found.present), (mask(0..16) - present - mask(5..8), present), "{way:?}");
        assert!(
            matches!(found.stopped, Some(HostError::NoMapping | HostError::NotSupported)),
            "{way:?}: the hole is no present page: {found:?}"
        );
        host.staging_done(staging);
        [2, 9, 15].into_iter().for_each(|page| {
            assert_eq!(memory.word(page).load(Ordering::Relaxed), 90 + page);
        });
        for part in [0..2, 3..5, 8..9, 10..15] {
            memory.check(part, 6);
        }
    }
}

#[test]
fn an_undone_take_by_protection_leaves_the_page_as_it_was() {
    let host = open(TakeWay::WriteProtect);
    let _reader = Reader::zero_filling(&host);
    let memory = Memory::blocks(1);
    arm(&host, &memory);
    memory.fill(0..16, 9);
    let staging = host.staging(&mask(0..16)).expect("a slot");
    assert_eq!(host.take(memory.block(0), &mask(0..16), staging).taken, mask(0..16));
    assert_eq!(give(&host, memory.block(0), &mask(0..16), staging), Give::all(mask(0..16)));
    host.staging_done(staging);
    memory.fill(0..16, 10);
    memory.check(0..16, 10);
}

#[test]
fn mirrored_memory_traps_nothing_and_armed_memory_does() {
    let host = open(TakeWay::Move);
    let reader = Reader::zero_filling(&host);
    let memory = Memory::blocks(2);
    host.mirror(memory.range).expect("mirrored");
    memory.fill(0..512, 1);
    assert_eq!(reader.faults(), []);
    host.arm(memory.block(1).range()).expect("armed");
    host.mirror(memory.range).expect("again, which disarms nothing");
    assert!(host.is_armed(memory.block(1).range()) && !host.is_armed(memory.range));
    assert_eq!(memory.word(600).load(Ordering::Relaxed), 0);
    memory.word(601).store(1, Ordering::Relaxed);
    let faults = reader.faults();
    let at = |page| memory.pages(page, 1).start();
    assert_eq!(
        faults,
        [(600, Access::Read), (601, Access::Write)].map(|(page, access)| HostEvent::Fault {
            at: at(page),
            access,
            write_protected: false
        })
    );
    host.disarm(memory.block(1));
    assert!(!host.is_armed(memory.pages(512, 1)) && host.is_mirrored(memory.range));
    memory.fill(700..800, 1);
    assert_eq!(reader.faults().len(), 2);
}

/// One thread counts in pages that another keeps taking and giving back: no count is lost.
#[test]
fn no_write_is_lost_while_pages_come_and_go() {
    const ROUNDS: usize = 2000;
    for way in WAYS {
        let host = open(way);
        // A touched page is in staging: it comes back by `give`, which wakes. The reader only reads.
        let reader = Reader::start(&host, Box::new(|_, _| {}));
        let memory = Memory::blocks(1);
        (0..16).for_each(|page| memory.word(page).store(0, Ordering::Relaxed));
        arm(&host, &memory);
        let done = AtomicBool::new(false);
        let writes = std::thread::scope(|scope| {
            let writer = scope.spawn(|| {
                let mut writes = 0;
                while !done.load(Ordering::Acquire) {
                    memory.word(writes % 16).fetch_add(1, Ordering::Relaxed);
                    writes += 1;
                }
                writes
            });
            for round in 0..ROUNDS {
                let seen = reader.faults().len();
                let (staging, taken) = take(&host, memory.block(0), &mask(0..16));
                assert_eq!(taken.taken, mask(0..16));
                // The writer touches one of them soon: wait for it in every tenth round.
                while round % 10 == 0 && reader.faults().len() == seen {
                    std::thread::yield_now();
                }
                let mut rest = taken.taken;
                while !rest.is_empty() {
                    rest -= give(&host, memory.block(0), &rest, staging).given;
                }
                host.staging_done(staging);
            }
            done.store(true, Ordering::Release);
            writer.join().expect("the writer ends")
        });
        let sum: u64 = (0..16).map(|page| memory.word(page).load(Ordering::Relaxed)).sum();
        println!("{way:?}: {writes} writes, {} faults in {ROUNDS} rounds", reader.faults().len());
        assert_eq!(sum, writes, "{way:?}");
        assert!(reader.faults().len() >= 100, "{way:?}: writer and mover met too rarely to prove anything");
    }
}
