//! Map and unmap, alone and in lists, with and without an IOMMU, with peers, providers and pins.

mod dma_support;

use dma_support::{
    BOUNCE, Iovas, MEMORY, Machine, PAGE, Pins, WINDOW, WINDOW_BYTES, mem, mem_at, plain, with_domain,
};
use granule::dma::{
    Attributes, DmaError, DmaList, DmaRange, Domain, IovaError, P2pKind, PhysList, Provided, Provider,
    ScatterEntry, Topology, TopologyError, convert::IoVec, pin, pin_vectors,
};
use granule::ports::{PeerWindow, PinError};
use granule::units::{Access, BusAddr, Iova, PeerNo, PhysAddr, PhysRange, VirtAddr};

const BOTH: Attributes = Attributes::BOTH;
const BUS: u64 = 0x10_0000_0000;

fn window() -> PeerWindow {
    PeerWindow { phys: PhysAddr(WINDOW), bus: BusAddr(BUS), bytes: WINDOW_BYTES }
}

#[test]
fn map_is_byte_exact_and_unmap_knows_what_it_made() {
    let machine = Machine::new();
    machine.write(MEMORY + PAGE - 3, b"across");
    plain(&machine, |domain| {
        let range = domain.map(mem_at(PAGE - 3, 6), BOTH).unwrap();
        assert_eq!(range.len, 6);
        assert_eq!(machine.dma_read_all(range.addr.0, 6).unwrap(), b"across");
        assert!(domain.needs_unmap(&range));
        // Not what map returned: elsewhere, longer by a page, of a reservation, twice.
        let two_step = domain.reserve(2 * PAGE, PAGE).unwrap();
        let no = |range: DmaRange| {
            assert_eq!(domain.unmap(range, BOTH), Err(DmaError::NotMapped(range.addr)), "{range:?}");
        };
        no(DmaRange { addr: range.addr + PAGE, ..range });
        no(DmaRange { len: 2 * PAGE as u32, ..range });
        no(DmaRange { addr: two_step.base(), len: 2 * PAGE as u32, flags: 0 });
        no(DmaRange { addr: Iova(u64::MAX), ..range });
        no(DmaRange { addr: Iova(u64::MAX - 9), ..range });
        domain.free(two_step).unwrap();
        assert_eq!(machine.dma_read_all(range.addr.0, 6).unwrap(), b"across", "still mapped");
        assert_eq!(domain.unmap(range, BOTH).unwrap().pages, 2);
        no(range);
        assert_eq!(machine.dma_read(range.addr.0), None);
        for (bad, error) in [
            (mem(0, 0), DmaError::Empty(0)),
            (PhysRange::new(PhysAddr(u64::MAX - 3), 8), DmaError::Wraps(PhysAddr(u64::MAX - 3))),
            (PhysRange::new(PhysAddr(u64::MAX - 30), 8), DmaError::Wraps(PhysAddr(u64::MAX - 30))),
        ] {
            assert_eq!(domain.map(bad, BOTH), Err(error));
        }
        machine.set_room(0);
        assert_eq!(domain.map(mem(0, PAGE), BOTH), Err(DmaError::OutOfTables));
        machine.set_room(usize::MAX);
    });
    let iovas = Iovas::of(&machine);
    let narrow = Domain::builder(&machine, &iovas).last(Iova(PAGE - 1)).build();
    let none = IovaError::ExhaustedBelow { bytes: PAGE, last: Iova(PAGE - 1) };
    assert_eq!(narrow.map(mem(0, PAGE), BOTH), Err(none.into()));
}

