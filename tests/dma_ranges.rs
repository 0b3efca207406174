//! Ranges, lists, segments and conversions, against byte-by-byte models.

mod dma_support;

use std::mem::{offset_of, size_of};

use dma_support::{Dice, MEMORY, PAGE, mem, seeds};
use granule::dma::convert::{
    ConvertError, IoVec, NvmeError, NvmePrp, NvmeSgl, PrpList, SparseBind, VfioMap, iovecs, prp,
    prp_list_entries, sgl, sgl_segment_entries, sparse_binds, vfio_maps,
};
use granule::dma::{DmaList, DmaRange, PhysList, SegmentError, SegmentLimits, segments};
use granule::units::{Access, Iova, PeerNo, PhysAddr, PhysRange, VirtAddr};

fn dma(addr: u64, len: u64) -> DmaRange {
    DmaRange { addr: Iova(addr), len: len as u32, flags: 0 }
}

#[test]
fn long_runs_are_split_below_four_gib_at_pages() {
    let bytes = 9 << 30;
    for start in [0u64, 5, 4095, 0x1234_5000] {
        let parts: Vec<PhysRange> = PhysRange::of_run(PhysAddr(start), bytes, PhysRange::PINNED).collect();
        assert_eq!(parts.iter().map(|part| u64::from(part.len)).sum::<u64>(), bytes);
        assert_eq!(parts.len(), 3);
        assert!(parts[1..].iter().all(|part| part.addr.is_page_aligned() && part.flags == PhysRange::PINNED));
        assert!(parts.iter().all(|part| u64::from(part.len) <= PhysRange::MAX_BYTES));
        let dmas: Vec<u32> = DmaRange::of_run(Iova(start), bytes, 0).map(|part| part.len).collect();
        assert_eq!(dmas, parts.iter().map(|part| part.len).collect::<Vec<_>>());
    }
    assert_eq!(PhysRange::of_run(PhysAddr(0), 0, 0).count(), 0);
    assert_eq!(size_of::<PhysRange>() + size_of::<DmaRange>(), 32);
}

#[test]
fn flags_say_who_owns_a_range_and_whose_memory_it_is() {
    let range = mem(0, PAGE).with(PhysRange::PINNED | PhysRange::MMIO).of_peer(PeerNo(0xffff));
    assert_eq!(range.peer(), Some(PeerNo(0xffff)));
    assert_eq!(range.of_peer(PeerNo(3)).peer(), Some(PeerNo(3)));
    assert_eq!(range.flags & (PhysRange::PINNED | PhysRange::MMIO), PhysRange::PINNED | PhysRange::MMIO);
    assert_eq!(mem(0, PAGE).peer(), None);
    assert_eq!(PhysRange::new(PhysAddr(u64::MAX), 2).end(), None);
}

#[test]
#[should_panic(expected = "at most 4 GiB less a page")]
fn a_range_of_four_gib_is_none() {
    let _ = PhysRange::new(PhysAddr(0), 1 << 32);
}

#[test]
fn lists_merge_what_touches_and_join_by_links() {
    let mut list = PhysList::new();
    assert!(list.is_empty());
    for page in [0, 1, 2, 5, 6, 9] {
        list.push(mem(page, PAGE));
    }
    list.push(mem(10, PAGE).with(PhysRange::MMIO));
    list.push(mem(11, 0));
    let lens: Vec<u32> = list.iter().map(|range| range.len).collect();
    assert_eq!(lens, [3 * 4096, 2 * 4096, 4096, 4096]);
    assert_eq!((list.len(), list.bytes()), (4, 7 * PAGE));
    let other: PhysList = (0..1000).map(|page| mem(2 * page, PAGE)).collect();
    let before = other.len();
    list.append(other);
    assert_eq!((list.len(), list.iter().count(), before), (1004, 1004, 1000));
    let per_range = list.state_bytes() as f64 / list.len() as f64;
    assert!(per_range < 20.0, "{per_range} bytes for a range of 16");
    let huge: PhysList = PhysRange::of_run(PhysAddr(0), 10 << 30, 0).collect();
    assert_eq!(huge.len(), 3, "what would be 4 GiB or more stays apart");
    let empty: DmaList = DmaList::default();
    assert_eq!(empty.iter().count(), 0);
}

