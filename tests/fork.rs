//! Children: each sees exactly what its parent had when it was made, wherever that was, and its parent goes on.
#![cfg(not(granule_loom))]
#![allow(unsafe_code, reason = "fork and clone, as an application calls them")]

mod real;

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use granule::policy::LinkOnly;
use granule::ports::Count;
use real::{MIB, PAGE, World, alone, map_aligned, peek, poke, present, unmap};

/// Makes a child; `true` in the child.
type MakeChild = fn() -> (libc::pid_t, bool);

fn by_fork() -> (libc::pid_t, bool) {
    // SAFETY: the child only reads and writes mappings of the test, and ends by `_exit`.
    let pid = unsafe { libc::fork() };
    assert!(pid >= 0, "fork: {}", std::io::Error::last_os_error());
    (pid, pid == 0)
}

/// Without the hooks of the C library.
fn by_clone() -> (libc::pid_t, bool) {
    // SAFETY: as above.
    let pid = unsafe { libc::syscall(libc::SYS_clone, libc::SIGCHLD, 0, 0, 0, 0) } as libc::pid_t;
    assert!(pid >= 0, "clone: {}", std::io::Error::last_os_error());
    (pid, pid == 0)
}

/// Ends the child. `code` 0 says that all was well.
fn end_child(code: i32) -> ! {
    // SAFETY: no destructor and no hook runs.
    unsafe { libc::_exit(code) }
}

fn wait_for(pid: libc::pid_t) -> i32 {
    let mut status = 0;
    // SAFETY: the status lives for the call.
    assert_eq!(unsafe { libc::waitpid(pid, &mut status, 0) }, pid);
    assert!(libc::WIFEXITED(status), "the child died of signal {}", libc::WTERMSIG(status));
    libc::WEXITSTATUS(status)
}

/// What a child says of its parent's contents: 0 that all are right, 1 that some are zero, 2 that some are other.
fn judge(base: usize, pages: usize, want: impl Fn(usize) -> u64) -> i32 {
    let mut wrong = 0;
    for at in [0, PAGE - 8] {
        for page in 0..pages {
            match peek(base + page * PAGE + at) {
                found if found == want(page) => {}
                0 => wrong |= 1,
                _ => wrong |= 2,
            }
        }
    }
    wrong
}

/// Checks, in a child, that words `page * PAGE + at` hold `want(page)`. Touches no heap.
fn wrong_pages(base: usize, pages: usize, at: usize, want: impl Fn(usize) -> u64) -> usize {
    (0..pages).filter(|&page| peek(base + page * PAGE + at) != want(page)).count()
}

fn fill(world: &World, base: usize, pages: usize, tag: u64) {
    world
        .run(|engine| {
            for page in 0..pages {
                engine.store((base + page * PAGE) as u64, tag + page as u64)?;
                engine.store((base + page * PAGE + PAGE - 8) as u64, tag + page as u64)?;
            }
            Ok(())
        })
        .expect("the device writes");
}

fn child_has_exact_copies(make: MakeChild, link_only: bool) {
    const PAGES: usize = 2048;
    let world = World::new(64 * MIB, |builder| if link_only { builder.policy(LinkOnly) } else { builder });
    for round in 0..6u64 {
        let base = map_aligned(PAGES * PAGE);
        let tag = round << 32 | 1;
        fill(&world, base, PAGES, tag);
        assert_eq!(present(base, PAGES), if link_only { PAGES } else { 0 });
        let (pid, is_child) = make();
        if is_child {
            let wrong = judge(base, PAGES, |page| tag + page as u64);
            // What the child writes is the child's.
            for page in 0..PAGES {
                poke(base + page * PAGE, 3);
            }
            end_child(wrong);
        }
        // The device goes on in the parent.
        fill(&world, base, PAGES / 2, tag + 7);
        assert_eq!(wait_for(pid), 0, "round {round}: the child found other contents than its parent had");
        for page in 0..PAGES {
            let want = tag + page as u64 + if page < PAGES / 2 { 7 } else { 0 };
            assert_eq!(peek(base + page * PAGE), want, "round {round}, page {page}");
        }
        unmap(base, PAGES * PAGE);
    }
}

#[test]
fn fork_copies_what_is_on_the_device() {
    let _alone = alone(60);
    child_has_exact_copies(by_fork, false);
}

