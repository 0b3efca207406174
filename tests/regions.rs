//! Regions of the library on real memory: they leave the CPU, come home with what both sides wrote, and stay one memory
//! for whoever shares them.
#![cfg(not(granule_loom))]
#![allow(unsafe_code, reason = "fork and madvise, as an application calls them")]

mod real;

use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};

use granule::os::TakeWay;
use granule::policy::LinkOnly;
use granule::ports::Count;
use granule::service::{Region, RegionError, UserptrOptions};
use granule::units::{DeviceId, VirtAddr};
use granule::{Granularity, Svm};
use granule_backends::software::SoftwareDevice;
use real::{
    DEVICE, MIB, PAGE, World, advise, alone, map_aligned, peek, poke, present, protect, range, unmap,
};

const WAYS: [TakeWay; 2] = [TakeWay::Move, TakeWay::WriteProtect];

fn region(world: &World, bytes: usize) -> (Region, usize, usize) {
    let region = world.svm.alloc(bytes as u64).expect("a region");
    assert!(region.is_movable(), "this kernel has minor faults of shared memory");
    let at = region.as_ptr() as usize;
    (region, at, bytes / PAGE)
}

/// Values of the first and last word of each page.
fn fill(at: usize, pages: usize, value: impl Fn(usize) -> u64) {
    for page in 0..pages {
        poke(at + page * PAGE, value(page));
        poke(at + page * PAGE + PAGE - 8, !value(page));
    }
}

fn wrong(at: usize, pages: usize, value: impl Fn(usize) -> u64) -> usize {
    let differs = |page: &usize| {
        let (first, last) = (peek(at + page * PAGE), peek(at + page * PAGE + PAGE - 8));
        first != value(*page) || last != !value(*page)
    };
    (0..pages).filter(differs).count()
}

#[test]
fn pages_leave_and_come_home_with_what_both_sides_wrote() {
    let _alone = alone(60);
    for way in WAYS {
        for granularity in [Granularity::Kib4, Granularity::Kib64, Granularity::Mib2] {
            let world = World::new(32 * MIB, |builder| builder.take_way(way).granularity(granularity));
            let (region, at, pages) = region(&world, 6 * MIB + 5 * PAGE);
            fill(at, pages, |page| page as u64);
            for round in 0..3u64 {
                assert_eq!(world.prefetch(at, pages), pages as u64);
                assert_eq!(present(at, pages), 0, "{way:?} {granularity:?}: every page left the CPU");
                world
                    .run(|engine| {
                        for page in 0..pages {
                            let word = (at + page * PAGE) as u64;
                            let value: u64 = engine.load(word)?;
                            engine.store(word, value + 1000)?;
                            engine.store(word + PAGE as u64 - 8, !(value + 1000))?;
                        }
                        Ok(())
                    })
                    .expect("the device reaches all of it");
                assert_eq!(world.count(Count::PagesLinked), 0, "nothing had to be linked");
                let value = |page: usize| page as u64 + 1000 * (round + 1);
                assert_eq!(wrong(at, pages, value), 0, "{way:?} {granularity:?} round {round}");
                assert_eq!(present(at, pages), pages);
                let words = region.view();
                assert!((0..pages).all(|page| words[page * PAGE / 8].load(Ordering::Relaxed) == value(page)));
            }
            let count = |what| world.count(what);
            assert_eq!(count(Count::PagesToDevice), 3 * pages as u64);
            assert_eq!(count(Count::PagesToRam), 3 * pages as u64);
        }
    }
}

#[test]
fn what_nobody_touched_is_zero_on_both_sides() {
    let _alone = alone(60);
    let world = World::new(32 * MIB, |builder| builder);
    let (_region, at, pages) = region(&world, 4 * MIB);
    // Being a region costs the first touch no fault of ours.
    (0..pages / 2).for_each(|page| assert_eq!(peek(at + page * PAGE), 0));
    assert_eq!(world.count(Count::CpuFaults), 0);
    assert_eq!(world.prefetch(at, pages), pages as u64);
    assert_eq!(present(at, pages), 0);
    let read = world.load_all((0..pages).map(|page| at + page * PAGE));
    assert!(read.iter().all(|word| *word == Ok(0)));
    world.store(at + 700 * PAGE, 7).expect("the device writes");
    assert!((0..pages).all(|page| peek(at + page * PAGE) == if page == 700 { 7 } else { 0 }));
}

