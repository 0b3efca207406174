//! The parts alone: lock, gate, reservation.

use std::rc::Rc;

use granule::fault::{BlockFault, Board};
use granule::granule::{Gate, GateSeat};
use granule::sync::{AtomicU32, Ordering, WordLock};
use granule::units::{BlockNo, DeviceId, Iova, PAGE_BYTES, PageIndex, PageMask, Seat};

use crate::explore::{Bounds, model};
use crate::support::{SimPark, pass_once};
use crate::world::World;

/// A count that only its guard keeps right: a load and a store, both relaxed.
#[derive(Default)]
struct Count(AtomicU32);
impl Count {
    fn add(&self) {
        self.0.store(self.0.load(Ordering::Relaxed) + 1, Ordering::Relaxed);
    }
}

/// Three threads count under one lock.
fn lock() {
    let shared = Rc::new((WordLock::new(), Count::default(), SimPark::default()));
    let threads = [(); 2].map(|()| {
        let shared = shared.clone();
        loom::thread::spawn(move || {
            let (lock, count, park) = &*shared;
            let _held = lock.lock(park);
            count.add();
        })
    });
    let (lock, count, park) = &*shared;
    {
        let _held = lock.lock(park);
        count.add();
    }
    for thread in threads {
        thread.join().unwrap();
    }
    let _held = lock.lock(park);
    assert_eq!(count.0.load(Ordering::Relaxed), 3, "DATA: two threads were under the lock at once");
}

model!(
    a_word_lock_excludes_and_orders_and_wakes,
    Bounds { preemptions: None, threads: 3, pages: 0 },
    lock,
    twins: [LockWaits, LockReleases, LockStaysContended]
);

/// Each thread counts at its own seat; the reader, with the gate closed, counts at every seat.
fn gate() {
    struct Shared {
        gate: Gate<'static>,
        counts: [Count; 2],
        park: SimPark,
        seats: *mut [GateSeat; 2],
    }
    #[allow(unsafe_code, reason = "a run's seats are lent to its gate and freed with it")]
    fn lend(seats: *mut [GateSeat; 2]) -> &'static [GateSeat; 2] {
        // SAFETY: freed by the drop of `Shared`, after the last use of its gate.
        unsafe { &*seats }
    }
    impl Drop for Shared {
        #[allow(unsafe_code, reason = "see lend")]
        fn drop(&mut self) {
            // SAFETY: made by Box::into_raw below, freed once; nothing uses the gate any more.
            drop(unsafe { Box::from_raw(self.seats) });
        }
    }
    let seats = Box::into_raw(Box::default());
    let shared = Rc::new(Shared {
        gate: Gate::new(lend(seats)),
        counts: Default::default(),
        park: SimPark::default(),
        seats,
    });
    pass_once(&shared.gate, &shared.park);
    let threads = [0u16, 1].map(|seat| {
        let shared = shared.clone();
        loom::thread::spawn(move || {
            let _inside = shared.gate.enter(Seat(seat), &shared.park);
            shared.counts[seat as usize].add();
        })
    });
    {
        let _closed = shared.gate.close(&shared.park);
        shared.counts.iter().for_each(Count::add);
    }
    for thread in threads {
        thread.join().unwrap();
    }
    for count in &shared.counts {
        assert_eq!(count.0.load(Ordering::Relaxed), 2, "DATA: a worker was inside while the gate was closed");
    }
}

model!(
    nobody_is_inside_a_closed_gate,
    Bounds { preemptions: Some(4), threads: 3, pages: 0 },
    gate,
    twins: [GateWaits, GateIsLookedAt]
);

/// A device thread lays out blocks twice, and serves what its helper does not.
fn board() {
    #[derive(Default)]
    struct Shared {
        board: Board,
        served: [Count; 2],
        park: SimPark,
    }
    let block = |no| BlockFault {
        block: BlockNo(no),
        faulted: PageMask::of(PageIndex(no as u16)),
        ..BlockFault::NONE
    };
    let shared = Rc::new(Shared::default());
    let helper = {
        let shared = shared.clone();
        loom::thread::spawn(move || {
            for _ in 0..2 {
                let Some(helping) = shared.board.join(&shared.park) else { continue };
                while let Some(fault) = helping.take() {
                    assert_eq!(fault, block(fault.block.0), "DATA: a block of another batch, or half of one");
                    shared.served[fault.block.0 as usize].add();
                }
            }
        })
    };
    for (round, blocks) in [[0, 1], [1, 0]].into_iter().enumerate() {
        shared.board.post(&blocks.map(block));
        while let Some(at) = shared.board.take() {
            shared.served[blocks[at] as usize].add();
        }
        shared.board.close(&shared.park);
        for count in &shared.served {
            let served = count.0.load(Ordering::Relaxed) as usize;
            assert_eq!(served, round + 1, "DATA: each block is served once, and that is seen");
        }
    }
    helper.join().unwrap();
}

model!(
    each_block_of_a_batch_is_served_once_and_the_poster_waits_for_that,
    Bounds { preemptions: Some(4), threads: 2, pages: 0 },
    board,
    twins: [PosterWaits]
);

/// Three workers fault in one granule for the first time: one IOVA range, the same for all.
fn reservation() {
    let world = World::new(1);
    world.index(0);
    let reserved = Rc::new(Count::default());
    let reserve = move |world: &World, reserved: &Count| {
        let granule = world.space.tables.granule(World::granule_of(0)).expect("it was made");
        let reserve = || {
            reserved.add();
            Ok::<_, ()>(Iova(PAGE_BYTES * u64::from(reserved.0.load(Ordering::Relaxed))))
        };
        world.space.tables.reserve_once(granule, DeviceId(0), world.space.park, reserve).unwrap().0
    };
    let threads = [(); 2].map(|()| {
        let (world, reserved) = (world.clone(), reserved.clone());
        loom::thread::spawn(move || reserve(&world, &reserved))
    });
    let mine = reserve(&world, &reserved);
    for thread in threads {
        assert_eq!(thread.join().unwrap(), mine, "DATA: a granule has two IOVA ranges");
    }
    assert_eq!(reserved.0.load(Ordering::Relaxed), 1, "DATA: a granule was reserved more than once");
}

model!(
    a_granule_is_reserved_once_whoever_races,
    Bounds { preemptions: Some(3), threads: 3, pages: 0 },
    reservation,
    twins: [ReserveOnce]
);
