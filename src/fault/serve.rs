use super::link::{Link, link};
use super::{BlockFault, Climb, Ladder, classify};
use crate::granule::BlockIndex;
use crate::migrate::{Evicted, Moved, Retry, Space, ToDevice, evict_one, map_again, to_device, to_ram};
use crate::policy::{DeviceFaultView, Place};
use crate::ports::{Count, DeviceFault, FaultCause, Host, HostError, Lookup, Vma, VmaKind};
use crate::sync::{Rule, holds};
use crate::units::{Access, DeviceId, GRANULE_BYTES, PageIndex, PageMask, Seat, VirtAddr, VirtRange};

/// What became of the faulted pages: each is served, or failed with one cause.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
#[must_use = "failed pages are to be cancelled"]
pub struct Answer {
    /// The device may access these.
    pub served: PageMask,
    /// All pages that failed.
    failed: PageMask,
    /// Why: bit *i* of a failed page's cause, by its number, is in plane *i*.
    causes: [PageMask; CAUSE_BITS],
}

/// Bits of the number of a cause.
const CAUSE_BITS: usize = 1 + FaultCause::COUNT.ilog2() as usize;

impl Answer {
    /// Why a page failed, if it did.
    pub fn cause(&self, page: PageIndex) -> Option<FaultCause> {
        let bit = |plane: usize| usize::from(self.causes[plane].contains(page)) << plane;
        let number: usize = (0..CAUSE_BITS).map(bit).sum();
        self.failed.contains(page).then(|| FaultCause::ALL[number - 1])
    }
    /// Why a fault failed, if it did: one that reads a page is not hurt by another that cannot write it. It is served at
    /// its next try, alone.
    pub fn cause_of(&self, fault: &DeviceFault) -> Option<FaultCause> {
        let cause = self.cause(PageIndex::of(VirtAddr(fault.at.0)))?;
        (cause != FaultCause::ReadOnly || fault.access == Access::Write).then_some(cause)
    }
    /// All pages that failed.
    pub fn failed(&self) -> PageMask {
        self.failed
    }
    /// Pages that failed already keep their first cause.
    fn fail(&mut self, pages: &PageMask, cause: FaultCause) {
        let pages = *pages - self.failed;
        self.failed |= pages;
        for (bit, plane) in self.causes.iter_mut().enumerate() {
            if cause as usize >> bit & 1 != 0 {
                *plane |= pages;
            }
        }
    }
}

/// What one try did.
enum Try {
    /// Some pages were answered.
    Answered,
    /// None; try again after this.
    Again(Retry),
}

/// What the tries so far found out.
struct Tries {
    /// Whether there is room on the device, as far as is known.
    may_move: bool,
    /// Pages that were refused once and made private again since.
    unshared: PageMask,
    /// How often in a row nothing came home from the device that has the block.
    barren: u32,
}

/// After so many vain attempts in a row the other device counts as one that does not give its pages back.
const BARREN: u32 = 4;

/// Serves the faults of one device on one block, until every page has its answer. Called by a worker without gate
/// and locks. Parks on the gate, on block locks and on transits of others; each of these ends without this
/// thread.
pub fn serve<H: Host>(space: &Space<'_, H>, seat: Seat, fault: &BlockFault) -> Answer {
    let mut answer = Answer::default();
    let index = match prepare(space, fault) {
        Ok(index) => index,
        Err(cause) => {
            answer.fail(&fault.faulted, cause);
            return answer;
        }
    };
    let mut ladder = Ladder::new();
    let mut tries = Tries { may_move: true, unshared: PageMask::EMPTY, barren: 0 };
    loop {
        let pending = fault.faulted - answer.served - answer.failed();
        if pending.is_empty() {
            break;
        }
        let Try::Again(why) = attempt(space, seat, fault, index, &pending, &mut tries, &mut answer) else {
            continue;
        };
        let (climb, count) = ladder.climb(why);
        space.probe.add(count, 1);
        match climb {
            Climb::Again => {}
            Climb::Pause => space.host.pause(),
            Climb::WaitTransit(busy) => space.tables.record(index).wait_transit(busy, space.park),
            Climb::Evict => {
                tries.may_move = make_room(space, seat, fault.device, index);
            }
            Climb::BringHome => {
                let home = to_ram(space, seat, index, &PageMask::FULL);
                tries.barren = if home == Err(Retry::Unreadable) { tries.barren + 1 } else { 0 };
                // What else the block holds can be linked beside the pages that are stuck.
                tries.may_move &= tries.barren < BARREN;
            }
            Climb::GiveUp => answer.fail(&pending, FaultCause::RetriesSpent),
        }
    }
    space.count_pages(Count::FaultsFailed, &answer.failed());
    answer
}

