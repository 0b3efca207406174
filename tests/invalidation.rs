//! What the kernel promises about munmap, mmap over, mremap, madvise, brk, mprotect and fork, kept while the pages
//! are on a device, linked, or on their way.
#![cfg(not(granule_loom))]
#![allow(unsafe_code, reason = "brk and fork, as an application calls them")]

mod real;

use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};

use granule::Granularity;
use granule::os::TakeWay;
use granule::policy::LinkOnly;
use granule::ports::{Count, FaultCause};
use granule::units::Access;
use granule_backends::software::AccessError;
use real::{
    MIB, PAGE, World, advise, alone, map_aligned, map_as, peek, poke, present, protect, remap, unmap,
};

/// Where the pages are when the mapping changes.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum State {
    /// In device memory: the CPU has none of them.
    Private(Granularity),
    /// In RAM, reached by the device.
    Linked,
    /// Moved there and back by other threads all the time.
    Racing,
}

const STATES: [State; 5] = [
    State::Private(Granularity::Kib4),
    State::Private(Granularity::Kib64),
    State::Private(Granularity::Mib2),
    State::Linked,
    State::Racing,
];

/// Contents of the first and last word of page `page`.
fn tag(page: usize) -> u64 {
    0x5eed_0000_0000 + page as u64 + 1
}

/// A range whose pages hold their tags, written by the device.
struct Fixture {
    world: World,
    base: usize,
    pages: usize,
    /// Movers, while the state is racing.
    stop: AtomicBool,
    moved: AtomicU64,
    /// What they move: as many pages from here on.
    target: AtomicUsize,
}

impl Fixture {
    /// Runs `check` in each state, in both ways of taking pages; in the racing state, several times.
    fn each(pages: usize, check: impl Fn(&Fixture, State)) {
        for (way, state) in [TakeWay::Move, TakeWay::WriteProtect]
            .into_iter()
            .flat_map(|way| STATES.map(|state| (way, state)))
        {
            let rounds = if state == State::Racing { 12 } else { 1 };
            let world = World::new(64 * MIB, |builder| match state {
                State::Private(granularity) => builder.take_way(way).granularity(granularity),
                State::Linked => builder.take_way(way).policy(LinkOnly),
                State::Racing => builder.take_way(way),
            });
            let mut fixture = Fixture {
                world,
                base: 0,
                pages,
                stop: AtomicBool::new(false),
                moved: AtomicU64::new(0),
                target: AtomicUsize::new(0),
            };
            for _ in 0..rounds {
                fixture.fill(state);
                fixture.stop.store(false, Ordering::Relaxed);
                std::thread::scope(|scope| {
                    if state == State::Racing {
                        scope.spawn(|| fixture.race(|at| fixture.world.prefetch(at, pages)));
                        scope.spawn(|| fixture.race(|at| fixture.world.to_ram(at, pages)));
                    }
                    let _ends = StopOnDrop(&fixture.stop);
                    let before = fixture.moved.load(Ordering::Relaxed);
                    while state == State::Racing && fixture.moved.load(Ordering::Relaxed) == before {
                        std::thread::yield_now();
                    }
                    check(&fixture, state);
                });
            }
            assert_eq!(fixture.world.device.counters().iommu_errors, 0, "{way:?}, {state:?}");
        }
    }

    fn race(&self, mv: impl Fn(usize) -> u64) {
        while !self.stop.load(Ordering::Relaxed) {
            self.moved.fetch_add(mv(self.target.load(Ordering::Relaxed)), Ordering::Relaxed);
        }
    }

    /// Maps the range anew and has the device write the tags.
    fn fill(&mut self, state: State) {
        self.base = map_aligned(self.pages * PAGE);
        let (base, pages) = (self.base, self.pages);
        self.target.store(base, Ordering::Relaxed);
        self.world
            .run(|engine| {
                for page in 0..pages {
                    engine.store((base + page * PAGE) as u64, tag(page))?;
                    engine.store((base + page * PAGE + PAGE - 8) as u64, tag(page))?;
                }
                Ok(())
            })
            .expect("the device writes");
        match state {
            State::Private(_) => assert_eq!(present(base, pages), 0, "every page is on the device"),
            State::Linked => assert_eq!(present(base, pages), pages, "every page is in RAM"),
            State::Racing => {}
        }
    }

