//! Reserve, link, sync, unlink, free, destroy: each rule, each refusal, and that a refusal changes nothing.

mod dma_support;

use dma_support::{BOUNCE, MEMORY, Machine, PAGE, WINDOW, WINDOW_BYTES, mem, mem_at, plain, with_domain};
use granule::dma::{
    Attributes, Deferred, DmaError, DmaRange, DmaSpan, Domain, IovaError, P2pKind, Reservation,
};
use granule::ports::{IommuCaps, PeerWindow};
use granule::units::{Access, BusAddr, Direction, Iova, PeerNo, PhysAddr, PhysRange};

const BOTH: Attributes = Attributes::BOTH;

fn link(
    domain: &Domain<'_>,
    at: &Reservation,
    offset: u64,
    ranges: &[PhysRange],
) -> Result<DmaSpan, DmaError> {
    domain.link(at, offset, ranges.iter().copied(), BOTH).map(|span| domain.sync(span).unwrap())
}

/// What is refused changes neither table nor counts.
fn refused(machine: &Machine, at: &Reservation, error: DmaError, act: impl FnOnce() -> Result<(), DmaError>) {
    let before = (machine.mapped_pages(), at.linked_pages());
    assert_eq!(act(), Err(error));
    assert_eq!((machine.mapped_pages(), at.linked_pages()), before, "{error}: something was changed");
}

#[test]
fn a_device_reaches_what_is_linked_and_nothing_else() {
    let machine = Machine::new();
    machine.write(MEMORY + 3 * PAGE, b"three");
    machine.write(MEMORY + 9 * PAGE, b"nine");
    plain(&machine, |domain| {
        let at = domain.reserve(512 << 20, 2 << 20).unwrap();
        let base = at.base().0;
        assert!(base.is_multiple_of(2 << 20));
        assert_eq!(machine.dma_read(base), None, "reserved is not linked");
        let span = link(domain, &at, 7 * PAGE, &[mem(3, PAGE), mem(9, PAGE)]).unwrap();
        assert_eq!((span.addr.0, span.bytes, span.flags), (base + 7 * PAGE, 2 * PAGE, DmaRange::WRITABLE));
        assert_eq!(machine.dma_read_all(span.addr.0, 5).unwrap(), b"three");
        assert_eq!(machine.dma_read_all(span.addr.0 + PAGE, 4).unwrap(), b"nine");
        machine.dma_write(span.addr.0 + 5, b'!').unwrap();
        assert_eq!(machine.read(MEMORY + 3 * PAGE, 6), b"three!");
        assert_eq!(machine.dma_read(base + 6 * PAGE), None);
        assert_eq!(machine.dma_read(base + 9 * PAGE), None);
        // A part of it goes; the rest does not move.
        let unlinked = domain.unlink(&at, 7 * PAGE, PAGE, BOTH).unwrap();
        assert_eq!((unlinked.pages, unlinked.lost_bytes), (1, 0));
        assert_eq!(machine.dma_read(base + 7 * PAGE), None, "also not through a cached translation");
        assert_eq!(machine.dma_read(base + 8 * PAGE), Some(b'n'));
        domain.unlink(&at, 8 * PAGE, PAGE, BOTH).unwrap();
        domain.free(at).unwrap();
        let counts = domain.counts();
        assert_eq!((counts.links, counts.linked_pages), (1, 2));
        assert_eq!(
            (counts.unlinks, counts.unlinked_pages, counts.flushes, counts.flushed_pages),
            (2, 2, 2, 2)
        );
    });
}

