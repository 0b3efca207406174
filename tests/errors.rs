//! What the world can do wrong: each error is of the access that met it, and no page is lost.
#![cfg(not(granule_loom))]
#![allow(unsafe_code, reason = "locks pages as an application does")]

mod real;

use std::collections::HashSet;
use std::sync::Mutex;
use std::sync::atomic::{AtomicU64, Ordering};

use granule::Granularity;
use granule::ports::{Count, FaultCause};
use granule::units::Access;
use granule_backends::software::{AccessError, Inject, SoftwareDevice};
use real::{MIB, PAGE, World, alone, map_aligned, map_as, peek, poke, present, protect, unmap};

fn cause(result: Result<impl Sized, AccessError>) -> Option<(FaultCause, Access)> {
    match result {
        Err(AccessError::Fault { cause, access, .. }) => Some((cause, access)),
        _ => None,
    }
}

#[test]
fn an_access_that_is_not_allowed_fails_alone_and_with_its_cause() {
    let _alone = alone(60);
    let world = World::new(16 * MIB, |builder| builder);
    let base = map_aligned(2 * MIB);
    // Neighbours within 64 KiB: writable, read-only, closed, a hole, writable.
    for page in 0..16 {
        poke(base + page * PAGE, 100 + page as u64);
    }
    protect(base + 4 * PAGE, 4 * PAGE, libc::PROT_READ);
    protect(base + 8 * PAGE, 2 * PAGE, libc::PROT_NONE);
    unmap(base + 10 * PAGE, 2 * PAGE);
    let outcomes = Mutex::new(Vec::new());
    // One kernel meets all of them, and goes on.
    world
        .run(|engine| {
            let mut found = Vec::new();
            for page in 0..16 {
                let at = (base + page * PAGE) as u64;
                found.push((cause(engine.load::<u64>(at)), cause(engine.store(at + 8, 7u64))));
            }
            *outcomes.lock().expect("no panic") = found;
            Ok(())
        })
        .expect("the kernel goes on");
    let outcomes = outcomes.into_inner().expect("no panic");
    for (page, (load, store)) in outcomes.into_iter().enumerate() {
        let want = match page {
            4..8 => (None, Some((FaultCause::ReadOnly, Access::Write))),
            8..10 => {
                (Some((FaultCause::NoAccess, Access::Read)), Some((FaultCause::NoAccess, Access::Write)))
            }
            10..12 => {
                (Some((FaultCause::NoMapping, Access::Read)), Some((FaultCause::NoMapping, Access::Write)))
            }
            _ => (None, None),
        };
        assert_eq!((load, store), want, "page {page}");
    }
    assert_eq!(world.count(Count::FaultsFailed), 4 + 2 * 2 + 2 * 2);
    protect(base + 8 * PAGE, 2 * PAGE, libc::PROT_READ);
    for page in (0..10).chain(12..16) {
        let wrote = if (4..10).contains(&page) { 0 } else { 7 };
        assert_eq!((peek(base + page * PAGE), peek(base + page * PAGE + 8)), (100 + page as u64, wrote));
    }
    assert_eq!(cause(world.load(8)), Some((FaultCause::NoMapping, Access::Read)), "the null page");
    unmap(base, 2 * MIB);
}

/// A page that a program has made a guard (Linux 6.13) is a mapping like its neighbours', and must not be touched.
#[test]
fn a_guard_page_fails_its_access_and_its_neighbours_move() {
    const MADV_GUARD_INSTALL: i32 = 102;
    const MADV_GUARD_REMOVE: i32 = 103;
    let _alone = alone(60);
    for granularity in [Granularity::Kib4, Granularity::Kib64, Granularity::Mib2] {
        let world = World::new(16 * MIB, |builder| builder.granularity(granularity));
        let base = map_aligned(2 * MIB);
        (0..512).for_each(|page| poke(base + page * PAGE, page as u64));
        let guard = base + 4 * PAGE;
        // SAFETY: pages of the test's own.
        if unsafe { libc::madvise(guard as *mut _, 2 * PAGE, MADV_GUARD_INSTALL) } != 0 {
            println!("nothing is tried: this kernel has no guards");
            return unmap(base, 2 * MIB);
        }
        let no_access = |access| Some((FaultCause::NoAccess, access));
        assert_eq!(cause(world.load(guard)), no_access(Access::Read));
        assert_eq!(cause(world.store(guard + PAGE, 9)), no_access(Access::Write));
        for page in (0..4).chain(6..16) {
            assert_eq!(world.load(base + page * PAGE), Ok(page as u64), "{granularity:?}");
        }
        let away = (present(base, 4), present(base + 6 * PAGE, 10));
        assert_eq!(away, (0, 0), "{granularity:?}: the neighbours are on the device");
        // SAFETY: as above.
        assert_eq!(unsafe { libc::madvise(guard as *mut _, 2 * PAGE, MADV_GUARD_REMOVE) }, 0);
        for page in 0..512 {
            let want = if (4..6).contains(&page) { 0 } else { page as u64 };
            assert_eq!(peek(base + page * PAGE), want, "{granularity:?}, page {page}");
        }
        assert_eq!(world.load(guard), Ok(0));
        unmap(base, 2 * MIB);
    }
}

