use super::Space;
use crate::granule::{BlockGuard, UserptrGuard};
use crate::ports::{Count, Host};
use crate::units::{BlockNo, DeviceId, PAGE_SHIFT, PageIndex, PageMask, VirtRange};

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
    let runs = mapped.runs().map(|run| run.start as u64..run.end as u64);
    let unlinked = block.links(device, base).unlink_runs(iommu, runs);
    debug_assert_eq!(unlinked, mapped.count() as u64, "what is unlinked was linked");
    space.count_pages(Count::PagesUnlinked, mapped);
}

/// Drops pages of a userptr, by position: device page table, one flush over them, IOMMU, bits. Inside the gate or with
/// it closed.
pub fn drop_userptr_pages<H: Host>(
    space: &Space<'_, H>,
    held: &UserptrGuard<'_>,
    hit: core::ops::Range<u64>,
) {
    let port = space.device(held.spec().device).port;
    let at = held.spec().device_at + (hit.start << PAGE_SHIFT);
    port.unmap(at, hit.end - hit.start);
    port.flush(at, hit.end - hit.start);
    let unlinked = held.list().unlink(port.iommu(), hit);
    space.probe.add(Count::PagesUnlinked, unlinked);
}

/// Before pages of a block are taken: drops them from the userptrs that let them move. Under the block lock.
pub(super) fn drop_from_userptrs<H: Host>(space: &Space<'_, H>, block: BlockNo, pages: &PageMask) {
    for no in space.userptrs.numbers() {
        let Some(mut held) = space.userptrs.lock(no, space.park) else { continue };
        if !held.spec().range.mask_in(block).intersects(pages) {
            continue;
        }
        held.begin_invalidation();
        for run in pages.runs() {
            let range = VirtRange::of_pages(block.page(PageIndex(run.start as u16)), run.len() as u64);
            let hit = held.hit(range);
            if !hit.is_empty() {
                drop_userptr_pages(space, &held, hit);
            }
        }
        held.end_invalidation();
    }
}