#[test]
fn neighbours_are_entered_as_one_run_and_synced_once() {
    let machine = Machine::new();
    plain(&machine, |domain| {
        let at = domain.reserve(64 * PAGE, PAGE).unwrap();
        let maps = machine.maps();
        let span = domain.link(&at, 0, [mem(0, PAGE), mem(1, 7 * PAGE), mem(8, PAGE)], BOTH).unwrap();
        assert_eq!(machine.maps() - maps, 1, "nine pages that touch are one run");
        let next = domain.link(&at, 9 * PAGE, [mem(20, PAGE), mem(22, PAGE)], BOTH).unwrap();
        assert_eq!(machine.maps() - maps, 3, "pages that do not touch are two");
        let (span, next) = next.join(span).expect_err("the other way round they do not touch");
        let whole = next.join(span).expect("they stand one behind the other");
        assert_eq!(whole.bytes(), 11 * PAGE);
        let before = machine.synced().len();
        let span = domain.sync(whole).unwrap();
        assert_eq!(machine.synced()[before..], [(at.base().0, 11 * PAGE)], "one sync for the whole span");
        assert_eq!(span.ranges().map(|range| u64::from(range.len)).sum::<u64>(), 11 * PAGE);
        let flushes = machine.flush_calls();
        domain.unlink(&at, 0, 11 * PAGE, BOTH).unwrap();
        assert_eq!(machine.flush_calls() - flushes, 1, "one flush per call");
        domain.free(at).unwrap();
    });
}

#[test]
fn an_unaligned_first_and_last_byte_keep_their_place_in_the_page() {
    let machine = Machine::new();
    machine.write(MEMORY + 2 * PAGE + 0x123, &[7; 5000]);
    plain(&machine, |domain| {
        let at = domain.reserve(4 * PAGE, PAGE).unwrap();
        let span = link(domain, &at, 0x123, &[mem_at(2 * PAGE + 0x123, 5000)]).unwrap();
        assert_eq!((span.addr, span.bytes), (at.base() + 0x123, 5000));
        assert_eq!(machine.dma_read_all(span.addr.0, 5000).unwrap(), [7; 5000]);
        assert_eq!(at.linked_pages(), 2);
        let offset = DmaError::OffsetMismatch { offset: 0x124, addr: PhysAddr(MEMORY + 0x123) };
        refused(&machine, &at, offset, || link(domain, &at, 0x124, &[mem_at(0x123, 1)]).map(drop));
        domain.unlink(&at, 0x123, 5000, BOTH).unwrap();
        domain.free(at).unwrap();
    });
}

