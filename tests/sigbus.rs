//! Faults as SIGBUS, on real memory: threads serve their own, and whoever did not ask for it waits as before.
#![cfg(not(granule_loom))]
#![allow(unsafe_code, reason = "reads and writes memory through system calls, and handles signals")]

mod real;

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use granule::os::FaultModeRefused;
use granule::ports::Count;
use granule::service::{FaultModeError, UserptrOptions};
use granule::units::{Access, VirtAddr};
use granule::{FaultMode, Granularity};
use real::*;

fn sigbus(world: &World, at: usize, pages: usize) {
    world.svm.fault_mode(range(at, pages), FaultMode::Sigbus).expect("Linux 6.8 or newer");
}

fn word(at: usize) -> &'static AtomicU64 {
    // SAFETY: memory that the test maps and keeps as long as it uses the word.
    unsafe { AtomicU64::from_ptr(at as *mut u64) }
}

/// `write` of 8 bytes from an address: what a system call finds there.
fn read_by_the_kernel(at: usize) -> Result<u64, i32> {
    let (mut ends, mut value) = ([0; 2], 0u64);
    // SAFETY: a pipe of this function; the source is mapped memory, or the kernel says EFAULT.
    unsafe {
        assert_eq!(libc::pipe(ends.as_mut_ptr()), 0);
        let wrote = libc::write(ends[1], at as *const _, 8);
        let errno = std::io::Error::last_os_error().raw_os_error().unwrap_or(0);
        if wrote == 8 {
            assert_eq!(libc::read(ends[0], (&raw mut value).cast(), 8), 8);
        }
        libc::close(ends[0]);
        libc::close(ends[1]);
        if wrote == 8 { Ok(value) } else { Err(errno) }
    }
}

#[test]
fn threads_take_pages_back_themselves_while_a_device_writes() {
    let _alone = alone(60);
    const PAGES: usize = 256;
    const ROUNDS: u64 = 60;
    const FAULTS: u64 = 50;
    for granularity in [Granularity::Kib4, Granularity::Kib64, Granularity::Mib2] {
        let world = World::new(16 * MIB, |builder| builder.granularity(granularity));
        let at = map_aligned(2 * MIB);
        sigbus(&world, at, 512);
        let (gates, faults) = (world.count(Count::GateClosed), world.count(Count::CpuFaults));
        let (stop, by_cpu) = (AtomicBool::new(false), AtomicU64::new(0));
        let mut rounds = 0;
        std::thread::scope(|scope| {
            for first in 0..2 {
                let (stop, by_cpu) = (&stop, &by_cpu);
                scope.spawn(move || {
                    let mut page = first;
                    while !stop.load(Ordering::Relaxed) {
                        word(at + page % PAGES * PAGE).fetch_add(1, Ordering::Relaxed);
                        by_cpu.fetch_add(1, Ordering::Relaxed);
                        page += 7;
                    }
                });
            }
            while rounds < ROUNDS || world.count(Count::CpuFaults) - faults < FAULTS {
                rounds += 1;
                let kernel = |engine: &mut granule_backends::software::Engine<'_>| {
                    (0..PAGES)
                        .try_for_each(|page| engine.fetch_add_u64((at + page * PAGE) as u64, 1).map(drop))
                };
                world.run(kernel).expect("the device writes");
            }
            stop.store(true, Ordering::Relaxed);
        });
        let sum: u64 = (0..PAGES).map(|page| word(at + page * PAGE).load(Ordering::Relaxed)).sum();
        assert_eq!(sum, by_cpu.into_inner() + rounds * PAGES as u64, "no write is lost, {granularity:?}");
        let faults = world.count(Count::CpuFaults) - faults;
        let gates = world.count(Count::GateClosed) - gates;
        println!(
            "{granularity:?}: {faults} CPU faults, {} pages to RAM, gate closed {gates} times",
            world.count(Count::PagesToRam)
        );
        assert!(faults >= FAULTS, "{faults} faults");
        assert!(gates * 4 < faults, "{gates} rounds of the reader for {faults} faults: it took part in them");
        drop(world);
        let after: u64 = (0..PAGES).map(|page| word(at + page * PAGE).load(Ordering::Relaxed)).sum();
        assert_eq!(after, sum, "and the end of the space leaves it so");
        unmap(at, 2 * MIB);
    }
}

