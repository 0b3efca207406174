//! munmap against faults, and reuse of the address.

use granule::units::Access;

use crate::explore::{Bounds, model};
use crate::world::{RO, RO_LINKED, RW, RW_LINKED, World};

/// The reader, a worker that is its own engine, and the application.
const BOUNDS: Bounds = Bounds { preemptions: Some(2), threads: 3, pages: 1 };

fn write_5(world: &World) {
    world.engine(0, 0, Access::Write, |_| 5);
}

/// munmap, then a new mapping at the same address, while the old page goes to the device: the CPU sees nothing but its
/// own new value, and so does the engine once the event is applied. (Rule 3 of the design: address reuse.)
fn address_reuse() {
    let world = World::new(1);
    world.host.mmap_with(0, RW, 7);
    world.run([
        |world| {
            world.engine(0, 0, Access::Read, |v| v);
        },
        |world| {
            world.host.munmap(0);
            world.host.mmap(0, RW);
            world.host.touch(0, |_| 100);
            world.host.wait_applied();
            let seen = world.device.touch(world.host, 0, Access::Read, |v| v);
            assert!(!matches!(seen, Ok(7 | 0)), "DATA: the device reads {seen:?} where 100 was written");
            let seen = world.host.touch(0, |v| v);
            assert_eq!(seen, Some(100), "DATA: the old page came back, or the new one is lost");
        },
    ]);
    assert_eq!(world.final_value(0), Some(100), "DATA: the new page is lost");
}

model!(
    a_new_mapping_at_an_old_address_is_new,
    BOUNDS,
    address_reuse,
    twins: [CommitWhatIsOwned, GateWaits, GateIsLookedAt]
);

/// A mapping is replaced by a read-only one while a write fault on it is served, and another fault has brought the new
/// page to the device: the first one does not enter it with the rights of the old mapping.
fn commit_against_invalidation() {
    let world = World::new(2);
    world.host.mmap_with(0, RW, 7);
    world.follow(1, 0);
    world.run([write_5, |world| {
        world.host.munmap(0);
        world.host.mmap_with(0, RO, 50);
        world.engine(1, 0, Access::Read, |v| v);
    }]);
    assert_eq!(world.final_value(0), Some(50), "DATA: the device wrote to a read-only mapping");
}

model!(
    a_fault_does_not_commit_what_it_saw_before_an_invalidation,
    BOUNDS,
    commit_against_invalidation,
    twins: [SequenceAtCommit]
);

/// The same with a mapping that nobody followed when the fault looked at it: its munmap gives no event.
fn first_fault_against_munmap() {
    let world = World::new(1);
    world.host.mmap_with(0, RW, 7);
    world.run([write_5, |world| {
        world.host.munmap(0);
        world.host.mmap_with(0, RO, 50);
    }]);
    assert_eq!(world.final_value(0), Some(50), "DATA: the device wrote to a read-only mapping");
}

model!(
    a_first_fault_looks_again_once_its_mapping_is_followed,
    BOUNDS,
    first_fault_against_munmap,
    twins: [LookAgain]
);

/// The same, and somebody else follows what came after it.
fn two_first_faults_against_munmap() {
    let world = World::new(2);
    world.host.mmap_with(0, RW, 7);
    world.run([write_5, |world| {
        world.host.munmap(0);
        world.host.mmap_with(0, RO, 50);
        world.follow(1, 0);
    }]);
    assert_eq!(world.final_value(0), Some(50), "DATA: the device wrote to a read-only mapping");
}

model!(
    a_first_fault_looks_again_though_another_follows_its_mapping,
    BOUNDS,
    two_first_faults_against_munmap,
    twins: [LookAgain, LookAgainIfAnotherFollows]
);

/// A linked page: the engine's write reaches the mapping that it was linked for, or none.
fn link_against_invalidation() {
    let world = World::new(2);
    world.host.mmap_with(0, RW_LINKED, 7);
    world.follow(1, 0);
    world.run([write_5, |world| {
        world.host.munmap(0);
        world.host.mmap_with(0, RO_LINKED, 50);
    }]);
    assert_eq!(world.final_value(0), Some(50), "DATA: the device wrote to memory that came after its munmap");
}

model!(
    a_link_ends_with_its_mapping,
    Bounds { preemptions: Some(3), ..BOUNDS },
    link_against_invalidation,
    twins: [QuiesceBeforeRead]
);

/// munmap takes a page from a worker that is copying it in; then another worker needs device memory: what that one gets
/// is not written by the first.
fn copy_in_against_reuse_of_its_slot() {
    let world = World::new(2);
    world.host.mmap_with(0, RW, 7);
    world.host.mmap_with(64, RW, 20);
    world.run([write_5, |world| {
        world.host.munmap(0);
        world.engine(1, 64, Access::Write, |v| v + 1);
    }]);
    assert_eq!(world.final_value(64), Some(21), "DATA: a page of another block was overwritten");
}

model!(
    a_slot_is_not_reused_while_somebody_copies_into_it,
    Bounds { pages: 2, ..BOUNDS },
    copy_in_against_reuse_of_its_slot,
    twins: [SlotsStayWithMover]
);