#[test]
fn every_misuse_is_refused_by_name() {
    let (other_machine, ours) = (Machine::new(), Machine::new());
    plain(&other_machine, |other| {
        plain(&ours, |domain| {
            assert_eq!(domain.reserve(0, PAGE).map(drop), Err(IovaError::BadSize(0).into()));
            assert_eq!(domain.reserve(PAGE + 1, PAGE).map(drop), Err(IovaError::BadSize(PAGE + 1).into()));
            assert_eq!(domain.reserve(PAGE, 3).map(drop), Err(IovaError::BadAlignment(3).into()));
            assert_eq!(domain.reserve(1 << 50, PAGE).map(drop), Err(IovaError::Exhausted(1 << 50).into()));
            let at = domain.reserve(16 * PAGE, PAGE).unwrap();
            let base = at.base();
            let check = |error, ranges: &[PhysRange], offset| {
                refused(&ours, &at, error, || link(domain, &at, offset, ranges).map(drop));
            };
            check(DmaError::Empty(0), &[], 0);
            check(DmaError::Empty(1), &[mem(0, PAGE), mem(1, 0)], 0);
            let high = PhysRange::new(PhysAddr(u64::MAX - 10), 100);
            check(DmaError::Wraps(high.addr), &[high], 0);
            let top = PhysRange::new(PhysAddr(u64::MAX - 2 * PAGE + 1), PAGE + 4);
            check(DmaError::Wraps(top.addr), &[top], 0);
            let misaligned = |index, offset| DmaError::Misaligned { index, addr: PhysAddr(MEMORY + offset) };
            check(misaligned(1, 2 * PAGE), &[mem(0, 100), mem(2, PAGE)], 0);
            check(misaligned(1, 2 * PAGE + 8), &[mem(0, PAGE), mem_at(2 * PAGE + 8, PAGE)], 0);
            let outside = |offset, bytes| DmaError::OutsideReservation { offset, bytes, reserved: 16 * PAGE };
            check(outside(16 * PAGE, PAGE), &[mem(0, PAGE)], 16 * PAGE);
            check(outside(15 * PAGE, 2 * PAGE), &[mem(0, 2 * PAGE)], 15 * PAGE);
            check(outside(u64::MAX, PAGE), &[mem(0, PAGE)], u64::MAX);
            check(outside(u64::MAX - PAGE + 1, PAGE), &[mem(0, PAGE)], u64::MAX - PAGE + 1);

            link(domain, &at, 4 * PAGE, &[mem(0, 4 * PAGE)]).unwrap();
            let check = |error, ranges: &[PhysRange], offset| {
                refused(&ours, &at, error, || link(domain, &at, offset, ranges).map(drop));
            };
            check(DmaError::AlreadyLinked(base + 5 * PAGE), &[mem(9, PAGE)], 5 * PAGE);
            check(DmaError::AlreadyLinked(base + 4 * PAGE), &[mem(9, PAGE), mem(20, 8 * PAGE)], 3 * PAGE);
            assert_eq!(ours.dma_read(base.0 + 3 * PAGE), None, "nothing of a refused link stays");
            let unlink = |offset, bytes| domain.unlink(&at, offset, bytes, BOTH).map(drop);
            refused(&ours, &at, DmaError::NotLinked(base + 8 * PAGE), || unlink(4 * PAGE, 5 * PAGE));
            refused(&ours, &at, DmaError::NotLinked(base), || unlink(0, PAGE));
            refused(&ours, &at, outside(0, 0), || unlink(0, 0));
            refused(&ours, &at, outside(0, 17 * PAGE), || unlink(0, 17 * PAGE));
            refused(&ours, &at, outside(1, u64::MAX), || unlink(1, u64::MAX));
            // Another domain's.
            refused(&ours, &at, DmaError::OtherDomain, || link(other, &at, 0, &[mem(0, PAGE)]).map(drop));
            refused(&ours, &at, DmaError::OtherDomain, || other.unlink(&at, 4 * PAGE, PAGE, BOTH).map(drop));
            let span = domain.link(&at, 0, [mem(50, PAGE)], BOTH).unwrap();
            assert_eq!(other.sync(span), Err(DmaError::OtherDomain));
            let (at, error) = other.free(at).expect_err("another domain's");
            assert_eq!(error, DmaError::OtherDomain);
            let (at, error) = other.destroy(at, BOTH).expect_err("another domain's");
            assert_eq!(error, DmaError::OtherDomain);
            let mut deferred = Deferred::new(other);
            let refused = domain.unlink_deferred(&at, 0, PAGE, BOTH, &mut deferred);
            assert_eq!(refused.map(drop), Err(DmaError::OtherDomain));
            drop(deferred);
            let (at, error) = domain.free(at).expect_err("something is linked");
            assert_eq!(error, DmaError::LinksLeft(5));
            // A table that is full.
            ours.set_room(5 + 3);
            let at_5 = link(domain, &at, 10 * PAGE, &[mem(70, PAGE), mem(80, PAGE), mem(90, 2 * PAGE)]);
            assert_eq!(at_5, Err(DmaError::OutOfTables));
            assert_eq!(
                (ours.mapped_pages(), at.linked_pages()),
                (5, 5),
                "what had been entered is taken back"
            );
            ours.set_room(usize::MAX);
            assert_eq!(domain.destroy(at, BOTH).unwrap().pages, 5);
        })
    });
}

#[test]
fn a_space_larger_than_the_aperture_is_noticed() {
    let mut machine = Machine::new();
    machine.windows.clear();
    let iovas = dma_support::Iovas::of(&machine);
    machine.aperture = (Iova(0), Iova((1 << 30) - 1));
    let domain = Domain::builder(&machine, &iovas).build();
    let at = domain.reserve(512 << 20, PAGE).unwrap();
    let linked = domain.link(&at, 0, [mem(0, PAGE)], BOTH).map(drop);
    assert_eq!(linked, Err(DmaError::OutsideAperture(at.base())));
    domain.free(at).unwrap();
}