#[test]
fn segments_agree_with_a_model_that_goes_byte_by_byte() {
    for seed in seeds(200) {
        let mut dice = Dice(seed);
        let mut at = 1000 + dice.below(5000);
        let ranges: Vec<DmaRange> = (0..dice.below(12))
            .map(|_| {
                at += if dice.one_in(2) { 0 } else { dice.below(300) };
                let range = DmaRange { flags: u32::from(dice.one_in(8)), ..dma(at, dice.below(700)) };
                at += u64::from(range.len);
                range
            })
            .collect();
        let max = 1 + dice.below(900);
        let boundary = if dice.one_in(3) { 0 } else { 1 << dice.below(12) };
        // Byte by byte: a new segment where something ends.
        let mut model: Vec<DmaRange> = Vec::new();
        for range in &ranges {
            for byte in range.addr.0..range.addr.0 + u64::from(range.len) {
                match model.last_mut() {
                    Some(last)
                        if last.addr.0 + u64::from(last.len) == byte
                            && last.flags == range.flags
                            && u64::from(last.len) < max
                            && (boundary == 0 || !byte.is_multiple_of(boundary)) =>
                    {
                        last.len += 1;
                    }
                    _ => model.push(DmaRange { flags: range.flags, ..dma(byte, 1) }),
                }
            }
        }
        let limits = SegmentLimits::new(max, boundary, usize::MAX).unwrap();
        let got: Vec<DmaRange> = segments(ranges.iter().copied(), limits).map(Result::unwrap).collect();
        assert_eq!(got, model, "seed {seed}: {ranges:?}, {limits:?}");
        let count = 1 + dice.below(8) as usize;
        let limits = SegmentLimits::new(max, boundary, count).unwrap();
        let got: Vec<_> = segments(ranges, limits).collect();
        if model.len() > count {
            assert_eq!(got.len(), count + 1);
            assert_eq!(got[count], Err(SegmentError::TooMany(count)));
        } else {
            assert!(got.iter().all(Result::is_ok) && got.len() == model.len());
        }
    }
}

#[test]
fn long_neighbours_make_long_segments() {
    let list: PhysList = PhysRange::of_run(PhysAddr(0x800), 20 << 30, 0).collect();
    let whole: Vec<PhysRange> = segments(list.iter(), SegmentLimits::NONE).map(Result::unwrap).collect();
    assert_eq!(whole.iter().map(|range| u64::from(range.len)).sum::<u64>(), 20 << 30);
    assert_eq!(whole.len(), 6, "each as long as it may be");
    let limits = SegmentLimits::new(1 << 20, 0, usize::MAX).unwrap();
    assert_eq!(segments(list.iter(), limits).count(), 20 << 10);
}

#[test]
fn limits_that_are_none_are_refused() {
    let bad = |max, boundary, count| SegmentLimits::new(max, boundary, count).unwrap_err();
    assert_eq!(bad(0, 0, 1), SegmentError::BadSize(0));
    assert_eq!(bad(1 << 32, 0, 1), SegmentError::BadSize(1 << 32));
    assert_eq!(bad(512, 12, 1), SegmentError::BadBoundary(12));
    assert_eq!(bad(512, 16, 0), SegmentError::BadCount);
}