/// A page that the file lacks is trapped by nothing: the CPU touches pages for the first time while they are taken.
#[test]
fn first_touches_race_with_takes() {
    const ROUNDS: usize = 60;
    const PAGES: usize = 512;
    let _alone = alone(60);
    for way in WAYS {
        let world = World::new(32 * MIB, |builder| builder.take_way(way).granularity(Granularity::Kib4));
        for round in 0..ROUNDS {
            let (_region, at, _) = region(&world, PAGES * PAGE);
            let step = [1, 7, 31][round % 3];
            let word = |n: usize| at + n * step % PAGES * PAGE + 8 * (round % 100);
            std::thread::scope(|scope| {
                scope.spawn(|| {
                    for n in 0..PAGES {
                        // SAFETY: an aligned word of the region; all sides use atomics.
                        unsafe { AtomicU64::from_ptr(word(n) as *mut u64) }.fetch_add(1, Ordering::SeqCst);
                    }
                });
                world
                    .run(|engine| {
                        (0..PAGES).try_for_each(|n| engine.fetch_add_u64(word(n) as u64, 1).map(drop))
                    })
                    .expect("the device adds");
            });
            let lost = (0..PAGES).filter(|n| peek(word(*n)) != 2).count();
            assert_eq!(lost, 0, "{way:?} round {round}: words in which an addition is missing");
        }
        assert!(world.count(Count::PagesToDevice) > (ROUNDS * PAGES / 4) as u64, "{way:?}: pages moved");
    }
}

/// What the kernel promises of shared memory holds wherever the pages are.
#[test]
fn calls_of_the_application_find_ordinary_shared_memory() {
    let _alone = alone(60);
    let world = World::new(32 * MIB, |builder| builder);
    let (_region, at, pages) = region(&world, 2 * MIB);
    let away = || {
        world
            .run(|engine| {
                for page in 0..pages {
                    engine.store((at + page * PAGE) as u64, page as u64 + 5)?;
                    engine.store((at + page * PAGE + PAGE - 8) as u64, !(page as u64 + 5))?;
                }
                Ok(())
            })
            .expect("the device writes");
        assert_eq!(present(at, pages), 0);
    };
    let all_right = |what: &str| assert_eq!(wrong(at, pages, |page| page as u64 + 5), 0, "{what}");

    away();
    advise(at, pages * PAGE, libc::MADV_DONTNEED);
    all_right("MADV_DONTNEED discards nothing of shared memory");
    // What is in RAM and not mapped is mapped again at a touch.
    advise(at, pages * PAGE, libc::MADV_DONTNEED);
    assert_eq!(present(at, pages), 0);
    all_right("and not when the pages are in RAM");

    away();
    // SAFETY: the kernel is asked about a region of this test.
    let rc = unsafe { libc::madvise(at as *mut _, pages * PAGE, libc::MADV_REMOVE) };
    let errno = std::io::Error::last_os_error().raw_os_error();
    assert_eq!((rc, errno), (-1, Some(libc::EPERM)), "holes are refused");
    all_right("a refused call changes nothing");

    away();
    protect(at, pages * PAGE, libc::PROT_READ);
    all_right("read-only memory comes home");
    assert!(world.store(at, 1).is_err(), "and is not written by the device");
    protect(at, pages * PAGE, libc::PROT_READ | libc::PROT_WRITE);

    away();
    // SAFETY: as above.
    assert_eq!(unsafe { libc::mlock(at as *const _, pages * PAGE) }, 0);
    assert_eq!(present(at, pages), pages, "locking brings everything home");
    world.store(at + 8, 3).expect("the device links what is locked");
    assert_eq!(present(at, pages), pages, "and takes none of it");
    // SAFETY: as above.
    assert_eq!(unsafe { libc::munlock(at as *const _, pages * PAGE) }, 0);
    all_right("contents stay");

    away();
    let mut ends = [0; 2];
    // SAFETY: two descriptors into an array of two; then whole pages of the region, and of this stack.
    unsafe {
        assert_eq!(libc::pipe(ends.as_mut_ptr()), 0);
        assert_eq!(libc::write(ends[1], (at + 9 * PAGE) as *const _, PAGE), PAGE as isize);
        let mut copy = [0u64; PAGE / 8];
        assert_eq!(libc::read(ends[0], copy.as_mut_ptr().cast(), PAGE), PAGE as isize);
        assert_eq!((copy[0], copy[511]), (14, !14), "a system call reads what the device wrote");
        ends.iter().for_each(|end| assert_eq!(libc::close(*end), 0));
    }
    all_right("the rest came home as well");
}

