//! Who gets which device memory, and in which order blocks leave it, with several workers.
#![cfg(not(granule_loom))]

mod support;

use granule::granule::{BlockIndex, SlotKind};
use granule::migrate::{DeviceFull, Space, Wish};
use granule::policy::LinkOnly;
use granule::ports::NoProbe;
use granule::units::{BlockNo, DeviceId, PAGES_PER_BLOCK, PAGES_PER_SLOT_64K, PageMask, Seat};
use support::{SimDevice, SimHost, SimMemory, words};

const SEATS: u16 = 4;
/// As much device memory, so that two workers have chunks of their own.
const CHUNKS: usize = 16;
const SLOTS_PER_CHUNK: usize = PAGES_PER_BLOCK / PAGES_PER_SLOT_64K;

fn with_space(blocks: usize, body: impl FnOnce(&Space<'_, SimHost>, &[BlockIndex])) {
    let host = SimHost::new(words(PAGES_PER_BLOCK));
    let device = SimDevice::new(words(CHUNKS * PAGES_PER_BLOCK));
    let memory = SimMemory::new(blocks, SEATS as usize, &device);
    let devices = [memory.device(&device)];
    let space = memory.space(&host, &devices, &LinkOnly, &NoProbe);
    let indices: Vec<_> = (0..blocks as u32)
        .map(|block| space.tables.block_or_make(BlockNo(block), space.park).expect("as many as there are"))
        .collect();
    body(&space, &indices);
}

/// Gets device memory for the 64 KiB slots of a range of a block.
fn reserve(
    space: &Space<'_, SimHost>,
    index: BlockIndex,
    slots: std::ops::Range<usize>,
    seat: u16,
) -> Result<(), DeviceFull> {
    let wish = Wish { kind: SlotKind::Kib64, device: DeviceId(0), seat: Seat(seat) };
    let pages = PageMask::of_range(slots.start * PAGES_PER_SLOT_64K..slots.end * PAGES_PER_SLOT_64K);
    let mut block = space.tables.lock(index, space.park);
    space.devices[0].memory.reserve(&mut block, &space.tables, &pages, wish, space.park)
}

fn release(space: &Space<'_, SimHost>, index: BlockIndex) {
    let mut block = space.tables.lock(index, space.park);
    space.devices[0].memory.release_unused(&mut block, &space.tables, &PageMask::FULL, space.park);
}

fn touch(space: &Space<'_, SimHost>, index: BlockIndex, seat: u16) {
    let _block = space.tables.lock(index, space.park);
    space.devices[0].order.touch(&space.tables, index, Seat(seat), space.park);
}

fn order(space: &Space<'_, SimHost>) -> Vec<u32> {
    let oldest = |skip| space.devices[0].order.oldest(&space.tables, skip, space.park);
    (0..).map_while(oldest).map(|index| index.0).collect()
}

#[test]
fn workers_that_take_turns_use_every_slot_and_then_memory_is_full() {
    with_space(CHUNKS + 1, |space, blocks| {
        for slot in 0..SLOTS_PER_CHUNK {
            for (at, index) in blocks[..CHUNKS].iter().enumerate() {
                let seat = (at + slot) as u16 % SEATS;
                assert_eq!(reserve(space, *index, slot..slot + 1, seat), Ok(()), "slot {slot} of block {at}");
            }
        }
        assert_eq!(space.devices[0].memory.used_pages(), space.devices[0].memory.total_pages());
        for seat in 0..SEATS {
            assert_eq!(reserve(space, blocks[CHUNKS], 0..1, seat), Err(DeviceFull));
        }
        // One slot comes free, in a chunk that another worker holds: whoever asks gets it.
        release(space, blocks[3]);
        assert_eq!(reserve(space, blocks[CHUNKS], 0..SLOTS_PER_CHUNK, 2), Ok(()));
        assert_eq!(reserve(space, blocks[3], 0..1, 1), Err(DeviceFull));
    });
}

#[test]
fn memory_is_handed_out_once_when_many_take_it_at_the_same_time() {
    with_space(CHUNKS, |space, blocks| {
        for _ in 0..20 {
            std::thread::scope(|scope| {
                for seat in 0..SEATS {
                    scope.spawn(move || {
                        for slot in 0..SLOTS_PER_CHUNK {
                            for index in blocks.iter().skip(seat as usize).step_by(SEATS as usize) {
                                reserve(space, *index, slot..slot + 1, seat).expect("there is just enough");
                            }
                        }
                    });
                }
            });
            // Just enough was there: had a slot been handed out twice, one would be left, and freeing it twice asserts.
            assert_eq!(space.devices[0].memory.used_pages(), space.devices[0].memory.total_pages());
            blocks.iter().for_each(|index| release(space, *index));
            assert_eq!(space.devices[0].memory.used_pages(), 0);
        }
    });
}

#[test]
fn one_workers_blocks_leave_in_the_order_in_which_they_were_migrated_last() {
    with_space(8, |space, blocks| {
        for at in [0, 1, 2, 3, 1, 1, 0, 4] {
            touch(space, blocks[at], 0);
        }
        assert_eq!(order(space), [2, 3, 1, 0, 4]);
        let _block = space.tables.lock(blocks[3], space.park);
        space.devices[0].order.remove(&space.tables, blocks[3], space.park);
        space.devices[0].order.remove(&space.tables, blocks[3], space.park);
        assert_eq!(order(space), [2, 1, 0, 4], "what is not in is not taken out again");
    });
}

#[test]
fn blocks_of_several_workers_leave_by_age_and_a_block_belongs_to_who_migrated_it_last() {
    // The clock moves on after 16 appends of one worker: what was migrated before that is older.
    const TICK: u32 = 16;
    with_space(3 * TICK as usize, |space, blocks| {
        for round in 0..3 {
            let seat = [2, 0, 1][round as usize];
            for block in round * TICK..(round + 1) * TICK {
                touch(space, blocks[block as usize], seat);
            }
        }
        assert_eq!(order(space), (0..3 * TICK).collect::<Vec<_>>(), "by age, whoever migrated them");
        touch(space, blocks[0], 1);
        assert_eq!(order(space).last(), Some(&0), "another worker migrated it last");
        assert_eq!(order(space).len(), 3 * TICK as usize);
    });
}