#[test]
fn iovecs_and_vfio_requests_are_laid_out_as_the_kernel_has_them() {
    assert_eq!(
        (size_of::<IoVec>(), offset_of!(IoVec, len)),
        (size_of::<libc::iovec>(), offset_of!(libc::iovec, iov_len))
    );
    let vec = IoVec::from((VirtAddr(0x1234), 99));
    assert_eq!((vec.at(), vec.len), (VirtAddr(0x1234), 99));
    let ranges = [mem(0, PAGE), mem(1, 3 * PAGE), mem(9, PAGE), mem(8, 0)];
    let vectors: Vec<IoVec> = iovecs(ranges).map(Result::unwrap).collect();
    assert_eq!(
        vectors,
        [(MEMORY, 4 * PAGE), (MEMORY + 9 * PAGE, PAGE)].map(|(base, len)| IoVec { base, len })
    );
    let maps: Vec<VfioMap> =
        vfio_maps(Iova(0x10_0000), ranges, Access::Write).collect::<Result<_, _>>().unwrap();
    assert_eq!(maps.len(), 2);
    let first = VfioMap { argsz: 32, flags: 3, vaddr: MEMORY, iova: 0x10_0000, size: 4 * PAGE };
    assert_eq!(maps[0], first);
    assert_eq!((maps[1].vaddr, maps[1].iova), (MEMORY + 9 * PAGE, 0x10_0000 + 4 * PAGE));
    let read: Vec<VfioMap> = vfio_maps(Iova(0), PhysRange::of_run(PhysAddr(0), 8 << 30, 0), Access::Read)
        .map(Result::unwrap)
        .collect();
    assert_eq!(
        (read.len(), read[0].size, read[0].flags),
        (1, 8 << 30, VfioMap::READ),
        "no limit of 4 GiB here"
    );
}

#[test]
fn sparse_binds_follow_the_ranges() {
    let ranges = [dma(0x1_0000, 0x1_0000), dma(0x2_0000, 0x1_0000), dma(0x8_0000, 0x1_0000)];
    let binds: Vec<_> = sparse_binds(0x100_0000, 7, 0x1_0000, ranges).collect();
    let bind = |resource_offset, size, memory_offset| {
        Ok(SparseBind { resource_offset, size, memory: 7, memory_offset, flags: 0 })
    };
    assert_eq!(binds, [bind(0x100_0000, 0x2_0000, 0), bind(0x102_0000, 0x1_0000, 0x7_0000)]);
    let before: Vec<_> = sparse_binds(0, 7, 0x4_0000, [dma(0x8_0000, 4), dma(0, 4), dma(9, 4)]).collect();
    assert_eq!(
        before,
        [
            Ok(SparseBind { size: 4, memory: 7, memory_offset: 0x4_0000, ..SparseBind::default() }),
            Err(ConvertError::BeforeMemory { at: 0, start: 0x4_0000 })
        ],
        "and nothing after it"
    );
}

/// What a controller makes of PRPs: the bytes' addresses, page by page.
fn decode_prp(prps: NvmePrp, bytes: u64, page: u64, list: &[u64], pages: &[Iova]) -> Vec<(u64, u64)> {
    let mut out = vec![(prps.prp1, (page - prps.prp1 % page).min(bytes))];
    let mut left = bytes - out[0].1;
    if left > 0 && left <= page {
        out.push((prps.prp2, left));
        left = 0;
    }
    let per_page = (page / 8) as usize;
    let mut at = prps.prp2;
    let mut index = 0;
    while left > 0 {
        let place = pages.iter().position(|iova| iova.0 == at).expect("a list page");
        let entry = list[place * per_page + index];
        if index == per_page - 1 && left > page {
            (at, index) = (entry, 0);
            continue;
        }
        let part = left.min(page);
        out.push((entry, part));
        (left, index) = (left - part, index + 1);
    }
    out
}

