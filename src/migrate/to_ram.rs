use super::device_memory::{Extent, first_extent};
use super::read_back::read_pages;
use super::unlink::unmap_and_flush;
use super::{Retry, Space};
use crate::granule::{BlockIndex, Direction, TransitRecord};
use crate::ports::{Count, Host, HostError, StagingId, WORDS_PER_PAGE};
use crate::sync::{Rule, holds, unique_id};
use crate::units::{DeviceId, PageIndex, PageMask, Seat, VirtRange};

/// How an eviction ended.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Evicted {
    /// So many pages went to RAM.
    Pages(usize),
    /// Nothing is on the device that could go now.
    Nothing,
}

/// Brings pages of a block from its owner device to RAM. Called without gate and locks; may park on them. Returns
/// how many pages came home; pages that an invalidation took meanwhile are not counted.
///
/// # Errors
/// Why nothing was done.
pub fn to_ram<H: Host>(
    space: &Space<'_, H>,
    seat: Seat,
    index: BlockIndex,
    wanted: &PageMask,
) -> Result<usize, Retry> {
    let number = space.tables.record(index).number();
    let staging = space.host.staging_for(number, wanted).ok_or(Retry::NoStaging)?;
    let moved = move_through(space, seat, index, wanted, staging);
    space.host.staging_done(staging);
    moved
}

fn move_through<H: Host>(
    space: &Space<'_, H>,
    seat: Seat,
    index: BlockIndex,
    wanted: &PageMask,
    staging: StagingId,
) -> Result<usize, Retry> {
    let record = &space.transits[seat.0 as usize];
    let inside = space.gate.enter(seat, space.park);
    let mut block = space.tables.lock(index, space.park);
    if block.mover().is_some() {
        return Err(Retry::InTransit(block.transit_busy()));
    }
    let pages = (block.device_private() - block.in_transit()) & *wanted;
    if pages.is_empty() {
        return Ok(0);
    }
    let owner = block.owner();
    block.begin_transit(seat, record, &pages, staging, Direction::ToRam).map_err(Retry::InTransit)?;
    if holds(Rule::UnmapBeforeCopy) {
        unmap_and_flush(space, &block, owner, &pages);
    }
    drop(block);
    drop(inside);

    let copied = copy_out(space, index, record, owner, &pages, staging);
    let given = give_all(space, seat, index, record, &copied, staging);
    let kept = end(space, seat, index, owner, record, &pages);
    space.probe.add(Count::PagesToRam, given as u64);
    if copied.is_empty() && !kept.is_empty() { Err(Retry::Unreadable) } else { Ok(given) }
}

/// Copies pages out of device memory into staging; says which were copied.
fn copy_out<H: Host>(
    space: &Space<'_, H>,
    index: BlockIndex,
    record: &TransitRecord,
    owner: DeviceId,
    pages: &PageMask,
    staging: StagingId,
) -> PageMask {
    let port = space.device(owner).port;
    let number = space.tables.record(index).number();
    let mut copied = PageMask::EMPTY;
    let mut rest = *pages;
    while !rest.is_empty() {
        let block = space.tables.lock(index, space.park);
        rest &= block.transit_pages(record);
        let extent = first_extent(&block, &space.tables, &rest);
        drop(block);
        let Some(Extent { start, len, at }) = extent else { break };
        let words = space.host.moving_words(number, start..start + len, staging);
        let part = PageMask::of_range(start..start + words.len() / WORDS_PER_PAGE);
        rest -= part;
        let came = read_pages(space, port, start, at, words);
        copied |= if holds(Rule::FailedCopyKeeps) { came } else { part };
    }
    copied
}

