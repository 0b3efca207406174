//! Both ways in one domain, for a long time, against a model that has one entry per page and says beforehand what every
//! call must answer. Errors are a large part of it: bad arguments, full tables, few bounce pages.

mod dma_support;

use std::collections::BTreeMap;

use dma_support::{BOUNCE, Dice, Iovas, MEMORY, Machine, PAGE, PAGES, mem_at, seeds};
use granule::dma::{Attributes, Deferred, DmaError, DmaMapping, DmaRange, Domain, Reservation};
use granule::units::{Access, PhysAddr, PhysRange};

const BOTH: Attributes = Attributes::BOTH;
/// Pages of a reservation at most.
const MOST: u64 = 24;

/// What a linked page is.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
struct Page {
    /// The page of memory, also where a bounce page stands for it.
    phys: u64,
    /// The bytes that the device may see, if it is bounced.
    bounced: Option<(u64, u64)>,
}

struct Model<'d> {
    domain: &'d Domain<'d>,
    machine: &'d Machine,
    is_untrusted: bool,
    room: usize,
    held: Vec<(Reservation, BTreeMap<u64, Page>)>,
    maps: Vec<(DmaRange, u64)>,
    lists: Vec<(DmaMapping, Vec<PhysRange>)>,
    dice: Dice,
}

/// The groups of a list that stand one behind the other: where each begins, and its bytes.
fn groups(ranges: &[PhysRange]) -> Vec<(u64, u64)> {
    let mut groups: Vec<(u64, u64)> = Vec::new();
    let mut end = None;
    for range in ranges {
        let (addr, len) = (range.addr.0, u64::from(range.len));
        match groups.last_mut() {
            Some(group)
                if addr.is_multiple_of(PAGE) && end.is_some_and(|end: u64| end.is_multiple_of(PAGE)) =>
            {
                group.1 += len;
            }
            _ => groups.push((addr, len)),
        }
        end = Some(addr + len);
    }
    groups
}

fn pages_of(ranges: &[PhysRange]) -> u64 {
    groups(ranges).into_iter().map(|(addr, bytes)| (addr % PAGE + bytes).div_ceil(PAGE)).sum()
}

