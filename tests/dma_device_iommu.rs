//! The emulated IOMMU as devices meet it: they really read and write through it, and they really use what is
//! remembered until somebody flushes it.
#![cfg(not(granule_loom))]

mod dma_device;

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use dma_device::*;
use granule::dma::{Attributes, Domain};
use granule::ports::{Device, IommuError, IovaWindow};
use granule::units::{Access, Iova, PAGE_BYTES, PAGES_PER_BLOCK, PhysAddr};
use granule_backends::software::{DmaRefused, IommuDomain};

const AT: Iova = Iova(64 << 20);

#[test]
fn dma_moves_the_bytes_that_the_iommu_leads_to() {
    let (domain, memory) = (domain(), Memory::new(8));
    let device = in_domain(&domain);
    let iommu = device.iommu();
    // Pages in another order, so that positions and physical addresses differ.
    for (position, page) in [(0, 5), (1, 2), (2, 7)] {
        iommu.map(AT + position * PAGE_BYTES, memory.phys(page), PAGE_BYTES, RW).unwrap();
        memory.fill(page, page);
    }
    let mut bytes = vec![0u8; 3 * PAGE_BYTES as usize - 16];
    device.dma_read(PLAIN, AT + 8, &mut bytes).unwrap();
    let words: Vec<u64> =
        bytes.chunks_exact(8).map(|word| u64::from_le_bytes(word.try_into().unwrap())).collect();
    assert!(words[..511].iter().all(|word| *word == 5), "the first page");
    assert!(words[511..1023].iter().all(|word| *word == 2), "the second page");
    assert!(words[1023..].iter().all(|word| *word == 7), "the third page");

    device.dma_write(PLAIN, AT + (PAGE_BYTES - 3), &[1, 2, 3, 4, 5]).unwrap();
    assert_eq!(memory.word(5, 511) >> 40, 0x03_02_01, "the end of the first page");
    assert_eq!(memory.word(2, 0), 0x0504, "the beginning of the second");
    assert_eq!((memory.word(5, 510), memory.word(2, 1)), (5, 2), "and nothing beside it");
    let counters = device.counters();
    assert_eq!((counters.dma_read_bytes, counters.dma_written_bytes), (bytes.len() as u64, 5));
    assert_eq!(counters.iommu_errors, 0);
}

#[test]
fn what_is_not_mapped_for_it_is_refused_by_name_and_counted() {
    let (domain, memory) = (domain(), Memory::new(2));
    let device = builder().iommu_domain(&domain).dma_last(AT + (MIB - 1)).build().unwrap();
    let iommu = domain.iommu();
    iommu.map(AT, memory.phys(0), PAGE_BYTES, Access::Read).unwrap();
    assert_eq!(read(&device, AT + PAGE_BYTES), Err(DmaRefused::NotMapped(AT + PAGE_BYTES)));
    assert_eq!(write(&device, AT + 8, 1), Err(DmaRefused::ReadOnly(AT + 8)));
    assert_eq!(memory.word(0, 1), 0, "a refused write wrote nothing");
    let last = AT + (MIB - 1);
    assert_eq!(read(&device, AT + MIB), Err(DmaRefused::BeyondReach { at: AT + MIB, last }));
    let end = Iova(u64::MAX - 3);
    assert_eq!(read(&device, end), Err(DmaRefused::Wraps { at: end, bytes: 8 }));
    // Rights that grow hold at once, though the device remembers that it may read.
    assert_eq!(read(&device, AT), Ok(0));
    iommu.protect(AT, PAGE_BYTES, RW).unwrap();
    assert_eq!(write(&device, AT, 9), Ok(()));
    assert_eq!(memory.word(0, 0), 9);
    let counters = device.counters();
    assert_eq!(counters.iommu_errors, 4);
    assert_eq!(counters.first_iommu_errors[0], Some(AT + PAGE_BYTES));
    // Mapped to where no process has memory.
    let phys = PhysAddr(PAGE_BYTES);
    iommu.map(AT + PAGE_BYTES, phys, PAGE_BYTES, RW).unwrap();
    assert_eq!(write(&device, AT + PAGE_BYTES, 1), Err(DmaRefused::MemoryGone { at: AT + PAGE_BYTES, phys }));
}