    /// Both sides find `want(page)` in each page from `at` on, `None` for a page that is not mapped. The device
    /// looks first or last.
    fn expect(&self, at: usize, pages: usize, device_first: bool, want: impl Fn(usize) -> Option<u64>) {
        let device = || {
            let ends = (0..pages).flat_map(|page| [at + page * PAGE, at + page * PAGE + PAGE - 8]);
            let found = self.world.load_all(ends);
            for page in 0..pages {
                match (found[2 * page], want(page)) {
                    (Ok(found), Some(wanted)) => assert_eq!(found, wanted, "page {page}, seen by the device"),
                    (Err(AccessError::Fault { cause, .. }), None) => {
                        assert_eq!(cause, FaultCause::NoMapping, "page {page}");
                    }
                    (found, wanted) => panic!("page {page}: the device found {found:?}, not {wanted:?}"),
                }
                if let Some(wanted) = want(page) {
                    assert_eq!(found[2 * page + 1], Ok(wanted), "end of page {page}");
                }
            }
        };
        if device_first {
            device();
        }
        for page in 0..pages {
            if let Some(wanted) = want(page) {
                let found = (peek(at + page * PAGE), peek(at + page * PAGE + PAGE - 8));
                assert_eq!(found, (wanted, wanted), "page {page}, seen by the CPU");
            }
        }
        if !device_first {
            device();
        }
    }
}

struct StopOnDrop<'a>(&'a AtomicBool);

impl Drop for StopOnDrop<'_> {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Relaxed);
    }
}

#[test]
fn a_partial_munmap_leaves_the_rest_on_the_device_untouched() {
    let _alone = alone(60);
    Fixture::each(1024, |fixture, state| {
        // Within 64 KiB; across two of them; a part of the second 2 MiB.
        let holes = [5..9, 28..36, 700..800];
        let is_hole = |page: usize| holes.iter().any(|hole| hole.contains(&page));
        let (home, invalidated) =
            (fixture.world.count(Count::PagesToRam), fixture.world.count(Count::InvalidatedPages));
        for hole in &holes {
            unmap(fixture.base + hole.start * PAGE, hole.len() * PAGE);
        }
        if matches!(state, State::Private(_)) {
            assert_eq!(present(fixture.base, fixture.pages), 0, "survivors stay on the device");
            assert_eq!(fixture.world.count(Count::PagesToRam), home, "no survivor moved");
            fixture.world.await_count(Count::InvalidatedPages, invalidated + 112);
            assert_eq!(fixture.world.count(Count::InvalidatedPages), invalidated + 112);
            let faults = fixture.world.device.counters().faults;
            let survivors = (0..fixture.pages).filter(|page| !is_hole(*page));
            let found = fixture.world.load_all(survivors.clone().map(|page| fixture.base + page * PAGE));
            assert!(survivors.zip(found).all(|(page, found)| found == Ok(tag(page))));
            assert_eq!(fixture.world.device.counters().faults, faults, "survivors stay mapped");
        }
        fixture.expect(fixture.base, fixture.pages, true, |page| (!is_hole(page)).then(|| tag(page)));
        for (from, to) in [(0, 5), (9, 28), (36, 700), (800, 1024)] {
            unmap(fixture.base + from * PAGE, (to - from) * PAGE);
        }
        assert!(fixture.world.load(fixture.base).is_err());
    });
}

#[test]
fn what_is_mapped_over_begins_with_zeros() {
    let _alone = alone(60);
    Fixture::each(512, |fixture, _| {
        let over = 100..117;
        let at = fixture.base + over.start * PAGE;
        assert_eq!(map_as(at, over.len() * PAGE, libc::PROT_READ | libc::PROT_WRITE, libc::MAP_PRIVATE), at);
        poke(at + PAGE, 77);
        poke(at + 2 * PAGE - 8, 77);
        let want = |page: usize| match page {
            101 => 77,
            page if over.contains(&page) => 0,
            page => tag(page),
        };
        fixture.expect(fixture.base, fixture.pages, false, |page| Some(want(page)));
        unmap(fixture.base, fixture.pages * PAGE);
    });
}

