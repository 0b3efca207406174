//! Page lists: what somebody who serves page faults does with them.

mod dma_support;

use dma_support::{Dice, MEMORY, Machine, PAGE, mem, plain, seeds};
use granule::dma::{Attributes, DmaError, DmaRange, PageList};
use granule::ports::{Iommu, IommuError};
use granule::sync::AtomicU64;
use granule::units::{Access, Iova, PhysAddr};

fn words(pages: u64) -> Vec<AtomicU64> {
    (0..pages.div_ceil(64)).map(|_| AtomicU64::new(0)).collect()
}

fn phys(page: u64) -> PhysAddr {
    PhysAddr(MEMORY + page * PAGE)
}

#[test]
fn an_upgrade_keeps_the_address_and_an_invalidation_takes_it_all_back() {
    for in_words in [true, false] {
        upgrade_and_invalidate(in_words);
    }
}

fn upgrade_and_invalidate(in_words: bool) {
    let machine = Machine::new();
    plain(&machine, |domain| {
        let at = domain.reserve(512 << 20, 2 << 20).unwrap();
        let pages = at.bytes() / PAGE;
        let (linked, writable) = (words(pages), words(pages));
        let list = domain.page_list(&at, &linked).unwrap();
        let list = if in_words { list.with_writable(&writable) } else { list.with_table_rights(&machine) };
        assert_eq!(list.pages(), 131_072);
        // A fault for reading links four pages at their own position.
        assert_eq!(list.link(&machine, 100..104, phys(0), Access::Read), Ok(4));
        let address = list.address(101).0;
        assert_eq!(address, at.base().0 + 101 * PAGE);
        assert_eq!(machine.translate(address, Access::Read), Some(MEMORY + 101 * PAGE));
        assert_eq!(machine.dma_write(address, 1), None, "linked for reading");
        assert!(list.is_linked(101) && list.allows(101, Access::Read) && !list.allows(101, Access::Write));
        let maps = machine.maps();
        assert_eq!(list.link(&machine, 100..104, phys(0), Access::Read), Ok(0), "linked already");
        // A fault for writing upgrades in place: nothing is linked again.
        assert_eq!(list.link(&machine, 101..102, phys(0), Access::Write), Ok(0));
        assert_eq!(machine.maps(), maps);
        assert_eq!(machine.dma_write(address, 77), Some(()), "the same address");
        assert_eq!(machine.read(MEMORY + 101 * PAGE, 1), [77]);
        assert_eq!(machine.dma_write(list.address(102).0, 1), None, "its neighbour is as it was");
        assert_eq!(list.link(&machine, 101..102, phys(0), Access::Read), Ok(0));
        assert!(list.allows(101, Access::Write), "asking for less takes nothing away");
        // Ranges out, by rights.
        let flags: Vec<(u64, u32)> = list.dma_ranges(Access::Read).map(|r| (r.len.into(), r.flags)).collect();
        assert_eq!(flags, [(PAGE, 0), (PAGE, DmaRange::WRITABLE), (2 * PAGE, 0)]);
        assert_eq!((list.linked_pages(0..pages), at.linked_pages()), (4, 4));
        // An invalidation takes exactly what it hits, rights included.
        let flushes = machine.flush_calls();
        assert_eq!(list.unlink(&machine, 90..102), 2);
        assert_eq!(machine.flush_calls() - flushes, 1);
        assert_eq!(machine.translate(address, Access::Read), None);
        assert!(!list.is_linked(101) && !list.allows(101, Access::Read) && list.is_linked(102));
        assert_eq!(list.link(&machine, 101..102, phys(500), Access::Read), Ok(1));
        assert_eq!(machine.dma_write(address, 1), None, "the old right to write is gone");
        assert_eq!(list.unlink(&machine, 0..u64::MAX), 3);
        assert_eq!((list.unlink(&machine, 0..pages), at.linked_pages()), (0, 0));
        let counts = domain.counts();
        assert_eq!((counts.links, counts.linked_pages), (2, 5));
        assert_eq!((counts.unlinks, counts.unlinked_pages), (2, 5));
        assert_eq!((counts.flushes, counts.flushed_runs, counts.flushed_pages), (2, 2, 5));
        domain.free(at).unwrap();
    });
}

