//! The two-step API and the one-step way beside it, as a device sees them: every rule by DMA that really happens.
#![cfg(not(granule_loom))]
#![allow(unsafe_code, reason = "makes devices without an IOMMU")]

mod dma_device;

use dma_device::*;
use granule::dma::{
    Attributes, Deferred, DmaError, DmaRange, Domain, P2pKind, PasidError, PasidSpace, Topology,
};
use granule::os::FutexPark;
use granule::ports::{Device, PeerMemory, PeerWindow, Word};
use granule::sync::{AtomicU64, Ordering};
use granule::units::{Access, DevMemAddr, Direction, Iova, PAGE_BYTES, Pasid, PeerNo, PhysRange};
use granule_backends::software::{BouncePages, DmaRefused, IommuDomain, SoftwareDevice, Switch};

const BOTH: Attributes = Attributes::BOTH;

#[test]
fn linked_pages_are_reached_at_their_offset_and_unlinked_ones_are_not() {
    let (emulated, memory) = (domain(), Memory::new(8));
    let device = in_domain(&emulated);
    let (iommu, iovas) = (emulated.iommu(), Iovas::of(emulated.iommu()));
    let domain = Domain::builder(iommu, &iovas).build();
    (0..8).for_each(|page| memory.fill(page, page + 1));
    let reservation = domain.reserve(16 * PAGE_BYTES, PAGE_BYTES).unwrap();
    let base = reservation.base();
    // Scattered pages, one behind the other; then a part of one page at an offset of its own.
    let scattered = [5, 1, 2, 7].map(|page| memory.range(page, 1));
    let span = domain.link(&reservation, 4 * PAGE_BYTES, scattered, BOTH).unwrap();
    let linked = domain.sync(span).unwrap();
    assert_eq!((linked.addr, linked.bytes), (base + 4 * PAGE_BYTES, 4 * PAGE_BYTES));
    for (position, value) in [(4, 6), (5, 2), (6, 3), (7, 8)] {
        assert_eq!(read(&device, base + position * PAGE_BYTES), Ok(value));
    }
    let outside = base + 3 * PAGE_BYTES;
    assert_eq!(read(&device, outside), Err(DmaRefused::NotMapped(outside)));
    // A part of what was linked by one call goes, and nothing else moves.
    domain.unlink(&reservation, 5 * PAGE_BYTES, PAGE_BYTES, BOTH).unwrap();
    let hole = base + 5 * PAGE_BYTES;
    assert_eq!(read(&device, hole), Err(DmaRefused::NotMapped(hole)));
    assert_eq!(read(&device, base + 6 * PAGE_BYTES), Ok(3));
    assert_eq!(emulated.counters().flushes, 1, "one flush for one unlink");
    let (reservation, error) = domain.free(reservation).unwrap_err();
    assert_eq!(error, DmaError::LinksLeft(3));
    domain.destroy(reservation, BOTH).unwrap();
    assert_eq!(read(&device, base + 6 * PAGE_BYTES), Err(DmaRefused::NotMapped(base + 6 * PAGE_BYTES)));
    assert_eq!(emulated.counters().flushes, 2);
}

