//! Two-step DMA: what it costs itself (over an IOMMU that does nothing), what it costs with the emulated IOMMU's table,
//! and the one-step way beside it.
#![allow(unsafe_code, reason = "a counting allocator")]

#[path = "support/counting.rs"]
mod counting;
#[path = "../tests/dma_support/mod.rs"]
mod dma_support;
mod support;

use std::hint::black_box;
use std::sync::Mutex;
use std::time::Instant;

use counting::live_bytes;
use criterion::Criterion;
use dma_support::churn::{Churned, churn, userptr_bytes, userptr_or_granule_bytes};
use granule::dma::{Attributes, Domain, IovaSpace, Reservation, ReserveIova};
use granule::ports::{Device, Iommu, IommuError, Mapped};
use granule::sync::AtomicU64;
use granule::units::{Access, GRANULE_BYTES, Iova, PAGE_BYTES, PhysAddr, PhysRange};
use granule_backends::software::SoftwareDevice;
use support::{Bound, Report, Row, paired, rounds};

const BOTH: Attributes = Attributes::BOTH;
const MIB: u64 = 1 << 20;
const BLOCK: u64 = 2 * MIB;
/// A physical address with 2 MiB alignment, and one that allows 4 KiB leaves only.
const ALIGNED: PhysAddr = PhysAddr(1 << 32);
const SCATTERED: PhysAddr = PhysAddr((1 << 32) + PAGE_BYTES);

/// An IOMMU that says yes.
struct Nothing;
impl Iommu for Nothing {
    fn aperture(&self) -> (Iova, Iova) {
        (Iova(0), Iova((1 << 47) - 1))
    }
    fn map(&self, iova: Iova, phys: PhysAddr, bytes: u64, access: Access) -> Result<(), IommuError> {
        black_box((iova, phys, bytes, access));
        Ok(())
    }
    fn protect(&self, _: Iova, _: u64, _: Access) -> Result<(), IommuError> {
        Ok(())
    }
    fn unmap(&self, iova: Iova, bytes: u64) -> Result<(), IommuError> {
        black_box((iova, bytes));
        Ok(())
    }
    fn mapped(&self, _: Iova, _: u64) -> Option<Mapped> {
        None
    }
    fn flush(&self, _: Iova, _: u64) {}
}

struct Iovas(Mutex<IovaSpace>);
impl Iovas {
    fn of(iommu: &dyn Iommu) -> Self {
        Self(Mutex::new(IovaSpace::new(iommu.aperture(), iommu.reserved_windows())))
    }
}
impl ReserveIova for Iovas {
    fn with(&self, act: &mut dyn FnMut(&mut IovaSpace)) {
        act(&mut self.0.lock().expect("no bench panics here"));
    }
}

fn range(phys: PhysAddr, bytes: u64) -> PhysRange {
    PhysRange::new(phys, bytes)
}

/// Nanoseconds of `count` links, each of `pages` pages in one call, and of their unlinks.
fn link_all(domain: &Domain<'_>, at: &Reservation, first: PhysAddr, bytes: u64, count: u64) -> (f64, f64) {
    let begin = Instant::now();
    for n in 0..count {
        let span = domain.link(at, n * bytes, [black_box(range(first + n * bytes, bytes))], BOTH);
        black_box(domain.sync(span.expect("nothing is linked there")).expect("the same domain"));
    }
    let linked = begin.elapsed().as_nanos() as f64;
    let begin = Instant::now();
    for n in 0..count {
        domain.unlink(at, n * bytes, bytes, BOTH).expect("it was just linked");
    }
    (linked / count as f64, begin.elapsed().as_nanos() as f64 / count as f64)
}