#[test]
fn a_kernel_that_panics_leaves_memory_and_service_whole() {
    let _alone = alone(60);
    let world = World::new(16 * MIB, |builder| builder);
    let base = map_aligned(2 * MIB);
    let ended = world.device.run(|engine| {
        engine.store((base + engine.index() * PAGE) as u64, 5u64)?;
        assert!(engine.index() != 1, "this panic is a part of the test");
        Ok(())
    });
    assert_eq!(ended, Err(AccessError::KernelPanicked { engine: 1 }));
    assert_eq!((peek(base), peek(base + PAGE)), (5, 5));
    assert_eq!(world.load(base + PAGE), Ok(5), "the device can be used further");
    drop(world);
    assert_eq!((peek(base), peek(base + PAGE)), (5, 5));
    unmap(base, 2 * MIB);
}

#[test]
fn a_full_device_with_nothing_to_evict_gets_a_link() {
    let _alone = alone(60);
    // One block of device memory, all of it taken by the block that faults.
    let world = World::new(2 * MIB, |builder| builder.granularity(Granularity::Kib4));
    let base = map_aligned(4 * MIB);
    for page in 0..512 {
        world.store(base + page * PAGE, page as u64).expect("writable");
    }
    assert_eq!(present(base, 512), 0, "the first block fills the device");
    // Another block has something to evict.
    world.store(base + 2 * MIB, 1).expect("writable");
    assert!(world.count(Count::Evictions) >= 1);
    for page in 0..512 {
        assert_eq!(peek(base + page * PAGE), page as u64);
    }
    unmap(base, 4 * MIB);
    drop(world);

    // Two devices' worth of pages that cannot leave: their copies out fail.
    let inject = Inject { copies_fail_after: Some(512), no_window: true, ..Inject::default() };
    let device = SoftwareDevice::builder().memory_bytes(2 << 20).inject(inject).build().expect("a device");
    let world = World::over(device, |builder| builder.granularity(Granularity::Kib4));
    let base = map_aligned(4 * MIB);
    for page in 0..512 {
        world.store(base + page * PAGE, page as u64).expect("writable");
    }
    assert_eq!(present(base, 512), 0);
    let linked = world.count(Count::PagesLinked);
    world.store(base + 2 * MIB, 9).expect("linked instead");
    assert!(world.count(Count::PagesLinked) > linked, "the page was linked");
    assert_eq!((present(base + 2 * MIB, 1), peek(base + 2 * MIB)), (1, 9));
    // What is on the device is still there.
    for page in 0..512 {
        assert_eq!(world.load(base + page * PAGE), Ok(page as u64));
    }
    unmap(base, 4 * MIB);
}

/// A link is not for ever: what could not move then goes to the device when the program asks again.
#[test]
fn prefetching_tries_linked_pages_again() {
    let _alone = alone(60);
    let world = World::new(8 * MIB, |builder| builder.granularity(Granularity::Kib4));
    let at = map_aligned(2 * MIB);
    (0..8).for_each(|page| poke(at + page * PAGE, page as u64));
    // SAFETY: the test's own page.
    assert_eq!(unsafe { libc::mlock((at + 3 * PAGE) as *const _, PAGE) }, 0);
    world.store(at + 3 * PAGE, 30).expect("linked");
    assert_eq!(
        (present(at, 8), world.count(Count::PagesLinked)),
        (8, 1),
        "a locked page is refused by the kernel"
    );
    assert_eq!(world.prefetch(at, 8), 8);
    assert_eq!(present(at, 8), 1, "it is refused still, and its neighbours go");
    assert_eq!((world.load(at + 3 * PAGE), peek(at + 3 * PAGE)), (Ok(30), 30));
    // SAFETY: as above.
    assert_eq!(unsafe { libc::munlock((at + 3 * PAGE) as *const _, PAGE) }, 0);
    assert_eq!(world.load(at + 3 * PAGE), Ok(30), "linked still: the device does not fault");
    assert_eq!(present(at, 8), 1);
    assert_eq!(world.prefetch(at, 8), 8);
    assert_eq!(present(at, 8), 0, "now it goes");
    for page in 0..8 {
        assert_eq!(peek(at + page * PAGE), if page == 3 { 30 } else { page as u64 });
    }
    assert_eq!(world.device.counters().iommu_errors, 0);
    unmap(at, 2 * MIB);
}

