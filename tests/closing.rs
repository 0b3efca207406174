//! The end of a space while other threads change the memory that it follows: nobody is left waiting, and no descriptor of
//! the program is mistaken for one of the space. On real memory.
#![cfg(not(granule_loom))]

mod real;

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use granule::service::{Userptr, UserptrOptions};
use granule::units::{Access, VirtAddr};
use real::*;

const ROUNDS: usize = 150;

/// Changes of followed memory, over and over; each waits for its event to be read while the space lives.
fn change(kind: usize, followed: usize, stop: &AtomicBool) -> u64 {
    let mut changes = 0;
    while !stop.load(Ordering::SeqCst) {
        // The neighbours of `followed` in its mapping are followed with it.
        let at = followed + (changes as usize % 200) * PAGE;
        match kind {
            0 => {
                unmap(at, PAGE);
                map_as(at, PAGE, libc::PROT_READ | libc::PROT_WRITE, libc::MAP_PRIVATE);
            }
            1 => advise(at, PAGE, libc::MADV_DONTNEED),
            _ => {
                let to = remap(at, PAGE, PAGE, 0, followed + 300 * PAGE);
                assert_eq!(remap(to, PAGE, PAGE, 0, at), at);
                map_as(to, PAGE, libc::PROT_READ | libc::PROT_WRITE, libc::MAP_PRIVATE);
            }
        }
        poke(at, changes);
        changes += 1;
    }
    changes
}

fn userptr(world: &World, at: usize) -> Userptr {
    let options = UserptrOptions { device: DEVICE, access: Access::Write, device_at: None, movable: false };
    world.svm.userptr(VirtAddr(at as u64), PAGE as u64, options).expect("linked")
}

#[test]
fn a_userptr_that_outlives_its_space_holds_nobody_up() {
    let _alone = alone(240);
    let mut outlived = Vec::new();
    let changes = AtomicU64::new(0);
    for round in 0..ROUNDS {
        let world = World::new(4 * MIB, |builder| builder);
        let registered = map(PAGE);
        poke(registered, 1);
        let followed: Vec<usize> = (0..3).map(|_| map_aligned(2 * MIB)).collect();
        for at in &followed {
            poke(*at, 1);
            assert_eq!(world.prefetch(*at, 1), 1, "from now on it is followed");
        }
        outlived.push(userptr(&world, registered));
        let stop = AtomicBool::new(false);
        std::thread::scope(|scope| {
            for (kind, at) in followed.iter().copied().enumerate() {
                let (stop, changes) = (&stop, &changes);
                scope.spawn(move || changes.fetch_add(change(kind, at, stop), Ordering::Relaxed));
            }
            // Differently long after they have begun, so that the end meets each of them anywhere.
            let begun = world.count(granule::ports::Count::Invalidations);
            world.await_count(granule::ports::Count::Invalidations, begun + 5 + round as u64 % 7);
            drop(world);
            stop.store(true, Ordering::SeqCst);
            // The end of the scope waits for all three: the watchdog says if one hangs.
        });
        // What was followed is ordinary memory.
        for at in followed {
            unmap(at, 2 * MIB);
        }
        if round % 10 == 9 {
            outlived.clear();
        }
    }
    println!("{} changes around {ROUNDS} ends", changes.into_inner());
}

/// The numbers of a space's descriptors are not given to others while a handle keeps the space alive: whatever it would
/// still do with them would be done to a file of the program.
#[test]
fn descriptors_are_not_reused_before_the_last_handle_is_gone() {
    let _alone = alone(60);
    let count = || std::fs::read_dir("/proc/self/fd").expect("/proc is mounted").count();
    let links = || -> Vec<(std::path::PathBuf, std::path::PathBuf)> {
        let entries = std::fs::read_dir("/proc/self/fd").expect("/proc is mounted");
        let named = entries.map(|entry| entry.expect("an entry").path());
        named.filter_map(|path| Some((path.clone(), std::fs::read_link(path).ok()?))).collect()
    };
    let is_uffd = |link: &std::path::Path| link.to_string_lossy().contains("userfaultfd");
    assert!(!links().iter().any(|(_, link)| is_uffd(link)), "no other space lives");
    let before = count();

    let world = World::new(4 * MIB, |builder| builder);
    let page = map(PAGE);
    poke(page, 1);
    let handle = userptr(&world, page);
    let events: Vec<_> = links().into_iter().filter(|(_, link)| is_uffd(link)).collect();
    assert!(events.len() >= 2, "{events:?}");
    drop(world);
    let after = links();
    let still: Vec<_> = after.iter().filter(|(_, link)| is_uffd(link)).collect();
    assert!(
        still.len() <= 1,
        "all but the one for discarding pages of the service's own are closed: {still:?}"
    );
    for (path, _) in &events {
        assert!(after.iter().any(|(now, _)| now == path), "{path:?} is taken");
    }
    drop(handle);
    assert_eq!(count(), before, "all numbers are free again");
    unmap(page, PAGE);
}