#[test]
fn destroy_unlinks_whatever_is_linked_with_one_flush() {
    let machine = Machine::new();
    plain(&machine, |domain| {
        let at = domain.reserve(1000 * PAGE, PAGE).unwrap();
        for offset in [0, 5, 6, 40, 999] {
            link(domain, &at, offset * PAGE, &[mem(offset + 7, PAGE)]).unwrap();
        }
        let flushes = machine.flush_calls();
        assert_eq!(domain.destroy(at, BOTH).unwrap().pages, 5);
        assert_eq!(machine.flush_calls() - flushes, 1);
        let empty = domain.reserve(PAGE, PAGE).unwrap();
        assert_eq!(domain.destroy(empty, BOTH).unwrap().pages, 0, "nothing linked: just freed");
        assert_eq!(machine.flush_calls() - flushes, 1);
    });
}

#[test]
fn a_deferred_flush_leaves_a_window_and_then_closes_it() {
    let machine = Machine::new();
    plain(&machine, |domain| {
        let at = domain.reserve(200 * PAGE, PAGE).unwrap();
        link(domain, &at, 0, &[mem(0, 200 * PAGE)]).unwrap();
        assert!(machine.dma_read(at.base().0).is_some());
        let flushes = machine.flush_calls();
        let mut deferred = Deferred::new(domain);
        domain.unlink_deferred(&at, 0, PAGE, BOTH, &mut deferred).unwrap();
        assert!(machine.dma_read(at.base().0).is_some(), "the window that the caller chose");
        domain.unlink_deferred(&at, PAGE, PAGE, BOTH, &mut deferred).unwrap();
        assert_eq!(deferred.pending(), 1, "neighbours are one run");
        deferred.flush();
        assert_eq!(machine.dma_read(at.base().0), None);
        assert_eq!(machine.flush_calls() - flushes, 1);
        // More than it holds: it flushes by itself, and at its end.
        for page in 0..99 {
            domain.unlink_deferred(&at, (2 + page * 2) * PAGE, PAGE, BOTH, &mut deferred).unwrap();
        }
        assert_eq!(machine.flush_calls() - flushes, 2);
        let hole = domain.unlink_deferred(&at, 2 * PAGE, PAGE, BOTH, &mut deferred).map(drop);
        assert_eq!(hole, Err(DmaError::NotLinked(at.base() + 2 * PAGE)));
        drop(deferred);
        assert_eq!(machine.flush_calls() - flushes, 3);
        domain.destroy(at, BOTH).unwrap();
    });
}

#[test]
fn larger_pages_of_an_iommu_are_respected() {
    let mut machine = Machine::new();
    machine.caps = IommuCaps { page_bytes: 4 * PAGE, ..machine.caps };
    plain(&machine, |domain| {
        assert_eq!(domain.page_bytes(), 4 * PAGE);
        assert_eq!(domain.reserve(PAGE, PAGE).map(drop), Err(IovaError::BadSize(PAGE).into()));
        let at = domain.reserve(32 * PAGE, PAGE).unwrap();
        assert!(at.base().0.is_multiple_of(4 * PAGE));
        let span = link(domain, &at, PAGE, &[mem(1, 3 * PAGE), mem(8, 5 * PAGE)]).unwrap();
        machine.write(MEMORY + 12 * PAGE, b"twelve");
        assert_eq!(machine.dma_read_all(span.addr.0 + 7 * PAGE, 6).unwrap(), b"twelve");
        assert_eq!(at.linked_pages(), 3, "of 16 KiB");
        let gap = DmaError::Misaligned { index: 1, addr: PhysAddr(MEMORY + 9 * PAGE) };
        refused(&machine, &at, gap, || {
            link(domain, &at, 16 * PAGE, &[mem(0, 4 * PAGE), mem(9, PAGE)]).map(drop)
        });
        let words: Vec<_> = (0..1).map(|_| granule::sync::AtomicU64::new(0)).collect();
        let list = domain.page_list(&at, &words).map(drop);
        assert_eq!(list, Err(DmaError::PageSize(4 * PAGE)));
        domain.destroy(at, BOTH).unwrap();
    });
}