/// Behind an IOMMU that remembers that nothing was mapped, what is linked is there after the sync, and not before: one
/// sync for a span of several links, and none is forgotten by whatever maps.
#[test]
fn a_device_reaches_what_was_linked_after_the_sync() {
    let emulated = IommuDomain::builder().table_bytes(4 * MIB).caches_absence().build().unwrap();
    let (memory, device) = (Memory::new(8), in_domain(&emulated));
    let (iommu, iovas) = (emulated.iommu(), Iovas::of(emulated.iommu()));
    let domain = Domain::builder(iommu, &iovas).build();
    (0..8).for_each(|page| memory.fill(page, page + 1));
    let reservation = domain.reserve(8 * PAGE_BYTES, PAGE_BYTES).unwrap();
    let at = |page: u64| reservation.base() + page * PAGE_BYTES;
    let absent = |page| Err(DmaRefused::NotMapped(at(page)));
    assert!((0..8).all(|page| read(&device, at(page)) == absent(page)));
    let first = domain.link(&reservation, 0, [memory.range(5, 1), memory.range(3, 1)], BOTH).unwrap();
    let second = domain.link(&reservation, 2 * PAGE_BYTES, [memory.range(0, 1)], BOTH).unwrap();
    assert!((0..3).all(|page| read(&device, at(page)) == absent(page)), "linked, and not synced");
    domain.sync(first.join(second).unwrap()).unwrap();
    assert_eq!([0, 1, 2, 3].map(|page| read(&device, at(page))), [Ok(6), Ok(4), Ok(1), absent(3)]);
    let replaced = domain.replace(&reservation, 2 * PAGE_BYTES, [memory.range(6, 2)], BOTH).unwrap();
    assert_eq!(
        [2, 3].map(|page| read(&device, at(page))),
        [Ok(7), Ok(8)],
        "replace syncs, also where a hole was"
    );
    assert_eq!(replaced.old.bytes(), PAGE_BYTES);
    domain.unlink(&reservation, 0, 4 * PAGE_BYTES, BOTH).unwrap();
    // A page list, and the one-step way, whose addresses are used again.
    let words = [AtomicU64::new(0)];
    let list = domain.page_list(&reservation, &words).unwrap();
    assert_eq!(read(&device, at(4)), absent(4));
    list.link(iommu, 4..6, memory.phys(0), Access::Write).unwrap();
    assert_eq!([4, 5].map(|page| read(&device, at(page))), [Ok(5), Ok(6)]);
    list.unlink(iommu, 0..8);
    domain.free(reservation).unwrap();
    for _ in 0..3 {
        let range = domain.map(memory.range(1, 1), BOTH).unwrap();
        assert_eq!(read(&device, range.addr), Ok(2));
        domain.unmap(range, BOTH).unwrap();
        assert_eq!(read(&device, range.addr), Err(DmaRefused::NotMapped(range.addr)));
        let mapping = domain.map_list([memory.range(4, 1), memory.range(2, 1)], BOTH).unwrap();
        let first = mapping.ranges().iter().next().unwrap().addr;
        assert_eq!([read(&device, first), read(&device, first + PAGE_BYTES)], [Ok(5), Ok(3)]);
        domain.unmap_list(mapping, BOTH).unwrap();
        assert_eq!(read(&device, first), Err(DmaRefused::NotMapped(first)));
    }
}

#[test]
fn a_direction_is_what_the_device_may_do() {
    let (emulated, memory) = (domain(), Memory::new(1));
    let device = in_domain(&emulated);
    let iovas = Iovas::of(emulated.iommu());
    let domain = Domain::builder(emulated.iommu(), &iovas).build();
    for (attributes, may_write) in
        [(Attributes::TO_DEVICE, false), (Attributes::FROM_DEVICE, true), (BOTH, true)]
    {
        let range = domain.map(memory.range(0, 1), attributes).unwrap();
        assert_eq!(range.flags & DmaRange::WRITABLE != 0, may_write);
        let written = write(&device, range.addr, 1);
        assert_eq!(written, if may_write { Ok(()) } else { Err(DmaRefused::ReadOnly(range.addr)) });
        assert!(read(&device, range.addr).is_ok());
        domain.unmap(range, attributes).unwrap();
        assert_eq!(read(&device, range.addr), Err(DmaRefused::NotMapped(range.addr)));
    }
}