#[test]
fn a_limit_keeps_iovas_low_and_both_ways_share_the_space() {
    let machine = Machine::new();
    let last = Iova((1 << 24) - 1);
    with_domain(
        &machine,
        |builder, _| builder.last(last),
        |domain| {
            let mut ranges = Vec::new();
            let mut reservations = Vec::new();
            loop {
                match (domain.map(mem(ranges.len() as u64 % 99, 3 * PAGE), BOTH), domain.reserve(PAGE, PAGE))
                {
                    (Ok(range), Ok(reservation)) => {
                        assert!(range.addr.0 + 3 * PAGE - 1 <= last.0 && reservation.base() < last);
                        ranges.push(range);
                        reservations.push(reservation);
                    }
                    (range, reservation) => {
                        if let Ok(range) = range {
                            domain.unmap(range, BOTH).unwrap();
                        }
                        reservation.into_iter().for_each(|reservation| domain.free(reservation).unwrap());
                        break;
                    }
                }
            }
            assert!(ranges.len() > 1000, "16 MiB hold a thousand of each, not {}", ranges.len());
            let mut all: Vec<u64> = ranges.iter().map(|r| r.addr.0 / PAGE).flat_map(|p| p..p + 3).collect();
            all.extend(reservations.iter().map(|reservation| reservation.base().0 / PAGE));
            let count = all.len();
            all.sort_unstable();
            all.dedup();
            assert_eq!(all.len(), count, "no IOVA was given twice");
            for range in ranges {
                domain.unmap(range, BOTH).unwrap();
            }
            reservations.into_iter().for_each(|reservation| domain.free(reservation).unwrap());
        },
    );
}

#[test]
fn a_list_comes_out_as_few_ranges_and_goes_with_one_flush() {
    let machine = Machine::new();
    plain(&machine, |domain| {
        (0..64).for_each(|page| machine.write(MEMORY + page * PAGE, &[page as u8; PAGE as usize]));
        // Whole pages from everywhere join; the gap inside of a page does not.
        let list = [
            mem(9, PAGE),
            mem(3, 2 * PAGE),
            mem_at(20 * PAGE, 100),
            mem_at(30 * PAGE + 8, 50),
            mem(40, PAGE),
        ];
        let mapping = domain.map_list(list, BOTH).unwrap();
        let ranges: Vec<DmaRange> = mapping.ranges().iter().collect();
        assert_eq!(ranges.iter().map(|range| range.len).collect::<Vec<_>>(), [3 * 4096 + 100, 50, 4096]);
        let bytes: Vec<u8> =
            ranges.iter().flat_map(|r| machine.dma_read_all(r.addr.0, r.len.into()).unwrap()).collect();
        let expected: Vec<u8> = list.iter().flat_map(|r| machine.read(r.addr.0, r.len as usize)).collect();
        assert_eq!(bytes, expected);
        let flushes = machine.flush_calls();
        assert_eq!(
            domain.unmap(ranges[0], BOTH),
            Err(DmaError::NotMapped(ranges[0].addr)),
            "it is part of a list"
        );
        assert_eq!(domain.unmap_list(mapping, BOTH).unwrap().pages, 6);
        assert_eq!(machine.flush_calls() - flushes, 1);
        // Refused whole.
        let none: [PhysRange; 0] = [];
        assert_eq!(domain.map_list(none, BOTH).map(drop), Err(DmaError::Empty(0)));
        let empty = domain.map_list([mem(0, PAGE), mem(5, 0), mem(6, PAGE)], BOTH).map(drop);
        assert_eq!(empty, Err(DmaError::Empty(1)));
        machine.set_room(3);
        let full = domain.map_list([mem_at(0, 10), mem_at(PAGE, 10), mem(20, 8 * PAGE)], BOTH).map(drop);
        assert_eq!(full, Err(DmaError::OutOfTables));
        assert_eq!(machine.mapped_pages(), 0);
        machine.set_room(usize::MAX);
        let mapping = domain.map_list([mem(0, PAGE)], BOTH).unwrap();
        let other_machine = Machine::new();
        plain(&other_machine, |other| {
            let (mapping, error) = other.unmap_list(mapping, BOTH).expect_err("another domain's");
            assert_eq!(error, DmaError::OtherDomain);
            domain.unmap_list(mapping, BOTH).unwrap();
        });
    });
}

