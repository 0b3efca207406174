//! Children after fork: the pages that were taken reach them, and pages that they share are refused.
//!
//! A binary of its own: a fork concerns every mirrored page of the process, those of other tests, too.
#![allow(unsafe_code, reason = "forks and reaps children")]

mod os_support;

use std::sync::Mutex;
use std::sync::atomic::Ordering;

use granule::os::TakeWay;
use granule::ports::{Give, Host, HostEvent, WORDS_PER_PAGE};
use granule::units::{Access, PageMask};
use os_support::*;

static ALONE: Mutex<()> = Mutex::new(());

#[test]
fn pages_shared_with_a_child_are_refused_until_they_are_private_again() {
    let _alone = ALONE.lock();
    let host = open(TakeWay::Move);
    let _reader = Reader::start(
        &host,
        Box::new(|host, event| match event {
            HostEvent::Fork { child } => host.child_done(child),
            event => fill_fault_with_zeros(host, event),
        }),
    );
    let memory = Memory::blocks(1);
    arm(&host, &memory);
    memory.fill(0..8, 5);
    // SAFETY: the child waits for its end in a system call, touching nothing.
    let child = unsafe { libc::fork() };
    if child == 0 {
        loop {
            // SAFETY: no memory.
            unsafe { libc::pause() };
        }
    }
    let (staging, taken) = take(&host, memory.block(0), &mask(0..8));
    assert_eq!((taken.taken, taken.refused), (PageMask::EMPTY, mask(0..8)));
    host.staging_done(staging);
    host.populate(memory.pages(0, 8), Access::Write).expect("populated");
    let (staging, taken) = take(&host, memory.block(0), &mask(0..8));
    assert_eq!((taken.taken, taken.refused), (mask(0..8), PageMask::EMPTY));
    assert_eq!(give(&host, memory.block(0), &mask(0..8), staging), Give::all(mask(0..8)));
    host.staging_done(staging);
    memory.check(0..8, 5);
    // SAFETY: ends and reaps the test's own child.
    unsafe {
        libc::kill(child, libc::SIGKILL);
        assert_eq!(libc::waitpid(child, std::ptr::null_mut(), 0), child);
    }
}

#[test]
fn a_child_gets_the_pages_that_were_taken() {
    let _alone = ALONE.lock();
    for way in WAYS {
        let host = open(way);
        let memory = Memory::blocks(1);
        let (base, kept) = (memory.range.start(), Memory::blocks(1));
        memory.fill(0..8, 4);
        kept.fill(0..8, 4);
        let (kept_at, words) = (kept.range.start(), 8 * WORDS_PER_PAGE);
        let reader = Reader::start(
            &host,
            Box::new(move |host, event| {
                if let HostEvent::Fork { child } = event {
                    // SAFETY: `kept` outlives the reader and is not mirrored.
                    let copy = unsafe { std::slice::from_raw_parts(kept_at.0 as *const _, words) };
                    host.child_fill(child, base, copy);
                    host.child_done(child);
                }
            }),
        );
        arm(&host, &memory);
        let (staging, taken) = take(&host, memory.block(0), &mask(0..8));
        assert_eq!(taken.taken, mask(0..8));
        // SAFETY: the child reads memory and leaves by _exit.
        let child = unsafe { libc::fork() };
        if child == 0 {
            let right = (0..8).all(|page| memory.word(page).load(Ordering::Relaxed) == expected(page, 0, 4));
            // SAFETY: ends the child.
            unsafe { libc::_exit(if right { 42 } else { 1 }) };
        }
        let mut status = 0;
        // SAFETY: reaps the test's own child.
        assert_eq!(unsafe { libc::waitpid(child, &mut status, 0) }, child);
        assert!(libc::WIFEXITED(status) && libc::WEXITSTATUS(status) == 42, "{way:?}: status {status:#x}");
        assert_eq!(give(&host, memory.block(0), &mask(0..8), staging).given, mask(0..8));
        host.staging_done(staging);
        memory.check(0..8, 4);
        drop(reader);
    }
}