#[test]
fn a_system_call_fails_where_sigbus_was_asked_for_and_waits_elsewhere() {
    let _alone = alone(20);
    let world = World::new(16 * MIB, |builder| builder);
    let (quick, plain) = (map_aligned(2 * MIB), map_aligned(2 * MIB));
    sigbus(&world, quick, 512);
    for at in [quick, plain] {
        poke(at, 41);
        assert_eq!(world.prefetch(at, 16), 16);
        world.store(at, 42).expect("the device writes");
        assert_eq!(present(at, 16), 0);
    }
    assert_eq!(read_by_the_kernel(quick), Err(libc::EFAULT));
    assert_eq!(read_by_the_kernel(plain), Ok(42), "a range that did not ask is served while the call waits");
    assert_eq!(present(quick, 16), 0, "a refused call moves nothing");
    assert_eq!(peek(quick), 42);
    assert_eq!(read_by_the_kernel(quick), Ok(42), "a touch brought it home");
    drop(world);
    unmap(quick, 2 * MIB);
    unmap(plain, 2 * MIB);
}

#[test]
fn a_range_chooses_before_it_is_followed() {
    let _alone = alone(20);
    let world = World::new(16 * MIB, |builder| builder);
    let at = map_aligned(4 * MIB);
    poke(at, 1);
    assert_eq!(world.prefetch(at, 1), 1);
    let refused = world.svm.fault_mode(range(at + 2 * MIB, 16), FaultMode::Sigbus);
    assert_eq!(refused, Err(FaultModeError::Refused(FaultModeRefused::Followed)), "its mapping is followed");
    assert_eq!(peek(at), 1);
    drop(world);
    unmap(at, 4 * MIB);
}

/// One half of a block waits, the other serves itself; a move of the whole block crosses both.
#[test]
fn one_block_may_hold_both_modes() {
    let _alone = alone(20);
    let world = World::new(16 * MIB, |builder| builder.granularity(Granularity::Mib2));
    let at = map_aligned(2 * MIB);
    sigbus(&world, at + MIB, 256);
    for page in 0..512 {
        poke(at + page * PAGE, page as u64);
    }
    for (round, touched) in [3, 300].into_iter().enumerate() {
        assert_eq!(world.prefetch(at, 512), 512);
        assert_eq!(present(at, 512), 0);
        assert_eq!(peek(at + touched * PAGE), touched as u64);
        // Whoever waits goes on with the part of its own userfaultfd.
        world.await_count(Count::PagesToRam, 512 * (round as u64 + 1));
        assert_eq!(present(at, 512), 512);
        assert!((0..512).all(|page| peek(at + page * PAGE) == page as u64));
    }
    drop(world);
    unmap(at, 2 * MIB);
}

#[test]
fn the_mode_moves_with_mremap_and_ends_with_munmap() {
    let _alone = alone(30);
    let world = World::new(16 * MIB, |builder| builder);
    let (at, to) = (map_aligned(2 * MIB), map_aligned(2 * MIB));
    // Nobody else (a thread's stack) may get the place that is empty just now.
    let keep = |place| map_as(place, 2 * MIB, libc::PROT_NONE, libc::MAP_PRIVATE);
    sigbus(&world, at, 512);
    sigbus(&world, at, 512);
    for round in 0..20u64 {
        for page in 0..32 {
            poke(at + page * PAGE, round << 8 | page as u64);
        }
        assert_eq!(world.prefetch(at, 32), 32);
        assert_eq!(remap(at, 2 * MIB, 2 * MIB, libc::MREMAP_FIXED, to), to);
        keep(at);
        // Two threads find the pages at once, before or while the reader brings them home.
        std::thread::scope(|scope| {
            for first in 0..2 {
                scope.spawn(move || {
                    for page in (first..32).step_by(2) {
                        assert_eq!(peek(to + page * PAGE), round << 8 | page as u64);
                    }
                });
            }
        });
        assert_eq!(world.prefetch(to, 32), 32);
        if round == 0 {
            assert_eq!(read_by_the_kernel(to), Err(libc::EFAULT), "the mode came along");
        }
        assert_eq!(remap(to, 2 * MIB, 2 * MIB, libc::MREMAP_FIXED, at), at);
        keep(to);
        assert_eq!(peek(at + 5 * PAGE), round << 8 | 5);
    }
    unmap(at, 2 * MIB);
    world.await_count(Count::Invalidations, 1);
    map_as(at, 2 * MIB, libc::PROT_READ | libc::PROT_WRITE, libc::MAP_PRIVATE);
    poke(at, 7);
    assert_eq!(world.prefetch(at, 1), 1);
    assert_eq!(read_by_the_kernel(at), Ok(7), "what was mapped there later did not ask for it");
    drop(world);
    unmap(at, 2 * MIB);
    unmap(to, 2 * MIB);
}

