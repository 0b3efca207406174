//! Bad arguments for every public call of `granule::dma` that takes a number, an address or a range: zero, unaligned,
//! past the end, overflowing, alone and in every combination. Each is refused by a typed error with nothing changed, or,
//! where the documentation says that the call asserts, by that assertion; what is taken does what it says and is undone.
//!
//! The calls are counted against the sources: one that is not tried fails the test in `calls`.

mod calls;
#[path = "../dma_support/mod.rs"]
mod dma_support;

use std::panic::{AssertUnwindSafe, catch_unwind};

use dma_support::{Iovas, MEMORY, Machine, PAGE, Pins, WINDOW, WINDOW_BYTES, mem, plain, with_domain};
use granule::dma::convert::{
    IoVec, NvmeSgl, PrpList, iovecs, prp, prp_list_entries, sgl, sgl_segment_entries, sparse_binds, vfio_maps,
};
use granule::dma::{
    Attributes, Deferred, DmaError, DmaList, DmaRange, DmaSpan, Domain, IovaRequest, IovaSpace, IovaUse,
    P2pKind, PageList, PasidSpace, PhysList, Provider, ScatterEntry, SegmentLimits, Topology, pin,
    pin_vectors, position, segments,
};
use granule::ports::{Iommu, IovaWindow, PeerWindow};
use granule::sync::{AtomicU64, SpinPark};
use granule::units::{
    Access, BlockNo, BusAddr, Direction, Iova, Pasid, PeerNo, PhysAddr, PhysRange, VirtAddr,
};

const BOTH: Attributes = Attributes::BOTH;
/// Numbers that somebody gets wrong.
const NASTY: [u64; 20] = [
    0,
    1,
    7,
    PAGE - 1,
    PAGE,
    PAGE + 1,
    3 * PAGE,
    8 * PAGE,
    8 * PAGE + 1,
    MEMORY,
    (1 << 32) - 1,
    1 << 32,
    (1 << 40) - PAGE,
    1 << 47,
    1 << 63,
    u64::MAX - 2 * PAGE + 1,
    u64::MAX - PAGE,
    u64::MAX - PAGE + 1,
    u64::MAX - 1,
    u64::MAX,
];

fn pairs() -> impl Iterator<Item = (u64, u64)> {
    NASTY.into_iter().flat_map(|one| NASTY.into_iter().map(move |other| (one, other)))
}

/// A range with any address and any length that a range can have.
fn any(addr: u64, len: u64) -> PhysRange {
    PhysRange { addr: PhysAddr(addr), len: len as u32, flags: 0 }
}

/// A call that asserts, as its documentation says.
#[track_caller]
fn asserts<T>(text: &str, act: impl FnOnce() -> T) {
    let panic = catch_unwind(AssertUnwindSafe(act)).err().expect("the call asserts");
    let said = panic.downcast_ref::<String>().cloned();
    let said = said.or_else(|| panic.downcast_ref::<&str>().map(|text| (*text).into())).unwrap_or_default();
    assert!(said.contains(text), "{said}");
}

#[test]
fn iova_spaces() {
    for (first, last) in pairs() {
        let window = IovaWindow { start: Iova(last), bytes: first };
        let space = IovaSpace::new((Iova(first), Iova(last)), &[window, IovaWindow::MSI_X86]);
        assert!(space.free_ranges().all(|(at, bytes)| at.0 >= first && at.0 + (bytes - 1) <= last));
    }
    let mut space = IovaSpace::new((Iova(0), Iova((1 << 40) - 1)), &[]);
    let free = space.free_bytes();
    let held = space.reserve(8 * PAGE, PAGE).expect("there is room");
    for (one, other) in pairs() {
        for request in [
            IovaRequest::anywhere(one, other),
            IovaRequest { last: Iova(other), ..IovaRequest::anywhere(one, PAGE) },
            IovaRequest { purpose: IovaUse::OneStep, ..IovaRequest::anywhere(one, other) },
        ] {
            let Ok(at) = space.reserve_for(&request) else { continue };
            assert!(one > 0 && one.is_multiple_of(PAGE) && at.0.is_multiple_of(request.align_bytes));
            assert!(at.0 + one - 1 <= request.last.0.min((1 << 40) - 1));
            space.free_for(at, one, request.purpose).expect("it was just reserved");
        }
        if let Ok(at) = space.reserve(one, other) {
            space.free(at, one).expect("it was just reserved");
        }
        if one != held.0 {
            assert_eq!(space.reservation_at(Iova(one)), None);
            space.free(Iova(one), other).expect_err("nothing is reserved there");
        }
        if other != 8 * PAGE {
            space.free_for(held, other, IovaUse::TwoStep).expect_err("not so many bytes");
        }
        assert_eq!(space.free_bytes(), free - 8 * PAGE, "nothing is changed");
    }
}