#[test]
fn a_deferred_flush_leaves_the_device_in_the_old_pages_until_it_comes() {
    let (emulated, memory) = (domain(), Memory::new(3));
    let device = in_domain(&emulated);
    let iovas = Iovas::of(emulated.iommu());
    let domain = Domain::builder(emulated.iommu(), &iovas).build();
    (0..3).for_each(|page| memory.fill(page, page + 1));
    let reservation = domain.reserve(3 * PAGE_BYTES, PAGE_BYTES).unwrap();
    domain.sync(domain.link(&reservation, 0, [memory.range(0, 3)], BOTH).unwrap()).unwrap();
    let at = |page: u64| reservation.base() + page * PAGE_BYTES;
    assert!((0..3).all(|page| read(&device, at(page)) == Ok(page + 1)));
    let mut deferred = Deferred::new(&domain);
    for page in [0, 2] {
        let unlinked =
            domain.unlink_deferred(&reservation, page * PAGE_BYTES, PAGE_BYTES, BOTH, &mut deferred);
        assert_eq!(unlinked.unwrap().pages, 1);
    }
    assert_eq!([read(&device, at(0)), read(&device, at(2))], [Ok(1), Ok(3)], "not flushed yet");
    deferred.flush();
    let refused = |page| Err(DmaRefused::NotMapped(at(page)));
    assert_eq!([read(&device, at(0)), read(&device, at(2))], [refused(0), refused(2)]);
    assert_eq!(read(&device, at(1)), Ok(2));
    let counters = emulated.counters();
    assert_eq!((counters.flushes, counters.flushed_runs), (1, 2), "two runs, one wait");
    drop(deferred);
    domain.destroy(reservation, BOTH).unwrap();
}

#[test]
fn for_a_device_that_is_not_coherent_the_domain_syncs_unless_it_is_told_not_to() {
    let device = builder().non_coherent().build().unwrap();
    let memory = Memory::new(2);
    let iovas = Iovas::of(device.iommu());
    let domain = Domain::builder(device.iommu(), &iovas).cache(&device).build();
    assert!(!domain.is_coherent());
    let exchange = |round: u64, attributes: Attributes| {
        memory.fill(0, round);
        let range = domain.map(memory.range(0, 1), attributes).unwrap();
        let seen = read(&device, range.addr).unwrap();
        write(&device, range.addr + 512, round + 1).unwrap();
        domain.unmap(range, attributes).unwrap();
        (seen, memory.word(0, 64))
    };
    for round in [10, 20, 30] {
        assert_eq!(exchange(round, BOTH), (round, round + 1));
    }
    // Without the syncs: old bytes in both directions.
    let (seen, written) = exchange(50, BOTH.skip_cpu_sync());
    assert_eq!(written, 50, "what the device wrote did not come back");
    assert_eq!(seen, 50, "nothing of the page was in the device's cache: the unmap before took it out");
    assert_eq!(exchange(60, BOTH.skip_cpu_sync()), (50, 60), "the device still has its line");
    let refused = domain.map(memory.range(0, 1), BOTH.require_coherent()).unwrap_err();
    assert_eq!(refused, DmaError::NotCoherent);

    // By hand, for a link that stays.
    let reservation = domain.reserve(PAGE_BYTES, PAGE_BYTES).unwrap();
    let by_hand = Attributes::BY_HAND;
    let span = domain.link(&reservation, 0, [memory.range(1, 1)], by_hand).unwrap();
    let at = domain.sync(span).unwrap().addr;
    for round in 1..4 {
        memory.fill(1, round);
        domain.sync_for_device(&reservation, 0, PAGE_BYTES, Direction::Both).unwrap();
        assert_eq!(read(&device, at), Ok(round));
        write(&device, at + 64, 100 + round).unwrap();
        assert_eq!(memory.word(1, 8), round, "not synced for the CPU yet");
        domain.sync_for_cpu(&reservation, 0, PAGE_BYTES, Direction::Both).unwrap();
        assert_eq!(memory.word(1, 8), 100 + round);
    }
    domain.destroy(reservation, by_hand).unwrap();
}

