use super::device_memory::{Extent, Wish, extents, first_extent};
use super::follow;
use super::space::device_access;
use super::unlink::{drop_from_userptrs, unlink};
use super::{DeviceFull, Moved, Retry, Space};
use crate::granule::{BlockIndex, Direction, Sequence, SlotKind, TransitRecord};
use crate::policy::Granularity;
use crate::ports::{
    Count, FaultCause, FollowCount, Host, HostError, MapTarget, Mirrored, StagingId, Take, Vma,
    WORDS_PER_PAGE,
};
use crate::sync::{Rule, holds};
use crate::units::{DeviceId, PAGE_SHIFT, PageIndex, PageMask, Seat};

/// What is to be moved.
#[derive(Clone, Copy, Debug)]
pub struct ToDevice<'a> {
    /// The block.
    pub block: BlockIndex,
    /// Its pages, all of one mapping.
    pub pages: PageMask,
    /// Whose memory they go to.
    pub device: DeviceId,
    /// The mapping as it was looked up.
    pub vma: &'a Vma,
    /// Read before it was looked up.
    pub looked: FollowCount,
    /// The block's sequence before it was looked up.
    pub sample: Sequence,
}

/// Moves pages of system memory into device memory and maps them there. Called without gate and locks; may park
/// on them.
pub fn to_device<H: Host>(space: &Space<'_, H>, seat: Seat, job: &ToDevice<'_>) -> Moved {
    let Some(staging) = space.host.staging(&job.pages) else { return Moved::retry(Retry::NoStaging) };
    let moved = move_through(space, seat, job, staging);
    space.host.staging_done(staging);
    moved
}

fn move_through<H: Host>(space: &Space<'_, H>, seat: Seat, job: &ToDevice<'_>, staging: StagingId) -> Moved {
    let record = &space.transits[seat.0 as usize];
    let Begun { pages, take, pinned, first } = match begin_and_take(space, seat, job, staging, record) {
        Ok(begun) => begun,
        Err(stopped) => return stopped.into(),
    };
    let number = space.tables.record(job.block).number();
    let gone = if space.host.takes_by_protecting() {
        let copied = space.host.copy_taken(number, &take.taken);
        let owned = still_owned(space, seat, job, record) & copied;
        space.host.drop_taken(number, &owned) & owned
    } else {
        take.taken
    };
    let first = first.filter(|_| gone == pages);
    let copied = copy_in(space, job, &gone, first, staging);
    let undone = take.taken - copied;
    if !undone.is_empty() {
        super::to_ram::give_all(space, seat, job.block, record, &undone, staging);
    }
    let mut moved = commit(space, seat, job, record, &pages, &copied);
    moved.refused = take.refused | pinned | (take.taken - gone);
    space.count_pages(Count::PagesRefused, &take.refused);
    if copied != gone {
        moved.failed = Some(FaultCause::DeviceFailed);
    } else if take.taken | take.refused != pages {
        moved.retry = Some(Retry::Changing);
        if let Some(HostError::OutOfMemory | HostError::MappingLimit) = take.stopped {
            moved.failed = Some(FaultCause::OutOfMemory);
        }
    }
    moved
}

/// Why nothing was taken.
enum Stopped {
    Retry(Retry),
    Failed(FaultCause),
    /// A userptr keeps these in system memory; the others are on the device already.
    Refused(PageMask),
}

impl From<Stopped> for Moved {
    fn from(stopped: Stopped) -> Self {
        match stopped {
            Stopped::Retry(why) => Self { retry: Some(why), ..Self::default() },
            Stopped::Failed(why) => Self { failed: Some(why), ..Self::default() },
            Stopped::Refused(refused) => Self { refused, ..Self::default() },
        }
    }
}

/// A transit that has begun.
struct Begun {
    /// The pages in transit.
    pages: PageMask,
    /// What was taken of them.
    take: Take,
    /// Pages that a userptr keeps in system memory.
    pinned: PageMask,
    /// Where the first of `pages` go: most transits are of one extent, and need not look for it again.
    first: Option<Extent>,
}