fn own_cost(c: &mut Criterion, report: &mut Report) {
    let iommu = Nothing;
    let iovas = Iovas::of(&iommu);
    let domain = Domain::builder(&iommu, &iovas).build();
    let at = domain.reserve(GRANULE_BYTES, GRANULE_BYTES).expect("the space is empty");
    let mut unlinks = Vec::new();
    let links = rounds(c, "dma/own/link", || {
        let (link, unlink) = link_all(&domain, &at, ALIGNED, PAGE_BYTES, 1 << 14);
        unlinks.push(unlink);
        link
    });
    if links.is_empty() {
        return;
    }
    report.push(Row::best(
        "own cost of linking one page (link and sync)",
        "ns",
        &links,
        Bound::AtMost(150.0),
    ));
    report.push(Row::best("own cost of unlinking one page", "ns", &unlinks, Bound::None));
    let maps = rounds(c, "dma/own/map", || {
        let begin = Instant::now();
        for n in 0..1u64 << 12 {
            let mapped = domain.map(black_box(range(ALIGNED + n * PAGE_BYTES, PAGE_BYTES)), BOTH);
            domain.unmap(mapped.expect("there is room"), BOTH).expect("it was just mapped");
        }
        begin.elapsed().as_nanos() as f64 / f64::from(1 << 12)
    });
    report.push(Row::best(
        "own cost of map and unmap of one page, the one-step way",
        "ns",
        &maps,
        Bound::None,
    ));
    let reserves = rounds(c, "dma/own/reserve", || {
        let begin = Instant::now();
        let held: Vec<Reservation> = (0..1 << 10)
            .map(|_| domain.reserve(GRANULE_BYTES, GRANULE_BYTES).expect("there is room"))
            .collect();
        for reservation in held {
            domain.free(reservation).map_err(|(_, error)| error).expect("nothing is linked");
        }
        begin.elapsed().as_nanos() as f64 / f64::from(1 << 10) / 1000.0
    });
    report.push(Row::best("reserve and free of a granule", "us", &reserves, Bound::AtMost(1.0)));
}

/// With the table of the software device's IOMMU.
fn tables(c: &mut Criterion, report: &mut Report) {
    let device = SoftwareDevice::builder().memory_bytes(8 << 20).engines(1).build();
    let device = device.expect("a small software device can be built");
    let iommu = device.iommu();
    let iovas = Iovas::of(iommu);
    let domain = Domain::builder(iommu, &iovas).build();
    let at = domain.reserve(GRANULE_BYTES, GRANULE_BYTES).expect("the space is empty");
    for (what, first, most) in [("one huge leaf", ALIGNED, 0.6), ("512 leaves", SCATTERED, 2.0)] {
        let mut rounds =
            rounds(c, &format!("dma/512/{what}"), || link_all(&domain, &at, first, BLOCK, 64).0 / 1000.0);
        if !rounds.is_empty() {
            rounds.remove(0);
            let question = format!("linking 512 contiguous pages in one call, {what}");
            report.push(Row::best(&question, "us", &rounds, Bound::AtMost(most)));
        }
    }
    // A part of much, and the same alone.
    let alone = domain.reserve(MIB, BLOCK).expect("there is room");
    let unlink = |at: &Reservation, offset: u64, first: PhysAddr| {
        let begin = Instant::now();
        domain.unlink(at, offset, MIB, BOTH).expect("it is linked");
        let ns = begin.elapsed().as_nanos() as f64;
        let span = domain.link(at, offset, [range(first, MIB)], BOTH).expect("it was just unlinked");
        let _ = domain.sync(span).expect("the same domain");
        ns
    };
    let whole = domain.link(&at, 0, [range(SCATTERED, GRANULE_BYTES)], BOTH).expect("nothing is linked");
    let _ = domain.sync(whole).expect("the same domain");
    let part = domain.link(&alone, 0, [range(SCATTERED, MIB)], BOTH).expect("nothing is linked");
    let _ = domain.sync(part).expect("the same domain");
    let mean = |unlink: &dyn Fn(u64) -> f64| (0..64u64).map(unlink).sum::<f64>() / 64.0;
    let pairs = paired(
        c,
        "dma/partial",
        || mean(&|_| unlink(&alone, 0, SCATTERED)),
        || mean(&|n| unlink(&at, n * 8 * MIB + 3 * MIB, SCATTERED + (n * 8 * MIB + 3 * MIB))),
    );
    if !pairs.0.is_empty() {
        let question = "unlinking 1 MiB out of 512 MiB; floor: 1 MiB that is alone";
        report.push(Row::slower_by(question, "us", 1e-3, &pairs, Bound::AtMost(1.2)));
    }
    domain.destroy(at, BOTH).map_err(|(_, error)| error).expect("it is this domain's");
    domain.destroy(alone, BOTH).map_err(|(_, error)| error).expect("it is this domain's");
    rivals(c, report, &domain);
}