#[test]
fn a_device_a_quarter_as_large_evicts_and_loses_nothing() {
    let _alone = alone(60);
    let world = World::new(4 * MIB, |builder| builder);
    let (_region, at, pages) = region(&world, 16 * MIB);
    for round in 0..3u64 {
        world
            .run(|engine| {
                for page in 0..pages {
                    let word = (at + page * PAGE) as u64;
                    let value: u64 = engine.load(word)?;
                    assert_eq!(value, if round == 0 { 0 } else { page as u64 + round - 1 });
                    engine.store(word, page as u64 + round)?;
                    engine.store(word + PAGE as u64 - 8, !(page as u64 + round))?;
                }
                Ok(())
            })
            .expect("the device reaches all of it");
        if round == 1 {
            assert_eq!(wrong(at, pages, |page| page as u64 + 1), 0);
        }
    }
    assert!(world.count(Count::Evictions) >= 8, "{}", world.count(Count::Evictions));
    assert!(world.count(Count::PagesToDevice) >= 2 * pages as u64);
    assert_eq!(wrong(at, pages, |page| page as u64 + 2), 0);
}

/// CPU threads and engines add to the same words, pages move all the time, and no addition is lost.
#[test]
fn both_sides_count_in_the_same_pages() {
    const ADDS: u64 = 4_000;
    const PAGES: usize = 64;
    let _alone = alone(120);
    for way in WAYS {
        let world = World::new(32 * MIB, |builder| builder.take_way(way).granularity(Granularity::Kib4));
        let (_region, at, _) = region(&world, PAGES * PAGE);
        let word = |n: u64| at + (n as usize * 7 % PAGES) * PAGE;
        let done = AtomicBool::new(false);
        std::thread::scope(|scope| {
            let cpus: Vec<_> = (0..2)
                .map(|_| {
                    scope.spawn(|| {
                        for n in 0..ADDS {
                            // SAFETY: an aligned word of the region; all sides use atomics.
                            unsafe { AtomicU64::from_ptr(word(n) as *mut u64) }
                                .fetch_add(1, Ordering::SeqCst);
                        }
                    })
                })
                .collect();
            scope.spawn(|| {
                while !done.load(Ordering::Acquire) {
                    world.to_ram(at, PAGES);
                }
            });
            world
                .device
                .run(|engine| (0..ADDS).try_for_each(|n| engine.fetch_add_u64(word(n) as u64, 1).map(drop)))
                .expect("the device adds");
            cpus.into_iter().for_each(|cpu| cpu.join().expect("a CPU thread ends"));
            done.store(true, Ordering::Release);
        });
        let sum: u64 = (0..PAGES).map(|page| peek(at + page * PAGE)).sum();
        assert_eq!(sum, 4 * ADDS, "{way:?}: additions of two CPU threads and two engines");
        assert!(world.count(Count::PagesToDevice) > 2 * PAGES as u64, "{way:?}: pages moved");
    }
}

fn child(make: impl Fn() -> libc::pid_t, body: impl Fn() -> i32) -> libc::pid_t {
    let pid = make();
    assert!(pid >= 0, "{}", std::io::Error::last_os_error());
    if pid == 0 {
        // SAFETY: no pointers. A child whose parent fails does not go on alone.
        unsafe { libc::prctl(libc::PR_SET_PDEATHSIG, libc::SIGKILL) };
        let code = body();
        // SAFETY: no destructor and no hook runs.
        unsafe { libc::_exit(code) };
    }
    pid
}

fn wait_for(pid: libc::pid_t) -> i32 {
    let mut status = 0;
    // SAFETY: the status lives for the call.
    assert_eq!(unsafe { libc::waitpid(pid, &mut status, 0) }, pid);
    assert!(libc::WIFEXITED(status), "the child died of signal {}", libc::WTERMSIG(status));
    libc::WEXITSTATUS(status)
}