#[test]
fn direction_is_what_the_device_may_do() {
    let machine = Machine::new();
    plain(&machine, |domain| {
        let at = domain.reserve(4 * PAGE, PAGE).unwrap();
        let span = domain.link(&at, 0, [mem(0, PAGE)], Attributes::TO_DEVICE).unwrap();
        let span = domain.sync(span).unwrap();
        assert_eq!(span.flags & DmaRange::WRITABLE, 0);
        assert_eq!(machine.dma_write(span.addr.0, 1), None);
        assert!(machine.dma_read(span.addr.0).is_some());
        let span = domain.link(&at, PAGE, [mem(1, PAGE)], Attributes::FROM_DEVICE).unwrap();
        let span = domain.sync(span).unwrap();
        assert!(machine.dma_write(span.addr.0, 1).is_some());
        domain.unlink(&at, 0, PAGE, Attributes::TO_DEVICE).unwrap();
        domain.unlink(&at, PAGE, PAGE, Attributes::FROM_DEVICE).unwrap();
        domain.free(at).unwrap();
    });
}

/// An untrusted device sees nothing beside what was mapped for it.
#[test]
fn only_the_unaligned_head_and_tail_are_bounced() {
    let machine = Machine::new();
    machine.write(MEMORY, &[0xaa; 4 * PAGE as usize]);
    machine.write(MEMORY + 1000, &[0xbb; 10_000]);
    with_domain(
        &machine,
        |builder, machine| builder.untrusted().bounce(machine),
        |domain| {
            let at = domain.reserve(8 * PAGE, PAGE).unwrap();
            let span = domain.link(&at, 1000, [mem_at(1000, 10_000)], BOTH).unwrap();
            let span = domain.sync(span).unwrap();
            assert_eq!(span.flags & DmaRange::BOUNCED, DmaRange::BOUNCED);
            assert_eq!(domain.bounce_pages_in_use(), 2);
            assert_eq!(domain.counts().bounced_pages, 2);
            let base = at.base().0;
            assert_eq!(machine.dma_read_all(base + 1000, 10_000).unwrap(), [0xbb; 10_000]);
            assert_eq!(machine.dma_read_all(base, 1000).unwrap(), [0; 1000], "not other people's bytes");
            assert_eq!(machine.dma_read_all(base + 11_000, 3 * PAGE - 11_000).unwrap(), [0; 1288]);
            let middle = machine.translate(base + PAGE, Access::Read);
            assert_eq!(middle, Some(MEMORY + PAGE), "the page in the middle is itself");
            for offset in [0, 999, 1000, 5000, 10_999, 11_000] {
                machine.dma_write(base + offset, 0xcc).unwrap();
            }
            assert_eq!(machine.read(MEMORY + 1000, 1), [0xbb], "not yet copied back");
            domain.sync_for_cpu(&at, 1000, 10_000, Direction::Both).unwrap();
            assert_eq!(machine.read(MEMORY + 1000, 1), [0xcc]);
            machine.write(MEMORY + 1001, &[0xdd]);
            domain.sync_for_device(&at, 1000, 10_000, Direction::Both).unwrap();
            assert_eq!(machine.dma_read(base + 1001), Some(0xdd));
            let coherent = domain.link(&at, 4 * PAGE, [mem(9, PAGE)], BOTH.require_coherent()).map(drop);
            assert_eq!(coherent, Err(DmaError::AlreadyBounced(at.base())));
            assert_eq!(domain.unlink(&at, 1000, 10_000, BOTH).unwrap().bounced, 2);
            let bytes = |offset, len| machine.read(MEMORY + offset, len);
            assert_eq!((bytes(10_999, 1), bytes(5000, 1)), (vec![0xcc], vec![0xcc]));
            assert_eq!(
                (bytes(999, 1), bytes(11_000, 1)),
                (vec![0xaa], vec![0xaa]),
                "what was not mapped is untouched"
            );
            domain.free(at).unwrap();
        },
    );
}