/// The same for a device that was full: its memory could not be freed, and then it could.
#[test]
fn prefetching_finds_room_that_was_not_there() {
    let _alone = alone(60);
    let inject = Inject { first_copy_outs_fail: 5_000, no_window: true, ..Inject::default() };
    let device = SoftwareDevice::builder().memory_bytes(2 << 20).inject(inject).build().expect("a device");
    let world = World::over(device, |builder| builder.granularity(Granularity::Kib4));
    let base = map_aligned(4 * MIB);
    for page in 0..512 {
        world.store(base + page * PAGE, page as u64).expect("writable");
    }
    let late = base + 2 * MIB;
    world.store(late, 9).expect("linked: the device is full, and nothing leaves it");
    assert_eq!((present(late, 1), world.count(Count::PagesLinked)), (1, 1));
    let mut home = 0;
    while home < 512 {
        home += world.to_ram(base, 512);
    }
    assert_eq!(world.prefetch(late, 1), 1);
    assert_eq!(present(late, 1), 0, "it went");
    assert_eq!((world.load(late), peek(late)), (Ok(9), 9));
    (0..512).for_each(|page| assert_eq!(peek(base + page * PAGE), page as u64));
    unmap(base, 4 * MIB);
}

#[test]
fn a_lost_device_loses_no_page() {
    let _alone = alone(60);
    let world = World::new(64 * MIB, |builder| builder);
    let base = map_aligned(8 * MIB);
    world
        .run(|engine| {
            for page in 0..2048u64 {
                engine.store(base as u64 + page * PAGE as u64, page + 1)?;
            }
            Ok(())
        })
        .expect("writable");
    assert_eq!(present(base, 2048), 0);
    world.device.lose();
    assert!(matches!(world.load(base), Err(AccessError::DeviceLost)));
    // A touch brings home, and the drop brings the rest.
    for page in 0..64 {
        assert_eq!(peek(base + page * PAGE), page as u64 + 1);
    }
    drop(world);
    assert_eq!(present(base, 2048), 2048, "everything is in RAM");
    for page in 0..2048 {
        assert_eq!(peek(base + page * PAGE), page as u64 + 1, "page {page}");
    }
    unmap(base, 8 * MIB);
}

#[test]
fn copies_that_fail_now_and_then_lose_nothing() {
    let _alone = alone(60);
    for granularity in [Granularity::Kib4, Granularity::Kib64] {
        let inject = Inject {
            copy_in_fails_per_million: 100_000,
            copy_out_fails_per_million: 100_000,
            ..Inject::default()
        };
        let device = SoftwareDevice::builder().memory_bytes(4 << 20).seed(7).inject(inject).build();
        let world = World::over(device.expect("a device"), |builder| builder.granularity(granularity));
        let base = map_aligned(8 * MIB);
        for page in 0..2048 {
            poke(base + page * PAGE, page as u64);
        }
        // An access whose copy fails is refused, and the page stays where it was.
        let failed = Mutex::new(HashSet::new());
        world
            .run(|engine| {
                for page in 0..2048u64 {
                    match engine.fetch_add_u64(base as u64 + page * PAGE as u64, 10_000) {
                        Ok(_) => {}
                        Err(AccessError::Fault { cause: FaultCause::DeviceFailed, .. }) => {
                            failed.lock().expect("no panic").insert(page as usize);
                        }
                        Err(error) => return Err(error),
                    }
                }
                Ok(())
            })
            .expect("no other error");
        let failed = failed.into_inner().expect("no panic");
        assert!(!failed.is_empty() && failed.len() < 1024, "{} of 2048 failed", failed.len());
        for page in 0..2048 {
            let added = if failed.contains(&page) { 0 } else { 10_000 };
            assert_eq!(peek(base + page * PAGE), page as u64 + added, "{granularity:?}, page {page}");
        }
        unmap(base, 8 * MIB);
    }
}