#[test]
fn lines_that_cpu_and_device_would_share_are_bounced() {
    let device = builder().non_coherent().build().unwrap();
    let pages = BouncePages::new(4, PAGE_BYTES).unwrap();
    let memory = Memory::new(2);
    let iovas = Iovas::of(device.iommu());
    let domain = Domain::builder(device.iommu(), &iovas).cache(&device).bounce(&pages).build();
    memory.fill(0, 1);
    // Ends in the middle of a line: what stands behind it is the CPU's, all the time.
    let range = domain.map(memory.part(128, 96), Attributes::FROM_DEVICE).unwrap();
    assert_ne!(range.flags & DmaRange::BOUNCED, 0);
    device.dma_write(PLAIN, range.addr, &[0x22; 96]).unwrap();
    memory.0.as_words()[28].store(77, Ordering::SeqCst);
    domain.unmap(range, Attributes::FROM_DEVICE).unwrap();
    let word = |index| memory.word(0, index);
    assert_eq!(
        (word(15), word(16), word(27), word(28)),
        (1, 0x2222_2222_2222_2222, 0x2222_2222_2222_2222, 77)
    );
    assert_eq!(domain.bounce_pages_in_use(), 0);
}

#[test]
fn an_untrusted_device_sees_and_changes_what_was_mapped_and_nothing_beside_it() {
    let (emulated, memory) = (domain(), Memory::new(4));
    let device = in_domain(&emulated);
    let pages = BouncePages::new(4, PAGE_BYTES).unwrap();
    let iovas = Iovas::of(emulated.iommu());
    let secret = 0x5ec2_e75e_c2e7_5ec2;
    let (from, bytes) = (PAGE_BYTES / 2, 2 * PAGE_BYTES + 64);
    let look = |domain: &Domain<'_>| {
        (0..4).for_each(|page| memory.fill(page, secret));
        let part = memory.part(from, bytes);
        let range = domain.map(part, BOTH).unwrap();
        let start = range.addr.page_floor();
        // The device looks at all of the pages that it can reach.
        let mut seen = vec![0u8; 3 * PAGE_BYTES as usize];
        device.dma_read(PLAIN, start, &mut seen).unwrap();
        device.dma_write(PLAIN, start, &vec![0u8; seen.len()]).unwrap();
        domain.unmap(range, BOTH).unwrap();
        let whole = (from as usize, (from + bytes) as usize);
        let beside = seen[..whole.0].iter().chain(&seen[whole.1..]).filter(|byte| **byte != 0).count();
        let changed =
            (0..3 * 512).filter(|word| memory.word(word / 512, (word % 512) as usize) != secret).count();
        assert!(seen[whole.0..whole.1].chunks(8).all(|word| word == secret.to_le_bytes()));
        (beside, changed)
    };
    let trusted = Domain::builder(emulated.iommu(), &iovas).build();
    assert_eq!(look(&trusted).1, 3 * 512, "a trusted device reaches the rest of the pages");
    assert_ne!(look(&trusted).0, 0);
    let untrusted = Domain::builder(emulated.iommu(), &iovas).untrusted().bounce(&pages).build();
    assert_eq!(look(&untrusted), (0, bytes as usize / 8));
    assert_eq!(untrusted.counts().bounced_pages, 2, "head and tail, and not the page between");
    assert_eq!(untrusted.bounce_pages_in_use(), 0);
    let refused = untrusted.map(memory.part(from, bytes), BOTH.require_coherent()).unwrap_err();
    assert_eq!(refused, DmaError::MustNotBounce(memory.part(from, bytes).addr));
}

