//! The user-mode-only fault mode on real memory: what nobody named stays where it is, and what was named leaves, with the
//! kernel's refusals as they are.
#![cfg(not(granule_loom))]
#![allow(unsafe_code, reason = "system calls into pages that are away")]

mod real;

use granule::os::TakeWay;
use granule::ports::Count;
use granule::service::{Userptr, UserptrOptions};
use granule::units::VirtAddr;
use real::{MIB, PAGE, World, advise, alone, map_aligned, map_as, peek, poke, present, remap, unmap};

const WAYS: [TakeWay; 2] = [TakeWay::Move, TakeWay::WriteProtect];

fn world(way: TakeWay) -> World {
    let world = World::new(32 * MIB, |builder| builder.user_mode_only(true).take_way(way));
    assert!(world.svm.is_user_mode_only());
    world
}

/// Names pages from `at` on.
fn name(world: &World, at: usize, pages: usize) -> Userptr {
    let options = UserptrOptions { movable: true, ..UserptrOptions::default() };
    world.svm.userptr(VirtAddr(at as u64), (pages * PAGE) as u64, options).expect("a userptr")
}

fn fill(at: usize, pages: usize, tag: u64) {
    (0..pages).for_each(|page| poke(at + page * PAGE, tag + page as u64));
}

fn all_right(at: usize, pages: usize, tag: u64) -> bool {
    (0..pages).all(|page| peek(at + page * PAGE) == tag + page as u64)
}

/// Has the device add to the first word of each page.
fn add(world: &World, at: usize, pages: usize, n: u64) {
    let add = world.run(|engine| {
        (0..pages).try_for_each(|page| {
            let word = (at + page * PAGE) as u64;
            let value: u64 = engine.load(word)?;
            engine.store(word, value + n)
        })
    });
    add.expect("the device reaches all of it");
}

/// What `write` (of the page into a pipe) and `read` (of a pipe into the page) answer: 0, or the errno.
fn system_calls_on(page: usize) -> [i32; 2] {
    let mut ends = [0; 2];
    let errno =
        |rc: isize| if rc < 0 { std::io::Error::last_os_error().raw_os_error().expect("set") } else { 0 };
    let bytes = [1u8; 8];
    // SAFETY: two descriptors into an array of two; eight bytes of the caller's page, and of this stack.
    unsafe {
        assert_eq!(libc::pipe(ends.as_mut_ptr()), 0);
        let write = errno(libc::write(ends[1], page as *const _, 8));
        assert_eq!(libc::write(ends[1], bytes.as_ptr().cast(), 8), 8);
        let read = errno(libc::read(ends[0], page as *mut _, 8));
        ends.iter().for_each(|end| assert_eq!(libc::close(*end), 0));
        [write, read]
    }
}

#[test]
fn the_heap_stays() {
    let _alone = alone(60);
    for way in WAYS {
        let world = world(way);
        // Large ones are mappings of their own, small ones lie in the heap proper.
        let large = vec![3u64; 4 * MIB / 8];
        let small: Vec<Box<[u64; 16]>> = (0..20_000).map(|n| Box::new([n; 16])).collect();
        let start = (large.as_ptr() as usize).next_multiple_of(PAGE);
        let pages = large.len() * 8 / PAGE - 1;
        add(&world, start, pages, 1);
        let boxes: Vec<u64> = small.iter().map(|one| one.as_ptr() as u64).collect();
        world
            .run(|engine| boxes.iter().try_for_each(|at| engine.fetch_add_u64(*at + 8, 1).map(drop)))
            .expect("the device reaches the heap");
        assert_eq!(present(start, pages), pages, "{way:?}: no page left");
        assert_eq!(world.count(Count::PagesToDevice), 0, "{way:?}: none was taken");
        assert!(world.count(Count::PagesLinked) > pages as u64);
        assert!((0..pages).all(|page| peek(start + page * PAGE) == 4));
        drop(large);
        assert!(small.iter().enumerate().all(|(n, one)| one[1] == n as u64 + 1 && one[2] == n as u64));
    }
}

#[test]
fn what_was_named_leaves_and_system_calls_into_it_fail() {
    let _alone = alone(60);
    for way in WAYS {
        let world = world(way);
        let at = map_aligned(2 * MIB);
        fill(at, 512, 7);
        // A part of one mapping, in the middle of a block.
        let named = name(&world, at + 64 * PAGE, 128);
        add(&world, at, 512, 100);
        let left = [(0, 64, 64), (64, 128, 0), (192, 320, 320)];
        for (first, pages, stay) in left {
            assert_eq!(present(at + first * PAGE, pages), stay, "{way:?}: pages from {first} on");
        }
        assert_eq!(world.count(Count::PagesToDevice), 128);
        let page = at + 70 * PAGE;
        assert_eq!(
            system_calls_on(page),
            [libc::EFAULT; 2],
            "{way:?}: the kernel does not wait for the page"
        );
        assert_eq!(present(page, 1), 0);
        assert_eq!(peek(page), 177, "a touch of the program's own brings it home");
        assert_eq!(system_calls_on(page), [0; 2]);
        poke(page, 177);
        assert!(all_right(at, 512, 107));

        // Once its name has ended nothing is taken, and what was is home.
        world.prefetch(at, 512);
        assert!(present(at + 64 * PAGE, 128) < 128);
        drop(named);
        assert_eq!(present(at, 512), 512, "{way:?}");
        let moved = world.count(Count::PagesToDevice);
        add(&world, at, 512, 100);
        assert_eq!((present(at, 512), world.count(Count::PagesToDevice)), (512, moved));
        assert!(all_right(at, 512, 207));
        drop(world);
        unmap(at, 2 * MIB);
    }
}

