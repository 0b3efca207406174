//! mremap to another place in the same 2 MiB: the page that leaves the device is the last one there, and the one that
//! comes home is not home yet.
#![cfg(not(granule_loom))]

mod real;

use granule::Granularity;
use real::{MIB, PAGE, World, alone, map_aligned, map_as, peek, poke, remap, unmap};

/// How often: the moment in which a touch could find the page untrapped is a few microseconds long.
const ROUNDS: u64 = 2_000;

#[test]
fn a_page_that_moves_within_its_block_is_never_read_as_zeros() {
    let _alone = alone(120);
    let world = World::new(4 * MIB, |builder| builder.granularity(Granularity::Kib4));
    let block = map_aligned(2 * MIB);
    unmap(block, 2 * MIB);
    for round in 1..=ROUNDS {
        let from = map_as(block, PAGE, libc::PROT_READ | libc::PROT_WRITE, libc::MAP_PRIVATE);
        poke(from, round);
        assert_eq!(world.prefetch(from, 1), 1);
        let to = remap(from, PAGE, PAGE, 0, block + 100 * PAGE);
        // The call goes on when its event was read: the page is brought home while this waits for it.
        assert_eq!(peek(to), round, "round {round}");
        unmap(to, PAGE);
    }
}