#[test]
fn in_direct_mode_what_lies_beyond_the_devices_reach_is_bounced() {
    let memory = Memory::new(2);
    let pages = BouncePages::new(2, PAGE_BYTES).unwrap();
    // The device reaches the two bounce pages and nothing else.
    let last = Iova(2 * PAGE_BYTES - 1);
    let offset = 0u64.wrapping_sub(granule::ports::BounceMemory::phys(&pages, 0).0);
    // SAFETY: DMA of the test goes to `memory` and `pages`, which live to its end.
    let device = unsafe { builder().direct(offset) }.dma_last(last).build().unwrap();
    let domain = Domain::direct(offset).last(last).bounce(&pages).build();
    memory.fill(0, 7);
    let range = domain.map(memory.part(64, PAGE_BYTES), BOTH).unwrap();
    assert!(range.addr <= last && domain.needs_unmap(&range));
    assert_eq!(read(&device, range.addr), Ok(7));
    write(&device, range.addr, 9).unwrap();
    assert_eq!(memory.word(0, 8), 7, "it comes back when it is unmapped");
    domain.unmap(range, BOTH).unwrap();
    assert_eq!((memory.word(0, 7), memory.word(0, 8)), (7, 9));
    assert_eq!(
        domain.map(memory.range(0, 1), BOTH.require_coherent()),
        Err(DmaError::MustNotBounce(memory.phys(0)))
    );
    // A device that reaches everything: an addition, and nothing to keep.
    // SAFETY: as above.
    let free = unsafe { builder().direct(offset) }.build().unwrap();
    let domain = Domain::direct(offset).build();
    let range = domain.map(memory.part(8, 8), BOTH).unwrap();
    assert!(!domain.needs_unmap(&range));
    assert_eq!((range.addr.0, read(&free, range.addr)), ((memory.phys(0).0 + 8).wrapping_add(offset), Ok(7)));
}

#[test]
fn a_pasid_of_the_domain_agrees_with_it_on_every_address() {
    let (emulated, memory) = (domain(), Memory::new(2));
    let plain = in_domain(&emulated);
    let tagging = builder().iommu_domain(&emulated).pasid_bits(8).tagged_dma_only().build().unwrap();
    let cannot = builder().iommu_domain(&emulated).build().unwrap();
    let space = PasidSpace::new(Pasid(255), &FutexPark);
    let iovas = Iovas::of(emulated.iommu());
    let domain = Domain::builder(emulated.iommu(), &iovas).pasids(&space).build();
    memory.fill(0, 3);
    let range = domain.map(memory.range(0, 1), BOTH).unwrap();
    assert_eq!(read(&tagging, range.addr), Err(DmaRefused::Untagged));
    assert_eq!(domain.dma_pasid(&cannot).unwrap_err(), PasidError::NoPasid);
    let pasid = domain.dma_pasid(&tagging).unwrap();
    let again = domain.dma_pasid(&tagging).unwrap();
    let other = domain.dma_pasid(&plain).unwrap();
    assert_eq!(pasid.pasid(), other.pasid(), "kept with the domain");
    let tag = pasid.pasid();
    assert_eq!([read_as(&tagging, tag, range.addr), read_as(&plain, tag, range.addr)], [Ok(3), Ok(3)]);
    write_as(&tagging, tag, range.addr, 4).unwrap();
    assert_eq!(read(&plain, range.addr), Ok(4), "and with plain DMA");
    // An unlink reaches what was remembered under the PASID.
    domain.unmap(range, BOTH).unwrap();
    assert_eq!(read_as(&tagging, tag, range.addr), Err(DmaRefused::NotMapped(range.addr)));
    drop(pasid);
    assert_eq!(read_as(&tagging, tag, range.addr), Err(DmaRefused::NotMapped(range.addr)), "still attached");
    drop(again);
    assert_eq!(
        read_as(&tagging, tag, range.addr),
        Err(DmaRefused::NotAttached(tag)),
        "the last user detached"
    );
    drop(other);
    assert_eq!((domain.pasid(), space.in_use()), (None, 0));

    // Without an IOMMU.
    let offset = 1 << 60;
    // SAFETY: DMA of the test goes to `memory`, which lives to its end.
    let device = unsafe { builder().pasid_bits(8).tagged_dma_only().direct(offset) }.build().unwrap();
    let domain = Domain::direct(offset).pasids(&space).build();
    let range = domain.map(memory.range(0, 1), BOTH).unwrap();
    let pasid = domain.dma_pasid(&device).unwrap();
    assert_eq!(read_as(&device, pasid.pasid(), range.addr), Ok(4));
}

fn page(value: u64) -> Vec<Word> {
    (0..512).map(|_| Word::new(value)).collect()
}