#[test]
fn reservations_links_and_replaces() {
    let machine = Machine::new();
    // So that ranges of 4 GiB are refused without a million entries.
    machine.set_room(64);
    plain(&machine, |domain| {
        for (bytes, align) in pairs() {
            if let Ok(at) = domain.reserve(bytes, align) {
                assert!(bytes > 0 && at.base().0.is_multiple_of(align) && at.bytes() == bytes);
                domain.free(at).unwrap();
            }
        }
        let at = domain.reserve(8 * PAGE, PAGE).unwrap();
        let span = domain.link(&at, 2 * PAGE, [mem(0, PAGE)], BOTH).unwrap();
        domain.sync(span).unwrap();
        let is_as_before = || {
            assert_eq!((machine.mapped_pages(), at.linked_pages()), (1, 1));
            assert_eq!(machine.translate(at.base().0 + 2 * PAGE, Access::Write), Some(MEMORY));
        };
        for (one, other) in pairs() {
            for offset in NASTY {
                let range = any(one, other);
                if let Ok(span) = domain.link(&at, offset, [range], BOTH) {
                    let bytes = u64::from(range.len);
                    assert!(bytes > 0 && offset + bytes <= 8 * PAGE && offset % PAGE == one % PAGE);
                    domain.sync(span).unwrap();
                    domain.unlink(&at, offset, bytes, BOTH).unwrap();
                }
                if let Ok(replaced) = domain.replace(&at, offset, [range], BOTH) {
                    assert!(offset.is_multiple_of(PAGE) && one.is_multiple_of(PAGE));
                    domain.unlink(&at, offset, replaced.at.bytes, BOTH).unwrap();
                    if replaced.old.iter().next().is_some() {
                        let span = domain.link(&at, 2 * PAGE, [mem(0, PAGE)], BOTH).unwrap();
                        domain.sync(span).unwrap();
                    }
                }
                is_as_before();
            }
            // One page is linked, at 2 * PAGE.
            let touches = |offset: u64, bytes: u64| offset / PAGE == 2 && (offset + bytes - 1) / PAGE == 2;
            let is_linked = |offset: u64, bytes: u64| {
                bytes > 0
                    && offset.checked_add(bytes).is_some_and(|end| end <= 8 * PAGE)
                    && touches(offset, bytes)
            };
            let synced = domain.sync_for_device(&at, one, other, Direction::Both).is_ok();
            assert_eq!(synced, is_linked(one, other), "{one:#x}, {other:#x}");
            assert_eq!(domain.sync_for_cpu(&at, one, other, Direction::Both).is_ok(), synced);
            if !synced {
                domain.unlink(&at, one, other, BOTH).expect_err("it is not linked so");
                let mut deferred = Deferred::new(domain);
                let unlinked = domain.unlink_deferred(&at, one, other, BOTH, &mut deferred);
                unlinked.expect_err("it is not linked so");
                assert_eq!(deferred.pending(), 0);
            }
            is_as_before();
        }
        let many = [mem(0, PAGE), mem(1, PAGE)].into_iter().cycle().take(9);
        domain.link(&at, 0, many, BOTH).map(drop).expect_err("more than is reserved");
        is_as_before();
        domain.destroy(at, BOTH).unwrap();
        let span = DmaSpan { addr: Iova(u64::MAX - 5), bytes: 7, flags: 0 };
        asserts("a run ends within 64 bits", || span.ranges().count());
    });
}