/// Shared memory stays one memory: the child sees what its parent had on the device, and each sees what the other
/// writes from then on, the parent's device included.
#[test]
fn a_child_shares_it() {
    let _alone = alone(60);
    // SAFETY: the child reads and writes the region, and ends by `_exit`.
    let by_fork = || unsafe { libc::fork() };
    // SAFETY: as above.
    let by_clone = || unsafe { libc::syscall(libc::SYS_clone, libc::SIGCHLD, 0, 0, 0, 0) as libc::pid_t };
    for (name, make) in [("fork", &by_fork as &dyn Fn() -> libc::pid_t), ("clone", &by_clone)] {
        let world = World::new(32 * MIB, |builder| builder);
        let (_region, at, pages) = region(&world, 4 * MIB);
        fill(at, pages, |page| page as u64);
        assert_eq!(world.prefetch(at, pages), pages as u64);
        world.store(at + 8, 1).expect("the device writes");
        let pid = child(make, || {
            let there = wrong(at, pages, |page| page as u64) == 0 && peek(at + 8) == 1;
            poke(at + 16, 2);
            while peek(at + 24) != 3 {
                std::hint::spin_loop();
            }
            poke(at + 32, 4);
            i32::from(!there)
        });
        while peek(at + 16) != 2 {
            std::thread::yield_now();
        }
        assert_eq!(world.load(at + 16), Ok(2), "{name}: the device sees what the child wrote");
        world.store(at + 24, 3).expect("the device writes");
        assert_eq!(wait_for(pid), 0, "{name}: the child has what its parent's device had");
        assert_eq!((world.load(at + 32), peek(at + 32)), (Ok(4), 4));
        assert_eq!(wrong(at, pages, |page| page as u64), 0);
        let (before, linked) = (world.count(Count::PagesToDevice), world.count(Count::PagesLinked));
        world.prefetch(at, pages);
        assert_eq!(world.count(Count::PagesToDevice), before, "{name}: what is shared stays in RAM");
        assert!(world.count(Count::PagesLinked) > linked);

        // A region of a later day is nobody else's.
        let (_later, at, pages) = region(&world, 2 * MIB);
        assert_eq!(world.prefetch(at, pages), pages as u64);
        assert_eq!(present(at, pages), 0);
    }
}

#[test]
fn dropping_region_or_space_with_pages_away() {
    let _alone = alone(60);
    let world = World::new(32 * MIB, |builder| builder);
    let (first, at, pages) = region(&world, 6 * MIB);
    assert_eq!(world.prefetch(at, pages), pages as u64);
    drop(first);
    assert!(world.load(at).is_err(), "the device has lost it");
    // Device memory is free again: more than it has goes there, one after the other.
    for _ in 0..8 {
        let (_next, at, pages) = region(&world, 16 * MIB);
        assert_eq!(world.prefetch(at, pages), pages as u64, "{:?}", world.svm.stats());
        assert_eq!(present(at, pages), 0);
    }
    assert_eq!(world.count(Count::Evictions), 0);

    let (kept, at, pages) = region(&world, 4 * MIB);
    fill(at, pages, |page| page as u64 + 3);
    world.prefetch(at, pages);
    world.store(at, 9).expect("the device writes");
    assert_eq!(present(at, pages), 0);
    drop(world);
    assert_eq!(peek(at), 9);
    poke(at, 3);
    assert_eq!(wrong(at, pages, |page| page as u64 + 3), 0, "everything came home");
    drop(kept);

    // The same address is ordinary memory for another one.
    let world = World::new(32 * MIB, |builder| builder);
    let (_region, at, pages) = region(&world, 4 * MIB);
    fill(at, pages, |page| page as u64);
    assert_eq!(world.prefetch(at, pages), pages as u64);
    assert_eq!(wrong(at, pages, |page| page as u64), 0);
}

/// Does something at the end of its scope, however that ends.
struct OnDrop<F: FnMut()>(F);

impl<F: FnMut()> Drop for OnDrop<F> {
    fn drop(&mut self) {
        (self.0)();
    }
}

/// Regions come and go while others move; what an ordinary mapping at a region's former address holds is never touched.
#[test]
fn regions_come_and_go_while_pages_move() {
    const LIVES: u64 = 150;
    let _alone = alone(120);
    for way in WAYS {
        let world = World::new(8 * MIB, |builder| builder.take_way(way));
        let (reached, target, living) = (AtomicU64::new(0), AtomicUsize::new(0), AtomicU64::new(2));
        std::thread::scope(|scope| {
            // Moves one of them to the device and back, whatever its owner does.
            scope.spawn(|| {
                // Owners that fail end, too.
                while living.load(Ordering::Acquire) != 0 {
                    let at = target.load(Ordering::Relaxed);
                    if at != 0 {
                        world.prefetch(at, 64);
                        world.to_ram(at + 16 * PAGE, 32);
                    }
                }
            });
            for thread in 0..2u64 {
                let (world, reached, target, living) = (&world, &reached, &target, &living);
                scope.spawn(move || {
                    let _ended = OnDrop(|| {
                        living.fetch_sub(1, Ordering::Release);
                    });
                    for life in 0..LIVES {
                        let bytes = (1 + (life as usize * 5 + thread as usize) % 40) * 17 * PAGE;
                        let (region, at, pages) = region(world, bytes);
                        let tag = (thread << 32 | life) << 16;
                        target.store(at, Ordering::Relaxed);
                        fill(at, pages, |page| tag + page as u64);
                        world.prefetch(at, pages);
                        if life % 3 == 0 {
                            assert_eq!(wrong(at, pages, |page| tag + page as u64), 0, "{way:?} life {life}");
                        }
                        drop(region);
                        // Whatever stands there now is not the region's.
                        let here = map_aligned(2 * MIB);
                        fill(here, 16, |page| !tag - page as u64);
                        assert_eq!(wrong(here, 16, |page| !tag - page as u64), 0, "{way:?} life {life}");
                        unmap(here, 2 * MIB);
                        reached.fetch_add(pages as u64, Ordering::Relaxed);
                    }
                });
            }
        });
        assert!(reached.load(Ordering::Relaxed) > 2 * LIVES * 17);
        assert!(world.count(Count::PagesToDevice) > 2 * LIVES * 17, "{way:?}: pages moved");
    }
}

