//! Changes of mirrored mappings arrive as events, in order, and the tables follow them.
#![allow(unsafe_code, reason = "unmaps, moves and forks real memory")]

mod os_support;

use std::sync::atomic::Ordering;

use granule::os::TakeWay;
use granule::ports::{Host, HostEvent, Lookup, VmaKind, WORDS_PER_PAGE};
use granule::units::{Access, PageMask, VirtAddr, VirtRange};
use os_support::*;

#[test]
fn changes_are_told_in_order_and_followed() {
    for way in WAYS {
        let host = open(way);
        let reader = Reader::zero_filling(&host);
        let memory = Memory::blocks(4);
        host.mirror(memory.range).expect("mirrored");
        host.arm(memory.block(1).range()).expect("armed");
        memory.fill(0..2048, 1);

        memory.unmap(memory.pages(10, 3));
        assert_eq!(memory.advise(memory.pages(20, 4), libc::MADV_DONTNEED), 0);
        let target = Memory::blocks(1);
        let to = target.range.start();
        // SAFETY: moves the test's own pages over the test's own pages.
        let moved = unsafe {
            let flags = libc::MREMAP_MAYMOVE | libc::MREMAP_FIXED;
            libc::mremap(
                memory.pages(512, 16).start().0 as *mut _,
                65536,
                65536,
                flags,
                to.0 as *mut libc::c_void,
            )
        };
        assert_eq!(moved as u64, to.0);
        let events = reader.wait_for_changes(4);
        assert_eq!(
            events,
            [
                HostEvent::Unmap(memory.pages(10, 3)),
                HostEvent::Remove(memory.pages(20, 4)),
                HostEvent::Remap { from: memory.pages(512, 16), to },
                HostEvent::Unmap(memory.pages(512, 16)),
            ],
            "{way:?}"
        );
        assert!(!host.is_mirrored(memory.pages(12, 1)) && host.is_mirrored(memory.pages(13, 499)));
        assert!(!host.is_mirrored(memory.pages(512, 1)) && host.is_armed(memory.pages(528, 496)));
        assert!(host.is_mirrored(VirtRange::of_pages(to, 16)) && host.is_armed(VirtRange::of_pages(to, 16)));
        assert_eq!(target.word(3).load(Ordering::Relaxed), expected(515, 0, 1));
    }
}

/// The old range stays, empty and followed; pages that were away, and pages that were there, are told by one event.
#[test]
fn a_mapping_that_stays_when_its_pages_move_is_still_followed() {
    for way in WAYS {
        let host = open(way);
        let reader = Reader::zero_filling(&host);
        let memory = Memory::blocks(2);
        memory.fill(0..16, 4);
        host.mirror(memory.pages(0, 512)).expect("mirrored");
        host.arm(memory.block(0).range()).expect("armed");
        // The first four are away.
        let (staging, taken) = take(&host, memory.block(0), &mask(0..4));
        assert_eq!(taken.taken, mask(0..4), "{way:?}");
        let (from, to) = (memory.pages(0, 16), memory.pages(512, 16));
        // SAFETY: moves the test's own pages over the test's own pages.
        let moved = unsafe {
            let flags = libc::MREMAP_MAYMOVE | libc::MREMAP_FIXED | libc::MREMAP_DONTUNMAP;
            let (at, bytes) = (from.start().0 as *mut libc::c_void, from.bytes() as usize);
            libc::mremap(at, bytes, bytes, flags, to.start().0 as *mut libc::c_void)
        };
        assert_eq!(moved as u64, to.start().0);
        assert_eq!(reader.wait_for_changes(1), [HostEvent::Remap { from, to: to.start() }], "{way:?}");
        for range in [from, to] {
            assert!(host.is_mirrored(range) && host.is_armed(range), "{way:?}");
        }
        for page in 4..16 {
            check_words(words_at(memory.pages(512 + page, 1).start()), page, 4);
        }
        assert_eq!(host.pagemap().is_absent(from), Ok(true), "{way:?}: the old range is empty");
        assert_eq!(memory.word(7).load(Ordering::Relaxed), 0, "{way:?}");
        assert_eq!(reader.faults().len(), 1, "{way:?}: and its touches are trapped");
        // What was away comes home where its mapping is now.
        let words = host.staging_words(staging);
        for page in 0..4u64 {
            let part = &words[page as usize * WORDS_PER_PAGE..][..WORDS_PER_PAGE];
            assert_eq!(host.give_words(memory.pages(512 + page, 1).start(), part), (1, Ok(())), "{way:?}");
            check_words(words_at(memory.pages(512 + page, 1).start()), page, 4);
        }
        host.staging_done(staging);
        // The empty range can be taken again: as zeros, and what was touched.
        memory.word(7).store(70, Ordering::Relaxed);
        let (staging, taken) = take(&host, memory.block(0), &mask(0..16));
        assert_eq!(taken.taken, mask(0..16), "{way:?}");
        let found = |page: usize| host.staging_words(staging)[page * WORDS_PER_PAGE].load(Ordering::Relaxed);
        assert_eq!((found(0), found(7), found(8)), (0, 70, 0), "{way:?}");
        assert_eq!(give(&host, memory.block(0), &taken.taken, staging).given, taken.taken);
        host.staging_done(staging);
    }
}

