//! What must be true of a block whenever its lock can be had, and of everything once nobody does anything any more.

use granule::granule::{BlockIndex, check_block};
use granule::migrate::{Space, to_ram};
use granule::ports::MapTarget;
use granule::units::{BlockNo, PageMask, Seat};

use super::host::SimHost;
use super::oracle::Checker;
use super::plan::Habit;
use super::world::{AWAY, POISONED, PRESENT, TRAPPED, World, page_of};

/// Looks a block over, under its lock, and inside the gate: what was read is applied.
pub fn block(world: &World, space: &Space<'_, SimHost<'_>>, seat: Seat, index: BlockIndex) {
    let _inside = space.gate.enter(seat, space.park);
    let block = space.tables.lock(index, space.park);
    let mut state = world.state();
    if let Err(broken) = check_block(&block) {
        state.violate(Checker::Account, broken.to_string());
    }
    if block.is_invalidating() || state.kernel.changing > 0 {
        return;
    }
    let away = block.device_private() - block.in_transit();
    for index in away.pages() {
        let page = page_of(block.number().page(index).0).expect("devices get pages of the arena");
        let here = state.kernel.pages[page];
        if here.mapping != 0 && here.has(PRESENT) {
            state.violate(Checker::DoubleOwner, format!("page {page} is on a device and in system memory"));
        }
        if here.mapping != 0 && !here.has(TRAPPED) {
            state.violate(Checker::Conduct, format!("page {page} is on a device and would not trap"));
        }
    }
}

/// Looks everything over. Nobody runs any more, and nothing fails any more.
pub fn end(world: &World, space: &Space<'_, SimHost<'_>>) {
    world.state().is_closing = true;
    rest(world, space);
    translations(world, space);
    homes(world, space);
}

fn rest(world: &World, space: &Space<'_, SimHost<'_>>) {
    let mut state = world.state();
    let mut left = Vec::new();
    if !state.kernel.events.is_empty() {
        left.push("an event that nobody read".to_owned());
    }
    if let Some((page, _)) = state.kernel.waiting.first() {
        left.push(format!("a thread that waits for page {page}"));
    }
    if state.kernel.slots.contains(&true) {
        left.push("a staging slot in use".to_owned());
    }
    if !space.homecomings.is_empty() {
        left.push("pages on their way home".to_owned());
    }
    if state.kernel.children.iter().any(|child| !child.is_done) {
        left.push("a child that was not let go".to_owned());
    }
    if state.devices.iter().any(|device| !device.is_at_rest()) {
        left.push("a device with faults, or stopped".to_owned());
    }
    if !left.is_empty() {
        state.violate(Checker::Account, format!("at the end there is {}", left.join(", ")));
    }
    let (wakes, queued) = (
        state.kernel.block_wakes,
        state.counts.of_library(granule::ports::Count::CpuFaultsQueued) + state.kernel.presents,
    );
    if wakes > queued {
        let what = format!("blocks were woken {wakes} times for {queued} faults that were queued on them");
        state.violate(Checker::Wake, what);
    }
}

/// Device page tables, TLBs and IOMMUs hold what the blocks say, and nothing else.
fn translations(world: &World, space: &Space<'_, SimHost<'_>>) {
    let mut linked = vec![0; space.devices.len()];
    for index in space.tables.all_blocks() {
        let block = space.tables.lock(index, space.park);
        let mut state = world.state();
        if !block.in_transit().is_empty() || block.mover().is_some() || block.is_invalidating() {
            state.violate(Checker::Account, format!("{} is in transit when nobody moves it", block.number()));
        }
        if let Err(broken) = check_block(&block) {
            state.violate(Checker::Account, broken.to_string());
        }
        for index in block.device_private().pages() {
            let page = page_of(block.number().page(index).0);
            let here = page.map(|page| state.kernel.pages[page]);
            if here.is_none_or(|here| here.mapping == 0 || !here.has(AWAY) || here.has(PRESENT)) {
                let what = format!("page {page:?} is on a device, and nobody took it");
                state.violate(Checker::DoubleOwner, what);
            }
        }
        for device in space.device_ids() {
            let no = device.0 as usize;
            let mapped = block.dma_mapped(device);
            linked[no] += mapped.count();
            let owned = block.slot_kind().is_some() && block.owner() == device;
            let private = if owned { block.device_private() } else { PageMask::EMPTY };
            for index in PageMask::FULL.pages() {
                let Some(page) = page_of(block.number().page(index).0) else { continue };
                let (table, cached) = (state.devices[no].translation(page), state.devices[no].cached(page));
                let may = match table {
                    None => true,
                    Some((MapTarget::DeviceMemory(_), _)) => private.contains(index),
                    Some((MapTarget::System(_), _)) => mapped.contains(index),
                };
                let stale = cached.is_some() && cached != table && table.is_none();
                if !may || stale {
                    let what = format!("device {no} has a translation of page {page} that leads nowhere");
                    state.violate(Checker::StaleMapping, what);
                }
            }
        }
    }
    let mut state = world.state();
    for (no, linked) in linked.into_iter().enumerate() {
        let there = state.devices[no].linked_pages();
        if there != linked {
            let what = format!("the IOMMU of device {no} maps {there} pages, and {linked} are linked");
            state.violate(Checker::Account, what);
        }
    }
}

/// Every page comes home with its newest contents, and device memory is free then.
fn homes(world: &World, space: &Space<'_, SimHost<'_>>) {
    if world.state().violation.is_some() {
        return;
    }
    for index in space.tables.all_blocks() {
        let number: BlockNo = space.tables.record(index).number();
        if let Err(why) = to_ram(space, Seat(0), index, &PageMask::FULL) {
            let what = format!("{number} cannot be brought home: {why:?}");
            world.state().violate(Checker::Account, what);
        }
    }
    let mut state = world.state();
    for page in 0..state.kernel.pages.len() {
        let here = state.kernel.pages[page];
        if here.mapping == 0 {
            continue;
        }
        // What a device did not give when its page was moved is lost, and the page says so.
        let copies_fail = state.habits.has(Habit::Copies);
        if copies_fail && !here.has(PRESENT) && here.has(POISONED) && state.oracle.was_moved(here.life) {
            continue;
        }
        let newest = state.oracle.newest(here.life);
        let is_right =
            if here.has(PRESENT) { here.value == newest } else { !state.oracle.was_written(here.life) };
        if !is_right {
            let poisoned = if here.has(POISONED) { ", poisoned" } else { "" };
            let what = format!("page {page} is home without what was written to it{poisoned}");
            state.violate(Checker::LostWrite, what);
        }
        if here.has(AWAY) {
            state.violate(Checker::Account, format!("page {page} was taken and never given"));
        }
    }
    for (no, device) in space.devices.iter().enumerate() {
        let used = device.memory.used_pages();
        if used != 0 {
            let what = format!("{used} pages of the memory of device {no} are in use, and nothing is there");
            state.violate(Checker::Account, what);
        }
    }
}