impl Model<'_> {
    fn mapped(&self) -> usize {
        let linked: usize = self.held.iter().map(|(_, pages)| pages.len()).sum();
        let pages =
            |(range, _): &(DmaRange, u64)| (range.addr.0 % PAGE + u64::from(range.len)).div_ceil(PAGE);
        let lists: u64 = self.lists.iter().map(|(_, ranges)| pages_of(ranges)).sum();
        linked + (self.maps.iter().map(pages).sum::<u64>() + lists) as usize
    }
    fn bounced(&self) -> u64 {
        let linked =
            |pages: &BTreeMap<u64, Page>| pages.values().filter(|page| page.bounced.is_some()).count();
        let maps: u64 = self.maps.iter().map(|(range, _)| self.edges(range.addr.0, range.len.into())).sum();
        let lists: u64 = self.lists.iter().map(|(_, ranges)| self.list_edges(ranges)).sum();
        self.held.iter().map(|(_, pages)| linked(pages) as u64).sum::<u64>() + maps + lists
    }
    /// How many bounce pages a list needs.
    fn list_edges(&self, ranges: &[PhysRange]) -> u64 {
        groups(ranges).into_iter().map(|(addr, bytes)| self.edges(addr, bytes)).sum()
    }
    /// How many bounce pages a range at an address needs.
    fn edges(&self, at: u64, bytes: u64) -> u64 {
        if !self.is_untrusted {
            return 0;
        }
        let (head, tail) = (!at.is_multiple_of(PAGE), !(at + bytes).is_multiple_of(PAGE));
        let is_one = at / PAGE == (at + bytes - 1) / PAGE;
        if is_one { u64::from(head || tail) } else { u64::from(head) + u64::from(tail) }
    }
    /// Ranges that stand one behind the other, mostly; the first at `inside` of its page.
    fn ranges(&mut self, inside: u64) -> Vec<PhysRange> {
        let count = 1 + self.dice.below(4);
        let memory = PAGES - BOUNCE - 64;
        (0..count)
            .map(|index| {
                let start = if index == 0 { inside } else { 0 };
                let pages = 1 + self.dice.below(4);
                let cut =
                    if index + 1 == count && self.dice.one_in(3) { self.dice.below(PAGE / 2) } else { 0 };
                let slip = if self.dice.one_in(25) { 8 } else { 0 };
                let len = (pages * PAGE).saturating_sub(start + cut).max(1);
                let len = if self.dice.one_in(40) { 0 } else { len };
                mem_at(self.dice.below(memory) * PAGE + start + slip, len)
            })
            .collect()
    }

    fn reserve(&mut self) {
        let bytes =
            if self.dice.one_in(10) { self.dice.below(3 * PAGE) } else { (1 + self.dice.below(MOST)) * PAGE };
        match self.domain.reserve(bytes, PAGE) {
            Ok(reservation) => self.held.push((reservation, BTreeMap::new())),
            Err(error) => assert!(
                matches!(error, DmaError::Iova(_)) && (bytes == 0 || !bytes.is_multiple_of(PAGE)),
                "{error}"
            ),
        }
    }

    /// What `link` must answer.
    fn expect_link(&self, which: usize, offset: u64, ranges: &[PhysRange]) -> Result<(), DmaError> {
        let (reservation, pages) = &self.held[which];
        let mut end: Option<u64> = None;
        let mut total = 0;
        for (index, range) in ranges.iter().enumerate() {
            if range.len == 0 {
                return Err(DmaError::Empty(index));
            }
            if end.is_some_and(|end| !end.is_multiple_of(PAGE) || !range.addr.is_page_aligned()) {
                return Err(DmaError::Misaligned { index, addr: range.addr });
            }
            total += u64::from(range.len);
            end = Some(range.addr.0 + u64::from(range.len));
        }
        if offset + total > reservation.bytes() {
            return Err(DmaError::OutsideReservation { offset, bytes: total, reserved: reservation.bytes() });
        }
        let addr = ranges[0].addr;
        if offset % PAGE != addr.0 % PAGE {
            return Err(DmaError::OffsetMismatch { offset, addr });
        }
        // Bounce pages come before the table: the head's, then the tail's.
        let free = BOUNCE - self.bounced();
        let last = end.expect("there is a range") - 1;
        if self.edges(offset, total) > free {
            let head = !addr.is_page_aligned() || offset / PAGE == (offset + total - 1) / PAGE;
            let failed = if free == 0 && head { addr } else { PhysAddr(last / PAGE * PAGE) };
            return Err(DmaError::NoBouncePages(failed));
        }
        let span = offset / PAGE..(offset + total).div_ceil(PAGE);
        let runs = self.runs(offset, ranges, span.clone());
        let mut room = self.room - self.mapped();
        for run in runs {
            if let Some(page) = run.clone().find(|page| pages.contains_key(page)) {
                return Err(DmaError::AlreadyLinked(reservation.base() + page * PAGE));
            }
            let count = (run.end - run.start) as usize;
            if count > room {
                return Err(DmaError::OutOfTables);
            }
            room -= count;
        }
        Ok(())
    }

    /// The runs in which a link is entered: what touches is one; bounce pages stand alone (in the model's machine a
    /// bounce page may touch another: then the machine's answer is the same, for the runs are tried in order).
    fn runs(
        &self,
        offset: u64,
        ranges: &[PhysRange],
        span: std::ops::Range<u64>,
    ) -> Vec<std::ops::Range<u64>> {
        let mut runs: Vec<std::ops::Range<u64>> = Vec::new();
        let (mut at, mut next) = (offset, None);
        let bounced = self.bounced_pages(offset, ranges, &span);
        for range in ranges {
            let first = at / PAGE;
            at += u64::from(range.len);
            for page in first..at.div_ceil(PAGE) {
                let phys = range.addr.0 / PAGE + (page - first);
                let is_bounced = bounced.contains(&page);
                match runs.last_mut() {
                    Some(run) if next == Some(phys) && !is_bounced => run.end = page + 1,
                    _ => runs.push(page..page + 1),
                }
                next = (!is_bounced).then_some(phys + 1);
            }
        }
        runs
    }
    fn bounced_pages(&self, offset: u64, ranges: &[PhysRange], span: &std::ops::Range<u64>) -> Vec<u64> {
        let total: u64 = ranges.iter().map(|range| u64::from(range.len)).sum();
        if self.edges(offset, total) == 0 {
            return Vec::new();
        }
        let head = !offset.is_multiple_of(PAGE) || span.end - span.start == 1;
        let tail = !(offset + total).is_multiple_of(PAGE);
        let ends = [(head, span.start), (tail, span.end - 1)];
        ends.into_iter().filter(|(is_bounced, _)| *is_bounced).map(|(_, page)| page).collect()
    }

    fn link(&mut self) {
        let Some(which) = self.which() else { return };
        let inside = if self.dice.one_in(3) { self.dice.below(PAGE) } else { 0 };
        let ranges = self.ranges(inside);
        let slip = if self.dice.one_in(20) { 1 } else { 0 };
        let offset = self.dice.below(MOST + 2) * PAGE + ranges[0].addr.0 % PAGE + slip;
        let expected = self.expect_link(which, offset, &ranges);
        let got = self.domain.link(&self.held[which].0, offset, ranges.iter().copied(), BOTH);
        assert_eq!(got.as_ref().map(drop).map_err(|error| *error), expected, "{ranges:?} at {offset:#x}");
        let Ok(span) = got else { return };
        self.domain.sync(span).unwrap();
        let total: u64 = ranges.iter().map(|range| u64::from(range.len)).sum();
        let span = offset / PAGE..(offset + total).div_ceil(PAGE);
        let bounced = self.bounced_pages(offset, &ranges, &span);
        let mut at = offset;
        for range in &ranges {
            let first = at / PAGE;
            let start = range.addr.0 / PAGE;
            at += u64::from(range.len);
            for page in first..at.div_ceil(PAGE) {
                let from = if page == offset / PAGE { offset % PAGE } else { 0 };
                let until = (offset + total - page * PAGE).min(PAGE);
                let bounced = bounced.contains(&page).then_some((from, until));
                self.held[which].1.insert(page, Page { phys: (start + page - first) * PAGE, bounced });
            }
        }
    }

    fn unlink(&mut self) {
        let Some(which) = self.which() else { return };
        let (reservation, pages) = &mut self.held[which];
        let offset =
            self.dice.below(MOST + 1) * PAGE + if self.dice.one_in(4) { self.dice.below(PAGE) } else { 0 };
        let bytes = self.dice.below(5 * PAGE);
        let span = offset / PAGE..(offset + bytes).div_ceil(PAGE);
        let hole = span.clone().find(|page| !pages.contains_key(page));
        let expected = if bytes == 0 || offset + bytes > reservation.bytes() {
            Err(DmaError::OutsideReservation { offset, bytes, reserved: reservation.bytes() })
        } else if let Some(hole) = hole {
            Err(DmaError::NotLinked(reservation.base() + hole * PAGE))
        } else {
            Ok(span.end - span.start)
        };
        let got = self.domain.unlink(reservation, offset, bytes, BOTH);
        assert_eq!(got.map(|unlinked| unlinked.pages), expected, "{bytes:#x} at {offset:#x}");
        if expected.is_ok() {
            for page in span {
                pages.remove(&page);
            }
        }
    }

    fn which(&mut self) -> Option<usize> {
        let count = self.held.len() as u64;
        (count > 0).then(|| self.dice.below(count) as usize)
    }

    fn end(&mut self) {
        let Some(which) = self.which() else { return };
        let (reservation, pages) = self.held.swap_remove(which);
        if self.dice.one_in(2) {
            let unlinked = self.domain.destroy(reservation, BOTH).expect("it is this domain's");
            assert_eq!(unlinked.pages, pages.len() as u64);
            return;
        }
        match self.domain.free(reservation) {
            Ok(()) => assert!(pages.is_empty(), "freed with {} links", pages.len()),
            Err((reservation, error)) => {
                assert_eq!(error, DmaError::LinksLeft(pages.len() as u64));
                self.held.push((reservation, pages));
            }
        }
    }

    fn map(&mut self) {
        let bytes = 1 + self.dice.below(3 * PAGE);
        let at = self.dice.below((PAGES - BOUNCE - 8) * PAGE);
        let range = mem_at(at, bytes);
        let pages = (at % PAGE + bytes).div_ceil(PAGE) as usize;
        match self.domain.map(range, BOTH) {
            Ok(mapped) => {
                assert_eq!((mapped.addr.0 % PAGE, u64::from(mapped.len)), (at % PAGE, bytes));
                self.maps.push((mapped, range.addr.0));
            }
            Err(DmaError::NoBouncePages(_)) => assert!(self.edges(at, bytes) > BOUNCE - self.bounced()),
            Err(error) => {
                assert_eq!(error, DmaError::OutOfTables);
                assert!(pages > self.room - self.mapped());
            }
        }
    }

    fn unmap(&mut self) {
        let count = self.maps.len() as u64;
        if count == 0 {
            return;
        }
        let (range, _) = self.maps[self.dice.below(count) as usize];
        let wrong = DmaRange { len: range.len + PAGE as u32, ..range };
        assert_eq!(self.domain.unmap(wrong, BOTH), Err(DmaError::NotMapped(wrong.addr)));
        self.domain.unmap(range, BOTH).unwrap();
        assert_eq!(self.domain.unmap(range, BOTH), Err(DmaError::NotMapped(range.addr)), "twice");
        self.maps.retain(|(known, _)| known != &range);
    }

    /// The one-step way for many ranges: one answer for all of them.
    fn map_list(&mut self) {
        let inside = if self.dice.one_in(2) { self.dice.below(PAGE) } else { 0 };
        let ranges = self.ranges(inside);
        let got = self.domain.map_list(ranges.iter().copied(), BOTH);
        let empty = ranges.iter().position(|range| range.len == 0);
        match got {
            Ok(mapping) => {
                assert_eq!(empty, None);
                let bytes: u64 = ranges.iter().map(|range| u64::from(range.len)).sum();
                assert_eq!(mapping.ranges().bytes(), bytes);
                self.lists.push((mapping, ranges));
            }
            Err(DmaError::Empty(index)) => assert_eq!(Some(index), empty),
            Err(DmaError::NoBouncePages(_)) => assert!(self.list_edges(&ranges) > BOUNCE - self.bounced()),
            Err(error) => {
                assert_eq!(error, DmaError::OutOfTables);
                assert!(pages_of(&ranges) as usize > self.room - self.mapped());
            }
        }
    }

    fn unmap_list(&mut self) {
        let count = self.lists.len() as u64;
        if count > 0 {
            let (mapping, ranges) = self.lists.swap_remove(self.dice.below(count) as usize);
            let unlinked = self.domain.unmap_list(mapping, BOTH).expect("it is this domain's");
            assert_eq!(unlinked.pages, pages_of(&ranges));
        }
    }

    /// Pages over whatever is there: what was linked comes back in order.
    fn replace(&mut self) {
        let Some(which) = self.which() else { return };
        let count = 1 + self.dice.below(5);
        let from = self.dice.below(PAGES - BOUNCE - 64);
        let slip = if self.dice.one_in(12) { 8 } else { 0 };
        let range = mem_at(from * PAGE + slip, count * PAGE);
        let first = self.dice.below(MOST + 2);
        let offset = first * PAGE + if self.dice.one_in(12) { 1 } else { 0 };
        let room = self.room - self.mapped();
        let (reservation, pages) = &mut self.held[which];
        let (reserved, bytes) = (reservation.bytes(), count * PAGE);
        let span = first..first + count;
        let holes = span.clone().filter(|page| !pages.contains_key(page)).count();
        let expected = if slip > 0 {
            Err(DmaError::Misaligned { index: 0, addr: range.addr })
        } else if offset + bytes > reserved {
            Err(DmaError::OutsideReservation { offset, bytes, reserved })
        } else if !offset.is_multiple_of(PAGE) {
            Err(DmaError::OffsetMismatch { offset, addr: range.addr })
        } else if pages.values().any(|page| page.bounced.is_some()) {
            Err(DmaError::AlreadyBounced(reservation.base()))
        } else if holes > room {
            Err(DmaError::OutOfTables)
        } else {
            Ok(span.clone().filter_map(|page| pages.get(&page).map(|page| page.phys)).collect::<Vec<_>>())
        };
        let got = self.domain.replace(reservation, offset, [range], BOTH).map(|replaced| {
            let each =
                |range: PhysRange| (range.addr.0..range.addr.0 + u64::from(range.len)).step_by(PAGE as usize);
            replaced.old.iter().flat_map(each).collect::<Vec<_>>()
        });
        assert_eq!(got, expected, "{range:?} at {offset:#x}");
        if got.is_ok() {
            for page in span {
                let phys = range.addr.0 + (page - first) * PAGE;
                pages.insert(page, Page { phys, bounced: None });
            }
        }
    }

    /// Some unlinks with one flush behind them.
    fn unlink_deferred(&mut self) {
        let Some(which) = self.which() else { return };
        let (reservation, pages) = &mut self.held[which];
        let mut deferred = Deferred::new(self.domain);
        for _ in 0..4 {
            let page = self.dice.below(MOST);
            let got = self.domain.unlink_deferred(reservation, page * PAGE, PAGE, BOTH, &mut deferred);
            let expected = if (page + 1) * PAGE > reservation.bytes() {
                let (offset, bytes, reserved) = (page * PAGE, PAGE, reservation.bytes());
                Err(DmaError::OutsideReservation { offset, bytes, reserved })
            } else {
                let known = pages.remove(&page).map(|page| u32::from(page.bounced.is_some()));
                known.ok_or(DmaError::NotLinked(reservation.base() + page * PAGE))
            };
            assert_eq!(got.map(|unlinked| unlinked.bounced), expected);
        }
    }

    /// The device looks at pages of one reservation: it reaches what is linked, and the right bytes of it.
    fn look(&mut self) {
        let Some(which) = self.which() else { return };
        let (reservation, pages) = &self.held[which];
        for page in 0..reservation.bytes() / PAGE {
            let at = reservation.base().0 + page * PAGE;
            let reached = self.machine.translate(at, Access::Write);
            match pages.get(&page) {
                None => assert_eq!(reached, None, "page {page} is not linked"),
                Some(Page { phys, bounced: None }) => assert_eq!(reached, Some(*phys)),
                Some(Page { phys, bounced: Some((from, until)) }) => {
                    assert!(reached.unwrap() >= Machine::bounce_phys());
                    assert_ne!(reached, Some(*phys));
                    let outside = [from.checked_sub(1), (*until < PAGE).then_some(*until)];
                    for byte in outside.into_iter().flatten() {
                        assert_eq!(self.machine.dma_read(at + byte), Some(0), "other people's bytes");
                    }
                }
            }
        }
        assert_eq!(reservation.linked_pages(), pages.len() as u64);
        for (mapping, ranges) in &self.lists {
            let at = mapping.ranges().iter().next().expect("a list that is mapped has a range").addr.0;
            assert_eq!(self.machine.dma_read(at), Some(self.machine.read(ranges[0].addr.0, 1)[0]));
        }
        for (range, phys) in &self.maps {
            let (first, last) = (range.addr.0, range.addr.0 + u64::from(range.len) - 1);
            for at in [first, last] {
                let expected = self.machine.read(phys + (at - first), 1)[0];
                assert_eq!(self.machine.dma_read(at), Some(expected));
            }
        }
    }
}