#[test]
fn two_devices_take_turns() {
    let _alone = alone(60);
    let device = || SoftwareDevice::builder().memory_bytes(8 << 20).engines(1).build().expect("a device");
    let (first, second) = (device(), device());
    let svm = Svm::builder().device(first.clone()).device(second.clone()).build().expect("a space");
    let region = svm.alloc(64 * PAGE as u64).expect("a region");
    let at = region.as_ptr() as usize;
    for round in 0..10u64 {
        for (device, n) in [(&first, 1), (&second, 10)] {
            device
                .run(|engine| {
                    (0..64 * PAGE as u64).step_by(PAGE).try_for_each(|offset| {
                        let old: u64 = engine.load(at as u64 + offset)?;
                        engine.store(at as u64 + offset, old + n)
                    })
                })
                .expect("the device adds");
            assert_eq!(present(at, 64), 0, "round {round}");
        }
        assert_eq!(peek(at + round as usize * PAGE), 11 * (round + 1));
    }
    assert_eq!(svm.prefetch(range(at, 64), DeviceId(1)), Ok(64));
    assert_eq!(svm.stats().count(Count::PagesLinked), 0);
}

#[test]
fn who_wants_it_in_ram_gets_it_linked() {
    let _alone = alone(60);
    let linked = World::new(8 * MIB, |builder| builder.policy(LinkOnly));
    let (_region, at, pages) = region(&linked, 2 * MIB);
    assert_eq!(linked.prefetch(at, pages), pages as u64);
    assert_eq!((linked.count(Count::PagesLinked), linked.count(Count::PagesToDevice)), (pages as u64, 0));
    drop(linked);

    let world = World::new(8 * MIB, |builder| builder);
    let (_region, at, pages) = region(&world, 2 * MIB);
    world.prefetch(at, pages);
    let start = VirtAddr(at as u64);
    let held = world.svm.userptr(start, 16 * PAGE as u64, UserptrOptions::default()).expect("a userptr");
    assert_eq!(present(at, 16), 16, "what may not move came home");
    world.prefetch(at, pages);
    assert_eq!((present(at, 16), present(at + 16 * PAGE, pages - 16)), (16, 0), "and stays there");
    drop(held);
    world.store(at, 6).expect("the device writes");
    assert_eq!(world.svm.prefetch(range(at, 1), DEVICE), Ok(1));
    assert_eq!(peek(at), 6);
}

#[test]
fn a_region_lies_in_the_window() {
    let _alone = alone(60);
    let place = map_aligned(16 * MIB);
    // A mapping in the middle is in the way.
    unmap(place, 8 * MIB);
    unmap(place + 10 * MIB, 6 * MIB);
    let world = World::new(8 * MIB, |builder| builder.window(range(place, 16 * MIB / PAGE)));
    let mut regions = Vec::new();
    for _ in 0..3 {
        let (region, at, pages) = region(&world, 4 * MIB);
        assert!(range(place, 16 * MIB / PAGE).covers(region.range()));
        assert_eq!(world.prefetch(at, pages), pages as u64);
        assert_eq!(present(at, pages), 0);
        assert_eq!(world.to_ram(at, pages), pages as u64);
        regions.push(region);
    }
    assert!(matches!(world.svm.alloc(4 << 20), Err(RegionError::NoAddress { .. })));
    assert_eq!(peek(place + 8 * MIB), 0);
    drop(regions);
    assert!(world.svm.alloc(4 << 20).is_ok());
    drop(world);
    unmap(place + 8 * MIB, 2 * MIB);
}