/// Makes room on a device for pages of a block; `false` if they are to be linked instead. A device that cannot link
/// them has no other way: then this block's own pages make room, and at the worst those that move at this moment.
fn make_room<H: Host>(space: &Space<'_, H>, seat: Seat, device: DeviceId, index: BlockIndex) -> bool {
    if evict_one(space, seat, device, Some(index)) != Evicted::Nothing {
        return true;
    }
    if space.device(device).port.caps().links_any {
        return false;
    }
    if evict_one(space, seat, device, None) == Evicted::Nothing {
        space.host.pause();
    }
    true
}

/// Whether the device may access every page of a fault at this moment, as far as the block's bits say.
pub fn is_served<H: Host>(space: &Space<'_, H>, fault: &BlockFault) -> bool {
    let Some(index) = space.tables.block(fault.block) else { return false };
    let seen = classify(&space.tables.lock(index, space.park), fault.device, &fault.faulted, &fault.written);
    (seen.resident | seen.linked) == fault.faulted
}

/// The block's record, and step one of two-step DMA: the first fault in a granule reserves all of it.
fn prepare<H: Host>(space: &Space<'_, H>, fault: &BlockFault) -> Result<BlockIndex, FaultCause> {
    if !space.host.window().covers(fault.block.range()) {
        return Err(FaultCause::OutsideWindow);
    }
    let index = space.tables.block_or_make(fault.block, space.park).map_err(|_| FaultCause::OutOfMemory)?;
    let granule = space.tables.granule(fault.block.granule()).ok_or(FaultCause::OutOfMemory)?;
    let iova = space.device(fault.device).iova;
    let (_, is_new) = space
        .tables
        .reserve_once(granule, fault.device, space.park, || iova.reserve(GRANULE_BYTES, GRANULE_BYTES))
        .map_err(|_| FaultCause::OutOfMemory)?;
    space.probe.add(Count::GranulesReserved, u64::from(is_new));
    Ok(index)
}

/// Lookup, classify, decide, and one move or link, for the mapping that holds the first pending page.
fn attempt<H: Host>(
    space: &Space<'_, H>,
    seat: Seat,
    fault: &BlockFault,
    index: BlockIndex,
    pending: &PageMask,
    tries: &mut Tries,
    answer: &mut Answer,
) -> Try {
    let sample = space.tables.record(index).sample();
    if sample.is_invalidating() {
        return Try::Again(Retry::Sequence);
    }
    let looked = space.host.follow_count();
    let (vma, mapping) = match lookup(space, fault, pending, answer) {
        Ok(found) => found,
        Err(outcome) => return outcome,
    };
    let faulted = *pending & mapping;
    let written = fault.written & faulted;

    // Only a look, so outside of the gate: whatever is done about what is seen checks the sequence again.
    let block = space.tables.lock(index, space.park);
    if !block.is_unchanged(sample) {
        return Try::Again(Retry::Sequence);
    }
    let seen = classify(&block, fault.device, &faulted, &written);
    let resident_here = block.device_private();
    let away = resident_here | block.in_transit();
    let busy = block.transit_busy();
    drop(block);
    if !seen.resident.is_empty() {
        let job =
            ToDevice { block: index, pages: seen.resident, device: fault.device, vma: &vma, looked, sample };
        let moved = map_again(space, seat, &job);
        answer.served |= moved.arrived;
        if let Some(cause) = moved.failed {
            answer.fail(&seen.resident, cause);
            return Try::Answered;
        }
        if let Some(why) = moved.retry {
            return Try::Again(why);
        }
    }
    let again = if fault.prefetch && tries.may_move && vma.kind == VmaKind::Movable {
        seen.linked
    } else {
        PageMask::EMPTY
    };
    let unknown = seen.unknown | seen.upgrade | again;
    if unknown.is_empty() {
        return if !seen.resident.is_empty() {
            Try::Answered
        } else if !seen.linked.is_empty() {
            // Linked, and yet the device cannot use it: its translation was dropped, or the page behind the link is
            // gone and cannot come back (beyond the end of its file). Linking anew finds out.
            let (pages, written) = (seen.linked, written & seen.linked);
            let job = Link { block: index, pages, written, device: fault.device, vma: &vma, looked, sample };
            link_answer(&link(space, seat, &job), &pages, answer)
        } else if !seen.foreign.is_empty() && tries.barren >= BARREN {
            answer.fail(&seen.foreign, FaultCause::DeviceFailed);
            Try::Answered
        } else if !seen.foreign.is_empty() {
            Try::Again(Retry::OtherOwner)
        } else {
            Try::Again(Retry::InTransit(busy))
        };
    }
    let view = DeviceFaultView {
        block: fault.block,
        device: fault.device,
        faulted: unknown,
        written: written & unknown,
        resident: resident_here,
        mapping,
        movable: vma.kind == VmaKind::Movable,
    };
    let placement = space.policy.place(&view);
    let clip = if holds(Rule::PolicyIsClipped) { mapping } else { PageMask::FULL };
    let pages = (placement.pages | unknown) & clip;
    // A policy that leaves pages in RAM may link more than was asked for; what must be linked because it cannot move is
    // linked alone.
    let mut to_link = if placement.place == Place::System { pages - away } else { unknown };
    if placement.place == Place::Device && view.movable && tries.may_move {
        let pages = pages - resident_here;
        let job = ToDevice { block: index, pages, device: fault.device, vma: &vma, looked, sample };
        let moved = to_device(space, seat, &job);
        answer.served |= moved.arrived & faulted;
        to_link = moved.refused & unknown;
        if let Some(cause) = moved.failed {
            answer.fail(&(unknown - moved.arrived - moved.refused), cause);
            return Try::Answered;
        }
        let shared = moved.refused - tries.unshared;
        if shared.intersects(&to_link) && vma.access == Some(Access::Write) {
            // Refused once only: perhaps shared with a child. A touch for writing makes it this process's own.
            tries.unshared |= shared;
            unshare(space, fault.block, &shared);
            return Try::Answered;
        }
        if to_link.is_empty() {
            return match moved.retry {
                Some(why) if (moved.arrived & unknown).is_empty() => Try::Again(why),
                _ => Try::Answered,
            };
        }
    }
    let written = written & to_link;
    let job = Link { block: index, pages: to_link, written, device: fault.device, vma: &vma, looked, sample };
    let moved = link(space, seat, &job);
    answer.served |= moved.arrived & faulted;
    if moved.failed.is_some() && to_link != unknown {
        // A neighbour's failure (the end of a file, say) is not this fault's.
        let job = Link { pages: unknown, written: written & unknown, ..job };
        return link_answer(&link(space, seat, &job), &unknown, answer);
    }
    link_answer(&moved, &(to_link & faulted), answer)
}

