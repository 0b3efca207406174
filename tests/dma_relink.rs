//! On real memory: a page that went linked -> device-private -> RAM is populated and linked anew, and nobody takes it for
//! linked in between.
#![cfg(not(granule_loom))]

mod real;

use std::sync::atomic::{AtomicBool, Ordering};

use granule::Granularity;
use granule::policy::{DeviceFaultView, LinkOnly, MigrateOnFault, Placement, Policy};
use granule::ports::Count;
use granule::units::{BlockNo, PageIndex, PageMask};
use real::{World, alone, map, peek, poke, present, unmap};

const PAGE: usize = 4096;

/// Whether pages move now.
static MOVES: AtomicBool = AtomicBool::new(false);

/// Links, or moves page by page, as the test says.
struct AsTold;
const MOVE: MigrateOnFault = MigrateOnFault { granularity: Granularity::Kib4 };
impl Policy for AsTold {
    fn place(&self, fault: &DeviceFaultView) -> Placement {
        if MOVES.load(Ordering::SeqCst) { MOVE.place(fault) } else { LinkOnly.place(fault) }
    }
    fn homecoming(&self, block: BlockNo, touched: PageIndex, resident: &PageMask) -> PageMask {
        MOVE.homecoming(block, touched, resident)
    }
    fn granularity(&self) -> Granularity {
        Granularity::Kib4
    }
}

#[test]
fn a_page_that_went_linked_then_to_the_device_then_home_is_linked_anew() {
    let _alone = alone(60);
    let world = World::new(8 << 20, |builder| builder.policy(AsTold));
    let at = map(16 * PAGE);
    let page = at + 5 * PAGE;
    for turn in 0..10u64 {
        poke(page, 100 + turn);
        let linked = world.count(Count::PagesLinked);
        let unlinked = world.count(Count::PagesUnlinked);
        assert_eq!(world.load(page), Ok(100 + turn));
        // Later turns find it linked by the turn before.
        assert_eq!(world.count(Count::PagesLinked) > linked, turn == 0, "turn {turn}");
        world.store(page, 200 + turn).unwrap();
        assert_eq!(peek(page), 200 + turn, "the very page of the CPU");
        // To the device: unlinked, and the CPU has nothing there.
        MOVES.store(true, Ordering::SeqCst);
        assert_eq!(world.prefetch(page, 1), 1);
        MOVES.store(false, Ordering::SeqCst);
        assert!(world.count(Count::PagesUnlinked) > unlinked, "turn {turn}: unlinked before it was taken");
        assert_eq!(present(page, 1), 0, "turn {turn}: it is on the device");
        world.store(page, 300 + turn).unwrap();
        // Home by a touch; what the device wrote is there, and the device's next access faults and links.
        assert_eq!(peek(page), 300 + turn);
        let linked = world.count(Count::PagesLinked);
        assert_eq!(world.load(page), Ok(300 + turn));
        assert!(world.count(Count::PagesLinked) > linked, "turn {turn}: linked anew, not taken for linked");
        world.store(page, 400 + turn).unwrap();
        assert_eq!(peek(page), 400 + turn);
    }
    unmap(at, 16 * PAGE);
    drop(world);
}