#[test]
fn a_page_being_removed_is_not_taken_before_it_was_seen_absent() {
    let host = open(TakeWay::Move);
    let reader = Reader::zero_filling(&host);
    let memory = Memory::blocks(1);
    arm(&host, &memory);
    memory.fill(0..32, 2);
    // FREE tells the same event and leaves the pages there.
    assert_eq!(memory.advise(memory.pages(0, 8), libc::MADV_FREE), 0);
    assert_eq!(memory.advise(memory.pages(8, 8), libc::MADV_DONTNEED), 0);
    reader.wait_for_changes(2);
    let (staging, taken) = take(&host, memory.block(0), &mask(0..32));
    assert_eq!((taken.refused, taken.taken), (mask(0..8), mask(8..32)));
    assert_eq!(host.give(memory.block(0), &taken.taken, staging).given, taken.taken);
    host.staging_done(staging);
    // Discarded and filled anew: what is there now is the application's.
    assert_eq!(memory.advise(memory.pages(0, 8), libc::MADV_DONTNEED), 0);
    reader.wait_for_changes(3);
    host.settle_removed();
    memory.fill(0..8, 3);
    let (staging, taken) = take(&host, memory.block(0), &mask(0..32));
    assert_eq!((taken.refused, taken.taken), (PageMask::EMPTY, mask(0..32)));
    assert_eq!(host.give(memory.block(0), &taken.taken, staging).given, taken.taken);
    host.staging_done(staging);
    memory.check(0..8, 3);
}

static STATIC_DATA: std::sync::atomic::AtomicU64 = std::sync::atomic::AtomicU64::new(0);

#[test]
fn mappings_are_told_apart_by_both_ways_of_asking() {
    let kind = |at: u64| {
        let answers =
            [granule::os::Vmas::open().expect("open"), granule::os::Vmas::open_text().expect("open")]
                .map(|vmas| vmas.lookup(VirtAddr(at)).expect("an answer"));
        assert_eq!(answers[0], answers[1], "at {at:#x}");
        match answers[0] {
            Lookup::Mapped(vma) => Some((vma.kind, vma.access)),
            Lookup::Hole { .. } => None,
        }
    };
    let memory = Memory::blocks(1);
    let at = memory.range.start().0;
    assert_eq!(kind(at), Some((VmaKind::Movable, Some(Access::Write))));
    // SAFETY: protecting and replacing the test's own pages.
    unsafe {
        libc::mprotect(at as *mut _, 4096, libc::PROT_NONE);
        let flags = libc::MAP_SHARED | libc::MAP_ANONYMOUS | libc::MAP_FIXED;
        libc::mmap((at + 8192) as *mut _, 4096, libc::PROT_READ, flags, -1, 0);
        libc::munmap((at + 16384) as *mut _, 4096);
    }
    assert_eq!(kind(at), Some((VmaKind::Movable, None)));
    assert_eq!(kind(at + 8192), Some((VmaKind::LinkOnly, Some(Access::Read))));
    assert_eq!(kind(at + 16384), None);
    let local = 0u64;
    assert_eq!(kind(&raw const local as u64).expect("mapped").0, VmaKind::LinkOnly, "a thread's stack");
    assert_ne!(kind(&raw const STATIC_DATA as u64).expect("mapped").0, VmaKind::Movable, "static data");
    assert_eq!(kind(libc::getpid as *const () as u64).expect("mapped").0, VmaKind::Unfollowed, "code");
    let slab = granule::os::private::Slab::<u64>::new(512).expect("a page");
    assert_eq!(kind(slab.as_ptr() as u64).expect("mapped").0, VmaKind::Unfollowed, "private memory");
    // SAFETY: asks where the heap ends.
    let brk = unsafe { libc::sbrk(0) } as u64;
    let heap = kind(brk - 8);
    assert_eq!(heap.expect("mapped"), (VmaKind::Movable, Some(Access::Write)), "the heap");
}