#[test]
fn memory_that_cannot_be_followed_is_refused_and_shared_memory_is_linked() {
    let _alone = alone(60);
    let world = World::new(16 * MIB, |builder| builder);
    let file = std::fs::File::open("/proc/self/exe").expect("this program");
    let at = real::map_file(&file, PAGE);
    assert_eq!(cause(world.load(at)), Some((FaultCause::NoEvents, Access::Read)));
    unmap(at, PAGE);
    let shared = map_as(0, 16 * PAGE, libc::PROT_READ | libc::PROT_WRITE, libc::MAP_SHARED);
    world.store(shared, 3).expect("linked");
    assert_eq!((peek(shared), present(shared, 1)), (3, 1));
    unmap(shared, 16 * PAGE);
}

/// What a task that shares the address space does until it is killed: adds one to each page of a range, round after round.
struct Adder {
    base: usize,
    pages: usize,
    adds: AtomicU64,
}

extern "C" fn add_for_ever(adder: *mut libc::c_void) -> libc::c_int {
    // SAFETY: it outlives this task, which is waited for. Nothing else is touched but the range.
    let adder = unsafe { &*adder.cast::<Adder>() };
    loop {
        for page in 0..adder.pages {
            let at = (adder.base + page * PAGE) as *const AtomicU64;
            // SAFETY: the range is mapped as long as this task lives.
            unsafe { &*at }.fetch_add(1, Ordering::Relaxed);
            adder.adds.fetch_add(1, Ordering::Relaxed);
        }
    }
}

#[test]
fn a_task_that_is_killed_in_a_page_fault_takes_nothing_with_it() {
    const PAGES: usize = 64;
    let _alone = alone(120);
    let world = World::new(64 * MIB, |builder| builder.granularity(Granularity::Kib4));
    let base = map_aligned(2 * MIB);
    let stack = map_as(0, 64 * PAGE, libc::PROT_READ | libc::PROT_WRITE, libc::MAP_PRIVATE);
    for round in 0..40u64 {
        let mut adder = Adder { base, pages: PAGES, adds: AtomicU64::new(0) };
        let faults = world.count(Count::CpuFaults);
        let device_adds = AtomicU64::new(0);
        let add = |times: u64| {
            for _ in 0..times {
                world
                    .run(|engine| {
                        for page in 0..PAGES {
                            engine.fetch_add_u64((base + page * PAGE) as u64, 1)?;
                            device_adds.fetch_add(1, Ordering::Relaxed);
                        }
                        Ok(())
                    })
                    .expect("the service goes on");
            }
        };
        add(1);
        // SAFETY: a stack of its own, and a function that touches what is alive until the task is waited for.
        let task = unsafe {
            let argument = (&raw mut adder).cast();
            libc::clone(add_for_ever, (stack + 64 * PAGE) as *mut _, libc::CLONE_VM | libc::SIGCHLD, argument)
        };
        assert!(task > 0, "a task can be made");
        // Both sides want the same pages: the task is in a fault most of the time.
        while adder.adds.load(Ordering::Relaxed) < 200 + round {
            add(1);
        }
        // SAFETY: our own child.
        unsafe {
            assert_eq!(libc::kill(task, libc::SIGKILL), 0);
            let mut status = 0;
            assert_eq!(libc::waitpid(task, &mut status, 0), task);
            assert!(libc::WIFSIGNALED(status) && libc::WTERMSIG(status) == libc::SIGKILL);
        }
        add(1);
        assert!(world.count(Count::CpuFaults) > faults + 50, "it met pages on the device");
        let sum: u64 = (0..PAGES).map(|page| peek(base + page * PAGE)).sum();
        let counted = adder.adds.load(Ordering::Relaxed) + device_adds.load(Ordering::Relaxed);
        // Its last addition may have been made and not counted.
        assert!(sum == counted || sum == counted + 1, "round {round}: {sum}, and {counted} were counted");
        (0..PAGES).for_each(|page| poke(base + page * PAGE, 0));
    }
    unmap(stack, 64 * PAGE);
    unmap(base, 2 * MIB);
}