fn life(seed: u64, is_untrusted: bool) {
    let machine = Machine::new();
    let mut dice = Dice(seed);
    for page in 0..PAGES - BOUNCE {
        machine.write(MEMORY + page * PAGE, &[1 + (dice.roll() % 255) as u8; PAGE as usize]);
    }
    let iovas = Iovas::of(&machine);
    let builder = Domain::builder(&machine, &iovas);
    let builder = if is_untrusted { builder.untrusted().bounce(&machine) } else { builder };
    let domain = builder.build();
    let room = 40 + dice.below(100) as usize;
    machine.set_room(room);
    let (held, maps, lists) = (Vec::new(), Vec::new(), Vec::new());
    let mut model = Model { domain: &domain, machine: &machine, is_untrusted, room, held, maps, lists, dice };
    for _ in 0..6000 {
        match model.dice.below(21) {
            0 if model.held.len() < 12 => model.reserve(),
            1..=6 => model.link(),
            7..=10 => model.unlink(),
            11 => model.end(),
            12 | 13 if model.maps.len() < 8 => model.map(),
            14 => model.unmap(),
            15 if model.lists.len() < 4 => model.map_list(),
            16 => model.unmap_list(),
            17 => model.replace(),
            18 => model.unlink_deferred(),
            _ => model.look(),
        }
        assert_eq!(machine.mapped_pages(), model.mapped());
        assert_eq!(domain.bounce_pages_in_use() as u64, model.bounced());
    }
    let counts = domain.counts();
    assert!(
        counts.links > 300 && counts.replaced_pages > 20,
        "a life without links proves nothing: {counts:?}"
    );
    for (reservation, _) in model.held {
        domain.destroy(reservation, BOTH).unwrap();
    }
    for (mapping, _) in model.lists {
        domain.unmap_list(mapping, BOTH).unwrap();
    }
    for (range, _) in model.maps {
        domain.unmap(range, BOTH).unwrap();
    }
    let counts = domain.counts();
    assert_eq!(counts.linked_pages, counts.unlinked_pages);
    assert_eq!((machine.mapped_pages(), domain.bounce_pages_in_use()), (0, 0));
    assert_eq!(iovas.reserved_bytes(), 0);
}

#[test]
fn a_long_random_life_agrees_with_the_model() {
    for seed in seeds(12) {
        println!("seed {seed}");
        life(seed, false);
    }
}

#[test]
fn a_long_random_life_with_an_untrusted_device_agrees_with_the_model() {
    for seed in seeds(12) {
        println!("seed {seed}");
        life(seed, true);
    }
}