/// Gives pages that a worker has in transit to the application, until each is given or was taken out of the
/// transit by an invalidation. Each stay inside the gate commits what it gave. Returns how many were given.
pub(super) fn give_all<H: Host>(
    space: &Space<'_, H>,
    seat: Seat,
    index: BlockIndex,
    record: &TransitRecord,
    pages: &PageMask,
    staging: StagingId,
) -> usize {
    let number = space.tables.record(index).number();
    let mut given_in_all = 0;
    let mut rest = *pages;
    loop {
        let inside = space.gate.enter(seat, space.park);
        let block = space.tables.lock(index, space.park);
        rest &= block.transit_pages(record);
        drop(block);
        if rest.is_empty() {
            return given_in_all;
        }
        let give = space.host.give(number, &rest, staging);
        let mut block = space.tables.lock(index, space.park);
        block.arrive_in_ram(record, &give.settled());
        drop(block);
        rest -= give.settled();
        given_in_all += give.given.count();
        drop(inside);
        match give.stopped {
            None => {}
            Some(HostError::Gone) => return given_in_all,
            Some(_) => space.host.pause(),
        }
    }
}

/// Ends a transit to RAM: what was not given stays device-private (its copy failed) and is not mapped. Returns that.
fn end<H: Host>(
    space: &Space<'_, H>,
    seat: Seat,
    index: BlockIndex,
    owner: DeviceId,
    record: &TransitRecord,
    pages: &PageMask,
) -> PageMask {
    let device = space.device(owner);
    let inside = space.gate.enter(seat, space.park);
    let mut block = space.tables.lock(index, space.park);
    let kept = block.transit_pages(record);
    let _ = block.end_transit(record, &PageMask::EMPTY);
    device.memory.release_unused(&mut block, &space.tables, pages, space.park);
    if block.device_private().is_empty() {
        device.order.remove(&space.tables, index, space.park);
    }
    let number = block.number();
    // While a change is under way, pages that are away may have come into the block, trapped, with nobody told yet.
    let settled = block.is_all_in_ram() && !space.host.is_changing();
    if settled || !holds(Rule::ArmedWhileAway) {
        space.host.disarm(number);
        block.set_armed(false);
    }
    let waits = block.take_cpu_waits();
    drop(block);
    drop(inside);
    space.tables.record(index).announce_transit_end(space.park);
    if waits {
        space.host.wake(number.range());
    }
    kept
}

/// The device `owner` goes, and what of a block could not be read back from its memory stays there: a touch of such a page
/// by the CPU is SIGBUS from now on (it would read zeros otherwise, once nobody serves faults any more). Returns how many
/// pages these are. Called without gate and locks, when nobody moves pages of that device any more.
pub fn abandon<H: Host>(space: &Space<'_, H>, seat: Seat, index: BlockIndex, owner: DeviceId) -> usize {
    loop {
        let inside = space.gate.enter(seat, space.park);
        let block = space.tables.lock(index, space.park);
        let left = if block.owner() == owner { block.device_private() } else { PageMask::EMPTY };
        let mut why = Ok(());
        for run in left.runs() {
            let first = block.number().page(PageIndex(run.start as u16));
            let (poisoned, result) = space.host.poison(VirtRange::of_pages(first, run.len() as u64));
            space.probe.add(Count::PagesUnreadable, poisoned);
            why = why.and(result);
        }
        drop(block);
        drop(inside);
        match why {
            Err(HostError::Changing) => space.host.pause(),
            _ => return left.count(),
        }
    }
}

/// How many of the oldest blocks an eviction looks at before it gives up.
const CANDIDATES: usize = 16;

/// Makes room on a device: brings the least recently migrated block that is not being moved, and is not `spare`,
/// to RAM.
pub fn evict_one<H: Host>(
    space: &Space<'_, H>,
    seat: Seat,
    device: DeviceId,
    spare: Option<BlockIndex>,
) -> Evicted {
    let first = if holds(Rule::SeedDecides) { 0 } else { unique_id() as usize % 2 };
    for skip in first..CANDIDATES {
        let Some(index) = space.device(device).order.oldest(&space.tables, skip, space.park) else { break };
        if Some(index) == spare {
            continue;
        }
        if let Ok(pages @ 1..) = to_ram(space, seat, index, &PageMask::FULL) {
            space.probe.add(Count::Evictions, 1);
            space.probe.add(Count::EvictedPages, pages as u64);
            return Evicted::Pages(pages);
        }
    }
    Evicted::Nothing
}
