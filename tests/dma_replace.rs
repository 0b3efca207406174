//! Replace: what was there comes back after the flush, and a refusal leaves everything in place.

mod dma_support;

use dma_support::{MEMORY, Machine, PAGE, WINDOW, mem, mem_at, plain, with_domain};
use granule::dma::{Attributes, DmaError, DmaRange, P2pKind};
use granule::ports::{IommuCaps, PeerWindow};
use granule::units::{Access, BusAddr, PeerNo, PhysAddr, PhysRange};

const BOTH: Attributes = Attributes::BOTH;

#[test]
fn pages_are_exchanged_at_the_same_addresses_and_the_old_ones_come_back() {
    let machine = Machine::new();
    machine.write(MEMORY + 30 * PAGE, b"new");
    plain(&machine, |domain| {
        let at = domain.reserve(16 * PAGE, PAGE).unwrap();
        let span = domain.link(&at, 2 * PAGE, [mem(1, PAGE), mem(9, 2 * PAGE)], BOTH).unwrap();
        let span = domain.sync(span).unwrap();
        assert_eq!(machine.translate(span.addr.0, Access::Write), Some(MEMORY + PAGE));
        let flushes = machine.flush_calls();
        // Over a hole, the three pages, and a hole.
        let replaced = domain.replace(&at, PAGE, [mem(30, 4 * PAGE), mem(50, PAGE)], BOTH).unwrap();
        assert_eq!(machine.flush_calls() - flushes, 1);
        assert_eq!((replaced.at.addr, replaced.at.bytes), (at.base() + PAGE, 5 * PAGE));
        let old: Vec<PhysRange> = replaced.old.iter().collect();
        assert_eq!(old, [mem(1, PAGE), mem(9, 2 * PAGE)]);
        assert_eq!(
            machine.translate(span.addr.0, Access::Write),
            Some(MEMORY + 31 * PAGE),
            "not the cached one"
        );
        assert_eq!(machine.dma_read_all(at.base().0 + PAGE, 3).unwrap(), b"new");
        assert_eq!(at.linked_pages(), 5);
        assert_eq!(domain.counts().replaced_pages, 5);
        // To read-only.
        let replaced = domain.replace(&at, PAGE, [mem(30, PAGE)], Attributes::TO_DEVICE).unwrap();
        assert_eq!(replaced.at.flags & DmaRange::WRITABLE, 0);
        assert_eq!(machine.translate(at.base().0 + PAGE, Access::Write), None);
        domain.destroy(at, BOTH).unwrap();
    });
}