#[test]
fn maps_lists_and_providers() {
    let machine = Machine::new();
    machine.set_room(64);
    let window = PeerWindow { phys: PhysAddr(WINDOW), bus: BusAddr(1 << 40), bytes: WINDOW_BYTES };
    with_domain(
        &machine,
        |builder, _| builder.peer(PeerNo(1), window, P2pKind::BusAddress),
        |domain| {
            let direct = Domain::direct(u64::MAX - 5).build();
            for (one, other) in pairs() {
                let range = any(one, other);
                for range in [range, range.of_peer(PeerNo(1)), range.of_peer(PeerNo(u16::MAX))] {
                    let is_some = range.len > 0 && range.end().is_some();
                    for domain in [domain, &direct] {
                        if let Ok(mapped) = domain.map(range, BOTH) {
                            assert!(is_some && mapped.len == range.len);
                            domain.unmap(mapped, BOTH).unwrap();
                        }
                        if let Ok(mapping) = domain.map_list([range], BOTH) {
                            assert!(is_some && mapping.ranges().bytes() == u64::from(range.len));
                            domain.unmap_list(mapping, BOTH).unwrap();
                        }
                    }
                    if let Ok(bus) = domain.bus_range(range, true) {
                        assert!(is_some && bus.is_none_or(|bus| bus.len == range.len));
                    }
                }
                for flags in [0, DmaRange::BOUNCED, DmaRange::DIRECT, !DmaRange::BUS_ADDRESS] {
                    let mapped = DmaRange { addr: Iova(one), len: other as u32, flags };
                    for domain in [domain, &direct] {
                        if domain.needs_unmap(&mapped)
                            && (!domain.is_direct() || flags & DmaRange::BOUNCED != 0)
                        {
                            let refused = domain.unmap(mapped, BOTH);
                            assert_eq!(refused, Err(DmaError::NotMapped(mapped.addr)), "{mapped:?}");
                        }
                    }
                }
                let liar =
                    Liar(ScatterEntry { dma: Iova(one), dma_bytes: other as u32, ..Default::default() });
                match domain.map_provided(&liar, BOTH) {
                    Ok(provided) => {
                        assert_eq!(provided.ranges().bytes(), other as u32 as u64);
                        domain.unmap_provided(&liar, provided, BOTH).unwrap();
                    }
                    Err(DmaError::Empty(0)) => assert_eq!(other as u32, 0),
                    Err(error) => assert_eq!(error, DmaError::NotMapped(Iova(one))),
                }
                assert_eq!(machine.mapped_pages(), 0);
            }
        },
    );
    let wraps = PeerWindow { phys: PhysAddr(u64::MAX), bus: BusAddr(0), bytes: 2 };
    for wraps in [wraps, PeerWindow { phys: PhysAddr(0), bus: BusAddr(u64::MAX), bytes: 2 }] {
        asserts("ends within 64 bits", || Domain::direct(0).peer(PeerNo(0), wraps, P2pKind::HostBridge));
    }
    // A limit below everything, and bounce pages of another size than the IOMMU's.
    let iovas = Iovas::of(&machine);
    for last in [0, 1, PAGE - 1, PAGE] {
        let domain = Domain::builder(&machine, &iovas).last(Iova(last)).build();
        assert!(matches!(domain.map(mem(0, PAGE), BOTH), Err(DmaError::Iova(_))));
    }
    let mut large = Machine::new();
    large.caps.page_bytes = 4 * PAGE;
    let large_iovas = Iovas::of(&large);
    asserts("a bounce page stands in", || Domain::builder(&large, &large_iovas).bounce(&machine).build());
    large.caps.page_bytes = 6000;
    asserts("power of two", || Domain::builder(&large, &large_iovas));
}

/// An exporter whose list says whatever it says.
struct Liar(ScatterEntry);
impl Provider for Liar {
    fn ranges(&self) -> Option<PhysList> {
        None
    }
    fn map_scatter(&self, _: &Domain<'_>, _: Attributes) -> Result<Vec<ScatterEntry>, DmaError> {
        Ok(vec![self.0])
    }
    fn unmap_scatter(&self, _: &Domain<'_>, list: &[ScatterEntry], _: Attributes) {
        assert_eq!(list, [self.0], "what was mapped is unmapped, once");
    }
}

