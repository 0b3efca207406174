//! A device that does not give pages back: whoever touches one is told, everybody else goes on, and nothing that can be
//! read is lost. On real memory.
#![cfg(not(granule_loom))]
#![allow(unsafe_code, reason = "handles SIGBUS as an application does")]

mod real;

use std::os::unix::process::ExitStatusExt;
use std::process::ExitStatus;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use granule::ports::Count;
use granule::{FaultMode, Granularity};
use granule_backends::software::{Inject, SoftwareDevice};
use real::*;

/// Copies from the device fail for ever, and there is no other way to its memory.
const NEVER: Inject = Inject { first_copy_outs_fail: u64::MAX, no_window: true, ..quiet() };

const fn quiet() -> Inject {
    Inject {
        copy_in_fails_per_million: 0,
        copy_out_fails_per_million: 0,
        first_copy_outs_fail: 0,
        no_window: false,
        map_fails_per_million: 0,
        copies_fail_after: None,
        maps_fail_after: None,
        lost_at_copy: None,
        flip_byte_at_copy_in: None,
    }
}

fn world(inject: Inject, granularity: Granularity) -> World {
    let device = SoftwareDevice::builder().memory_bytes(8 << 20).engines(2).inject(inject).build();
    World::over(device.expect("a software device"), |builder| builder.granularity(granularity))
}

/// Maps 2 MiB, writes to the first `pages` pages and sends them to the device.
fn send(world: &World, pages: usize) -> usize {
    let at = map_aligned(2 * MIB);
    (0..pages).for_each(|page| poke(at + page * PAGE, 100 + page as u64));
    assert_eq!(world.prefetch(at, pages), pages as u64);
    assert_eq!(present(at, pages), 0, "they are on the device");
    at
}

/// Runs a test of this file again in a process of its own, where `inside` says true: signals are the process's.
fn outside(test: &str) -> Option<ExitStatus> {
    const INSIDE: &str = "GRANULE_UNREADABLE_INSIDE";
    if std::env::var_os(INSIDE).is_some() {
        return None;
    }
    let this = std::env::current_exe().expect("the test's own program");
    let mut again = std::process::Command::new(this);
    Some(again.args(["--exact", test, "--nocapture"]).env(INSIDE, "1").status().expect("it runs"))
}

/// Reads a word by a system call, which reports what a touch would be killed for.
fn try_peek(at: usize) -> Option<u64> {
    let mut word = 0u64;
    let local = libc::iovec { iov_base: (&raw mut word).cast(), iov_len: 8 };
    let remote = libc::iovec { iov_base: at as *mut _, iov_len: 8 };
    // SAFETY: one word of this stack is written; the kernel checks the other side.
    let got = unsafe { libc::process_vm_readv(libc::getpid(), &local, 1, &remote, 1, 0) };
    (got == 8).then_some(word)
}

fn dies(test: &str, mode: FaultMode) {
    if let Some(status) = outside(test) {
        assert_eq!(status.signal(), Some(libc::SIGBUS), "{status}");
        return;
    }
    let _alone = alone(60);
    let world = world(NEVER, Granularity::Kib4);
    let at = map_aligned(2 * MIB);
    world.svm.fault_mode(range(at, 512), mode).expect("chosen in time");
    poke(at, 5);
    assert_eq!(world.prefetch(at, 1), 1);
    let found = peek(at);
    // Not reached: the touch kills.
    std::process::exit(if found == 5 { 3 } else { 4 });
}

#[test]
fn the_thread_that_touches_the_page_gets_a_signal() {
    dies("the_thread_that_touches_the_page_gets_a_signal", FaultMode::Blocking);
}

#[test]
fn so_does_one_that_serves_its_own_faults() {
    dies("so_does_one_that_serves_its_own_faults", FaultMode::Sigbus);
}

static SIGNALS: AtomicU64 = AtomicU64::new(0);
static OTHER_CODES: AtomicU64 = AtomicU64::new(0);