/// Two devices in every relation that a topology can describe, each with a peer's memory and memory of the process in
/// one request.
#[test]
fn one_request_mixes_memory_and_peers_as_the_topology_says() {
    let mut topology = Topology::new();
    let bridge = topology.host_bridge();
    topology.passes(bridge, bridge).unwrap();
    let far_bridge = topology.host_bridge();
    let switch = topology.switch(bridge).unwrap();
    let nodes = [switch, switch, bridge, far_bridge].map(|above| topology.device(above).unwrap());
    let below = Switch::new();
    let devices: Vec<SoftwareDevice> = (0..4)
        .map(|number| if number < 2 { builder().switch(below) } else { builder() }.build().unwrap())
        .collect();
    let windows: Vec<PeerWindow> = devices.iter().map(PeerMemory::peer_window).collect();
    let memory = Memory::new(2);
    let kinds = [
        [P2pKind::None, P2pKind::BusAddress, P2pKind::HostBridge, P2pKind::NotSupported],
        [P2pKind::BusAddress, P2pKind::None, P2pKind::HostBridge, P2pKind::NotSupported],
    ];
    for (me, kinds) in kinds.into_iter().enumerate() {
        let device = &devices[me];
        let iovas = Iovas::of(device.iommu());
        let mut builder = Domain::builder(device.iommu(), &iovas);
        for (peer, window) in windows.iter().enumerate() {
            assert_eq!(topology.p2p(nodes[me], nodes[peer]), kinds[peer]);
            builder = builder.peer(PeerNo(peer as u16), *window, kinds[peer]);
            devices[peer].copy_in(DevMemAddr(PAGE_BYTES), &page(100 + peer as u64)).unwrap();
        }
        let domain = builder.build();
        let peer_page = |peer: usize| {
            PhysRange::new(windows[peer].phys + PAGE_BYTES, PAGE_BYTES).of_peer(PeerNo(peer as u16))
        };
        for stranger in [me, 3] {
            let refused = domain.map_list([memory.range(0, 1), peer_page(stranger)], BOTH).unwrap_err();
            let (peer, kind) = (PeerNo(stranger as u16), kinds[stranger]);
            assert_eq!(refused, DmaError::PeerUnreachable { peer, kind });
        }
        assert_eq!(device.counters().iommu_leaves, Default::default(), "an error when it is mapped");
        memory.fill(0, 1);
        memory.fill(1, 2);
        let near = 1 - me;
        let request = [memory.range(0, 1), peer_page(near), peer_page(2), memory.range(1, 1)];
        let mapping = domain.map_list(request, BOTH).unwrap();
        let ranges: Vec<DmaRange> = mapping.ranges().iter().collect();
        let flags: Vec<u32> =
            ranges.iter().map(|range| range.flags & (DmaRange::BUS_ADDRESS | DmaRange::MMIO)).collect();
        assert_eq!(flags, [0, DmaRange::BUS_ADDRESS, DmaRange::MMIO, 0]);
        let seen: Vec<u64> = ranges.iter().map(|range| read(device, range.addr).unwrap()).collect();
        assert_eq!(seen, [1, 100 + near as u64, 102, 2]);
        for (index, range) in ranges.iter().enumerate() {
            write(device, range.addr + 8, 1000 + index as u64).unwrap();
        }
        let word = |peer: usize| {
            devices[peer].window(DevMemAddr(PAGE_BYTES + 8), 8).unwrap()[0].load(Ordering::SeqCst)
        };
        assert_eq!([memory.word(0, 1), word(near), word(2), memory.word(1, 1)], [1000, 1001, 1002, 1003]);
        domain.unmap_list(mapping, BOTH).unwrap();
        assert_eq!(device.counters().iommu_leaves, Default::default());
        assert_eq!(read(device, ranges[1].addr), Ok(100 + near as u64), "a bus address is never unmapped");
        assert_eq!(read(device, ranges[2].addr), Err(DmaRefused::NotMapped(ranges[2].addr)));
    }
}