#[test]
fn one_request_mixes_system_memory_and_bus_addresses() {
    let machine = Machine::new();
    let (bus, bridge) = (PeerNo(5), PeerNo(6));
    let far = PeerWindow { phys: PhysAddr(WINDOW + WINDOW_BYTES), ..window() };
    with_domain(
        &machine,
        |builder, _| builder.peer(bus, window(), P2pKind::BusAddress).peer(bridge, far, P2pKind::HostBridge),
        |domain| {
            let peer = |page: u64, pages: u64| {
                PhysRange::new(PhysAddr(WINDOW + page * PAGE), pages * PAGE).of_peer(bus)
            };
            let bridged = PhysRange::new(far.phys, PAGE).of_peer(bridge);
            let list = [mem(1, PAGE), peer(2, 1), peer(3, 1), mem(2, PAGE), bridged, peer(9, 1)];
            let mapping = domain.map_list(list, BOTH).unwrap();
            let ranges: Vec<DmaRange> = mapping.ranges().iter().collect();
            let kinds: Vec<u32> = ranges.iter().map(|range| range.flags & !DmaRange::WRITABLE).collect();
            assert_eq!(kinds, [0, DmaRange::BUS_ADDRESS, 0, DmaRange::MMIO, DmaRange::BUS_ADDRESS]);
            assert_eq!((ranges[1].addr.0, ranges[1].len), (BUS + 2 * PAGE, 2 * PAGE as u32));
            assert_eq!(machine.mapped_pages(), 3, "bus addresses are never in the IOMMU");
            assert_eq!(machine.translate(ranges[3].addr.0, Access::Write), Some(far.phys.0));
            domain.unmap_list(mapping, BOTH).unwrap();
            // Alone.
            let range = domain.map(peer(0, 2), BOTH).unwrap();
            assert!(!domain.needs_unmap(&range));
            assert_eq!(domain.unmap(range, BOTH).unwrap().pages, 0);
            assert_eq!(domain.bus_range(peer(0, 1), false).unwrap().unwrap().flags, DmaRange::BUS_ADDRESS);
            assert_eq!(domain.bus_range(mem(0, PAGE), true), Ok(None));
            assert_eq!(domain.bus_range(mem(0, 0), true), Err(DmaError::Empty(0)));
            // A list of bus addresses alone reserves nothing.
            let mapping = domain.map_list([peer(0, 1)], BOTH).unwrap();
            domain.unmap_list(mapping, BOTH).unwrap();
            let outside = peer(63, 2);
            let refused = domain.map_list([mem(0, PAGE), outside], BOTH).map(drop);
            assert_eq!(refused, Err(DmaError::OutsidePeer { peer: bus, addr: outside.addr }));
            assert_eq!(domain.counts().bus_ranges, 5);
        },
    );
}