/// What a program does about memory that has failed: it takes new memory, and notes that.
extern "C" fn replace(_: i32, info: *mut libc::siginfo_t, _: *mut libc::c_void) {
    // SAFETY: the kernel's record; the page is replaced by one that can be touched.
    unsafe {
        let at = ((*info).si_addr() as usize) & !(PAGE - 1);
        SIGNALS.fetch_add(1, Ordering::SeqCst);
        // The second from a kernel that does not handle failed memory.
        let known = [libc::BUS_MCEERR_AR, libc::BUS_ADRERR].contains(&(*info).si_code);
        OTHER_CODES.fetch_add(u64::from(!known), Ordering::SeqCst);
        let flags = libc::MAP_PRIVATE | libc::MAP_ANONYMOUS | libc::MAP_FIXED;
        libc::mmap(at as *mut _, PAGE, libc::PROT_READ | libc::PROT_WRITE, flags, -1, 0);
    }
}

fn handle() {
    // SAFETY: the handler makes system calls on the faulting page only.
    unsafe {
        let mut action: libc::sigaction = std::mem::zeroed();
        action.sa_sigaction = replace as *const () as usize;
        action.sa_flags = libc::SA_SIGINFO;
        assert_eq!(libc::sigaction(libc::SIGBUS, &action, std::ptr::null_mut()), 0);
    }
}

#[test]
fn everybody_else_goes_on_and_the_end_says_what_is_left() {
    if let Some(status) = outside("everybody_else_goes_on_and_the_end_says_what_is_left") {
        assert!(status.success(), "{status}");
        return;
    }
    // Whole units of 64 KiB.
    const SENT: usize = 32;
    const TOUCHED: usize = 8;
    let _alone = alone(60);
    handle();
    let world = world(NEVER, Granularity::Kib64);
    let at = send(&world, SENT);
    let done = AtomicBool::new(false);
    let filled = std::thread::scope(|scope| {
        let other = scope.spawn(|| {
            // Faults of its own, in the same block and elsewhere, all the while.
            let mut filled = 0usize;
            while !done.load(Ordering::SeqCst) || filled < 100 {
                let more = send(&world, 1);
                for page in [64, 200, 300] {
                    assert_eq!(peek(more + page * PAGE), 0);
                    filled += 1;
                }
                unmap(more, 2 * MIB);
                assert_eq!(peek(at + (400 + filled % 100) * PAGE), 0);
            }
            filled
        });
        // Two threads touch each page at once.
        for page in 0..TOUCHED {
            let touch = move || peek(at + page * PAGE);
            let (one, two) = (scope.spawn(touch), scope.spawn(touch));
            assert_eq!((one.join().expect("goes on"), two.join().expect("goes on")), (0, 0), "new memory");
        }
        done.store(true, Ordering::SeqCst);
        other.join().expect("nobody waits for what cannot be had")
    });
    println!("{filled} other faults, {} signals", SIGNALS.load(Ordering::SeqCst));
    assert!(SIGNALS.load(Ordering::SeqCst) >= TOUCHED as u64);
    assert_eq!(OTHER_CODES.load(Ordering::SeqCst), 0, "as for memory that has failed");
    assert_eq!(world.count(Count::PagesUnreadable), TOUCHED as u64, "each once");
    assert!(world.count(Count::CopiesFailed) >= 16 * TOUCHED as u64, "each was asked for often");
    assert_eq!(world.to_ram(at, SENT), 0);
    assert_eq!(world.load(at + TOUCHED * PAGE), Ok(100 + TOUCHED as u64), "the device has it still");

    let World { svm, device } = world;
    let left = svm.close().expect_err("pages are left");
    assert_eq!(left.pages, (SENT - TOUCHED) as u64, "{left}");
    let before = SIGNALS.load(Ordering::SeqCst);
    for page in TOUCHED..SENT {
        assert_eq!(peek(at + page * PAGE), 0, "replaced by the handler");
    }
    assert_eq!(
        SIGNALS.load(Ordering::SeqCst) - before,
        (SENT - TOUCHED) as u64,
        "no page turned into zeros in silence"
    );
    assert_eq!(peek(at + SENT * PAGE), 0, "its neighbours are ordinary memory");
    drop(device);
    unmap(at, 2 * MIB);
}