/// The same memory both ways: pages from everywhere, a request of 128 KiB.
fn rivals(c: &mut Criterion, report: &mut Report, domain: &Domain<'_>) {
    const PAGES: u64 = 32;
    let pages: Vec<PhysRange> = (0..PAGES).map(|n| range(ALIGNED + n * 3 * PAGE_BYTES, PAGE_BYTES)).collect();
    let at = domain.reserve(PAGES * PAGE_BYTES, PAGE_BYTES).expect("there is room");
    let one_step = || {
        let begin = Instant::now();
        for _ in 0..64 {
            let mapped: Vec<_> =
                pages.iter().map(|page| domain.map(*page, BOTH).expect("there is room")).collect();
            mapped.into_iter().for_each(|range| {
                domain.unmap(range, BOTH).expect("it was just mapped");
            });
        }
        begin.elapsed().as_nanos() as f64 / 64.0
    };
    let two_step = || {
        let begin = Instant::now();
        for _ in 0..64 {
            let span = domain.link(&at, 0, pages.iter().copied(), BOTH).expect("nothing is linked");
            let _ = domain.sync(span).expect("the same domain");
            domain.unlink(&at, 0, PAGES * PAGE_BYTES, BOTH).expect("it was just linked");
        }
        begin.elapsed().as_nanos() as f64 / 64.0
    };
    let pairs = paired(c, "dma/rivals", one_step, two_step);
    if !pairs.0.is_empty() {
        let question = "32 pages from everywhere, linked and unlinked; floor: the one-step way, page by page";
        report.push(Row::slower_by(question, "us", 1e-3, &pairs, Bound::AtMost(1.0)));
    }
    domain.destroy(at, BOTH).map_err(|(_, error)| error).expect("it is this domain's");
}

/// What is kept beside the I/O page table, per page of a granule that is wholly linked: the growth of the heap, by a
/// counting allocator, and what the caller keeps himself.
fn memory(report: &mut Report) {
    const COUNT: u64 = 1000;
    let pages = GRANULE_BYTES / PAGE_BYTES;
    let iommu = Nothing;
    let iovas = Iovas::of(&iommu);
    let domain = Domain::builder(&iommu, &iovas).build();
    let before = live_bytes();
    let held: Vec<Reservation> =
        (0..COUNT).map(|_| domain.reserve(GRANULE_BYTES, GRANULE_BYTES).expect("there is room")).collect();
    let reserved = (live_bytes() - before) as f64 / COUNT as f64;
    let span = domain.link(&held[0], 0, [range(ALIGNED, GRANULE_BYTES)], BOTH).expect("nothing is linked");
    let _ = domain.sync(span).expect("the same domain");
    let linked = (live_bytes() - before) as f64 / COUNT as f64;
    let mut lists = [0.0; 2];
    for (index, bytes) in lists.iter_mut().enumerate() {
        let at = &held[1 + index];
        let before = live_bytes();
        let words: Vec<AtomicU64> = (0..pages / 64).map(|_| AtomicU64::new(0)).collect();
        let list = domain.page_list(at, &words).expect("a plain domain has page lists");
        let list = if index == 0 { list } else { list.with_table_rights(&iommu) };
        list.link(&iommu, 0..pages, ALIGNED, Access::Write).expect("nothing is linked");
        *bytes = reserved + (live_bytes() - before) as f64;
        assert_eq!(list.linked_pages(0..pages), pages, "the bench measures a whole granule");
    }
    for (what, bytes) in
        [("link", linked), ("page list", lists[0]), ("page list with rights page by page", lists[1])]
    {
        let question = format!("kept per linked page of a granule, beside the I/O page table: {what}");
        report.push(Row::exact(&question, "byte", bytes / pages as f64, Bound::AtMost(0.25)));
    }
    for reservation in held {
        domain.destroy(reservation, BOTH).map_err(|(_, error)| error).expect("it is this domain's");
    }
}

/// Reservations of any size that come and go at nine tenths of use: what fails, and what is left in one piece.
fn fragmentation(report: &mut Report) {
    let most = Bound::AtMost(0.0);
    let mut row = |what: &str, failed: u64, bound: Bound, churned: &Churned| {
        let question = format!("of a million reservations at 90 % use, {what}, found no place");
        report.push(Row::exact(&question, "reservations", failed as f64, bound).note(churned.to_string()));
    };
    let userptrs = churn(1, 16 << 30, userptr_bytes);
    row("4 KiB to 16 MiB", userptrs.failed, most, &userptrs);
    let both = churn(1, 256 << 30, userptr_or_granule_bytes);
    row("the same beside granules", both.failed, most, &both);
    row("granules among them, half of all bytes", both.failed_granules, most, &both);
    let share = userptrs.least_largest_bytes as f64 / (16 << 20) as f64;
    let question = "the largest free range at 90 % use when it is smallest, in reservations of 16 MiB";
    report.push(Row::exact(question, "reservations", share, Bound::AtLeast(1.0)).note(userptrs.to_string()));
}

fn main() {
    let mut c = Criterion::default().configure_from_args();
    let mut report = Report::new("dma");
    support::pin_to_core(0);
    own_cost(&mut c, &mut report);
    tables(&mut c, &mut report);
    memory(&mut report);
    fragmentation(&mut report);
    c.final_summary();
}
