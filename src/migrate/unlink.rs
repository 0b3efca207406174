use super::Space;
use crate::dma;
use crate::granule::BlockGuard;
use crate::ports::{Count, Host, IommuError};
use crate::units::{DeviceId, PAGE_SHIFT, PageIndex, PageMask};

/// Takes linked pages away from a device: device page table and TLB first, then the IOMMU, then the bits. Pages
/// that are not linked are passed over. Under the block lock.
pub fn unlink<H: Host>(space: &Space<'_, H>, block: &mut BlockGuard<'_>, device: DeviceId, pages: &PageMask) {
    let mapped = block.dma_mapped(device) & *pages;
    if mapped.is_empty() {
        return;
    }
    unmap_and_flush(space, block, device, &mapped);
    unlink_only(space, block, device, &mapped);
}

/// Removes translations from the device page table and flushes them.
pub(crate) fn unmap_and_flush<H: Host>(
    space: &Space<'_, H>,
    block: &BlockGuard<'_>,
    device: DeviceId,
    pages: &PageMask,
) {
    let port = space.device(device).port;
    let Some(first) = pages.first() else { return };
    let mut end = 0;
    for run in pages.runs() {
        port.unmap(block.number().page(PageIndex(run.start as u16)).into(), run.len() as u64);
        end = run.end;
    }
    port.flush(block.number().page(first).into(), (end - first.0 as usize) as u64);
}

/// Unlinks pages that no device translation leads to any more: IOMMU, its flush, the bits.
pub(crate) fn unlink_only<H: Host>(
    space: &Space<'_, H>,
    block: &mut BlockGuard<'_>,
    device: DeviceId,
    mapped: &PageMask,
) {
    let number = block.number();
    let granule = space.tables.granule(number.granule()).expect("a block's granule exists");
    let base = granule.iova_base(device).expect("a linked page lies in a reserved granule");
    let iommu = space.device(device).port.iommu();
    for run in mapped.runs() {
        let at = dma::position(base, number, run.start);
        let bytes = (run.len() as u64) << PAGE_SHIFT;
        match iommu.unmap(at, bytes) {
            Ok(()) => iommu.flush(at, bytes),
            Err(IommuError::NotMapped(hole)) => panic_hole(hole),
            Err(_) => unreachable_error(),
        }
    }
    block.unlinked(device, mapped);
    space.probe.add(Count::PagesUnlinked, mapped.count() as u64);
}

#[cold]
fn panic_hole(hole: crate::units::Iova) -> ! {
    panic!("the bitmap says linked where the IOMMU has nothing: {hole}");
}

#[cold]
fn unreachable_error() -> ! {
    panic!("unmapping a range that is wholly mapped was refused");
}
