use super::cpu::touch;
use crate::dma;
use crate::granule::{BlockGuard, BlockIndex, Sequence};
use crate::migrate::{Moved, Retry, Space, follow};
use crate::ports::{
    Count, DeviceError, FaultCause, FollowCount, Host, HostError, IommuError, MapTarget, Mirrored, Vma,
};
use crate::sync::{Rule, holds};
use crate::units::{Access, DeviceId, PageIndex, PageMask, PhysAddr, Seat, VirtRange};

/// What is to be linked.
#[derive(Clone, Copy, Debug)]
pub struct Link<'a> {
    /// The block.
    pub block: BlockIndex,
    /// Its pages, all of one mapping, none on a device.
    pub pages: PageMask,
    /// Of these, the pages that the device wants to write: made writable.
    pub written: PageMask,
    /// For whom.
    pub device: DeviceId,
    /// The mapping as it was looked up.
    pub vma: &'a Vma,
    /// Read before it was looked up.
    pub looked: FollowCount,
    /// The block's sequence before it was looked up.
    pub sample: Sequence,
}

/// Makes pages present for the CPU and links them at their position, then maps them for the device. Called without
/// gate and locks; populating may wait for the reader of events.
pub fn link<H: Host>(space: &Space<'_, H>, seat: Seat, job: &Link<'_>) -> Moved {
    let number = space.tables.record(job.block).number();
    let too_early = (!holds(Rule::PopulateOutside)).then(|| space.gate.enter(seat, space.park));
    for (pages, access) in [(job.written, Access::Write), (job.pages - job.written, Access::Read)] {
        for run in pages.runs() {
            let range = VirtRange::of_pages(number.page(PageIndex(run.start as u16)), run.len() as u64);
            if let Err(error) = space.host.populate(range, access) {
                return match error {
                    HostError::Trapped => {
                        touch(space, seat, range);
                        Moved::retry(Retry::Changing)
                    }
                    HostError::NoMapping | HostError::Changing => Moved::retry(Retry::Changing),
                    HostError::OutOfMemory | HostError::MappingLimit => {
                        Moved::failed(FaultCause::OutOfMemory)
                    }
                    HostError::Gone => Moved::failed(FaultCause::ShuttingDown),
                    _ => Moved::failed(FaultCause::NoAccess),
                };
            }
        }
    }
    let _inside = too_early.unwrap_or_else(|| space.gate.enter(seat, space.park));
    match follow(space, job.vma, job.looked) {
        Ok(Mirrored::Already) => {}
        Ok(Mirrored::FromNow) => return Moved::retry(Retry::LookAgain),
        Err(HostError::NotSupported) => return Moved::failed(FaultCause::NoEvents),
        Err(HostError::OutOfMemory | HostError::MappingLimit) => {
            return Moved::failed(FaultCause::OutOfMemory);
        }
        Err(_) => return Moved::retry(Retry::Changing),
    }
    let mut block = space.tables.lock(job.block, space.park);
    if !block.is_unchanged(job.sample) {
        return Moved::retry(Retry::Sequence);
    }
    if block.in_transit().intersects(&job.pages) {
        return Moved::retry(Retry::InTransit(block.transit_busy()));
    }
    if block.device_private().intersects(&job.pages) {
        // Somebody moved them since they were classified: look again.
        return Moved::retry(Retry::Sequence);
    }
    if let Err(cause) = enter(space, &mut block, job) {
        return Moved::failed(cause);
    }
    Moved { arrived: job.pages, ..Moved::default() }
}

/// Links, then maps. What a failure leaves linked has its bit, so the bits tell the truth.
///
/// # Errors
/// Why a page cannot be linked; pages entered before it stay entered.
fn enter<H: Host>(
    space: &Space<'_, H>,
    block: &mut BlockGuard<'_>,
    job: &Link<'_>,
) -> Result<(), FaultCause> {
    let refused = |error| match error {
        IommuError::NotReachable(_) => FaultCause::NotReachable,
        _ => FaultCause::OutOfMemory,
    };
    let iommu = space.device(job.device).port.iommu();
    let number = block.number();
    let granule = space.tables.granule(number.granule()).ok_or(FaultCause::OutOfMemory)?;
    let base = granule.iova_base(job.device).ok_or(FaultCause::OutOfMemory)?;
    let old = block.dma_mapped(job.device);
    let links = block.links(job.device, base);
    let phys = PhysAddr(number.base().0);
    for (pages, access) in [(job.written, Access::Write), (job.pages - job.written, Access::Read)] {
        for run in pages.runs() {
            links.link(iommu, run.start as u64..run.end as u64, phys, access).map_err(refused)?;
            space.count_pages(Count::PagesLinked, &(PageMask::of_range(run) - old));
        }
    }
    enter_linked(space, block, job.device, &job.pages).map_err(|_| FaultCause::OutOfMemory)
}

/// Enters linked pages into the device page table, over whatever is there.
///
/// # Errors
/// What the device says; pages entered before it stay entered.
fn enter_linked<H: Host>(
    space: &Space<'_, H>,
    block: &BlockGuard<'_>,
    device: DeviceId,
    pages: &PageMask,
) -> Result<(), DeviceError> {
    if pages.is_empty() {
        return Ok(());
    }
    let port = space.device(device).port;
    let number = block.number();
    let granule = space.tables.granule(number.granule()).expect("a block's granule exists");
    let base = granule.iova_base(device).expect("a linked page lies in a reserved granule");
    let writable = block.writable(device) & *pages;
    for (pages, access) in [(writable, Access::Write), (*pages - writable, Access::Read)] {
        for run in pages.runs() {
            let first = number.page(PageIndex(run.start as u16));
            let target = MapTarget::System(dma::position(base, number, run.start));
            port.map(first.into(), run.len() as u64, target, access)?;
        }
    }
    Ok(())
}