#[test]
fn an_omitted_flush_yields_old_bytes_and_the_flush_ends_that() {
    let (domain, memory) = (domain(), Memory::new(4));
    let device = in_domain(&domain);
    let iommu = domain.iommu();
    (0..4).for_each(|page| memory.fill(page, 10 + page));
    iommu.map(AT, memory.phys(0), 2 * PAGE_BYTES, RW).unwrap();
    assert_eq!([read(&device, AT), read(&device, AT + PAGE_BYTES)], [Ok(10), Ok(11)]);
    iommu.unmap(AT, 2 * PAGE_BYTES).unwrap();
    iommu.map(AT, memory.phys(2), 2 * PAGE_BYTES, RW).unwrap();
    assert_eq!(read(&device, AT), Ok(10), "the flush was omitted, so the device still uses the old page");
    // A flush of one run leaves the other one alone.
    iommu.flush(AT + PAGE_BYTES, PAGE_BYTES);
    assert_eq!([read(&device, AT), read(&device, AT + PAGE_BYTES)], [Ok(10), Ok(13)]);
    iommu.flush(AT, PAGE_BYTES);
    assert_eq!(read(&device, AT), Ok(12));
    // Fewer rights hold after the flush, and not before.
    write(&device, AT, 1).unwrap();
    iommu.protect(AT, PAGE_BYTES, Access::Read).unwrap();
    assert_eq!(write(&device, AT, 2), Ok(()), "the flush was omitted");
    iommu.flush(AT, PAGE_BYTES);
    assert_eq!(write(&device, AT, 3), Err(DmaRefused::ReadOnly(AT)));
    assert_eq!(memory.word(2, 0), 2);
}

#[test]
fn a_flush_reaches_every_device_of_the_domain_and_is_counted_by_run() {
    let (domain, memory) = (domain(), Memory::new(2));
    let devices = [in_domain(&domain), in_domain(&domain), in_domain(&domain)];
    let other = builder().build().unwrap();
    let iommu = domain.iommu();
    memory.fill(0, 5);
    memory.fill(1, 6);
    iommu.map(AT, memory.phys(0), PAGE_BYTES, RW).unwrap();
    assert!(devices.iter().all(|device| read(device, AT) == Ok(5)));
    assert_eq!(read(&other, AT), Err(DmaRefused::NotMapped(AT)), "another domain has nothing there");
    iommu.unmap(AT, PAGE_BYTES).unwrap();
    iommu.flush_runs(&[(AT, PAGE_BYTES), (AT + 7 * PAGE_BYTES, PAGE_BYTES)]);
    for device in &devices {
        assert_eq!(read(device, AT), Err(DmaRefused::NotMapped(AT)));
        assert_eq!(device.counters().device_iotlb_dropped, 1);
    }
    let counters = domain.counters();
    assert_eq!((counters.flushes, counters.flushed_runs, counters.iotlb_dropped), (1, 2, 1));
    // The first device walked, the others were answered by the IOMMU's own IOTLB.
    assert_eq!(counters.iotlb_hits, 2);
    drop(devices);
    iommu.map(AT, memory.phys(1), PAGE_BYTES, RW).unwrap();
    assert_eq!(read(&in_domain(&domain), AT), Ok(6), "places of devices that are gone are used again");
}