/// Enters what became of a link of `pages` into the answer.
fn link_answer(moved: &Moved, pages: &PageMask, answer: &mut Answer) -> Try {
    answer.served |= moved.arrived & *pages;
    if let Some(cause) = moved.failed {
        answer.fail(&(*pages - moved.arrived), cause);
        return Try::Answered;
    }
    match moved.retry {
        Some(why) if moved.arrived.is_empty() => Try::Again(why),
        _ => Try::Answered,
    }
}

/// Makes copies of pages that are still shared with a child after fork. What cannot be done shows at the next try.
fn unshare<H: Host>(space: &Space<'_, H>, block: crate::units::BlockNo, pages: &PageMask) {
    for run in pages.runs() {
        let first = block.page(PageIndex(run.start as u16));
        let _ = space.host.populate(VirtRange::of_pages(first, run.len() as u64), Access::Write);
    }
}

/// The mapping of the first pending page and the block's pages that lie in it; pages that no mapping allows are
/// failed.
fn lookup<H: Host>(
    space: &Space<'_, H>,
    fault: &BlockFault,
    pending: &PageMask,
    answer: &mut Answer,
) -> Result<(Vma, PageMask), Try> {
    let first = fault.block.page(pending.first().expect("something is pending"));
    let vma = match space.host.vma(first) {
        Ok(Lookup::Mapped(vma)) => vma,
        Ok(Lookup::Hole { until }) => {
            let end = until.max(first + crate::units::PAGE_BYTES).min(fault.block.range().end());
            let hole = VirtRange::between(first, end).mask_in(fault.block);
            answer.fail(&(*pending & hole), FaultCause::NoMapping);
            return Err(Try::Answered);
        }
        Err(HostError::Changing) => return Err(Try::Again(Retry::Changing)),
        Err(_) => {
            answer.fail(pending, FaultCause::OutOfMemory);
            return Err(Try::Answered);
        }
    };
    let mapping = vma.range.intersection(space.host.window()).mask_in(fault.block);
    let here = *pending & mapping;
    let refused = match (vma.kind, vma.access) {
        (VmaKind::Unfollowed, _) => Some((here, FaultCause::NoEvents)),
        (_, None) => Some((here, FaultCause::NoAccess)),
        (_, Some(Access::Read)) => Some((here & fault.written, FaultCause::ReadOnly)),
        (_, Some(Access::Write)) => None,
    };
    if let Some((pages, cause)) = refused.filter(|(pages, _)| !pages.is_empty()) {
        answer.fail(&pages, cause);
        return Err(Try::Answered);
    }
    Ok((vma, mapping))
}