/// Begin and take, in one stay inside the gate.
fn begin_and_take<H: Host>(
    space: &Space<'_, H>,
    seat: Seat,
    job: &ToDevice<'_>,
    staging: StagingId,
    record: &TransitRecord,
) -> Result<Begun, Stopped> {
    let device = space.device(job.device);
    let _inside = space.gate.enter(seat, space.park);
    if follow(space, job.vma, job.looked).map_err(refused_by_host)? == Mirrored::FromNow {
        return Err(Stopped::Retry(Retry::LookAgain));
    }
    let mut block = space.tables.lock(job.block, space.park);
    if !block.is_unchanged(job.sample) {
        return Err(Stopped::Retry(Retry::Sequence));
    }
    let here = block.device_private();
    if !here.is_empty() && block.owner() != job.device {
        return Err(Stopped::Retry(Retry::OtherOwner));
    }
    let pinned = space.userptrs.pinned_in(block.number(), space.park);
    let pages = job.pages - here - pinned;
    if pages.is_empty() {
        return Err(Stopped::Refused(job.pages & pinned));
    }
    if block.is_busy(&pages) {
        return Err(Stopped::Retry(Retry::InTransit(block.transit_busy())));
    }
    for each in block.devices() {
        unlink(space, &mut block, each, &pages);
    }
    drop_from_userptrs(space, block.number(), &pages);
    let wish = Wish { kind: slot_wish(space.policy.granularity(), &pages), device: job.device, seat };
    device
        .memory
        .reserve(&mut block, &space.tables, &pages, wish, space.park)
        .map_err(|DeviceFull| Stopped::Retry(Retry::DeviceFull))?;
    if let Err(error) = arm(space, job, &mut block) {
        device.memory.release_unused(&mut block, &space.tables, &pages, space.park);
        return Err(refused_by_host(error));
    }
    if let Err(busy) = block.begin_transit(seat, record, &pages, staging, Direction::ToDevice) {
        return Err(Stopped::Retry(Retry::InTransit(busy)));
    }
    let first = first_extent(&block, &space.tables, &pages);
    let number = block.number();
    drop(block);
    let mut take = space.host.take(number, &pages, staging);
    if !holds(Rule::PartialIsPartial) {
        take.taken = pages;
    }
    if take.taken != pages {
        // Still inside the gate: from here on everything of the transit is in staging, as whoever looks for it there
        // (mremap, fork) relies on.
        let mut block = space.tables.lock(job.block, space.park);
        block.arrive_in_ram(record, &(pages - take.taken));
    }
    Ok(Begun { pages, take, pinned: job.pages & pinned, first })
}

/// What of a transit is its worker's at a moment at which no change of the address space is under way. What he drops then
/// stands in the mapping that he took it from, unless another thread is quicker than his next call.
fn still_owned<H: Host>(
    space: &Space<'_, H>,
    seat: Seat,
    job: &ToDevice<'_>,
    record: &TransitRecord,
) -> PageMask {
    loop {
        let inside = space.gate.enter(seat, space.park);
        if !space.host.is_changing() {
            return space.tables.lock(job.block, space.park).transit_pages(record);
        }
        drop(inside);
        space.host.pause();
    }
}

/// Traps touches of absent pages in the mapping's part of the block, before the first page is taken.
fn arm<H: Host>(
    space: &Space<'_, H>,
    job: &ToDevice<'_>,
    block: &mut crate::granule::BlockGuard<'_>,
) -> Result<(), HostError> {
    let part = job.vma.range.intersection(space.host.window()).intersection(block.number().range());
    // Asked each time: a part of an armed block may be a new mapping, which is not.
    space.host.arm(part)?;
    block.set_armed(true);
    Ok(())
}

fn slot_wish(granularity: Granularity, pages: &PageMask) -> SlotKind {
    match granularity {
        Granularity::Mib2 if pages.is_full() => SlotKind::Mib2,
        Granularity::Mib2 | Granularity::Kib64 => SlotKind::Kib64,
        Granularity::Kib4 => SlotKind::Kib4,
    }
}

fn refused_by_host(error: HostError) -> Stopped {
    match error {
        HostError::Changing | HostError::NoMapping | HostError::Trapped => Stopped::Retry(Retry::Changing),
        HostError::OutOfMemory | HostError::MappingLimit => Stopped::Failed(FaultCause::OutOfMemory),
        HostError::NotSupported => Stopped::Failed(FaultCause::NoEvents),
        HostError::Gone => Stopped::Failed(FaultCause::ShuttingDown),
        HostError::NotPermitted | HostError::Present => Stopped::Failed(FaultCause::NoAccess),
    }
}