#[test]
fn contiguous_aligned_pages_are_one_leaf_that_splits_and_merges() {
    let (domain, memory) = (domain(), Memory::new(1024));
    let device = in_domain(&domain);
    let iommu = domain.iommu();
    let pages = PAGES_PER_BLOCK as u64;
    (0..1024).for_each(|page| memory.fill(page, page));
    iommu.map(AT, memory.phys(0), pages * PAGE_BYTES, RW).unwrap();
    let leaves = domain.counters().leaves;
    assert_eq!((leaves.large, leaves.medium, leaves.small), (1, 0, 0), "512 pages, one leaf");
    assert_eq!(read(&device, AT + 300 * PAGE_BYTES), Ok(300));
    unlink(iommu, AT + 300 * PAGE_BYTES, PAGE_BYTES);
    let hole = AT + 300 * PAGE_BYTES;
    assert_eq!(read(&device, hole), Err(DmaRefused::NotMapped(hole)), "the flush of a part drops the whole");
    assert_eq!(read(&device, AT + 301 * PAGE_BYTES), Ok(301));
    assert_eq!(domain.counters().leaves.large, 0);
    iommu.map(hole, memory.phys(300), PAGE_BYTES, RW).unwrap();
    assert_eq!(domain.counters().leaves.large, 1, "and whole again");
    // The same run, not aligned alike: 512 leaves.
    iommu.map(AT + 2 * MIB, memory.phys(511), pages * PAGE_BYTES, RW).unwrap();
    assert_eq!(domain.counters().leaves.small, 512);
    assert_eq!(read(&device, AT + 2 * MIB), Ok(511));
}

#[test]
fn the_aperture_the_windows_and_the_page_are_what_was_asked_for() {
    let bounded = IommuDomain::builder()
        .table_bytes(4 * MIB)
        .last(Iova((1 << 32) - 1))
        .page_bytes(64 << 10)
        .reserved_window(IovaWindow::MSI_X86)
        .build()
        .unwrap();
    let (iommu, memory) = (bounded.iommu(), Memory::new(64));
    assert_eq!(iommu.aperture().1, Iova((1 << 32) - 1));
    assert_eq!(iommu.reserved_windows(), [IovaWindow::MSI_X86]);
    let caps = iommu.caps();
    assert!(caps.page_bytes == 64 << 10 && caps.can_replace && !caps.pins);
    let last = Iova((1 << 32) - (64 << 10));
    assert_eq!(
        iommu.map(last, memory.phys(0), 128 << 10, RW),
        Err(IommuError::OutsideAperture(last)),
        "a range that ends outside"
    );
    iommu.map(last, memory.phys(16), 64 << 10, RW).unwrap();
    memory.fill(31, 4);
    assert_eq!(read(&in_domain(&bounded), last + 15 * PAGE_BYTES), Ok(4));
    assert_eq!(bounded.counters().leaves.medium, 1);
    assert!(IommuDomain::builder().page_bytes(6000).build().is_err());
    assert!(IommuDomain::builder().table_bytes(4096).build().is_err());
}

