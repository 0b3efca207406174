//! Userptrs: register, link anew, invalidate, release. The record and its rules are in `granule::userptr`.
//!
//! Workers register, revalidate and release; the reader invalidates. A userptr's pages stay in system memory unless it
//! is movable; what was on a device when it was registered comes to RAM first.

use thiserror::Error;

use super::cpu::touch;
use super::{Climb, Ladder};
use crate::granule::{Sequence, UserptrNo, UserptrSpec};
use crate::migrate::{Retry, Space, drop_userptr_pages, follow, to_ram};
use crate::ports::{Count, FaultCause, Host, HostError, Lookup, MapTarget, Mirrored, VmaKind};
use crate::units::{Access, DevAddr, DeviceId, PAGE_BYTES, PAGE_SHIFT, PhysAddr, Seat, VirtAddr, VirtRange};

/// A page of a userptr that cannot be linked, and why. Pages before it may be linked.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Error)]
#[error("the page at {at} cannot be linked: {cause}")]
pub struct UserptrFault {
    /// The first page that failed.
    pub at: VirtAddr,
    /// Why.
    pub cause: FaultCause,
}

/// Makes a userptr known. Nothing is linked yet: [`revalidate`] does that.
pub fn register<H: Host>(space: &Space<'_, H>, seat: Seat, no: UserptrNo, spec: &UserptrSpec) {
    let _inside = space.gate.enter(seat, space.park);
    space.userptrs.publish(no, spec, space.park);
}

/// Links what is not linked of `part` (a part of the userptr's range), and maps it at its device address. Returns the
/// sequence at which all of the part was linked. Called without gate and locks; may wait as `serve` does.
///
/// # Errors
/// [`UserptrFault`]; what was linked before stays linked.
pub fn revalidate<H: Host>(
    space: &Space<'_, H>,
    seat: Seat,
    no: UserptrNo,
    part: VirtRange,
) -> Result<Sequence, UserptrFault> {
    let mut ladder = Ladder::new();
    loop {
        let why = match attempt(space, seat, no, part) {
            Ok(sample) => return Ok(sample),
            Err(Stopped::Failed(fault)) => return Err(fault),
            Err(Stopped::Again(why)) => why,
        };
        let (climb, count) = ladder.climb(why);
        space.probe.add(count, 1);
        match climb {
            Climb::GiveUp => {
                let at =
                    space.userptrs.lock(no, space.park).map_or(VirtAddr(0), |held| held.spec().range.start());
                return Err(UserptrFault { at, cause: FaultCause::RetriesSpent });
            }
            _ => space.host.pause(),
        }
    }
}

enum Stopped {
    Again(Retry),
    Failed(UserptrFault),
}

fn attempt<H: Host>(
    space: &Space<'_, H>,
    seat: Seat,
    no: UserptrNo,
    part: VirtRange,
) -> Result<Sequence, Stopped> {
    let sample = space.userptrs.sample(no);
    if sample.is_invalidating() {
        return Err(Stopped::Again(Retry::Sequence));
    }
    let spec = *space
        .userptrs
        .lock(no, space.park)
        .ok_or(Stopped::Failed(UserptrFault { at: VirtAddr(0), cause: FaultCause::ShuttingDown }))?
        .spec();
    let part = part.intersection(spec.range);
    bring_to_ram(space, seat, part)?;
    let mut at = part.start();
    while at < part.end() {
        at = prepare(space, seat, &spec, VirtRange::between(at, part.end()))?;
    }
    enter(space, seat, no, part, sample)?;
    Ok(sample)
}

fn bring_to_ram<H: Host>(space: &Space<'_, H>, seat: Seat, range: VirtRange) -> Result<(), Stopped> {
    for (number, index) in space.tables.blocks_in(range) {
        loop {
            match to_ram(space, seat, index, &range.mask_in(number)) {
                // What cannot be read is found out by the touch that makes pages present.
                Ok(_) | Err(Retry::Unreadable) => break,
                Err(Retry::InTransit(busy)) => space.tables.record(index).wait_transit(busy, space.park),
                Err(why) => return Err(Stopped::Again(why)),
            }
        }
    }
    Ok(())
}

