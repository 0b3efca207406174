//! Addresses that are mapped again before anybody could tell, on real memory.
#![cfg(not(granule_loom))]
#![allow(unsafe_code, reason = "maps and unmaps real memory")]

mod os_support;

use std::sync::atomic::Ordering;
use std::sync::{Mutex, PoisonError};

use granule::os::TakeWay;
use granule::ports::{Host, HostError, HostEvent, Mirrored};
use granule::units::{PageMask, VirtRange};
use os_support::*;

/// One test at a time: they give up addresses in the hope to get them again.
static ONE: Mutex<()> = Mutex::new(());

/// Maps a range where nothing is; `false` if something is there.
fn map_if_free(range: VirtRange) -> bool {
    let flags = libc::MAP_PRIVATE | libc::MAP_ANONYMOUS | libc::MAP_FIXED_NOREPLACE;
    let (at, bytes) = (range.start().0 as *mut libc::c_void, range.bytes() as usize);
    // SAFETY: a new mapping, and only where none is.
    let got = unsafe { libc::mmap(at, bytes, libc::PROT_READ | libc::PROT_WRITE, flags, -1, 0) };
    got == at
}

#[test]
fn a_mapping_in_the_place_of_one_whose_event_is_unread_is_not_taken() {
    let _one = ONE.lock().unwrap_or_else(PoisonError::into_inner);
    for way in WAYS {
        let host = open(way);
        let memory = Memory::blocks(1);
        arm(&host, &memory);
        let range = memory.range;
        std::thread::scope(|scope| {
            let unmapping = scope.spawn(|| memory.unmap(range));
            while !map_if_free(range) {
                std::thread::yield_now();
            }
            memory.word(0).store(77, Ordering::SeqCst);
            assert_eq!(host.mirror(range), Err(HostError::Changing), "{way:?}");
            let staging = host.staging(&PageMask::FULL).expect("a slot");
            let take = host.take(memory.block(0), &mask(0..1), staging);
            assert_eq!((take.taken, take.stopped), (PageMask::EMPTY, Some(HostError::Changing)), "{way:?}");
            host.staging_done(staging);
            assert_eq!(memory.word(0).load(Ordering::SeqCst), 77);

            let mut events = [HostEvent::Fork { child: 0 }; 4];
            assert_eq!(host.drain(&mut events), 1);
            assert_eq!(events[0], HostEvent::Unmap(range));
            unmapping.join().expect("its event was read");
        });
        assert_eq!(host.mirror(range), Ok(Mirrored::FromNow), "{way:?}: the new one was not followed");
        host.release();
    }
}

#[test]
fn a_hole_is_not_followed() {
    let _one = ONE.lock().unwrap_or_else(PoisonError::into_inner);
    let host = open(TakeWay::Move);
    let memory = Memory::blocks(3);
    let hole = memory.pages(512, 512);
    memory.unmap(hole);
    assert_eq!(host.mirror(memory.range), Ok(Mirrored::FromNow), "the range as it was looked up before");
    assert!(!host.is_mirrored(hole) && host.is_mirrored(memory.pages(0, 512)));
    assert!(map_if_free(hole));
    assert_eq!(host.mirror(hole), Ok(Mirrored::FromNow), "what stands there now is followed from now on");
    let reader = Reader::zero_filling(&host);
    memory.unmap(hole);
    assert_eq!(reader.wait_for_changes(1), [HostEvent::Unmap(hole)]);
}

#[test]
fn a_page_that_moves_away_while_it_is_protected_can_be_written_again() {
    let _one = ONE.lock().unwrap_or_else(PoisonError::into_inner);
    let host = open(TakeWay::WriteProtect);
    let memory = Memory::blocks(2);
    memory.fill(0..1, 3);
    host.mirror(memory.range).expect("mirrored");
    host.arm(memory.block(0).range()).expect("armed");
    let staging = host.staging(&mask(0..1)).expect("a slot");
    assert_eq!(host.take(memory.block(0), &mask(0..1), staging).taken, mask(0..1));

    let (from, to) = (memory.block(0).range(), memory.block(1).range());
    let drain_until = |done: &dyn Fn() -> bool, serve: &dyn Fn(HostEvent)| {
        while !done() {
            let mut events = [HostEvent::Fork { child: 0 }; 8];
            let count = host.drain(&mut events);
            events[..count].iter().for_each(|event| serve(*event));
            std::thread::yield_now();
        }
    };
    std::thread::scope(|scope| {
        let moving = scope.spawn(|| {
            let (at, bytes) = (from.start().0 as *mut libc::c_void, from.bytes() as usize);
            let flags = libc::MREMAP_MAYMOVE | libc::MREMAP_FIXED;
            // SAFETY: within the test's own memory; nobody refers to either block meanwhile.
            let got = unsafe { libc::mremap(at, bytes, bytes, flags, to.start().0 as *mut libc::c_void) };
            assert_eq!(got as u64, to.start().0);
        });
        drain_until(&|| moving.is_finished(), &|_| {});
        assert_eq!(
            host.copy_taken(memory.block(0), &mask(0..1)),
            PageMask::EMPTY,
            "it is not there any more"
        );
        host.staging_done(staging);
        assert_eq!(memory.word(512).load(Ordering::SeqCst), expected(0, 0, 3), "it is there");

        let writing = scope.spawn(|| memory.word(512).store(9, Ordering::SeqCst));
        drain_until(&|| writing.is_finished(), &|event| {
            if let HostEvent::Fault { at, write_protected: true, .. } = event {
                let page = VirtRange::of_pages(at.page_floor(), 1);
                assert_eq!(host.unprotect(page), Ok(()));
            }
        });
    });
    assert_eq!(memory.word(512).load(Ordering::SeqCst), 9);
    host.release();
}
