//! System memory, and the IOMMU in front of it.

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use granule::ports::{IommuError, MapTarget};
use granule::units::{Access, DevAddr, Iova, PAGE_BYTES, PhysAddr};

use super::check::{BASE, RW, done, expected, fill, holds, link, linkable, load, on_one, same, shows_pages};
use super::closing::race;
use super::{Refused, TestDevice};

pub(super) fn engines_reach_system_memory(test: &dyn TestDevice) -> Result<(), String> {
    let device = test.device();
    let memory = linkable(test, 600)?;
    fill(memory.as_words(), 7);
    link(device, BASE, &memory, 600, RW)?;
    shows_pages(test, "linked memory", BASE, 600, 7)?;
    same("a store", on_one(test, |engine| engine.store(BASE + 5 * PAGE_BYTES, 99)), Ok(()))?;
    device.flush(DevAddr(BASE), 600);
    same("the host's view of a store", memory.as_words()[5 * 512].load(Ordering::SeqCst), 99)?;
    memory.as_words()[6 * 512].store(98, Ordering::SeqCst);
    same("a load of what the host stored", load(test, BASE + 6 * PAGE_BYTES), Ok(98))
}

pub(super) fn an_unlinked_iova_is_never_read(test: &dyn TestDevice) -> Result<(), String> {
    let device = test.device();
    let memory = linkable(test, 3)?;
    fill(memory.as_words(), 7);
    link(device, BASE, &memory, 3, RW)?;
    same("a load", load(test, BASE + PAGE_BYTES), Ok(expected(512, 7)))?;
    let (hole, iommu) = (Iova(BASE + PAGE_BYTES), device.iommu());
    done("iommu unmap", iommu.unmap(hole, PAGE_BYTES))?;
    iommu.flush(hole, PAGE_BYTES);
    same("a load through an unlinked IOVA", load(test, BASE + PAGE_BYTES), Err(Refused::Iommu))?;
    let stored = on_one(test, |engine| engine.store(BASE + PAGE_BYTES, 1));
    same("a store through an unlinked IOVA", stored, Err(Refused::Iommu))?;
    same("its neighbours", load(test, BASE + 2 * PAGE_BYTES), Ok(expected(1024, 7)))?;
    done("iommu protect", iommu.protect(Iova(BASE), PAGE_BYTES, Access::Read))?;
    iommu.flush(Iova(BASE), PAGE_BYTES);
    let stored = on_one(test, |engine| engine.store(BASE, 1));
    same("a store through an IOVA that is linked for reading", stored, Err(Refused::Iommu))?;
    same("a load there", load(test, BASE), Ok(expected(0, 7)))?;
    same("the memory itself", memory.as_words()[0].load(Ordering::SeqCst), expected(0, 7))
}

pub(super) fn the_iommu_refuses_what_it_must(test: &dyn TestDevice) -> Result<(), String> {
    let iommu = test.device().iommu();
    let memory = linkable(test, 8)?;
    let (phys, at) = (PhysAddr(memory.base().0), |page: u64| Iova(BASE + page * PAGE_BYTES));
    let (first, last) = iommu.aperture();
    holds("the aperture is a range", first < last)?;
    holds("the aperture holds the addresses that checks use", first.0 <= BASE && BASE + (1 << 40) <= last.0)?;
    done("iommu map", iommu.map(at(2), phys, 4 * PAGE_BYTES, RW))?;
    let over = iommu.map(at(0), phys, 3 * PAGE_BYTES, RW);
    same("mapping over a mapped page", over, Err(IommuError::AlreadyMapped(at(2))))?;
    done("nothing of a refused map is mapped", iommu.map(at(0), phys, 2 * PAGE_BYTES, RW))?;
    same("unmapping a hole", iommu.unmap(at(4), 3 * PAGE_BYTES), Err(IommuError::NotMapped(at(6))))?;
    let protected = iommu.protect(at(4), 3 * PAGE_BYTES, Access::Read);
    same("protecting a hole", protected, Err(IommuError::NotMapped(at(6))))?;
    done("what a refused unmap left", iommu.unmap(at(0), 6 * PAGE_BYTES))?;
    if last.0 < u64::MAX - PAGE_BYTES {
        let outside = Iova(last.page_floor().0 + PAGE_BYTES);
        let mapped = iommu.map(outside, phys, PAGE_BYTES, RW);
        same("mapping beyond the aperture", mapped, Err(IommuError::OutsideAperture(outside)))?;
    }
    Ok(())
}

/// One page after another is unlinked under an engine that stores to it; after the flush the page must not change.
pub(super) fn the_iommu_flush_ends_accesses(test: &dyn TestDevice) -> Result<(), String> {
    let device = test.device();
    let memory = linkable(test, 2)?;
    let iommu = device.iommu();
    let (ended, stores) = (AtomicBool::new(false), AtomicU64::new(0));
    link(device, BASE, &memory, 1, RW)?;
    let words = memory.as_words();
    let host = |page: u64| PhysAddr(memory.base().0 + page * PAGE_BYTES);
    std::thread::scope(|scope| {
        let kernel = scope.spawn(|| {
            test.run(&|engine| {
                let mut value = 0;
                while !ended.load(Ordering::Relaxed) {
                    value += 1;
                    match engine.store(BASE + engine.index() as u64 * 8, value) {
                        // Between unmap and map an access is refused; that is what is promised.
                        Ok(()) | Err(Refused::Iommu) => stores.fetch_add(1, Ordering::Relaxed),
                        Err(_) => return,
                    };
                }
            })
        });
        let result = race(|round| {
            let (old, new) = ((round + 1) % 2, round % 2);
            done("iommu unmap", iommu.unmap(Iova(BASE), PAGE_BYTES))?;
            iommu.flush(Iova(BASE), PAGE_BYTES);
            let at = old as usize * 512;
            let before = [words[at].load(Ordering::SeqCst), words[at + 1].load(Ordering::SeqCst)];
            done("iommu map", iommu.map(Iova(BASE), host(new), PAGE_BYTES, RW))?;
            let seen = stores.load(Ordering::Relaxed);
            while stores.load(Ordering::Relaxed) < seen + 2 && !kernel.is_finished() {
                std::hint::spin_loop();
            }
            let after = [words[at].load(Ordering::SeqCst), words[at + 1].load(Ordering::SeqCst)];
            same("a page that was unlinked and flushed, looked at twice", after, before)
        });
        ended.store(true, Ordering::SeqCst);
        result
    })?;
    done("map", device.map(DevAddr(BASE), 1, MapTarget::System(Iova(BASE)), RW))
}