#[test]
fn data_follows_mremap() {
    let _alone = alone(120);
    Fixture::each(512, |fixture, state| {
        let base = fixture.base;
        // 37 pages, from an odd page to another position within 64 KiB, by MREMAP_FIXED.
        let room = map_aligned(1024 * PAGE);
        let to = room + 21 * PAGE;
        assert_eq!(remap(base + 3 * PAGE, 37 * PAGE, 37 * PAGE, 0, to), to);
        if matches!(state, State::Private(_)) {
            assert_eq!(present(base + 40 * PAGE, 472), 0, "what was not moved stays on the device");
        }
        fixture.expect(to, 37, false, |page| Some(tag(page + 3)));
        fixture.expect(base, 60, true, |page| (!(3..40).contains(&page)).then(|| tag(page)));
        // Grown, so that it has to move: its tail is new.
        let moved = remap(base + 40 * PAGE, 100 * PAGE, 300 * PAGE, 0, room + 301 * PAGE);
        fixture.expect(moved, 300, true, |page| Some(if page < 100 { tag(page + 40) } else { 0 }));
        // Shrunk.
        assert_eq!(remap(moved, 300 * PAGE, 50 * PAGE, 0, 0), moved);
        fixture.expect(moved, 60, false, |page| (page < 50).then(|| tag(page + 40)));
        // The old range stays, empty.
        let to = room + 700 * PAGE;
        let kept = remap(base + 200 * PAGE, 33 * PAGE, 33 * PAGE, libc::MREMAP_DONTUNMAP, to);
        assert_eq!(kept, to);
        fixture.expect(base + 199 * PAGE, 35, true, |page| {
            Some(if (1..34).contains(&page) { 0 } else { tag(page + 199) })
        });
        fixture.expect(to, 33, false, |page| Some(tag(page + 200)));
        unmap(room, 1024 * PAGE);
        unmap(base, 512 * PAGE);
    });
}

/// The mapping stays when its pages go, so that a worker in the middle of taking them finds it empty: neither does it wait
/// for a reader that waits for it, nor does it take zeros for data.
#[test]
fn pages_that_leave_their_mapping_behind_keep_their_data() {
    const PAGES: usize = 64;
    // More than one: what moves to a place where pages are being discarded is the window that `docs/kernel.md` names.
    const ROOMS: usize = 6;
    let _alone = alone(120);
    for way in [TakeWay::Move, TakeWay::WriteProtect] {
        let world = World::new(16 * MIB, |builder| builder.take_way(way));
        let rooms: Vec<usize> = (0..ROOMS).map(|_| map_aligned(2 * MIB)).collect();
        let target = AtomicUsize::new(rooms[0]);
        let stop = AtomicBool::new(false);
        let moved = AtomicU64::new(0);
        std::thread::scope(|scope| {
            scope.spawn(|| {
                while !stop.load(Ordering::Relaxed) {
                    moved.fetch_add(world.prefetch(target.load(Ordering::SeqCst), PAGES), Ordering::Relaxed);
                }
            });
            let _ends = StopOnDrop(&stop);
            for round in 0..600u64 {
                let [from, to] = [0, 1].map(|next| rooms[(round as usize + next) % ROOMS]);
                target.store(from, Ordering::SeqCst);
                for page in 0..PAGES {
                    poke(from + page * PAGE, tag(page) + round);
                }
                let before = moved.load(Ordering::Relaxed);
                while round % 4 != 0 && moved.load(Ordering::Relaxed) == before {
                    std::thread::yield_now();
                }
                assert_eq!(remap(from, PAGES * PAGE, PAGES * PAGE, libc::MREMAP_DONTUNMAP, to), to);
                for page in 0..PAGES {
                    assert_eq!(
                        peek(to + page * PAGE),
                        tag(page) + round,
                        "{way:?}, page {page}, round {round}"
                    );
                    assert_eq!(peek(from + page * PAGE), 0, "{way:?}, left page {page}, round {round}");
                }
            }
        });
        println!("{way:?}: {} pages to the device", moved.load(Ordering::Relaxed));
        let away = world.count(Count::PagesToDevice);
        assert!(away > 60 * PAGES as u64, "{way:?}: they met too rarely, {away} pages");
        drop(world);
        rooms.into_iter().for_each(|room| unmap(room, 2 * MIB));
    }
}