#[test]
fn a_copy_that_works_in_the_end_loses_nothing() {
    let _alone = alone(60);
    for granularity in [Granularity::Kib4, Granularity::Kib64, Granularity::Mib2] {
        for fails in 1..=15 {
            let inject = Inject { first_copy_outs_fail: fails, no_window: true, ..quiet() };
            let world = world(inject, granularity);
            let at = send(&world, 40);
            for page in 0..40 {
                assert_eq!(peek(at + page * PAGE), 100 + page as u64, "{granularity:?}, {fails} failures");
            }
            assert_eq!(world.count(Count::CopiesFailed), fails);
            assert_eq!(world.count(Count::PagesUnreadable), 0);
            world.svm.close().expect("nothing is left");
            unmap(at, 2 * MIB);
        }
    }
}

#[test]
fn the_end_tries_more_than_once_and_by_more_than_one_way() {
    let _alone = alone(60);
    let few = Inject { first_copy_outs_fail: 3, no_window: true, ..quiet() };
    let window = Inject { first_copy_outs_fail: u64::MAX, ..quiet() };
    for inject in [few, window] {
        let world = world(inject, Granularity::Kib64);
        let at = send(&world, 100);
        world.svm.close().expect("nothing is left");
        assert_eq!(present(at, 100), 100);
        (0..100).for_each(|page| assert_eq!(peek(at + page * PAGE), 100 + page as u64));
        unmap(at, 2 * MIB);
    }
}

#[test]
fn a_page_that_was_given_up_comes_home_when_the_device_recovers() {
    let _alone = alone(60);
    let inject = Inject { first_copy_outs_fail: 120, no_window: true, ..quiet() };
    let world = world(inject, Granularity::Kib64);
    let at = send(&world, 2);
    assert_eq!(try_peek(at), None, "given up");
    assert_eq!((world.count(Count::PagesUnreadable), world.count(Count::PagesToRam)), (1, 0));
    let mut home = 0;
    while home < 2 {
        home += world.to_ram(at, 2);
    }
    assert_eq!((peek(at), peek(at + PAGE)), (100, 101), "as they were");
    assert_eq!(world.load(at), Ok(100), "and the device may have it again");
    assert_eq!(peek(at), 100);
    drop(world);
    unmap(at, 2 * MIB);
}

#[test]
fn mremap_takes_the_loss_along_and_discarding_ends_it() {
    let _alone = alone(60);
    let world = world(NEVER, Granularity::Kib4);
    let at = send(&world, 3);
    // One is given up before the move, two by it.
    assert_eq!(try_peek(at), None);
    let to = map_aligned(2 * MIB);
    assert_eq!(remap(at, 16 * PAGE, 16 * PAGE, 0, to), to);
    world.await_count(Count::PagesUnreadable, 3);
    for page in 0..3 {
        assert_eq!(try_peek(to + page * PAGE), None, "page {page}: not zeros");
    }
    assert_eq!(try_peek(to + 3 * PAGE), Some(0), "a neighbour");
    advise(to, 3 * PAGE, libc::MADV_DONTNEED);
    for page in 0..3 {
        assert_eq!(try_peek(to + page * PAGE), Some(0), "page {page}: discarded");
        poke(to + page * PAGE, 7);
    }
    assert_eq!(world.count(Count::PagesUnreadable), 3, "each once");
    world.svm.close().expect("nothing is on the device");
    unmap(to, 2 * MIB);
    unmap(at + 16 * PAGE, 2 * MIB - 16 * PAGE);
}