#[test]
fn pages_of_a_list_keep_the_reservation() {
    let machine = Machine::new();
    let iovas = dma_support::Iovas::of(&machine);
    let domain = granule::dma::Domain::builder(&machine, &iovas).build();
    let at = domain.reserve(64 * PAGE, PAGE).unwrap();
    let bits = words(64);
    domain.page_list(&at, &bits).unwrap().link(&machine, 3..5, phys(0), Access::Write).unwrap();
    let (at, error) = domain.free(at).expect_err("pages are linked");
    assert_eq!(error, DmaError::LinksLeft(2));
    let other = Machine::new();
    let other_iovas = dma_support::Iovas::of(&other);
    let other_domain = granule::dma::Domain::builder(&other, &other_iovas).build();
    assert_eq!(other_domain.page_list(&at, &bits).map(drop), Err(DmaError::OtherDomain));
    assert_eq!(domain.destroy(at, Attributes::BOTH).unwrap().pages, 2);
}

/// Linked, then device-private (so unlinked: its memory is not there any more), then in RAM again, elsewhere: linked
/// anew, to the new page, at the same address.
#[test]
fn a_page_that_went_to_the_device_and_back_is_linked_anew() {
    let machine = Machine::new();
    machine.write(MEMORY, b"first");
    plain(&machine, |domain| {
        let at = domain.reserve(64 * PAGE, PAGE).unwrap();
        let (linked, writable) = (words(64), words(64));
        let list = domain.page_list(&at, &linked).unwrap().with_writable(&writable);
        assert_eq!(list.link_ranges(&machine, 7, [mem(0, PAGE)], Access::Write), Ok(1));
        let address = list.address(7).0;
        assert_eq!(machine.dma_read_all(address, 5).unwrap(), b"first");
        // To the device: unlinked first, then the page is taken.
        assert_eq!(list.unlink(&machine, 7..8), 1);
        let device_memory = machine.read(MEMORY, 5);
        machine.write(MEMORY, b"xxxxx");
        assert_eq!(machine.dma_read(address), None, "a device-private page is not linked");
        // Home again, populated at another page, linked anew.
        machine.write(MEMORY + 9 * PAGE, &device_memory);
        assert_eq!(
            list.link_ranges(&machine, 7, [mem(9, PAGE)], Access::Write),
            Ok(1),
            "not taken for linked"
        );
        assert_eq!(list.address(7).0, address);
        assert_eq!(machine.dma_read_all(address, 5).unwrap(), b"first");
        list.unlink(&machine, 0..64);
        domain.free(at).unwrap();
    });
}

#[test]
fn what_a_list_has_not_is_refused_and_a_full_table_leaves_nothing() {
    let machine = Machine::new();
    let bits = words(100);
    let list = PageList::new(Iova(0x10_0000), 100, &bits);
    for pages in [99..101, 200..201, 5..u64::MAX] {
        let end = Iova(0x10_0000u64.saturating_add(pages.end.saturating_mul(PAGE)));
        let refused = list.link(&machine, pages.clone(), PhysAddr(0), Access::Read);
        assert_eq!(refused, Err(IommuError::OutsideAperture(end)));
    }
    let refused = list.link_ranges(&machine, 99, [mem(0, 2 * PAGE)], Access::Read);
    assert!(matches!(refused, Err(IommuError::OutsideAperture(_))));
    let refused = list.link_ranges(&machine, u64::MAX, [mem(0, 2 * PAGE)], Access::Read);
    assert!(matches!(refused, Err(IommuError::OutsideAperture(_))));
    assert_eq!(list.link(&machine, 7..7, PhysAddr(0), Access::Read), Ok(0), "no page is no page");
    list.link(&machine, 10..12, phys(0), Access::Read).unwrap();
    machine.set_room(5);
    let full = list.link_ranges(&machine, 8, [mem(50, 3 * PAGE), mem(70, 4 * PAGE)], Access::Read);
    assert_eq!(full, Err(IommuError::OutOfTables));
    assert_eq!((machine.mapped_pages(), list.linked_pages(0..100)), (2, 2));
    assert_eq!(list.linked_pages(0..u64::MAX), 2);
    assert!(!list.is_linked(100) && !list.allows(1 << 40, Access::Read));
    // Many runs: one wait.
    machine.set_room(usize::MAX);
    list.unlink(&machine, 0..100);
    for page in 0..40 {
        assert_eq!(list.link(&machine, 2 * page..2 * page + 1, phys(0), Access::Read), Ok(1));
    }
    for page in 0..40 {
        assert!(machine.translate(list.address(2 * page).0, Access::Read).is_some());
    }
    let flushes = machine.flush_calls();
    assert_eq!(list.unlink(&machine, 0..100), 40);
    assert_eq!(machine.flush_calls() - flushes, 1, "one flush for one call");
    for page in 0..40 {
        assert_eq!(machine.translate(list.address(2 * page).0, Access::Read), None, "page {page}");
    }
    // Several ranges with one flush, and what is between them stays.
    list.link(&machine, 0..100, phys(0), Access::Read).unwrap();
    let flushes = machine.flush_calls();
    assert_eq!(list.unlink_runs(&machine, [3..5, 90..200, 50..51]), 2 + 10 + 1);
    assert_eq!((machine.flush_calls() - flushes, list.linked_pages(0..100)), (1, 87));
    assert_eq!(list.unlink_runs(&machine, [3..5, 50..51]), 0, "nothing is linked there");
    assert_eq!(machine.flush_calls() - flushes, 1, "and nothing to flush");
}