#[test]
fn a_range_moved_many_times_keeps_its_data() {
    let _alone = alone(60);
    Fixture::each(64, |fixture, _| {
        let room = map_aligned(512 * PAGE);
        let mut at = fixture.base;
        for step in 0..40 {
            let to = room + (step * 97 % 448) * PAGE;
            if to.abs_diff(at) < 64 * PAGE {
                continue;
            }
            at = remap(at, 64 * PAGE, 64 * PAGE, 0, to);
            fixture.target.store(at, Ordering::Relaxed);
            if step % 3 == 0 {
                fixture.world.prefetch(at, 64);
            }
        }
        fixture.expect(at, 64, true, |page| Some(tag(page)));
        unmap(room, 512 * PAGE);
    });
}

#[test]
fn discarded_pages_read_as_zeros_on_both_sides() {
    let _alone = alone(60);
    Fixture::each(512, |fixture, state| {
        let gone = 60..301;
        advise(fixture.base + gone.start * PAGE, gone.len() * PAGE, libc::MADV_DONTNEED);
        if matches!(state, State::Private(_)) {
            assert_eq!(present(fixture.base, fixture.pages), 0, "nothing came to RAM for it");
        }
        fixture.expect(fixture.base, fixture.pages, true, |page| {
            Some(if gone.contains(&page) { 0 } else { tag(page) })
        });
        unmap(fixture.base, fixture.pages * PAGE);
    });
}

#[test]
fn a_discarded_page_may_go_to_the_device_again() {
    let _alone = alone(60);
    let world = World::new(64 * MIB, |builder| builder);
    let base = map_aligned(2 * MIB);
    for round in 1..20u64 {
        world.store(base + 8, round).expect("writable memory");
        assert_eq!(present(base, 16), 0, "round {round}");
        advise(base, 16 * PAGE, libc::MADV_DONTNEED);
        assert_eq!(world.load(base + 8), Ok(0), "round {round}");
    }
    unmap(base, 2 * MIB);
}

#[test]
fn freed_pages_hold_the_old_contents_or_zeros_and_keep_what_is_written_next() {
    let _alone = alone(60);
    Fixture::each(128, |fixture, _| {
        advise(fixture.base, 64 * PAGE, libc::MADV_FREE);
        for page in 0..64 {
            let here = fixture.base + page * PAGE;
            if page % 2 == 0 {
                poke(here, 5);
                assert_eq!(fixture.world.load(here), Ok(5), "page {page}");
            } else {
                fixture.world.store(here, 6).expect("writable memory");
                assert_eq!(peek(here), 6, "page {page}");
            }
            let end = peek(here + PAGE - 8);
            assert!(end == 0 || end == tag(page), "page {page} holds {end:#x}, neither old nor zero");
        }
        fixture.expect(fixture.base + 64 * PAGE, 64, true, |page| Some(tag(page + 64)));
        unmap(fixture.base, 128 * PAGE);
    });
}

#[test]
fn a_hole_punched_in_shared_memory_is_seen_by_the_device() {
    let _alone = alone(60);
    let world = World::new(64 * MIB, |builder| builder);
    let base = map_as(0, MIB, libc::PROT_READ | libc::PROT_WRITE, libc::MAP_SHARED);
    for page in 0..256 {
        world.store(base + page * PAGE, tag(page)).expect("shared memory is linked");
    }
    assert_eq!(present(base, 256), 256, "shared memory stays in RAM");
    assert!(world.count(Count::PagesLinked) >= 256);
    let unlinked = world.count(Count::PagesUnlinked);
    advise(base + 10 * PAGE, 20 * PAGE, libc::MADV_REMOVE);
    world.await_count(Count::PagesUnlinked, unlinked + 20);
    for page in 0..256 {
        let want = if (10..30).contains(&page) { 0 } else { tag(page) };
        assert_eq!(world.load(base + page * PAGE), Ok(want), "page {page}");
        assert_eq!(peek(base + page * PAGE), want, "page {page}");
    }
    unmap(base, MIB);
}

