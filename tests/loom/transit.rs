//! CPU faults, device faults and evictions of one block.

use granule::units::{Access, PageMask};

use crate::explore::{Bounds, model};
use crate::support::one;
use crate::world::{RW, World};

/// The reader, and two threads that race.
const BOUNDS: Bounds = Bounds { preemptions: Some(3), threads: 3, pages: 1 };

/// A CPU thread and an engine both add to a page: neither is lost, though the CPU finds the page in transit. The block
/// is woken for the thread that waits, and not once more.
fn cpu_fault_in_transit() {
    let world = World::new(1);
    world.host.mmap_with(0, RW, 7);
    world.run([
        |world| {
            world.engine(0, 0, Access::Write, |v| v + 1);
        },
        |world| {
            world.host.touch(0, |v| v + 10);
        },
    ]);
    assert_eq!(world.final_value(0), Some(18), "DATA: an increment was lost");
    assert_eq!(world.host.idle_wakes(), 0, "DATA: a block was woken once more than a thread waited");
}

model!(
    a_cpu_fault_on_a_page_in_transit_is_queued_and_woken_exactly_once,
    BOUNDS,
    cpu_fault_in_transit,
    twins: [InTransitBeforeTake, WakeAfterTransit, WakeOnce]
);

/// An eviction runs while an engine writes: what was written is there.
fn eviction_against_device_write() {
    let world = World::new(1);
    world.start_on_device(0, 8);
    world.run([|world| world.evict(0, &PageMask::FULL), write_with_the_device_or_the_cpu]);
    assert_eq!(world.final_value(0), Some(108), "DATA: a device write that was acknowledged is lost");
}

/// Adds 100: with the device if it has the page, otherwise with the CPU.
fn write_with_the_device_or_the_cpu(world: &World) {
    if world.device.touch(world.host, 0, Access::Write, |v| v + 100).is_err() {
        world.host.touch(0, |v| v + 100);
    }
}

model!(an_eviction_loses_no_device_write, BOUNDS, eviction_against_device_write, twins: [UnmapBeforeCopy]);

/// A CPU fault brings a page home while an engine writes it: what was written is there.
fn cpu_fault_against_device_write() {
    let world = World::new(1);
    world.start_on_device(0, 8);
    world.run([
        |world| {
            world.host.touch(0, |v| v + 10);
        },
        write_with_the_device_or_the_cpu,
    ]);
    assert_eq!(world.final_value(0), Some(118), "DATA: a write was lost");
}

model!(a_cpu_fault_loses_no_device_write, BOUNDS, cpu_fault_against_device_write, twins: [UnmapBeforeCopy]);

/// CPU faults against the eviction of one of the block's two pages: what the CPU writes to it survives, and the other
/// page is trapped although the eviction is over.
fn cpu_fault_against_eviction() {
    let world = World::new(1);
    world.start_on_device(0, 8);
    world.start_on_device(16, 9);
    world.run([
        |world| world.evict(0, &one(0)),
        |world| {
            world.host.touch(0, |v| v + 10);
            world.host.touch(16, |v| v + 10);
            world.host.touch(0, |v| v + 10);
        },
    ]);
    let values = (world.final_value(0), world.final_value(16));
    assert_eq!(values, (Some(28), Some(19)), "DATA: a CPU write is lost, or what it was added to");
}

model!(
    a_cpu_fault_against_an_eviction_loses_no_write,
    Bounds { pages: 2, ..BOUNDS },
    cpu_fault_against_eviction,
    twins: [ArmedWhileAway]
);

/// An eviction whose copy fails, however often it tries: the device keeps the only copy, and the CPU thread that was queued on it is served.
fn cpu_fault_against_a_failing_eviction() {
    let world = World::new(1);
    world.start_on_device(0, 8);
    // The block, then the page three times, then the window.
    world.device.fail_copies(5);
    world.run([
        |world| world.evict(0, &PageMask::FULL),
        |world| {
            world.host.touch(0, |v| v + 10);
        },
    ]);
    world.device.fail_copies(0);
    assert_eq!(world.final_value(0), Some(18), "DATA: the only copy is lost");
}

model!(
    a_failed_eviction_keeps_the_only_copy_and_wakes,
    BOUNDS,
    cpu_fault_against_a_failing_eviction,
    twins: [WakeAfterTransit]
);

/// Two workers serve faults on one page of one block: the page moves once, and the second worker goes on.
fn two_faults_on_one_block() {
    let world = World::new(2);
    world.host.mmap_with(0, RW, 7);
    world.run([
        |world| {
            world.engine(0, 0, Access::Write, |v| v + 1);
        },
        |world| {
            world.engine(1, 0, Access::Write, |v| v + 1);
        },
    ]);
    assert_eq!(world.final_value(0), Some(9), "DATA: an increment was lost, or the page was taken twice");
}

model!(
    two_faults_on_one_block_move_a_page_once,
    Bounds { preemptions: Some(2), ..BOUNDS },
    two_faults_on_one_block,
    twins: [OneMover, WakeAfterTransit]
);
