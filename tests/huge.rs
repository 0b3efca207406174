//! Huge pages of an application stay huge pages on their way to a device and back, whoever serves the fault.
#![cfg(not(granule_loom))]

mod real;

use granule::os::Pagemap;
use granule::ports::Count;
use granule::units::{BlockNo, VirtAddr};
use granule::{FaultMode, Granularity};
use real::*;

const BLOCKS: usize = 8;
const BYTES: usize = BLOCKS * 2 * MIB;

fn huge_blocks(at: usize) -> usize {
    let pagemap = Pagemap::open().expect("/proc is mounted");
    let block = |index: usize| BlockNo::of(VirtAddr((at + index * 2 * MIB) as u64));
    (0..BLOCKS).filter(|index| pagemap.is_huge(block(*index))).count()
}

#[test]
fn what_left_as_huge_pages_comes_back_as_such() {
    let _alone = alone(60);
    for mode in [FaultMode::Blocking, FaultMode::Sigbus] {
        let world = World::new(2 * BYTES, |builder| builder.granularity(Granularity::Mib2));
        let at = map_aligned(BYTES);
        advise(at, BYTES, libc::MADV_HUGEPAGE);
        world.svm.fault_mode(range(at, BYTES / PAGE), mode).expect("chosen in time");
        for page in 0..BYTES / PAGE {
            poke(at + page * PAGE, page as u64);
        }
        let before = huge_blocks(at);
        if before == 0 {
            let enabled = std::fs::read_to_string("/sys/kernel/mm/transparent_hugepage/enabled");
            assert!(!enabled.is_ok_and(|all| !all.contains("[never]")), "this kernel has huge pages");
            eprintln!("skipped: this kernel gives no huge pages");
            return;
        }
        for round in 0..3u64 {
            // Small pages of the heap pass through the same slots in between.
            let small: Vec<u64> = (0..64 << 10).collect();
            assert_eq!(world.load(&raw const small[40_000] as usize), Ok(40_000));
            assert!(small.iter().enumerate().all(|(at, value)| *value == at as u64));

            assert_eq!(world.prefetch(at, BYTES / PAGE), (BYTES / PAGE) as u64);
            assert_eq!(present(at, BYTES / PAGE), 0);
            let homes = world.count(Count::PagesToRam);
            for block in 0..BLOCKS {
                let page = block * 512 + 17;
                world.store(at + page * PAGE, page as u64 + round).expect("the device writes");
                assert_eq!(peek(at + page * PAGE), page as u64 + round);
                poke(at + page * PAGE, page as u64);
            }
            world.await_count(Count::PagesToRam, homes + (BYTES / PAGE) as u64);
            assert!((0..BYTES / PAGE).all(|page| peek(at + page * PAGE) == page as u64));
            assert_eq!(huge_blocks(at), before, "{mode:?}, round {round}: as many as before");
        }
        drop(world);
        assert!((0..BYTES / PAGE).all(|page| peek(at + page * PAGE) == page as u64));
        unmap(at, BYTES);
    }
}