#[test]
fn what_must_not_or_cannot_be_bounced_is_refused_before_anything_is_mapped() {
    let mut machine = Machine::new();
    machine.caches = true;
    with_domain(
        &machine,
        |builder, machine| builder.untrusted().bounce(machine),
        |domain| {
            let at = domain.reserve(64 * PAGE, PAGE).unwrap();
            let must_not = DmaError::MustNotBounce(PhysAddr(MEMORY + 8));
            for attributes in [BOTH.require_coherent(), BOTH.mmio()] {
                let act = || domain.link(&at, 8, [mem_at(8, 100)], attributes).map(drop);
                refused(&machine, &at, must_not, act);
            }
            // The tail alone; and the head that was taken is given back.
            let tail = DmaError::MustNotBounce(PhysAddr(MEMORY + PAGE));
            let act = || domain.link(&at, 0, [mem(0, PAGE + 8)], BOTH.mmio()).map(drop);
            refused(&machine, &at, tail, act);
            // All bounce pages.
            for page in 0..BOUNCE {
                link(domain, &at, page * PAGE, &[mem(page, 8)]).unwrap();
            }
            let spent = DmaError::NoBouncePages(PhysAddr(MEMORY + 8));
            let act = || link(domain, &at, 20 * PAGE + 8, &[mem_at(8, 8)]).map(drop);
            refused(&machine, &at, spent, act);
            domain.unlink(&at, 0, PAGE, BOTH).unwrap();
            let second = DmaError::NoBouncePages(PhysAddr(MEMORY + PAGE));
            let act = || link(domain, &at, 20 * PAGE + 8, &[mem_at(8, PAGE)]).map(drop);
            refused(&machine, &at, second, act);
            assert_eq!(domain.bounce_pages_in_use() as u64, BOUNCE - 1, "the head's page was given back");
            // Memory that is gone.
            machine.set_gone(true);
            let gone = DmaError::MemoryGone(PhysAddr(MEMORY + 8));
            let act = || link(domain, &at, 20 * PAGE + 8, &[mem_at(8, 8)]).map(drop);
            refused(&machine, &at, gone, act);
            let sync = domain.sync_for_device(&at, PAGE, 8, Direction::Both);
            assert_eq!(sync, Err(DmaError::MemoryGone(PhysAddr(MEMORY + PAGE))));
            assert_eq!(domain.sync_for_cpu(&at, PAGE, 8, Direction::Both).unwrap().lost_bytes, 8);
            let unlinked = domain.unlink(&at, PAGE, 2 * PAGE, BOTH).unwrap();
            assert_eq!((unlinked.pages, unlinked.bounced, unlinked.lost_bytes), (2, 2, 16));
            assert_eq!(domain.counts().lost_bytes, 24);
            machine.set_gone(false);
            // A full table gives bounce pages back.
            machine.set_room(machine.mapped_pages());
            let act = || link(domain, &at, 30 * PAGE, &[mem(0, 8)]).map(drop);
            refused(&machine, &at, DmaError::OutOfTables, act);
            machine.set_room(usize::MAX);
            assert_eq!(domain.destroy(at, BOTH).unwrap().bounced, BOUNCE as u32 - 3);
        },
    );
    with_domain(
        &machine,
        |builder, _| builder.untrusted(),
        |domain| {
            let at = domain.reserve(PAGE, PAGE).unwrap();
            let act = || link(domain, &at, 0, &[mem(0, 8)]).map(drop);
            refused(&machine, &at, DmaError::NoBouncePages(PhysAddr(MEMORY)), act);
            link(domain, &at, 0, &[mem(0, PAGE)]).unwrap();
            domain.destroy(at, BOTH).unwrap();
        },
    );
}