/// Long random lives against one entry per page, with the rights in words and in the I/O page table.
#[test]
fn a_long_random_life_agrees_with_an_entry_per_page() {
    const PAGES: u64 = 300;
    for (seed, in_words) in seeds(10).into_iter().flat_map(|seed| [(seed, true), (seed, false)]) {
        println!("seed {seed}, rights in words: {in_words}");
        let machine = Machine::new();
        let mut dice = Dice(seed);
        let (linked, writable) = (words(PAGES), words(PAGES));
        let list = PageList::new(Iova(0x100_0000), PAGES, &linked);
        let list = if in_words { list.with_writable(&writable) } else { list.with_table_rights(&machine) };
        let mut naive: Vec<Option<(u64, Access)>> = vec![None; PAGES as usize];
        for step in 0..3000 {
            let first = dice.below(PAGES);
            let pages = first..first + dice.below((PAGES - first).min(40) + 1);
            match dice.below(3) {
                0 => {
                    let hit = &mut naive[pages.start as usize..pages.end as usize];
                    let count = hit.iter_mut().filter_map(Option::take).count() as u64;
                    assert_eq!(list.unlink(&machine, pages.clone()), count);
                }
                _ => {
                    let access = if dice.one_in(2) { Access::Write } else { Access::Read };
                    let from = dice.below(1000);
                    let room = machine.mapped_pages() + dice.below(60) as usize;
                    machine.set_room(room);
                    let missing = pages.clone().filter(|page| naive[*page as usize].is_none()).count();
                    // In two ranges, anywhere.
                    let middle = pages.start + dice.below(pages.end - pages.start + 1);
                    let parts = [(from, pages.start..middle), (from + 2000, middle..pages.end)];
                    let ranges = parts.clone().map(|(at, part)| mem(at, (part.end - part.start) * PAGE));
                    let ranges: Vec<_> = ranges.into_iter().filter(|range| range.len > 0).collect();
                    let result = list.link_ranges(&machine, pages.start, ranges, access);
                    if machine.mapped_pages() > room || result.is_err() {
                        assert_eq!(result, Err(IommuError::OutOfTables), "step {step}");
                        assert!(missing + naive.iter().flatten().count() > room);
                        continue;
                    }
                    assert_eq!(result, Ok(missing as u64));
                    for (at, part) in parts {
                        for page in part.clone() {
                            let phys = MEMORY + (at + page - part.start) * PAGE;
                            let old = naive[page as usize].unwrap_or((phys, access));
                            let access = if access == Access::Write { access } else { old.1 };
                            naive[page as usize] = Some((old.0, access));
                        }
                    }
                }
            }
            for page in [first, dice.below(PAGES)] {
                let entry = naive[page as usize];
                let at = list.address(page).0;
                let reads = machine.translate(at, Access::Read);
                assert_eq!(reads, entry.map(|(phys, _)| phys), "seed {seed}, step {step}, page {page}");
                let writes = entry.is_some_and(|(_, access)| access == Access::Write);
                assert_eq!(
                    machine.translate(at, Access::Write).is_some(),
                    writes,
                    "seed {seed}, step {step}"
                );
                assert_eq!(
                    (list.is_linked(page), list.allows(page, Access::Write)),
                    (entry.is_some(), writes)
                );
            }
        }
        let all: Vec<u64> = list
            .dma_ranges(Access::Read)
            .flat_map(|range| (range.addr.0..range.addr.0 + u64::from(range.len)).step_by(PAGE as usize))
            .collect();
        let expected: Vec<u64> = (0..PAGES)
            .filter(|page| naive[*page as usize].is_some())
            .map(|page| list.address(page).0)
            .collect();
        assert_eq!(all, expected);
        let writable: u64 = list
            .dma_ranges(Access::Read)
            .filter(|range| range.flags & DmaRange::WRITABLE != 0)
            .map(|range| u64::from(range.len) / PAGE)
            .sum();
        let expected_writable = naive.iter().flatten().filter(|(_, access)| *access == Access::Write).count();
        assert_eq!(writable, expected_writable as u64, "ranges say who may be written");
        assert!(machine.mapped(Iova(0x100_0000), PAGES * PAGE).is_some() || expected.is_empty());
    }
}