/// A page goes from linked to the device's own memory and back to memory elsewhere: populated and linked anew, with the
/// same DMA address; what the device wrote in its own memory is there.
#[test]
fn a_page_that_was_in_device_memory_is_linked_anew_at_its_address() {
    let (emulated, memory) = (domain(), Memory::new(8));
    let device = in_domain(&emulated);
    let iommu = emulated.iommu();
    let iovas = Iovas::of(iommu);
    let domain = Domain::builder(iommu, &iovas).build();
    let reservation = domain.reserve(4 * PAGE_BYTES, PAGE_BYTES).unwrap();
    let words = [(); 2].map(|()| [AtomicU64::new(0)]);
    let list = domain.page_list(&reservation, &words[0]).unwrap().with_writable(&words[1]);
    let at = list.address(1);
    memory.fill(1, 5);
    // Read first, then upgraded for a write: the same address, no second link.
    assert_eq!(list.link(iommu, 1..2, memory.phys(0), Access::Read), Ok(1), "page 1 lies at the start + 1");
    assert_eq!(read(&device, at), Ok(5));
    assert_eq!(write(&device, at, 6), Err(DmaRefused::ReadOnly(at)));
    assert_eq!(list.link(iommu, 1..2, memory.phys(0), Access::Write), Ok(0));
    assert_eq!(write(&device, at, 6), Ok(()));
    // To the device: unlinked before it is copied, so that no write is missed.
    assert_eq!(list.unlink(iommu, 0..4), 1);
    assert_eq!(write(&device, at, 7), Err(DmaRefused::NotMapped(at)));
    device.copy_in(DevMemAddr(0), &memory.0.as_words()[512..1024]).unwrap();
    device.window(DevMemAddr(8), 8).unwrap()[0].store(8, Ordering::SeqCst);
    memory.fill(1, u64::MAX);
    // Home, to another page of memory.
    device.copy_out(DevMemAddr(0), &memory.0.as_words()[6 * 512..][..512]).unwrap();
    assert_eq!(list.link_ranges(iommu, 1, [memory.range(6, 1)], Access::Write), Ok(1));
    assert_eq!([read(&device, at), read(&device, at + 8), read(&device, at + 16)], [Ok(6), Ok(8), Ok(5)]);
    assert_eq!(list.unlink(iommu, 0..4), 1);
    domain.free(reservation).unwrap();
}

#[test]
fn replace_exchanges_pages_under_the_device_and_fills_holes() {
    let (emulated, memory) = (domain(), Memory::new(8));
    let device = in_domain(&emulated);
    let iovas = Iovas::of(emulated.iommu());
    let domain = Domain::builder(emulated.iommu(), &iovas).build();
    (0..8).for_each(|page| memory.fill(page, page));
    let reservation = domain.reserve(4 * PAGE_BYTES, PAGE_BYTES).unwrap();
    domain.sync(domain.link(&reservation, 0, [memory.range(0, 2)], BOTH).unwrap()).unwrap();
    let base = reservation.base();
    let at = |page: u64| base + page * PAGE_BYTES;
    assert_eq!([read(&device, at(0)), read(&device, at(1))], [Ok(0), Ok(1)]);
    let replaced = domain.replace(&reservation, PAGE_BYTES, [memory.range(5, 2)], BOTH).unwrap();
    assert!(replaced.old.iter().eq([memory.range(1, 1)]), "what was there, and not the hole");
    assert_eq!((replaced.at.addr, replaced.at.bytes), (at(1), 2 * PAGE_BYTES));
    assert_eq!([read(&device, at(0)), read(&device, at(1)), read(&device, at(2))], [Ok(0), Ok(5), Ok(6)]);
    memory.fill(1, 99);
    assert_eq!(read(&device, at(1)), Ok(5), "the old page came back and is somebody else's by now");
    domain.destroy(reservation, BOTH).unwrap();
    assert_eq!(read(&device, at(1)), Err(DmaRefused::NotMapped(at(1))));
}