/// One omitted sync yields old bytes, so the others do something.
#[test]
fn a_device_that_is_not_coherent_reads_old_bytes_without_a_sync() {
    let mut machine = Machine::new();
    machine.caches = true;
    with_domain(
        &machine,
        |builder, machine| builder.cache(machine).bounce(machine),
        |domain| {
            assert!(!domain.is_coherent());
            let at = domain.reserve(8 * PAGE, PAGE).unwrap();
            machine.write(MEMORY, b"old");
            let span = link(domain, &at, 0, &[mem(0, PAGE)]).unwrap();
            assert_eq!(machine.dma_read_all(span.addr.0, 3).unwrap(), b"old");
            machine.write(MEMORY, b"new");
            assert_eq!(machine.dma_read_all(span.addr.0, 3).unwrap(), b"old", "the device's line is stale");
            domain.sync_for_device(&at, 0, PAGE, Direction::ToDevice).unwrap();
            assert_eq!(machine.dma_read_all(span.addr.0, 3).unwrap(), b"new");
            machine.dma_write(span.addr.0, b'N').unwrap();
            assert_eq!(machine.read(MEMORY, 3), b"new", "the CPU's view is stale");
            domain.sync_for_cpu(&at, 0, PAGE, Direction::Both).unwrap();
            assert_eq!(machine.read(MEMORY, 3), b"New");
            machine.dma_write(span.addr.0 + 1, b'E').unwrap();
            domain.unlink(&at, 0, PAGE, BOTH).unwrap();
            assert_eq!(machine.read(MEMORY, 3), b"NEw", "unlink syncs");
            // A link looks after the caches, one with skip_cpu_sync does not.
            machine.write(MEMORY, b"abc");
            let span = domain.link(&at, 0, [mem(0, PAGE)], Attributes::BY_HAND).unwrap();
            let span = domain.sync(span).unwrap();
            assert_eq!(machine.dma_read_all(span.addr.0, 3).unwrap(), b"abc");
            machine.dma_write(span.addr.0, b'X').unwrap();
            domain.unlink(&at, 0, PAGE, Attributes::BY_HAND).unwrap();
            assert_eq!(machine.read(MEMORY, 3), b"abc", "nobody wrote the line back");
            let refused_link = domain.link(&at, 0, [mem(0, PAGE)], BOTH.require_coherent()).map(drop);
            assert_eq!(refused_link, Err(DmaError::NotCoherent));
            let words = [granule::sync::AtomicU64::new(0)];
            assert_eq!(domain.page_list(&at, &words).map(drop), Err(DmaError::NotCoherent));
            // Part of a line: a bounce page keeps the CPU's bytes and the device's apart.
            machine.write(MEMORY + PAGE, &[1; 128]);
            let span = link(domain, &at, PAGE + 10, &[mem_at(PAGE + 10, 20)]).unwrap();
            assert_eq!(domain.bounce_pages_in_use(), 1);
            machine.write(MEMORY + PAGE, &[2; 10]);
            for byte in 0..20 {
                machine.dma_write(span.addr.0 + byte, 3).unwrap();
            }
            domain.unlink(&at, PAGE + 10, 20, BOTH).unwrap();
            assert_eq!(machine.read(MEMORY + PAGE, 31), [[2; 10].as_slice(), &[3; 20], &[1]].concat());
            // Towards the device only, sharing a line is harmless.
            let span = domain.link(&at, PAGE + 10, [mem_at(PAGE + 10, 20)], Attributes::TO_DEVICE).unwrap();
            assert_eq!(domain.bounce_pages_in_use(), 0);
            let _ = domain.sync(span).unwrap();
            domain.unlink(&at, PAGE + 10, 20, Attributes::TO_DEVICE).unwrap();
            for sync in [
                domain.sync_for_device(&at, 0, PAGE, Direction::Both),
                domain.sync_for_cpu(&at, 0, PAGE, Direction::Both).map(drop),
            ] {
                assert_eq!(sync, Err(DmaError::NotLinked(at.base())));
            }
            domain.free(at).unwrap();
            assert_eq!(domain.counts().cache_syncs, 7);
        },
    );
}

