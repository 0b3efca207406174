//! Devices that are not coherent, that may not be trusted, or that reach too little: what their memory looks like
//! without, and with, what is done about it.
#![cfg(not(granule_loom))]
#![allow(unsafe_code, reason = "makes a device without an IOMMU")]

mod dma_device;

use dma_device::*;
use granule::ports::{BounceFault, BounceMemory, CacheSync, Device};
use granule::sync::Ordering;
use granule::units::{Direction, Iova, PAGE_BYTES, PhysAddr};
use granule_backends::software::{BouncePages, BuildError, DmaRefused, SoftwareDevice};

const AT: Iova = Iova(64 << 20);

fn stale() -> (SoftwareDevice, Memory) {
    let (device, memory) = (builder().non_coherent().build().unwrap(), Memory::new(512));
    device.iommu().map(AT, memory.phys(0), 512 * PAGE_BYTES, RW).unwrap();
    (device, memory)
}

#[test]
fn one_omitted_sync_yields_old_bytes_in_either_direction() {
    let (device, memory) = stale();
    memory.fill(0, 1);
    assert_eq!(read(&device, AT), Ok(1));
    memory.fill(0, 2);
    assert_eq!(read(&device, AT), Ok(1), "sync_for_device was omitted: the device keeps its line");
    device.sync_for_device(memory.phys(0), PAGE_BYTES, Direction::ToDevice);
    assert_eq!(read(&device, AT), Ok(2));

    write(&device, AT, 3).unwrap();
    assert_eq!(read(&device, AT), Ok(3), "the device sees what it wrote");
    assert_eq!(memory.word(0, 0), 2, "sync_for_cpu was omitted: the CPU sees what was there");
    device.sync_for_cpu(memory.phys(0), PAGE_BYTES, Direction::ToDevice);
    assert_eq!(memory.word(0, 0), 2, "of what goes to the device nothing comes back");
    device.sync_for_cpu(memory.phys(0), PAGE_BYTES, Direction::FromDevice);
    assert_eq!((memory.word(0, 0), memory.word(0, 1)), (3, 2));
    assert_eq!(device.counters().lines_written_back, 1);

    // A coherent device needs none of this.
    let plain = builder().build().unwrap();
    plain.iommu().map(AT, memory.phys(0), PAGE_BYTES, RW).unwrap();
    for value in [4, 5] {
        memory.fill(0, value);
        assert_eq!(read(&plain, AT), Ok(value));
    }
    write(&plain, AT, 6).unwrap();
    assert_eq!(memory.word(0, 0), 6);
}

#[test]
fn a_line_that_both_write_loses_one_of_the_writes() {
    let (device, memory) = stale();
    let line = device.line_bytes();
    assert_eq!(line, 64);
    memory.fill(0, 0);
    write(&device, AT, 1).unwrap();
    let words = memory.0.as_words();
    words[1].store(2, Ordering::SeqCst);
    words[8].store(3, Ordering::SeqCst);
    device.sync_for_cpu(memory.phys(0), PAGE_BYTES, Direction::Both);
    assert_eq!(memory.word(0, 0), 1);
    assert_eq!(memory.word(0, 1), 0, "the CPU wrote into the device's line");
    assert_eq!(memory.word(0, 8), 3, "and here into the next one");
}

#[test]
fn a_whole_buffer_moves_through_the_lines_both_ways() {
    let (device, memory) = stale();
    // Larger than the cache, so that lines displace one another and some accesses go past it.
    let bytes = 512 * PAGE_BYTES as usize;
    for round in 1..4u64 {
        (0..512).for_each(|page| memory.fill(page, page << 8 | round));
        device.sync_for_device(memory.phys(0), bytes as u64, Direction::Both);
        let mut seen = vec![0u8; bytes];
        device.dma_read(PLAIN, AT, &mut seen).unwrap();
        for (index, word) in seen.chunks_exact(8).enumerate() {
            let word = u64::from_le_bytes(word.try_into().unwrap());
            assert_eq!(word, (index as u64 / 512) << 8 | round, "word {index} in round {round}");
        }
        seen.iter_mut().for_each(|byte| *byte = !*byte);
        // Odd pieces, so that lines are written in part.
        let mut at = 0;
        for piece in seen.chunks(4000 - 37) {
            device.dma_write(PLAIN, AT + at, piece).unwrap();
            at += piece.len() as u64;
        }
        device.sync_for_cpu(memory.phys(0), bytes as u64, Direction::Both);
        for page in 0..512 {
            assert_eq!(memory.word(page, 511), !(page << 8 | round), "page {page} in round {round}");
        }
    }
}

#[test]
fn bounce_pages_stand_in_for_pages_that_hold_others() {
    let (device, memory) = (builder().build().unwrap(), Memory::new(1));
    let pages = BouncePages::new(2, PAGE_BYTES).unwrap();
    assert_eq!((pages.pages(), pages.page_bytes()), (2, PAGE_BYTES));
    memory.fill(0, 7);
    // The device may have 100 bytes from offset 200 on, and nothing beside them.
    pages.clear(1);
    pages.copy_in(1, 200, memory.phys(0) + 200, 100).unwrap();
    device.iommu().map(AT, pages.phys(1), PAGE_BYTES, RW).unwrap();
    let mut seen = [0u8; PAGE_BYTES as usize];
    device.dma_read(PLAIN, AT, &mut seen).unwrap();
    assert!(seen[..200].iter().chain(&seen[300..]).all(|byte| *byte == 0), "a secret of the neighbours");
    assert_eq!(&seen[200..208], &7u64.to_le_bytes());
    device.dma_write(PLAIN, AT, &[0xff; PAGE_BYTES as usize]).unwrap();
    assert_eq!(memory.word(0, 25), 7, "not copied back yet");
    pages.copy_out(1, 200, memory.phys(0) + 200, 100).unwrap();
    assert_eq!((memory.word(0, 24), memory.word(0, 25)), (7, u64::MAX));
    assert_eq!((memory.word(0, 36), memory.word(0, 38)), (u64::MAX, 7), "100 bytes and no more");
    let nowhere = PhysAddr(PAGE_BYTES);
    assert_eq!(pages.copy_in(0, 0, nowhere, 8), Err(BounceFault(nowhere)));
    assert_eq!(pages.copy_out(0, 0, nowhere, 8), Err(BounceFault(nowhere)));
    assert!(matches!(BouncePages::new(2, 100), Err(BuildError::IommuPage(100))));
}

#[test]
fn a_limited_device_reaches_bounce_pages_below_its_limit_only() {
    let pages = BouncePages::new(1, PAGE_BYTES).unwrap();
    let memory = Memory::new(1);
    // The device reaches one page, and the offset puts the bounce page there.
    let last = Iova(PAGE_BYTES - 1);
    let offset = 0u64.wrapping_sub(pages.phys(0).0);
    // SAFETY: DMA of the test goes to `memory` and `pages`, which live to its end.
    let device = unsafe { builder().direct(offset) }.dma_last(last).build().unwrap();
    let dma = |phys: PhysAddr| Iova(phys.0.wrapping_add(offset));
    memory.fill(0, 7);
    let outside = dma(memory.phys(0));
    assert_eq!(read(&device, outside), Err(DmaRefused::BeyondReach { at: outside, last }));
    pages.copy_in(0, 0, memory.phys(0), PAGE_BYTES).unwrap();
    assert_eq!(read(&device, dma(pages.phys(0))), Ok(7));
}