/// Looks up, populates and follows the mapping at the start of `rest`; returns where in `rest` it ends.
fn prepare<H: Host>(
    space: &Space<'_, H>,
    seat: Seat,
    spec: &UserptrSpec,
    rest: VirtRange,
) -> Result<VirtAddr, Stopped> {
    let at = rest.start();
    let failed = |cause| Stopped::Failed(UserptrFault { at, cause });
    let looked = space.host.follow_count();
    let vma = match space.host.vma(at) {
        Ok(Lookup::Mapped(vma)) => vma,
        Ok(Lookup::Hole { .. }) => return Err(failed(FaultCause::NoMapping)),
        Err(HostError::Changing) => return Err(Stopped::Again(Retry::Changing)),
        Err(_) => return Err(failed(FaultCause::OutOfMemory)),
    };
    match (vma.access, spec.access) {
        (None, _) => return Err(failed(FaultCause::NoAccess)),
        (Some(Access::Read), Access::Write) => return Err(failed(FaultCause::ReadOnly)),
        _ => {}
    }
    let part = vma.range.intersection(rest);
    match space.host.populate(part, spec.access) {
        Ok(()) => {}
        Err(HostError::Trapped) => {
            touch(space, seat, part);
            return Err(Stopped::Again(Retry::Changing));
        }
        Err(HostError::NoMapping | HostError::Changing) => return Err(Stopped::Again(Retry::Changing)),
        Err(HostError::OutOfMemory | HostError::MappingLimit) => return Err(failed(FaultCause::OutOfMemory)),
        Err(_) => return Err(failed(FaultCause::NoAccess)),
    }
    if vma.kind == VmaKind::Unfollowed {
        // No events: whoever holds the userptr has promised to keep it mapped.
        return Ok(part.end());
    }
    let _inside = space.gate.enter(seat, space.park);
    match follow(space, &vma, looked) {
        Ok(Mirrored::Already) | Err(HostError::NotSupported) => Ok(part.end()),
        Ok(Mirrored::FromNow) => Err(Stopped::Again(Retry::LookAgain)),
        Err(HostError::OutOfMemory | HostError::MappingLimit) => Err(failed(FaultCause::OutOfMemory)),
        Err(_) => Err(Stopped::Again(Retry::Changing)),
    }
}

/// Links and maps, if nothing was invalidated since `sample`.
fn enter<H: Host>(
    space: &Space<'_, H>,
    seat: Seat,
    no: UserptrNo,
    part: VirtRange,
    sample: Sequence,
) -> Result<(), Stopped> {
    let _inside = space.gate.enter(seat, space.park);
    let Some(held) = space.userptrs.lock(no, space.park) else {
        return Err(Stopped::Again(Retry::Sequence));
    };
    if !held.is_unchanged(sample) {
        return Err(Stopped::Again(Retry::Sequence));
    }
    let spec = held.spec();
    let port = space.device(spec.device).port;
    let hit = held.hit(part);
    let out_of_memory = || Stopped::Failed(UserptrFault { at: part.start(), cause: FaultCause::OutOfMemory });
    let first = PhysAddr(spec.range.start().0);
    let linked =
        held.list().link(port.iommu(), hit.clone(), first, spec.access).map_err(|_| out_of_memory())?;
    space.probe.add(Count::PagesLinked, linked);
    let target = MapTarget::System(held.list().address(hit.start));
    let at = spec.device_at + (hit.start << PAGE_SHIFT);
    port.map(at, hit.end - hit.start, target, spec.access).map_err(|_| out_of_memory())
}

/// Drops the hit pages of every userptr from its device, after the submissions that use them: device page table, flush,
/// IOMMU, bits. The rest of each userptr is not touched. Called by the reader with the gate closed. Waits for
/// submissions at most [`Space::fence_limit_ns`], then goes on without them.
pub(super) fn invalidate_userptrs<H: Host>(space: &Space<'_, H>, range: VirtRange) {
    for no in space.userptrs.numbers() {
        let Some(mut held) = space.userptrs.lock(no, space.park) else { continue };
        let hit = held.hit(range);
        if hit.is_empty() {
            continue;
        }
        held.begin_invalidation();
        while let Some((word, seen)) = space.userptrs.busy(no) {
            space.host.wait_word(word, seen, space.fence_limit_ns);
            if space.userptrs.busy(no).is_some_and(|(_, now)| now == seen) {
                break;
            }
        }
        drop_userptr_pages(space, &held, hit);
        held.end_invalidation();
    }
}

/// What one fault at an alias links anew, where it can: 64 KiB.
const UNIT_BYTES: u64 = 64 << 10;

/// A fault at a device address of the driver's choice: links the userptr's pages there anew. `None`: no userptr is there.
pub fn serve_alias<H: Host>(
    space: &Space<'_, H>,
    seat: Seat,
    at: DevAddr,
    device: DeviceId,
    access: Access,
) -> Option<Result<(), FaultCause>> {
    let no = space.userptrs.alias_at(at, device, space.park)?;
    let spec = *space.userptrs.lock(no, space.park)?.spec();
    if !spec.access.covers(access) {
        return Some(Err(FaultCause::ReadOnly));
    }
    let page = VirtRange::of_pages((spec.range.start() + at.bytes_since(spec.device_at)).page_floor(), 1);
    let unit_start = VirtAddr(page.start().0 / UNIT_BYTES * UNIT_BYTES);
    let unit = VirtRange::of_pages(unit_start, UNIT_BYTES / PAGE_BYTES).intersection(spec.range);
    // A neighbour that cannot be linked does not fail this page.
    let linked = revalidate(space, seat, no, unit).or_else(|_| revalidate(space, seat, no, page));
    Some(linked.map(drop).map_err(|fault| fault.cause))
}

/// Ends a userptr: the device loses all of it. The caller has ended its submissions.
pub fn release<H: Host>(space: &Space<'_, H>, seat: Seat, no: UserptrNo) {
    let _inside = space.gate.enter(seat, space.park);
    let Some(held) = space.userptrs.lock(no, space.park) else { return };
    let all = 0..held.spec().range.pages();
    drop_userptr_pages(space, &held, all);
    space.userptrs.retire(held);
}