#[test]
fn what_cannot_be_replaced_is_refused_and_stays() {
    let machine = Machine::new();
    let window = PeerWindow { phys: PhysAddr(WINDOW), bus: BusAddr(1 << 40), bytes: 8 * PAGE };
    let (bus, far) = (PeerNo(1), PeerNo(2));
    with_domain(
        &machine,
        |builder, machine| {
            let builder = builder.untrusted().bounce(machine).peer(bus, window, P2pKind::BusAddress);
            builder.peer(far, window, P2pKind::HostBridge)
        },
        |domain| {
            let at = domain.reserve(16 * PAGE, PAGE).unwrap();
            let span = domain.link(&at, 0, [mem(0, 4 * PAGE)], BOTH).unwrap();
            let span = domain.sync(span).unwrap();
            let refuse = |error, offset, ranges: &[PhysRange]| {
                let got = domain.replace(&at, offset, ranges.iter().copied(), BOTH).map(drop);
                assert_eq!(got, Err(error));
                assert_eq!(machine.translate(span.addr.0, Access::Write), Some(MEMORY));
                assert_eq!(machine.translate(span.addr.0 + 3 * PAGE, Access::Write), Some(MEMORY + 3 * PAGE));
                assert_eq!((machine.mapped_pages(), at.linked_pages()), (4, 4));
            };
            let misaligned = |index, addr: u64| DmaError::Misaligned { index, addr: PhysAddr(addr) };
            refuse(DmaError::Empty(0), 0, &[]);
            refuse(DmaError::Empty(1), 0, &[mem(0, PAGE), mem(3, 0)]);
            refuse(misaligned(0, MEMORY + 8), 0, &[mem_at(8, PAGE)]);
            refuse(misaligned(1, MEMORY + 5 * PAGE), 0, &[mem(1, PAGE), mem(5, 100)]);
            refuse(DmaError::OffsetMismatch { offset: 8, addr: PhysAddr(MEMORY) }, 8, &[mem(0, PAGE)]);
            let outside =
                DmaError::OutsideReservation { offset: 15 * PAGE, bytes: 2 * PAGE, reserved: 16 * PAGE };
            refuse(outside, 15 * PAGE, &[mem(0, 2 * PAGE)]);
            let wrapping = PhysRange::new(PhysAddr(u64::MAX - PAGE + 1), 2 * PAGE);
            refuse(DmaError::Wraps(wrapping.addr), 0, &[wrapping]);
            let peer = PhysRange::new(PhysAddr(WINDOW), PAGE);
            refuse(DmaError::BusAddress(bus), 0, &[peer.of_peer(bus)]);
            // The table is full half way: what was exchanged is exchanged back, also where it was two pieces.
            machine.set_room(5);
            refuse(DmaError::OutOfTables, 2 * PAGE, &[mem(60, PAGE), mem(70, 2 * PAGE), mem(80, 3 * PAGE)]);
            machine.set_room(usize::MAX);
            let replaced = domain.replace(&at, PAGE, [peer.of_peer(far)], BOTH).unwrap();
            assert_eq!(replaced.at.flags & DmaRange::MMIO, DmaRange::MMIO);
            let bounced = domain.link(&at, 8 * PAGE, [mem(9, 8)], BOTH).unwrap();
            let _ = domain.sync(bounced).unwrap();
            let error = domain.replace(&at, 0, [mem(0, PAGE)], BOTH).map(drop);
            assert_eq!(error, Err(DmaError::AlreadyBounced(at.base())));
            let other_machine = Machine::new();
            plain(&other_machine, |other| {
                assert_eq!(other.replace(&at, 0, [mem(0, PAGE)], BOTH).map(drop), Err(DmaError::OtherDomain));
            });
            domain.destroy(at, BOTH).unwrap();
        },
    );
    let mut machine = Machine::new();
    machine.caps = IommuCaps { can_replace: false, ..machine.caps };
    plain(&machine, |domain| {
        let at = domain.reserve(PAGE, PAGE).unwrap();
        assert_eq!(domain.replace(&at, 0, [mem(0, PAGE)], BOTH).map(drop), Err(DmaError::CannotReplace));
        domain.free(at).unwrap();
    });
}

#[test]
fn caches_of_old_and_new_pages_are_looked_after() {
    let mut machine = Machine::new();
    machine.caches = true;
    with_domain(
        &machine,
        |builder, machine| builder.cache(machine),
        |domain| {
            let at = domain.reserve(PAGE, PAGE).unwrap();
            let span = domain.link(&at, 0, [mem(0, PAGE)], BOTH).unwrap();
            let addr = domain.sync(span).unwrap().addr.0;
            machine.dma_write(addr, 5).unwrap();
            assert_eq!(machine.bus_read(MEMORY + PAGE), 0, "the device has a line of the new page");
            machine.write(MEMORY + PAGE, &[6]);
            let replaced = domain.replace(&at, 0, [mem(1, PAGE)], BOTH).unwrap();
            assert_eq!(replaced.old.iter().collect::<Vec<_>>(), [mem(0, PAGE)]);
            assert_eq!(machine.read(MEMORY, 1), [5], "what the device wrote to the old page is there");
            assert_eq!(machine.dma_read(addr), Some(6), "and the new page's line is not stale");
            domain.destroy(at, BOTH).unwrap();
        },
    );
}