#[test]
fn clone_copies_what_is_on_the_device() {
    let _alone = alone(60);
    child_has_exact_copies(by_clone, false);
}

#[test]
fn fork_copies_what_is_linked() {
    let _alone = alone(60);
    child_has_exact_copies(by_fork, true);
}

#[test]
fn clone_copies_what_is_linked() {
    let _alone = alone(60);
    child_has_exact_copies(by_clone, true);
}

#[test]
fn children_made_while_pages_move_have_all_of_them() {
    let _alone = alone(120);
    const PAGES: usize = 1024;
    let world = World::new(64 * MIB, |builder| builder);
    let base = map_aligned(PAGES * PAGE);
    fill(&world, base, PAGES, 5);
    let (stop, moved) = (AtomicBool::new(false), AtomicU64::new(0));
    let mover = |mv: &dyn Fn() -> u64| {
        while !stop.load(Ordering::Relaxed) {
            moved.fetch_add(mv(), Ordering::Relaxed);
        }
    };
    std::thread::scope(|scope| {
        scope.spawn(|| mover(&|| world.prefetch(base, PAGES)));
        scope.spawn(|| mover(&|| world.to_ram(base, PAGES)));
        for round in 0..60 {
            let before = moved.load(Ordering::Relaxed);
            while moved.load(Ordering::Relaxed) == before {
                std::thread::yield_now();
            }
            let (pid, is_child) = by_clone();
            if is_child {
                end_child(judge(base, PAGES, |page| 5 + page as u64));
            }
            assert_eq!(wait_for(pid), 0, "round {round}");
        }
        stop.store(true, Ordering::Relaxed);
    });
    assert_eq!(wrong_pages(base, PAGES, 0, |page| 5 + page as u64), 0);
    assert!(world.count(Count::PagesToRam) > 10 * PAGES as u64);
    unmap(base, PAGES * PAGE);
}

#[test]
fn a_page_shared_with_a_child_stays_and_is_written_apart() {
    let _alone = alone(60);
    let world = World::new(64 * MIB, |builder| builder);
    let base = map_aligned(2 * MIB);
    for page in 0..64 {
        poke(base + page * PAGE, 1);
    }
    let (mut ends, mut starts) = ([0; 2], [0; 2]);
    // SAFETY: each call fills an array of two.
    unsafe {
        assert_eq!(libc::pipe(ends.as_mut_ptr()), 0);
        assert_eq!(libc::pipe(starts.as_mut_ptr()), 0);
    }
    let (pid, is_child) = by_fork();
    if is_child {
        let mut byte = 0u8;
        // SAFETY: one byte of this stack.
        unsafe { libc::read(starts[0], (&raw mut byte).cast(), 1) };
        end_child(if wrong_pages(base, 64, 0, |_| 1) == 0 { 0 } else { 1 });
    }
    // Each page belongs to both processes now.
    fill(&world, base, 64, 9);
    // SAFETY: one static byte; the descriptors are this test's.
    unsafe {
        assert_eq!(libc::write(starts[1], c"x".as_ptr().cast(), 1), 1);
        for fd in ends.into_iter().chain(starts) {
            libc::close(fd);
        }
    }
    assert_eq!(wait_for(pid), 0, "the device's writes went to the child, too");
    assert_eq!(wrong_pages(base, 64, 0, |page| 9 + page as u64), 0);
    unmap(base, 2 * MIB);
}

#[test]
fn dropping_a_space_in_a_child_does_nothing() {
    let _alone = alone(60);
    let world = World::new(64 * MIB, |builder| builder);
    let base = map_aligned(2 * MIB);
    fill(&world, base, 512, 4);
    let (pid, is_child) = by_fork();
    if is_child {
        let asked = world.svm.to_ram(real::range(base, 1)).is_err();
        drop(world);
        end_child(if asked && wrong_pages(base, 512, 0, |page| 4 + page as u64) == 0 { 0 } else { 1 });
    }
    assert_eq!(wait_for(pid), 0);
    assert_eq!(world.load(base), Ok(4));
    drop(world);
    assert_eq!(wrong_pages(base, 512, 0, |page| 4 + page as u64), 0);
    unmap(base, 2 * MIB);
}