#[test]
fn page_lists() {
    let machine = Machine::new();
    let words: Vec<AtomicU64> = (0..2).map(|_| AtomicU64::new(0)).collect();
    let list = PageList::new(Iova(1 << 30), 100, &words);
    list.link(&machine, 40..50, PhysAddr(MEMORY), Access::Write).unwrap();
    for (one, other) in pairs() {
        let unlinked = |pages: std::ops::Range<u64>| pages.end <= 40 || pages.start >= 50 || pages.is_empty();
        if !unlinked(one..other) {
            continue;
        }
        assert_eq!(list.linked_pages(one..other), 0);
        assert_eq!(list.runs(one..other, true).count(), 0);
        assert_eq!(list.unlink(&machine, one..other), 0);
        assert_eq!(
            list.unlink_runs(&machine, [one..other, other..one].into_iter().filter(|r| unlinked(r.clone()))),
            0
        );
        let linked = list.link(&machine, one..other, PhysAddr(MEMORY), Access::Write);
        assert_eq!(linked.is_ok(), one <= other && other <= 100, "{one}..{other}: {linked:?}");
        list.unlink(&machine, one..other);
        if let Ok(count) = list.link_ranges(&machine, one, [mem(0, 3 * PAGE)], Access::Read) {
            assert!(one <= 97 && count == 3);
            list.unlink(&machine, one..one + 3);
        }
        assert_eq!((list.linked_pages(0..100), machine.mapped_pages()), (10, 10));
    }
    for page in NASTY.into_iter().filter(|page| !(40..50).contains(page)) {
        assert!(!list.is_linked(page) && !list.allows(page, Access::Read));
        if page > 100 {
            asserts("a page of the list", || list.address(page));
        }
    }
    for (addr, len) in [(MEMORY + 1, PAGE), (MEMORY, PAGE - 1), (MEMORY, 1)] {
        asserts("whole pages", || list.link_ranges(&machine, 0, [any(addr, len)], Access::Read));
    }
    asserts("whole pages", || list.link(&machine, 0..1, PhysAddr(7), Access::Read));
    asserts("address arithmetic wraps", || {
        list.link(&machine, 1..2, PhysAddr(u64::MAX - PAGE + 1), Access::Read)
    });
    asserts("a bit per page", || PageList::new(Iova(0), 129, &words));
    asserts("within 64 bits", || PageList::new(Iova(u64::MAX - PAGE), 2, &words));
    asserts("a bit per page", || list.with_writable(&words[..1]));
    assert_eq!(list.with_table_rights(&machine).dma_ranges(Access::Read).count(), 1);
    list.unlink(&machine, 0..100);
    plain(&machine, |domain| {
        let at = domain.reserve(200 * PAGE, PAGE).unwrap();
        asserts("a bit per page", || domain.page_list(&at, &words));
        domain.free(at).unwrap();
    });
    assert!(machine.mapped(Iova(1 << 30), 100 * PAGE).is_none());
    asserts("wraps", || position(Iova(u64::MAX), BlockNo(1), 5));
}

#[test]
fn ranges_lists_and_conversions() {
    for (one, other) in pairs() {
        let wraps = one.checked_add(other).is_none();
        if wraps {
            asserts("a run ends within 64 bits", || DmaRange::of_run(Iova(one), other, 0).count());
            asserts("a run ends within 64 bits", || PhysRange::of_run(PhysAddr(one), other, 0).count());
        }
        if one < 1 << 40 && other < 1 << 40 {
            let all: u64 = DmaRange::of_run(Iova(one), other, 0).map(|range| u64::from(range.len)).sum();
            assert_eq!(all, other);
        }
        let range = any(one, other);
        let (len, ends) = (u64::from(range.len), range.end().is_some());
        let mut list = PhysList::new();
        list.push(range);
        list.push(any(other, one));
        let mut more = PhysList::new();
        more.push(range);
        more.append(list);
        assert_eq!(more.bytes(), 2 * len + u64::from(one as u32));
        assert_eq!(more.iter().map(|range| u64::from(range.len)).sum::<u64>(), more.bytes());

        let limits = SegmentLimits::new(other, one, 3);
        let is_good = (1..=PhysRange::MAX_BYTES).contains(&other) && (one == 0 || one.is_power_of_two());
        assert_eq!(limits.is_ok(), is_good);
        let limits = SegmentLimits::new(1 << 20, 0, 1 << 13).unwrap();
        let cut: Vec<_> = segments([range, mem(0, 8)], limits).collect();
        assert_eq!(cut.iter().all(Result::is_ok), ends || len == 0, "{range:?}");

        assert_eq!(iovecs([range]).all(|vector| vector.is_ok()), ends || len == 0);
        for at in NASTY {
            let fits = len == 0 || (ends && at.checked_add(len).is_some());
            assert_eq!(vfio_maps(Iova(at), [range], Access::Write).all(|map| map.is_ok()), fits);
            let dma = DmaRange { addr: Iova(one), len: range.len, flags: 0 };
            assert_eq!(sparse_binds(at, 1, 0, [dma]).all(|bind| bind.is_ok()), fits);
            let inside = len == 0 || (ends && one >= at);
            assert_eq!(sparse_binds(0, 1, at, [dma]).all(|bind| bind.is_ok()), inside);

            let (mut entries, pages) = ([0; 512], [Iova(other & !(PAGE - 1))]);
            let prps = prp([dma], at, PrpList { entries: &mut entries, pages: &pages });
            let may = at.is_power_of_two() && at >= PAGE && len > 0 && ends && one.is_multiple_of(4);
            assert!(prps.is_err() || may, "{dma:?} in pages of {at:#x}: {prps:?}");
            let head = sgl([dma, dma], &mut [NvmeSgl::default(); 2], Iova(at));
            assert_eq!(head.is_ok(), len > 0 && ends && one.is_multiple_of(4));
        }
        if wraps {
            asserts("within 64 bits", || prp_list_entries(one, other, PAGE));
        }
        assert_eq!(sgl_segment_entries(one as usize), if one <= 1 { 0 } else { one as usize });
    }
    asserts("has bytes", || prp_list_entries(0, 1, 0));
    assert!(DmaList::new().is_empty());
}