#[test]
fn without_an_iommu_there_is_nothing_to_keep() {
    let machine = Machine::new();
    let offset = 0x1_0000_0000u64;
    let domain = Domain::direct(offset).build();
    assert!(domain.is_direct());
    let range = domain.map(mem_at(77, 5000), BOTH).unwrap();
    assert_eq!((range.addr.0, range.flags), (MEMORY + 77 + offset, DmaRange::DIRECT | DmaRange::WRITABLE));
    assert!(!domain.needs_unmap(&range));
    domain.unmap(range, BOTH).unwrap();
    assert_eq!(domain.reserve(PAGE, PAGE).map(drop), Err(DmaError::Direct));
    let mapping = domain.map_list([mem(0, PAGE), mem(1, PAGE), mem(9, 10)], BOTH).unwrap();
    assert_eq!(mapping.ranges().len(), 2, "neighbours are one");
    domain.unmap_list(mapping, BOTH).unwrap();
    let none: [PhysRange; 0] = [];
    assert_eq!(domain.map_list(none, BOTH).map(drop), Err(DmaError::Empty(0)));
    assert_eq!(domain.map_list([mem(0, 8), mem(5, 0)], BOTH).map(drop), Err(DmaError::Empty(1)));
    // A limit without bounce pages; one that bounce pages do not help; one that they do.
    let last = Iova(MEMORY + 2 * PAGE - 1);
    let limited = Domain::direct(0).last(last).build();
    limited.map(mem(0, 2 * PAGE), BOTH).unwrap();
    let beyond = DmaError::BeyondReach { addr: PhysAddr(MEMORY + PAGE), last };
    assert_eq!(limited.map(mem(1, 2 * PAGE), BOTH), Err(beyond));
    let useless = Domain::direct(0).last(last).bounce(&machine).build();
    assert_eq!(useless.map(mem(2, 8), BOTH), Err(DmaError::NoBouncePages(PhysAddr(MEMORY + 2 * PAGE))));
    // Addresses wrap so that the bounce pages are low.
    let low = 0u64.wrapping_sub(Machine::bounce_phys());
    let bounced = Domain::direct(low).last(Iova(BOUNCE * PAGE - 1)).bounce(&machine).build();
    machine.write(MEMORY + 3 * PAGE - 6, b"hello world");
    let at = 3 * PAGE - 6;
    let range = bounced.map(mem_at(at, 11), BOTH).unwrap();
    assert_eq!(range.flags & DmaRange::BOUNCED, DmaRange::BOUNCED);
    assert!(bounced.needs_unmap(&range) && range.addr.0 + 11 <= BOUNCE * PAGE);
    assert_eq!(bounced.bounce_pages_in_use(), 2);
    let bus = |byte: u64| Machine::bounce_phys() + range.addr.0 + byte;
    assert_eq!((0..11).map(|byte| machine.bus_read(bus(byte))).collect::<Vec<_>>(), b"hello world");
    machine.bus_write(bus(0), b'J');
    let elsewhere = DmaRange { addr: range.addr + 4 * PAGE, ..range };
    assert_eq!(bounced.unmap(elsewhere, BOTH), Err(DmaError::NotMapped(elsewhere.addr)));
    assert_eq!(bounced.unmap(range, BOTH).unwrap().bounced, 2);
    assert_eq!(machine.read(MEMORY + at, 5), b"Jello");
    assert_eq!(bounced.unmap(range, BOTH), Err(DmaError::NotMapped(range.addr)), "twice");
    for attributes in [BOTH.mmio(), BOTH.require_coherent()] {
        let refused = bounced.map(mem_at(at, 11), attributes);
        assert_eq!(refused, Err(DmaError::MustNotBounce(PhysAddr(MEMORY + at))));
    }
    let much = bounced.map(mem(0, (BOUNCE + 1) * PAGE), BOTH);
    assert_eq!(much, Err(DmaError::NoBouncePages(PhysAddr(MEMORY))));
    // All or nothing also here.
    let list = bounced.map_list([mem(0, PAGE), mem(4, BOUNCE * PAGE)], BOTH).map(drop);
    assert_eq!(list, Err(DmaError::NoBouncePages(PhysAddr(MEMORY + 4 * PAGE))));
    assert_eq!(bounced.bounce_pages_in_use(), 0);
    machine.set_gone(true);
    assert_eq!(bounced.map(mem(5, 8), BOTH), Err(DmaError::MemoryGone(PhysAddr(MEMORY + 5 * PAGE))));
    assert_eq!(bounced.bounce_pages_in_use(), 0);
}

#[test]
fn without_an_iommu_caches_are_looked_after() {
    let mut machine = Machine::new();
    machine.caches = true;
    let domain = Domain::direct(0).cache(&machine).bounce(&machine).build();
    machine.write(MEMORY, b"old");
    let range = domain.map(mem(0, 64), BOTH).unwrap();
    assert!(domain.needs_unmap(&range), "the caches have to be looked after");
    machine.bus_write(range.addr.0, b'O');
    assert_eq!(machine.read(MEMORY, 1), b"o");
    domain.unmap(range, BOTH).unwrap();
    assert_eq!(machine.read(MEMORY, 1), b"O");
    let shared = domain.map(mem_at(70, 8), BOTH).unwrap();
    assert_eq!(shared.flags & DmaRange::BOUNCED, DmaRange::BOUNCED, "a line is shared with the CPU");
    machine.bus_write(shared.addr.0, 7);
    domain.unmap(shared, BOTH).unwrap();
    assert_eq!(machine.read(MEMORY + 70, 1), [7]);
    let coherent = domain.map(mem(0, PAGE), BOTH.require_coherent());
    assert_eq!(coherent, Err(DmaError::NotCoherent));
    let mmio = domain.map(mem(0, PAGE), BOTH.mmio()).unwrap();
    assert!(!domain.needs_unmap(&mmio));
    let alone = Domain::direct(0).cache(&machine).build();
    assert_eq!(alone.map(mem_at(70, 8), BOTH), Err(DmaError::NoBouncePages(PhysAddr(MEMORY + 70))));
}

