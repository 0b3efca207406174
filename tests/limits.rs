//! The process runs out of mappings in the middle of the work: the faults that need more say so, nothing is lost, and the
//! work goes on when there is room again. On real memory, in a process of its own.
#![cfg(not(granule_loom))]
#![allow(unsafe_code, reason = "uses up the mappings of a process")]

mod real;

use granule::Granularity;
use granule::ports::FaultCause;
use granule_backends::software::AccessError;
use real::*;

/// Each an isolated block: following and arming it costs mappings of its own.
const BLOCKS: usize = 64;
const STRIDE: usize = 4 * MIB;

fn page_of(base: usize, block: usize) -> usize {
    base + block * STRIDE
}

/// Cuts a range into mappings of a page until the kernel refuses; returns how far it came.
fn use_up(at: usize, pages: usize) -> usize {
    for page in (0..pages).step_by(2) {
        // SAFETY: a page of the test's own that nobody touches.
        if unsafe { libc::mprotect((at + page * PAGE) as *mut _, PAGE, libc::PROT_READ) } != 0 {
            return page;
        }
    }
    pages
}

#[test]
fn running_out_of_mappings_fails_faults_and_loses_nothing() {
    const TEST: &str = "running_out_of_mappings_fails_faults_and_loses_nothing";
    const INSIDE: &str = "GRANULE_LIMITS_INSIDE";
    if std::env::var_os(INSIDE).is_none() {
        let this = std::env::current_exe().expect("the test's own program");
        let status = std::process::Command::new(this)
            .args(["--exact", TEST, "--nocapture"])
            .env(INSIDE, "1")
            .status()
            .expect("it runs");
        assert!(status.success(), "{status}");
        return;
    }
    let most: usize = std::fs::read_to_string("/proc/sys/vm/max_map_count")
        .expect("/proc is mounted")
        .trim()
        .parse()
        .expect("a number");
    if most > 1 << 18 {
        println!("nothing is tried: a process may have {most} mappings here");
        return;
    }
    let _alone = alone(120);
    let world = World::new(16 * MIB, |builder| builder.granularity(Granularity::Kib4));
    let base = map_aligned(BLOCKS * STRIDE);
    for block in 0..BLOCKS {
        poke(page_of(base, block), block as u64);
        poke(page_of(base, block) + PAGE, 1000 + block as u64);
    }
    // Two pages are on the device when it happens.
    for block in 0..2 {
        world.store(page_of(base, block) + 8, 7).expect("writable");
    }
    let filler = map(most * PAGE);
    let used = use_up(filler, most);
    assert!(used > 0 && used < most, "the limit was met after {used} pages");

    let mut refused = 0;
    for block in 2..BLOCKS {
        match world.store(page_of(base, block) + 8, 7) {
            Ok(()) => {}
            Err(AccessError::Fault { cause: FaultCause::OutOfMemory, .. }) => refused += 1,
            Err(error) => panic!("block {block}: {error:?}"),
        }
    }
    println!("{refused} of {} blocks were refused at the limit of {most} mappings", BLOCKS - 2);
    assert!(refused > BLOCKS / 2, "only {refused} were refused");
    for block in 0..BLOCKS {
        assert_eq!(peek(page_of(base, block)), block as u64, "block {block}");
        assert_eq!(peek(page_of(base, block) + PAGE), 1000 + block as u64, "block {block}");
    }
    // Room again: everything can be served, and what was written is there.
    unmap(filler, most * PAGE);
    for block in 0..BLOCKS {
        world.store(page_of(base, block) + 16, 8).expect("there is room again");
        assert_eq!(world.load(page_of(base, block)), Ok(block as u64));
        assert_eq!(present(page_of(base, block), 1), 0, "block {block} is on the device");
    }
    world.svm.close().expect("everything comes home");
    for block in 0..BLOCKS {
        assert_eq!((peek(page_of(base, block)), peek(page_of(base, block) + 16)), (block as u64, 8));
    }
    unmap(base, BLOCKS * STRIDE);
}