#[test]
fn pins_pasids_and_topologies() {
    let pins = Pins { limit_bytes: Some(1 << 20), ..Pins::default() };
    for (at, bytes) in pairs() {
        if let Ok(pinned) = pin(&pins, VirtAddr(at), bytes, Access::Write) {
            assert!(bytes > 0 && pinned.ranges().bytes() == bytes);
        }
        let vectors = [IoVec { base: MEMORY, len: 8 }, IoVec { base: at, len: bytes }];
        let many = pin_vectors(&pins, &vectors, Access::Read);
        assert!(many.is_err() || bytes > 0);
        drop(many);
        assert!(pins.held.lock().unwrap().is_empty());
    }
    let park = SpinPark;
    for last in [0, 1 << 20, u32::MAX] {
        asserts("PASIDs run from 1", || PasidSpace::new(Pasid(last), &park));
    }
    let space = PasidSpace::new(Pasid(3), &park);
    for bits in [0, 1, 20, 21, 64, u32::MAX] {
        if let Ok(pasid) = space.take(bits) {
            assert!(bits > 0 && (1..4).contains(&pasid.0));
            space.give_back(pasid);
        }
    }
    for pasid in [0, 4, 64, u32::MAX] {
        asserts("a PASID of this space", || space.give_back(Pasid(pasid)));
    }
    asserts("given back once", || space.give_back(Pasid(1)));
    // Nodes of a larger topology are none of this one.
    let mut large = Topology::new();
    let nodes: Vec<_> = (0..9).map(|_| large.host_bridge()).collect();
    let mut small = Topology::new();
    small.host_bridge();
    for node in &nodes[1..] {
        small.switch(*node).expect_err("it is not there");
        small.redirecting_switch(*node).expect_err("it is not there");
        small.device(*node).expect_err("it is not there");
        small.passes(nodes[0], *node).expect_err("it is not there");
        assert_eq!(small.p2p(*node, nodes[0]), P2pKind::NotSupported);
    }
}

/// Memory of a device, said by flag or by attribute, never has its caches maintained.
#[test]
fn mmio_is_named_where_caches_are_maintained() {
    let mut machine = Machine::new();
    machine.caches = true;
    with_domain(
        &machine,
        |builder, machine| builder.cache(machine),
        |domain| {
            let at = domain.reserve(4 * PAGE, PAGE).unwrap();
            let registers = mem(0, PAGE).with(PhysRange::MMIO);
            let refused = DmaError::UnnamedMmio(registers.addr);
            assert_eq!(domain.link(&at, 0, [mem(1, PAGE), registers], BOTH).map(drop), Err(refused));
            assert_eq!(domain.replace(&at, 0, [registers], BOTH).map(drop), Err(refused));
            assert_eq!(domain.map(registers, BOTH), Err(refused));
            assert_eq!(domain.map_list([mem(1, PAGE), registers], BOTH).map(drop), Err(refused));
            for attributes in [BOTH.mmio(), BOTH.skip_cpu_sync()] {
                let span = domain.link(&at, 0, [registers], attributes).unwrap();
                assert_ne!(domain.sync(span).unwrap().flags & DmaRange::MMIO, 0);
                domain.unlink(&at, 0, PAGE, attributes).unwrap();
            }
            domain.free(at).unwrap();
        },
    );
}