#[test]
fn syncs_by_hand_refuse_what_is_not_linked_or_not_theirs() {
    let (machine, other_machine) = (Machine::new(), Machine::new());
    plain(&machine, |domain| {
        let at = domain.reserve(4 * PAGE, PAGE).unwrap();
        link(domain, &at, 0, &[mem(0, 2 * PAGE)]).unwrap();
        let both = |domain: &Domain<'_>, offset, bytes| {
            let device = domain.sync_for_device(&at, offset, bytes, Direction::Both);
            let cpu = domain.sync_for_cpu(&at, offset, bytes, Direction::Both).map(drop);
            assert_eq!(device, cpu);
            device
        };
        assert_eq!(both(domain, 0, 2 * PAGE), Ok(()));
        assert_eq!(both(domain, 100, 1), Ok(()));
        for (offset, bytes) in [(0, 0), (0, 5 * PAGE), (4 * PAGE, 1), (u64::MAX, 2), (1, u64::MAX)] {
            let outside = DmaError::OutsideReservation { offset, bytes, reserved: 4 * PAGE };
            assert_eq!(both(domain, offset, bytes), Err(outside));
            let mut deferred = Deferred::new(domain);
            let unlinked = domain.unlink_deferred(&at, offset, bytes, BOTH, &mut deferred).map(drop);
            assert_eq!((unlinked, deferred.pending()), (Err(outside), 0));
        }
        assert_eq!(both(domain, 0, 3 * PAGE), Err(DmaError::NotLinked(at.base() + 2 * PAGE)));
        plain(&other_machine, |other| assert_eq!(both(other, 0, PAGE), Err(DmaError::OtherDomain)));
        let high = PhysRange::new(PhysAddr(u64::MAX - 3), 8).of_peer(PeerNo(1));
        assert_eq!(domain.bus_range(high, true), Err(DmaError::Wraps(high.addr)));
        domain.destroy(at, BOTH).unwrap();
    });
}

#[test]
fn a_hole_is_found_before_caches_are_touched() {
    let mut machine = Machine::new();
    machine.caches = true;
    with_domain(
        &machine,
        |builder, machine| builder.cache(machine),
        |domain| {
            let at = domain.reserve(4 * PAGE, PAGE).unwrap();
            let span = link(domain, &at, 0, &[mem(0, PAGE)]).unwrap();
            machine.dma_write(span.addr.0, 9).unwrap();
            let hole = domain.unlink(&at, 0, 2 * PAGE, BOTH).map(drop);
            assert_eq!(hole, Err(DmaError::NotLinked(at.base() + PAGE)));
            assert_eq!(machine.read(MEMORY, 1), [0], "nothing was changed, caches included");
            domain.destroy(at, BOTH).unwrap();
            assert_eq!(machine.read(MEMORY, 1), [9]);
        },
    );
}

#[test]
fn memory_of_peers_is_linked_only_through_the_host_bridge() {
    let machine = Machine::new();
    let window = PeerWindow { phys: PhysAddr(WINDOW), bus: BusAddr(0x10_0000_0000), bytes: WINDOW_BYTES };
    let (bridge, bus, none, own) = (PeerNo(1), PeerNo(2), PeerNo(3), PeerNo(4));
    with_domain(
        &machine,
        |builder, _| {
            let builder = builder.peer(bridge, window, P2pKind::HostBridge);
            let builder = builder.peer(bus, window, P2pKind::BusAddress);
            let builder = builder.peer(none, window, P2pKind::NotSupported);
            builder.peer(own, window, P2pKind::None)
        },
        |domain| {
            let at = domain.reserve(256 * PAGE, PAGE).unwrap();
            let range = PhysRange::new(PhysAddr(WINDOW + PAGE), 2 * PAGE);
            let span = link(domain, &at, 0, &[range.of_peer(bridge)]).unwrap();
            assert_eq!(span.flags & DmaRange::MMIO, DmaRange::MMIO);
            assert_eq!(machine.translate(span.addr.0, Access::Write), Some(WINDOW + PAGE));
            let check = |error, range: PhysRange| {
                refused(&machine, &at, error, || link(domain, &at, 8 * PAGE, &[range]).map(drop));
            };
            check(DmaError::BusAddress(bus), range.of_peer(bus));
            check(DmaError::PeerUnreachable { peer: none, kind: P2pKind::NotSupported }, range.of_peer(none));
            check(DmaError::PeerUnreachable { peer: own, kind: P2pKind::None }, range.of_peer(own));
            check(DmaError::UnknownPeer(PeerNo(9)), range.of_peer(PeerNo(9)));
            for addr in [WINDOW - PAGE, WINDOW + WINDOW_BYTES - PAGE, WINDOW + WINDOW_BYTES] {
                let outside = PhysRange::new(PhysAddr(addr), 2 * PAGE).of_peer(bridge);
                check(DmaError::OutsidePeer { peer: bridge, addr: outside.addr }, outside);
            }
            domain.destroy(at, BOTH).unwrap();
        },
    );
}