#[test]
fn regions_of_the_library_are_named() {
    let _alone = alone(60);
    for way in WAYS {
        let world = world(way);
        let region = world.svm.alloc(2 << 20).expect("a region");
        let at = region.as_ptr() as usize;
        fill(at, 512, 1);
        add(&world, at, 512, 5);
        assert_eq!(present(at, 512), 0);
        assert_eq!(system_calls_on(at + 9 * PAGE), [libc::EFAULT; 2]);
        assert!(all_right(at, 512, 6));
        assert_eq!(system_calls_on(at + 9 * PAGE), [0; 2]);
        add(&world, at, 512, 5);
        let linked = world.svm.userptr(VirtAddr(at as u64), 2 << 20, UserptrOptions::default());
        assert!(linked.is_ok(), "pages that were away can be linked");
        assert_eq!(present(at, 512), 512);
    }
}

#[test]
fn a_name_goes_with_its_pages() {
    let _alone = alone(60);
    for way in WAYS {
        let world = world(way);
        let (at, to) = (map_aligned(2 * MIB), map_aligned(2 * MIB));
        fill(at, 512, 1);
        let _named = name(&world, at, 512);
        add(&world, at, 512, 1);
        assert_eq!(present(at, 512), 0);

        // A new mapping in the place of an old one is nobody's.
        unmap(at, 64 * PAGE);
        map_as(at, 64 * PAGE, libc::PROT_READ | libc::PROT_WRITE, libc::MAP_PRIVATE);
        fill(at, 64, 9);
        add(&world, at, 512, 1);
        assert_eq!((present(at, 64), present(at + 64 * PAGE, 448)), (64, 0), "{way:?}");
        assert!(all_right(at, 64, 10));

        // What moves is still named.
        let moved = at + 64 * PAGE;
        assert_eq!(remap(moved, 128 * PAGE, 128 * PAGE, libc::MREMAP_FIXED, to), to);
        add(&world, to, 512, 1);
        assert_eq!((present(to, 128), present(to + 128 * PAGE, 384)), (0, 384), "{way:?}");
        assert!(all_right(to, 128, 64 + 1 + 3));
        drop(world);
        assert!(all_right(at + 192 * PAGE, 320, 192 + 1 + 2));
        unmap(at, 64 * PAGE);
        unmap(at + 192 * PAGE, 320 * PAGE);
        unmap(to, 2 * MIB);
    }
}

#[test]
fn overlapping_names_end_one_by_one() {
    let _alone = alone(60);
    let world = world(TakeWay::Move);
    let at = map_aligned(2 * MIB);
    fill(at, 512, 1);
    let first = name(&world, at, 256);
    let second = name(&world, at + 128 * PAGE, 256);
    add(&world, at, 512, 1);
    assert_eq!((present(at, 384), present(at + 384 * PAGE, 128)), (0, 128));
    drop(first);
    add(&world, at, 512, 1);
    assert_eq!((present(at, 128), present(at + 128 * PAGE, 256)), (128, 0), "the other still names its part");
    drop(second);
    assert_eq!(present(at, 512), 512);
    assert!(all_right(at, 512, 3));
    drop(world);
    unmap(at, 2 * MIB);
}

/// Absent pages beside pages that are away are trapped, and the kernel does not populate what is trapped.
#[test]
fn absent_pages_of_a_trapped_block_can_be_linked() {
    let _alone = alone(60);
    for way in WAYS {
        let world = world(way);
        let at = map_aligned(2 * MIB);
        fill(at, 512, 1);
        let named = name(&world, at, 512);
        add(&world, at + 256 * PAGE, 256, 1);
        assert_eq!(present(at + 256 * PAGE, 256), 0);
        advise(at, 64 * PAGE, libc::MADV_DONTNEED);
        assert_eq!(present(at, 64), 0);
        let start = VirtAddr(at as u64);
        let linked = world.svm.userptr(start, 64 * PAGE as u64, UserptrOptions::default());
        assert!(linked.is_ok(), "{way:?}: {linked:?}");
        add(&world, at, 64, 5);
        assert!((0..64).all(|page| peek(at + page * PAGE) == 5));
        drop((linked, named));
        assert!(all_right(at + 256 * PAGE, 256, 256 + 2));
        drop(world);
        unmap(at, 2 * MIB);
    }
}