#[test]
fn prps_are_what_a_controller_decodes() {
    let page = 4096;
    for seed in seeds(60) {
        let mut dice = Dice(seed);
        // Whole pages, here and there, but for the ends.
        let mut ranges: Vec<DmaRange> = Vec::new();
        let most = if dice.one_in(4) { 700 } else { 6 };
        let count = 1 + dice.below(most);
        for index in 0..count {
            let start = if index == 0 { 4 * dice.below(1024) } else { 0 };
            let whole = (1 + dice.below(4)) * page - start;
            let cut = if index + 1 == count { dice.below(whole.min(4096)) } else { 0 };
            ranges.push(dma((index * 10 + 1) * 0x1_0000 + start, (whole - cut).max(1)));
        }
        let bytes = ranges.iter().map(|range| u64::from(range.len)).sum();
        let entries = prp_list_entries(ranges[0].addr.0 % page, bytes, page) as usize;
        let list_pages = entries.div_ceil(511).max(1);
        let mut list = vec![0; list_pages * 512];
        let pages: Vec<Iova> = (0..list_pages as u64).map(|n| Iova(0x9000_0000 + n * 0x2000)).collect();
        let prps = prp(ranges.iter().copied(), page, PrpList { entries: &mut list, pages: &pages }).unwrap();
        let decoded = decode_prp(prps, bytes, page, &list, &pages);
        let expected: Vec<(u64, u64)> = ranges
            .iter()
            .flat_map(|range| {
                let end = range.addr.0 + u64::from(range.len);
                let mut at = range.addr.0;
                std::iter::from_fn(move || {
                    let part = (page - at % page).min(end - at);
                    let piece = (part > 0).then_some((at, part));
                    at += part;
                    piece
                })
            })
            .collect();
        assert_eq!(decoded, expected, "seed {seed}");
        let per_byte: Vec<NvmeSgl> = vec![NvmeSgl::default(); ranges.len()];
        let mut segment = per_byte;
        let head = sgl(ranges.iter().copied(), &mut segment, Iova(0x7000)).unwrap();
        if ranges.len() == 1 {
            assert_eq!((head.addr, head.len, head.kind), (ranges[0].addr.0, ranges[0].len, NvmeSgl::DATA));
        } else {
            assert_eq!((head.addr, head.kind), (0x7000, NvmeSgl::LAST_SEGMENT));
            assert_eq!(head.len as usize, ranges.len() * 16);
            assert!(segment.iter().zip(&ranges).all(|(s, r)| (s.addr, s.len) == (r.addr.0, r.len)));
        }
    }
}

#[test]
fn what_a_controller_cannot_take_is_refused() {
    let (mut list, pages) = ([0u64; 512], [Iova(0x9000)]);
    let mut try_prp = |ranges: &[DmaRange], page| {
        prp(ranges.iter().copied(), page, PrpList { entries: &mut list, pages: &pages })
    };
    assert_eq!(try_prp(&[], 4096), Err(NvmeError::Empty));
    assert_eq!(try_prp(&[dma(0, 0)], 4096), Err(NvmeError::Empty));
    for page in [0, 512, 5000] {
        assert_eq!(try_prp(&[dma(0, 4)], page), Err(NvmeError::BadPage(page)));
    }
    assert_eq!(try_prp(&[dma(4096, 100), dma(0x8000, 4096)], 4096), Err(NvmeError::Gap { index: 1 }));
    assert_eq!(try_prp(&[dma(0x8004, 4092), dma(0xb008, 8)], 4096), Err(NvmeError::Gap { index: 1 }));
    assert_eq!(try_prp(&[dma(2, 100)], 4096), Err(NvmeError::Unaligned(Iova(2))));
    assert_eq!(try_prp(&[dma(0, 8192)], 4096), Ok(NvmePrp { prp1: 0, prp2: 4096 }));
    let too_short = try_prp(&[dma(0, 514 * 4096)], 4096);
    assert_eq!(too_short, Err(NvmeError::ListTooShort { needed: 514, given: 512 }));
    assert!(try_prp(&[dma(0, 513 * 4096)], 4096).is_ok(), "a list page that is full to the last entry");
    let mut odd = [0u64; 100];
    let bad = prp([dma(0, 1 << 20)], 4096, PrpList { entries: &mut odd, pages: &pages });
    assert_eq!(bad, Err(NvmeError::BadListPage { needed: 512, given: 100 }));
    assert_eq!(sgl([dma(0, 0)], &mut [], Iova(0)), Err(NvmeError::Empty));
    let short = sgl([dma(0, 4), dma(8, 4)], &mut [NvmeSgl::default()], Iova(0));
    assert_eq!(short, Err(NvmeError::ListTooShort { needed: 2, given: 1 }));
    assert_eq!((sgl_segment_entries(1), sgl_segment_entries(9)), (0, 9));
}