#[test]
fn the_topology_decides_who_reaches_whom() {
    let mut topology = Topology::new();
    let [one, two, three] = [(); 3].map(|()| topology.host_bridge());
    let switch = topology.switch(one).unwrap();
    let inner = topology.switch(switch).unwrap();
    let strict = topology.redirecting_switch(one).unwrap();
    let mut device = |above| topology.device(above).unwrap();
    let (a, b, c) = (device(switch), device(inner), device(inner));
    let (d, e) = (device(strict), device(strict));
    let (f, g) = (device(two), device(three));
    topology.passes(one, one).unwrap();
    topology.passes(two, one).unwrap();
    let cases = [
        (a, a, P2pKind::None),
        (b, c, P2pKind::BusAddress),
        (a, b, P2pKind::BusAddress),
        (d, e, P2pKind::HostBridge),
        (a, d, P2pKind::HostBridge),
        (a, f, P2pKind::HostBridge),
        (f, g, P2pKind::NotSupported),
        (a, g, P2pKind::NotSupported),
        (a, switch, P2pKind::NotSupported),
    ];
    for (client, provider, kind) in cases {
        assert_eq!(topology.p2p(client, provider), kind, "{client:?} to {provider:?}");
        assert_eq!(topology.p2p(provider, client), kind, "{provider:?} to {client:?}");
    }
    assert_eq!(topology.device(a), Err(TopologyError::NotABridge(a)));
    assert_eq!(topology.switch(a), Err(TopologyError::NotABridge(a)));
    assert_eq!(topology.redirecting_switch(a), Err(TopologyError::NotABridge(a)));
    assert_eq!(Topology::new().device(one), Err(TopologyError::NotABridge(one)));
    assert_eq!(topology.passes(one, switch), Err(TopologyError::NotAHostBridge(switch)));
    // A switch that redirects on the way up decides, too.
    let below = topology.redirecting_switch(switch).unwrap();
    let h = topology.device(below).unwrap();
    assert_eq!(topology.p2p(h, a), P2pKind::HostBridge);
}

/// An exporter that has ranges, or only knows scatter lists.
struct Exporter {
    ranges: Option<PhysList>,
}
impl Provider for Exporter {
    fn ranges(&self) -> Option<PhysList> {
        self.ranges.clone()
    }
    fn map_scatter(
        &self,
        domain: &Domain<'_>,
        attributes: Attributes,
    ) -> Result<Vec<ScatterEntry>, DmaError> {
        // Two pages, each mapped alone, and an entry that was merged into the one before.
        let mut list = Vec::new();
        for page in [4, 7] {
            let range = match domain.map(mem(page, PAGE), attributes) {
                Ok(range) => range,
                Err(error) => {
                    self.unmap_scatter(domain, &list, attributes);
                    return Err(error);
                }
            };
            let entry = ScatterEntry {
                phys: mem(page, PAGE).addr,
                bytes: 4096,
                dma: range.addr,
                dma_bytes: range.len,
            };
            list.push(entry);
        }
        list.push(ScatterEntry { phys: PhysAddr(MEMORY), bytes: 4096, ..ScatterEntry::default() });
        Ok(list)
    }
    fn unmap_scatter(&self, domain: &Domain<'_>, list: &[ScatterEntry], attributes: Attributes) {
        for entry in list.iter().take_while(|entry| entry.dma_bytes > 0) {
            let range = DmaRange { addr: entry.dma, len: entry.dma_bytes, flags: DmaRange::WRITABLE };
            domain.unmap(range, attributes).unwrap();
        }
    }
}