/// Pages are exchanged without pause under a device that reads without pause. In every 64 bytes stands the version of
/// the page: an access of 64 bytes sees one version, never a hole, and after the flush an old page may be used for
/// something else at once.
#[test]
fn replace_shows_the_old_or_the_new_page_and_never_a_hole() {
    const PAGES: u64 = 1024;
    let (emulated, memory) = (domain(), Memory::new(2 * PAGES));
    let device = builder().iommu_domain(&emulated).engines(2).build().unwrap();
    let iovas = Iovas::of(emulated.iommu());
    let domain = Domain::builder(emulated.iommu(), &iovas).build();
    let reservation = domain.reserve(PAGES * PAGE_BYTES, 2 * MIB).unwrap();
    let base = reservation.base();
    // A page stamps itself with its version in its upper bits and its own position in the lower ones.
    let stamp = |page: u64, version: u64, position: u64| memory.fill(page, version << 20 | position);
    (0..PAGES).for_each(|page| stamp(page, 1, page));
    let span = domain.link(&reservation, 0, [memory.range(0, PAGES)], Attributes::BOTH).unwrap();
    domain.sync(span).unwrap();
    let (ended, reads, version_now) = (AtomicBool::new(false), AtomicU64::new(0), AtomicU64::new(1));
    std::thread::scope(|scope| {
        let reader = scope.spawn(|| {
            device.run(|engine| {
                let mut random = engine.index() as u64 + 1;
                while !ended.load(Ordering::Relaxed) {
                    random = random.wrapping_mul(6364136223846793005).wrapping_add(1442695040888963407);
                    let (page, part) = (random >> 33 & (PAGES - 1), random >> 20 & 63);
                    let oldest = version_now.load(Ordering::SeqCst);
                    let mut seen = [0u8; 64];
                    engine.dma_read(base + (page * PAGE_BYTES + part * 64), &mut seen)?;
                    let words = seen.chunks_exact(8).map(|word| u64::from_le_bytes(word.try_into().unwrap()));
                    let words: Vec<u64> = words.collect();
                    assert!(
                        words.iter().all(|word| *word == words[0]),
                        "two versions in one access: {words:x?}"
                    );
                    assert_eq!(words[0] & 0xf_ffff, page, "another page's bytes: {words:x?}");
                    assert!(words[0] >> 20 >= oldest, "a version that was gone before the access began");
                    reads.fetch_add(1, Ordering::Relaxed);
                }
                Ok(())
            })
        });
        // Runs of several lengths and alignments, so that leaves split and merge; the two halves of the memory take
        // turns, and what was replaced is overwritten at once.
        let mut halves = vec![0u64; PAGES as usize];
        let mut version = 1;
        let begin = std::time::Instant::now();
        while begin.elapsed().as_millis() < 700 && !reader.is_finished() {
            version += 1;
            for run in [(0, 512), (512, 16), (528, 1), (529, 3), (532, 492)] {
                let pages = run.0..run.0 + run.1;
                let half = 1 - halves[run.0 as usize];
                pages.clone().for_each(|page| stamp(half * PAGES + page, version, page));
                let new = memory.range(half * PAGES + run.0, run.1);
                let replaced =
                    domain.replace(&reservation, run.0 * PAGE_BYTES, [new], Attributes::BOTH).unwrap();
                assert!(replaced.old.iter().eq([memory.range((1 - half) * PAGES + run.0, run.1)]));
                // Nobody reads the old pages any more: wrong bytes in them are seen by nobody.
                for old in replaced.old.iter() {
                    let first = old.addr.bytes_since(memory.phys(0)) / PAGE_BYTES;
                    (first..first + u64::from(old.len) / PAGE_BYTES)
                        .for_each(|page| memory.fill(page, u64::MAX));
                }
                pages.for_each(|page| halves[page as usize] = half);
            }
            version_now.store(version, Ordering::SeqCst);
        }
        ended.store(true, Ordering::SeqCst);
        reader.join().unwrap().unwrap();
    });
    assert!(reads.load(Ordering::SeqCst) > 100 && version_now.load(Ordering::SeqCst) > 2);
    assert_eq!(device.counters().iommu_errors, 0, "a hole was seen");
    domain.destroy(reservation, Attributes::BOTH).unwrap();
}

/// The twin of the test above: without the flush the old page is still read.
#[test]
fn replace_without_the_flush_still_shows_the_old_page() {
    let (domain, memory) = (domain(), Memory::new(2));
    let device = in_domain(&domain);
    let iommu = domain.iommu();
    memory.fill(0, 1);
    memory.fill(1, 2);
    iommu.replace(AT, memory.phys(0), PAGE_BYTES, RW).unwrap();
    assert_eq!(read(&device, AT), Ok(1), "replace installs where nothing was");
    iommu.replace(AT, memory.phys(1), PAGE_BYTES, RW).unwrap();
    assert_eq!(read(&device, AT), Ok(1), "the flush was omitted");
    iommu.flush(AT, PAGE_BYTES);
    assert_eq!(read(&device, AT), Ok(2));
}