/// Copies what was taken, run by run, and says which pages are in device memory now. `known` is where the first of them
/// go, if that is known.
fn copy_in<H: Host>(
    space: &Space<'_, H>,
    job: &ToDevice<'_>,
    taken: &PageMask,
    mut known: Option<Extent>,
    staging: StagingId,
) -> PageMask {
    let port = space.device(job.device).port;
    let number = space.tables.record(job.block).number();
    let mut copied = PageMask::EMPTY;
    let mut rest = *taken;
    while let Some(first) = rest.first() {
        // The slots of pages in transit are the mover's: only finding them needs the lock, not copying.
        let extent = known
            .take()
            .or_else(|| first_extent(&space.tables.lock(job.block, space.park), &space.tables, &rest));
        let Extent { start, len, at } = extent.expect("a non-empty mask has a first extent");
        debug_assert_eq!(start, first.0 as usize);
        let words = space.host.moving_words(number, start..start + len, staging);
        let part = PageMask::of_range(start..start + words.len() / WORDS_PER_PAGE);
        rest -= part;
        if port.copy_in(at, words).is_err() {
            break;
        }
        copied |= part;
    }
    copied
}

fn commit<H: Host>(
    space: &Space<'_, H>,
    seat: Seat,
    job: &ToDevice<'_>,
    record: &TransitRecord,
    pages: &PageMask,
    copied: &PageMask,
) -> Moved {
    let device = space.device(job.device);
    let inside = space.gate.enter(seat, space.park);
    let mut block = space.tables.lock(job.block, space.park);
    let arrived = block.end_transit(record, copied);
    if arrived != *pages || block.take_release_later() {
        device.memory.release_unused(&mut block, &space.tables, pages, space.park);
    }
    let mut moved = Moved { arrived, ..Moved::default() };
    if map_resident(space, &block, job.device, &arrived, job.vma).is_err() {
        moved.failed = Some(FaultCause::DeviceFailed);
        moved.arrived = PageMask::EMPTY;
    }
    if !arrived.is_empty() {
        device.order.touch(&space.tables, job.block, seat, space.park);
    }
    let waits = block.take_cpu_waits();
    let number = block.number();
    drop(block);
    drop(inside);
    space.tables.record(job.block).announce_transit_end(space.park);
    if waits {
        space.host.wake(number.range());
    }
    space.count_pages(Count::PagesToDevice, &arrived);
    moved
}

/// Maps pages anew that are on the device already: their translation was dropped, or another fault was quicker. All of
/// them, or none if one has left meanwhile. Called without gate and locks.
pub(crate) fn map_again<H: Host>(space: &Space<'_, H>, seat: Seat, job: &ToDevice<'_>) -> Moved {
    let _inside = space.gate.enter(seat, space.park);
    let block = space.tables.lock(job.block, space.park);
    let here = block.device_private() - block.in_transit();
    if !block.is_unchanged(job.sample) || !here.covers(&job.pages) || block.owner() != job.device {
        return Moved::retry(Retry::Sequence);
    }
    match map_resident(space, &block, job.device, &job.pages, job.vma) {
        Ok(()) => Moved { arrived: job.pages, ..Moved::default() },
        Err(_) => Moved::failed(FaultCause::DeviceFailed),
    }
}

/// Enters device-private pages into the device page table.
///
/// # Errors
/// What the device says; pages entered before it stay entered.
fn map_resident<H: Host>(
    space: &Space<'_, H>,
    block: &crate::granule::BlockGuard<'_>,
    device: DeviceId,
    pages: &PageMask,
    vma: &Vma,
) -> Result<(), crate::ports::DeviceError> {
    let port = space.device(device).port;
    let access = device_access(vma.access);
    extents(block, &space.tables, pages, |start, len, at| {
        let here = block.number().page(PageIndex(start as u16));
        debug_assert!((len << PAGE_SHIFT) > 0);
        port.map(here.into(), len as u64, MapTarget::DeviceMemory(at), access)
    })
}