#[test]
fn a_provider_with_scatter_lists_only_is_adapted_and_one_can_tell() {
    let machine = Machine::new();
    machine.write(MEMORY + 7 * PAGE, b"seven");
    plain(&machine, |domain| {
        let old = Exporter { ranges: None };
        let provided = domain.map_provided(&old, BOTH).unwrap();
        assert!(matches!(provided, Provided::Scatter { .. }));
        let ranges: DmaList = provided.ranges().clone();
        let seventh: Vec<u8> = ranges
            .iter()
            .flat_map(|r| machine.dma_read_all(r.addr.0, r.len.into()).unwrap())
            .skip(4096)
            .take(5)
            .collect();
        assert_eq!(seventh, b"seven");
        let other_machine = Machine::new();
        let provided = {
            let mut kept = None;
            plain(&other_machine, |other| {
                let (provided, error) = other
                    .unmap_provided(&old, kept.take().unwrap_or(provided), BOTH)
                    .expect_err("not its own");
                assert_eq!(error, DmaError::OtherDomain);
                kept = Some(provided);
            });
            kept.expect("it was given back")
        };
        assert_eq!(
            ranges.iter().next().map(|r| machine.dma_read(r.addr.0).is_some()),
            Some(true),
            "still mapped"
        );
        domain.unmap_provided(&old, provided, BOTH).unwrap();
        let new = Exporter { ranges: Some([mem(7, PAGE)].into_iter().collect()) };
        let provided = domain.map_provided(&new, BOTH).unwrap();
        assert!(matches!(provided, Provided::Ranges(_)));
        assert_eq!(provided.ranges().len(), 1);
        let other_machine = Machine::new();
        plain(&other_machine, |other| {
            let (provided, error) = other.unmap_provided(&new, provided, BOTH).expect_err("another domain's");
            assert_eq!(error, DmaError::OtherDomain);
            domain.unmap_provided(&new, provided, BOTH).unwrap();
        });
        machine.set_room(1);
        assert_eq!(domain.map_provided(&old, BOTH).map(drop), Err(DmaError::OutOfTables));
        machine.set_room(usize::MAX);
    });
}

#[test]
fn pins_are_held_until_they_are_dropped() {
    let machine = Machine::new();
    let pins = Pins::default();
    let at = VirtAddr(0x7000_0000 + 100);
    for (at, bytes) in [(at, 0), (VirtAddr(u64::MAX), 2), (VirtAddr(5), u64::MAX)] {
        assert_eq!(pin(&pins, at, bytes, Access::Write).map(drop), Err(PinError::BadRange { at, bytes }));
    }
    plain(&machine, |domain| {
        let pinned = pin(&pins, at, 3 * PAGE, Access::Write).unwrap();
        assert_eq!((pinned.at(), pinned.bytes(), pinned.ranges().bytes()), (at, 3 * PAGE, 3 * PAGE));
        assert!(pinned.ranges().iter().all(|range| range.flags == PhysRange::PINNED));
        assert_eq!(pins.held.lock().unwrap().len(), 1);
        // Several pieces at once, all or nothing.
        let vector = |page: u64, bytes| IoVec { base: (0x8000 + page) * PAGE, len: bytes };
        let vectors = [vector(0, 100), vector(5, 2 * PAGE)];
        let many = pin_vectors(&pins, &vectors, Access::Read).unwrap();
        assert_eq!(many.iter().map(|one| one.ranges().bytes()).collect::<Vec<_>>(), [100, 2 * PAGE]);
        assert_eq!(pins.held.lock().unwrap().len(), 3);
        drop(many);
        let absent = Pins { unmapped: Some(0x8006), ..Pins::default() };
        let refused = pin_vectors(&absent, &vectors, Access::Read).map(drop);
        assert_eq!(refused, Err(PinError::NoAccess(VirtAddr(0x8006 * PAGE))));
        assert!(absent.held.lock().unwrap().is_empty(), "the first piece was let go");
        let mapping = domain.map_list(pinned.ranges().iter(), BOTH).unwrap();
        assert_eq!(mapping.ranges().bytes(), 3 * PAGE);
        assert_eq!(mapping.ranges().len(), 1, "pages from everywhere are one run for the device");
        domain.unmap_list(mapping, BOTH).unwrap();
        drop(pinned);
        assert!(pins.held.lock().unwrap().is_empty());
    });
}