/// Spaces end while threads are in the middle of faults: each touch finds its value, before and after.
#[test]
fn a_space_may_end_while_threads_fault() {
    let _alone = alone(60);
    const PAGES: usize = 64;
    let at = map_aligned(2 * MIB);
    (0..PAGES).for_each(|page| poke(at + page * PAGE, page as u64));
    let stop = AtomicBool::new(false);
    let mut faults = 0;
    std::thread::scope(|scope| {
        for _ in 0..2 {
            scope.spawn(|| {
                while !stop.load(Ordering::Relaxed) {
                    (0..PAGES).for_each(|page| assert_eq!(peek(at + page * PAGE), page as u64));
                }
            });
        }
        for _ in 0..40 {
            let world = World::new(4 * MIB, |builder| builder.granularity(Granularity::Kib4));
            sigbus(&world, at, 512);
            world.prefetch(at, PAGES);
            world.prefetch(at, PAGES);
            faults += world.count(Count::CpuFaults);
            drop(world);
        }
        stop.store(true, Ordering::Relaxed);
    });
    println!("{faults} CPU faults in 40 spaces");
    assert!(faults >= 40, "{faults}");
    unmap(at, 2 * MIB);
}

/// A child has memory of its own, and no service: it finds what was on the device at the fork.
#[test]
fn a_child_after_fork_finds_everything() {
    let _alone = alone(20);
    let world = World::new(16 * MIB, |builder| builder);
    let at = map_aligned(2 * MIB);
    sigbus(&world, at, 512);
    (0..32).for_each(|page| poke(at + page * PAGE, 5));
    assert_eq!(world.prefetch(at, 32), 32);
    (0..32).for_each(|page| world.store(at + page * PAGE, page as u64).expect("the device writes"));
    // SAFETY: the child reads memory and ends, nothing else.
    unsafe {
        let child = libc::fork();
        if child == 0 {
            let right = (0..32).all(|page| peek(at + page * PAGE) == page as u64);
            (0..32).for_each(|page| poke(at + page * PAGE, 99));
            libc::_exit(if right { 0 } else { 3 });
        }
        let mut status = 0;
        assert_eq!(libc::waitpid(child, &mut status, 0), child);
        assert!(libc::WIFEXITED(status) && libc::WEXITSTATUS(status) == 0, "{status:#x}");
    }
    assert_eq!(world.prefetch(at, 32), 32);
    assert!((0..32).all(|page| peek(at + page * PAGE) == page as u64), "the child's writes are its own");
    drop(world);
    unmap(at, 2 * MIB);
}

/// Linking needs pages present, and the kernel's own touch of a trapped page is refused here.
#[test]
fn never_touched_pages_beside_taken_ones_are_linked() {
    let _alone = alone(20);
    let world = World::new(16 * MIB, |builder| builder);
    let at = map_aligned(2 * MIB);
    sigbus(&world, at, 512);
    poke(at, 5);
    assert_eq!(world.prefetch(at, 1), 1);
    let far = at + 256 * PAGE;
    let options = UserptrOptions { device: DEVICE, access: Access::Write, device_at: None, movable: false };
    let bytes = (8 * PAGE) as u64;
    let userptr = world.svm.userptr(VirtAddr(far as u64), bytes, options).expect("linked");
    world.store(far + PAGE, 9).expect("the device writes what is linked");
    assert_eq!((peek(far + PAGE), peek(far), peek(at)), (9, 0, 5));
    drop(userptr);
    drop(world);
    unmap(at, 2 * MIB);
}

