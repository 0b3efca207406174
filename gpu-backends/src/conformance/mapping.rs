//! The device page table, as engines see it.

use std::sync::atomic::{AtomicU64, Ordering};

use granule::ports::FaultCause;
use granule::units::{Access, BLOCK_BYTES, DevAddr, DevMemAddr, PAGE_BYTES};

use super::check::{
    BASE, RW, done, expected, fill, first_word, load, map, on_one, pages, put_page, same, shows_pages,
};
use super::service::served;
use super::{Refused, TestDevice};

const MISSING: Result<u64, Refused> = Err(Refused::Cancelled(FaultCause::NoMapping));

pub(super) fn engines_reach_device_memory(test: &dyn TestDevice) -> Result<(), String> {
    let device = test.device();
    put_page(device, DevMemAddr(PAGE_BYTES), 1)?;
    map(device, BASE, 1, PAGE_BYTES, RW)?;
    same("a load", load(test, BASE + 16), Ok(expected(2, 1)))?;
    same("a store", on_one(test, |engine| engine.store(BASE, 4711)), Ok(()))?;
    same("a load of what was stored", load(test, BASE), Ok(4711))?;
    device.flush(DevAddr(BASE), 1);
    same("copy_out of what was stored", first_word(device, DevMemAddr(PAGE_BYTES))?, 4711)
}

pub(super) fn every_leaf_size_leads_to_the_right_page(test: &dyn TestDevice) -> Result<(), String> {
    let device = test.device();
    let source = pages(512)?;
    fill(source.as_words(), 3);
    done("copy_in", device.copy_in(DevMemAddr(BLOCK_BYTES), source.as_words()))?;
    // Whole block, aligned; 64 KiB aligned; page aligned only; across a block boundary.
    for (at, count) in
        [(BASE, 512), (BASE + (2 << 30) + (1 << 16), 512), (BASE + (4 << 30) + PAGE_BYTES, 511)]
    {
        map(device, at, count, BLOCK_BYTES, RW)?;
        shows_pages(test, "a mapping", at, count, 3)?;
    }
    Ok(())
}

pub(super) fn a_partial_unmap_leaves_the_neighbours(test: &dyn TestDevice) -> Result<(), String> {
    let device = test.device();
    let source = pages(512)?;
    fill(source.as_words(), 5);
    done("copy_in", device.copy_in(DevMemAddr(0), source.as_words()))?;
    map(device, BASE, 512, 0, RW)?;
    shows_pages(test, "before", BASE, 512, 5)?;
    device.unmap(DevAddr(BASE + 100 * PAGE_BYTES), 3);
    device.unmap(DevAddr(BASE + 600 * PAGE_BYTES), 5);
    device.flush(DevAddr(BASE), 512);
    shows_pages(test, "below the hole", BASE, 100, 5)?;
    let above = BASE + 103 * PAGE_BYTES;
    same("above the hole", load(test, above), Ok(expected(103 * 512, 5)))?;
    served(
        device,
        |_| Err(FaultCause::NoMapping),
        || {
            for page in [100, 101, 102] {
                same("in the hole", load(test, BASE + page * PAGE_BYTES), MISSING)?;
            }
            Ok(())
        },
    )
}

pub(super) fn mapping_over_replaces(test: &dyn TestDevice) -> Result<(), String> {
    let device = test.device();
    for page in 0..3 {
        put_page(device, DevMemAddr(page * PAGE_BYTES), page)?;
    }
    map(device, BASE, 2, 0, RW)?;
    same("the first mapping", load(test, BASE + PAGE_BYTES), Ok(expected(0, 1)))?;
    map(device, BASE + PAGE_BYTES, 1, 2 * PAGE_BYTES, RW)?;
    device.flush(DevAddr(BASE + PAGE_BYTES), 1);
    same("the mapping over it", load(test, BASE + PAGE_BYTES), Ok(expected(0, 2)))?;
    same("its neighbour", load(test, BASE), Ok(expected(0, 0)))
}

pub(super) fn a_read_only_page_faults_on_write_only(test: &dyn TestDevice) -> Result<(), String> {
    let device = test.device();
    put_page(device, DevMemAddr(0), 8)?;
    map(device, BASE, 1, 0, Access::Read)?;
    let writes = AtomicU64::new(0);
    let refuse = |fault: &granule::ports::DeviceFault| {
        writes.fetch_add(u64::from(fault.access == Access::Write), Ordering::SeqCst);
        Err(FaultCause::ReadOnly)
    };
    served(device, refuse, || {
        same("a load", load(test, BASE), Ok(expected(0, 8)))?;
        let stored = on_one(test, |engine| engine.store(BASE, 1));
        same("a store", stored, Err(Refused::Cancelled(FaultCause::ReadOnly)))
    })?;
    same("write faults", writes.load(Ordering::SeqCst), 1)?;
    same("the page after a refused store", load(test, BASE), Ok(expected(0, 8)))?;
    map(device, BASE, 1, 0, RW)?;
    same("a store once writes are permitted", on_one(test, |engine| engine.store(BASE, 1)), Ok(()))
}
