use super::userptr::invalidate_userptrs;
use crate::granule::{BlockGuard, BlockIndex};
use crate::migrate::{Space, unlink_only, unmap_and_flush};
use crate::ports::{Count, Host};
use crate::sync::{Rule, holds};
use crate::units::{BlockNo, DeviceId, PAGE_SHIFT, PageMask, VirtRange};

/// The contents of a range are gone (munmap, brk) or about to go (madvise): the device must not reach them any
/// more, and no copy of them counts. Called by the reader with the gate closed and the devices quiesced.
///
/// Order over the whole union of what was hit: device page tables, one flush per device, IOMMU, bits, device
/// memory.
pub fn invalidate<H: Host>(space: &Space<'_, H>, range: VirtRange) {
    forget_contents(space, range, |_, _| {});
    super::remap::forget_homecomings(space, range);
}

/// As [`invalidate`], but calls `save` for each block, under its lock, after the device lost access and before
/// anything is forgotten.
pub fn forget_contents<H: Host>(
    space: &Space<'_, H>,
    range: VirtRange,
    mut save: impl FnMut(&BlockGuard<'_>, &PageMask),
) {
    space.probe.add(Count::Invalidations, 1);
    invalidate_userptrs(space, range);
    for (number, index) in space.tables.blocks_in(range) {
        space.tables.lock(index, space.park).begin_invalidation();
        for device in space.device_ids() {
            unmap(space, device, number, index, range);
        }
    }
    for device in space.device_ids() {
        // Over the union of everything that was unmapped above.
        if let Some(union) = touched(space, range) {
            space.device(device).port.flush(union.start().into(), union.pages());
        }
    }
    for (number, index) in space.tables.blocks_in(range) {
        let hit = range.mask_in(number);
        let mut block = space.tables.lock(index, space.park);
        if !block.is_invalidating() {
            // A fault made this record since the first pass: outside the gate, which is closed, so that no page of it
            // is known to a device, and after the mapping had changed, so that its sample is good.
            continue;
        }
        for device in space.device_ids() {
            let mapped = block.dma_mapped(device) & hit;
            if !mapped.is_empty() {
                unlink_only(space, &mut block, device, &mapped);
            }
        }
        save(&block, &hit);
        let private = block.device_private() & hit;
        space.count_pages(Count::InvalidatedPages, &private);
        block.forget(&hit, space.transits);
        give_slots_back(space, &mut block, index, &hit);
        if !holds(Rule::DisarmedLast) && block.is_all_in_ram() && block.is_armed() {
            space.host.disarm(number);
            block.set_armed(false);
        }
        block.end_invalidation();
        let waits = block.take_cpu_waits();
        drop(block);
        if waits {
            space.host.wake(number.range());
        }
    }
}

fn unmap<H: Host>(
    space: &Space<'_, H>,
    device: DeviceId,
    number: BlockNo,
    index: BlockIndex,
    range: VirtRange,
) {
    let block = space.tables.lock(index, space.park);
    let known = (block.dma_mapped(device) | block.device_private()) & range.mask_in(number);
    for run in known.runs() {
        let first = number.page(crate::units::PageIndex(run.start as u16));
        space.device(device).port.unmap(first.into(), run.len() as u64);
    }
}

/// The part of a range in which blocks are known.
fn touched<H: Host>(space: &Space<'_, H>, range: VirtRange) -> Option<VirtRange> {
    let mut blocks = space.tables.blocks_in(range);
    let (first, _) = blocks.next()?;
    let last = blocks.last().map_or(first, |(last, _)| last);
    Some(range.intersection(VirtRange::between(first.base(), last.range().end())))
}

/// After `pages` left a device: gives back what holds nothing any more.
pub(super) fn settle<H: Host>(
    space: &Space<'_, H>,
    block: &mut BlockGuard<'_>,
    index: BlockIndex,
    pages: &PageMask,
) {
    give_slots_back(space, block, index, pages);
    // While a change is under way, pages that are away may have come into the block, trapped, with nobody told yet.
    if block.is_all_in_ram() && block.is_armed() && !space.host.is_changing() {
        space.host.disarm(block.number());
        block.set_armed(false);
    }
}

fn give_slots_back<H: Host>(
    space: &Space<'_, H>,
    block: &mut BlockGuard<'_>,
    index: BlockIndex,
    pages: &PageMask,
) {
    if block.slot_kind().is_some() {
        let owner = space.device(block.owner());
        owner.memory.release_unused(block, &space.tables, pages, space.park);
        if block.device_private().is_empty() {
            owner.order.remove(&space.tables, index, space.park);
        }
    }
}

/// Ends the traps of blocks of a range that have nothing on a device and nothing on its way any more. Called by the
/// reader when every event that was read is applied, and not before: mremap may have brought pages that are away, with
/// their trap, into a block that an event before it emptied. Until they are marked in transit nothing else says so, and
/// a touch that is not trapped would find zeros in their place.
pub(super) fn disarm_settled<H: Host>(space: &Space<'_, H>, range: VirtRange) {
    for (number, index) in space.tables.blocks_in(range) {
        let mut block = space.tables.lock(index, space.park);
        if block.is_all_in_ram() && block.is_armed() {
            space.host.disarm(number);
            block.set_armed(false);
        }
    }
}

/// Takes the device's access to resident pages away, so that their copy in device memory is final. Under the
/// block lock.
pub(super) fn freeze<H: Host>(space: &Space<'_, H>, block: &BlockGuard<'_>, pages: &PageMask) {
    debug_assert!(block.device_private().covers(pages));
    debug_assert!((pages.count() << PAGE_SHIFT) > 0);
    if holds(Rule::UnmapBeforeCopy) {
        unmap_and_flush(space, block, block.owner(), pages);
    }
}