static HANDLED: AtomicU64 = AtomicU64::new(0);

extern "C" fn on_bus(_: i32, info: *mut libc::siginfo_t, _: *mut libc::c_void) {
    // SAFETY: the kernel's record; the page is replaced by one that can be touched.
    unsafe {
        let at = ((*info).si_addr() as usize) & !(PAGE - 1);
        HANDLED.store(at as u64, Ordering::SeqCst);
        let flags = libc::MAP_PRIVATE | libc::MAP_ANONYMOUS | libc::MAP_FIXED;
        libc::mmap(at as *mut _, PAGE, libc::PROT_READ | libc::PROT_WRITE, flags, -1, 0);
    }
}

/// A SIGBUS that has nothing to do with devices reaches the program's own handler. In a process of its own, since
/// handlers are the process's: the test runs itself.
#[test]
fn a_foreign_sigbus_goes_where_it_would_have_gone() {
    if std::env::var_os("GRANULE_FOREIGN_SIGBUS").is_none() {
        let this = std::env::current_exe().expect("the test's own program");
        let status = std::process::Command::new(this)
            .args(["--exact", "a_foreign_sigbus_goes_where_it_would_have_gone"])
            .env("GRANULE_FOREIGN_SIGBUS", "1")
            .status()
            .expect("it runs");
        assert!(status.success(), "{status}");
        return;
    }
    let _alone = alone(20);
    // SAFETY: the handler makes system calls on the faulting page only; the file is empty, so its mapping is all SIGBUS.
    let file = unsafe {
        let mut action: libc::sigaction = std::mem::zeroed();
        action.sa_sigaction = on_bus as *const () as usize;
        action.sa_flags = libc::SA_SIGINFO;
        assert_eq!(libc::sigaction(libc::SIGBUS, &action, std::ptr::null_mut()), 0);
        let fd = libc::memfd_create(c"empty".as_ptr(), 0);
        let at = libc::mmap(std::ptr::null_mut(), PAGE, libc::PROT_READ, libc::MAP_SHARED, fd, 0);
        assert_ne!(at, libc::MAP_FAILED);
        at as usize
    };
    let world = World::new(16 * MIB, |builder| builder);
    let at = map_aligned(2 * MIB);
    sigbus(&world, at, 512);
    poke(at, 3);
    assert_eq!(world.prefetch(at, 1), 1);
    assert_eq!(peek(at), 3, "ours is served");
    assert_eq!(HANDLED.load(Ordering::SeqCst), 0);
    assert_eq!(peek(file), 0, "theirs is theirs");
    assert_eq!(HANDLED.load(Ordering::SeqCst), file as u64);
}

/// Prints what a fault costs in both modes.
#[test]
fn serving_oneself_is_cheaper() {
    let _alone = alone(60);
    const PAGES: usize = 512;
    let mut p50 = [0u64; 2];
    for (mode, p50) in [FaultMode::Blocking, FaultMode::Sigbus].into_iter().zip(&mut p50) {
        let world = World::new(16 * MIB, |builder| builder.granularity(Granularity::Kib4));
        let at = map_aligned(PAGES * PAGE);
        world.svm.fault_mode(range(at, PAGES), mode).expect("chosen in time");
        for page in 0..PAGES {
            poke(at + page * PAGE, page as u64);
        }
        assert_eq!(world.prefetch(at, PAGES), PAGES as u64);
        let mut took: Vec<u64> = (0..PAGES)
            .map(|page| {
                let begin = std::time::Instant::now();
                assert_eq!(peek(at + page * PAGE), page as u64);
                begin.elapsed().as_nanos() as u64
            })
            .collect();
        took.sort_unstable();
        *p50 = took[PAGES / 2];
        drop(world);
        unmap(at, PAGES * PAGE);
    }
    println!("CPU fault, 4 KiB, median ns: blocking {}, SIGBUS {}", p50[0], p50[1]);
    assert!(p50[1] < p50[0], "{p50:?}");
}