#[test]
fn a_shrinking_break_takes_its_pages_from_the_device() {
    let _alone = alone(60);
    let world = World::new(64 * MIB, |builder| builder);
    for round in 0..20u64 {
        // SAFETY: the break grows; nobody else was handed this part.
        let base = unsafe { libc::sbrk(MIB as isize) } as usize;
        let start = base.next_multiple_of(PAGE);
        let pages = (base + MIB - start) / PAGE;
        for page in 0..pages {
            world.store(start + page * PAGE, round + 1).expect("the heap is writable");
        }
        let away = pages - present(start, pages);
        assert!(away >= pages - 16, "only {away} of {pages} pages of the break left the CPU");
        // SAFETY: gives back the part that was got, if the break did not move meanwhile.
        unsafe {
            assert_eq!(libc::sbrk(0) as usize, base + MIB, "nobody else moves the break in this test");
            libc::sbrk(-(MIB as isize));
        }
        assert!(matches!(
            world.load(start + PAGE),
            Err(AccessError::Fault { cause: FaultCause::NoMapping, .. })
        ));
        // SAFETY: as above; grown again, the memory is new.
        unsafe { assert_eq!(libc::sbrk(MIB as isize) as usize, base) };
        assert_eq!((world.load(start + PAGE), peek(start + 2 * PAGE)), (Ok(0), 0), "round {round}");
        // SAFETY: as above.
        unsafe { libc::sbrk(-(MIB as isize)) };
    }
}

#[test]
fn a_write_to_read_only_memory_fails_and_reads_go_on() {
    let _alone = alone(60);
    Fixture::each(64, |fixture, state| {
        let base = fixture.base;
        fixture.stop.store(true, Ordering::Relaxed);
        protect(base, 64 * PAGE, libc::PROT_READ);
        // The CPU may read what is on the device, into a mapping that may not be written.
        for page in 0..32 {
            assert_eq!(peek(base + page * PAGE), tag(page), "{state:?}");
        }
        // The kernel tells nobody about mprotect: translations that exist stay until the pages come home.
        fixture.world.to_ram(base, 64);
        if state != State::Linked {
            let refused = fixture.world.store(base + PAGE, 1);
            assert!(
                matches!(
                    refused,
                    Err(AccessError::Fault { cause: FaultCause::ReadOnly, access: Access::Write, .. })
                ),
                "{state:?}: {refused:?}"
            );
        }
        fixture.expect(base, 64, true, |page| Some(tag(page)));
        protect(base, 64 * PAGE, libc::PROT_NONE);
        fixture.world.to_ram(base, 64);
        if state != State::Linked {
            let refused = fixture.world.load(base + 2 * PAGE);
            assert!(
                matches!(refused, Err(AccessError::Fault { cause: FaultCause::NoAccess, .. })),
                "{state:?}: {refused:?}"
            );
        }
        protect(base, 64 * PAGE, libc::PROT_READ | libc::PROT_WRITE);
        fixture.expect(base, 64, true, |page| Some(tag(page)));
        fixture.world.store(base + PAGE, 9).expect("writable again");
        assert_eq!(peek(base + PAGE), 9);
        unmap(base, 64 * PAGE);
    });
}

#[test]
fn a_linked_page_that_may_not_be_written_any_more_is_not_written() {
    let _alone = alone(60);
    let world = World::new(64 * MIB, |builder| builder.policy(LinkOnly));
    let base = map_aligned(2 * MIB);
    world.store(base, 1).expect("writable");
    assert_eq!(present(base, 1), 1);
    protect(base, PAGE, libc::PROT_READ);
    // The software device reaches linked memory through the CPU's own page table, which refuses.
    let refused = world.store(base, 2);
    assert!(matches!(refused, Err(AccessError::Fault { cause: FaultCause::ReadOnly, .. })), "{refused:?}");
    assert_eq!((world.load(base), peek(base)), (Ok(1), 1));
    protect(base, PAGE, libc::PROT_NONE);
    let refused = world.load(base);
    assert!(matches!(refused, Err(AccessError::Fault { cause: FaultCause::NoAccess, .. })), "{refused:?}");
    unmap(base, 2 * MIB);
}
