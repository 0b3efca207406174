//! Block requests to an NVMe controller: bios are chains of segments and are merged to requests as a block layer merges
//! them. A request is linked as one run of IOVAs where its gaps lie at pages of the IOMMU, and turned into PRP or SGL
//! entries with no table in between. An emulated controller reads commands, PRPs and SGLs by DMA, decodes them, and moves
//! the bytes to and from its disk.
//!
//! Beside it, in the same run, the one-step way maps all segments of a request in one call, and, as a third way, each by
//! itself, which takes a scatter list to remember them. Every
//! byte that is written comes back by other requests, into other memory, and is compared. All of it happens twice: behind
//! an IOMMU with the controller's page, and behind one whose pages are four times as long, where few gaps lie right.
//!
//! `cargo run --release --example nvme`, with the number of rounds if 200 is not what you want

#[path = "nvme/controller.rs"]
mod controller;
mod dma_driver;
#[path = "nvme/queue.rs"]
mod queue;

use std::fmt::Write as _;
use std::sync::Mutex;

use controller::{Command, Controller};
use dma_driver::{Compared, Cost, Iovas, Memory, Random, argument};
use granule::dma::convert::{NvmeSgl, PrpList, prp, prp_list_entries, sgl};
use granule::dma::{
    Attributes, DmaError, DmaList, DmaMapping, DmaRange, Domain, PhysList, Reservation, ScatterEntry,
    SegmentLimits,
};
use granule::ports::IovaWindow;
use granule::units::{PAGE_BYTES, PhysRange};
use granule_backends::software::{IommuDomain, SoftwareDevice};
use queue::{Bio, Limits, Queue};

type Failure = Box<dyn std::error::Error>;

const PAGE: usize = PAGE_BYTES as usize;
const BLOCK: u64 = 512;
/// What the controller takes in one request.
const MOST_BYTES: u64 = 512 << 10;
const MOST_SEGMENTS: usize = 127;
const DISK_BYTES: u64 = 16 << 20;
/// List pages for one request: more than the largest needs.
const LIST_PAGES: usize = 2;

/// Memory in which the driver talks to the controller, mapped once: the command and the list pages.
struct Shared<'d> {
    memory: Memory,
    at: DmaRange,
    domain: &'d Domain<'d>,
}

impl<'d> Shared<'d> {
    fn new(domain: &'d Domain<'d>) -> Result<Self, Failure> {
        let memory = Memory::new((1 + LIST_PAGES as u64) * PAGE_BYTES, PAGE_BYTES);
        let at = domain.map(memory.range(0, memory.bytes()), Attributes::TO_DEVICE.require_coherent())?;
        Ok(Self { memory, at, domain })
    }

    /// Puts data that is mapped into a command, as PRPs where they can say it, else as an SGL, and submits that.
    fn submit(
        &self,
        controller: &Controller,
        ranges: &DmaList,
        is_write: bool,
        block: u64,
    ) -> Result<bool, Failure> {
        let lists = [self.at.addr + PAGE_BYTES, self.at.addr + 2 * PAGE_BYTES];
        let first = ranges.iter().next().ok_or("a request has data")?;
        let entries = prp_list_entries(first.addr.0 % PAGE_BYTES, ranges.bytes(), PAGE_BYTES);
        let list_pages = if entries == 0 { 0 } else { LIST_PAGES };
        let mut list = vec![0u64; list_pages * PAGE / 8];
        let prps =
            prp(ranges.iter(), PAGE_BYTES, PrpList { entries: &mut list, pages: &lists[..list_pages] });
        let (data, is_sgl) = match prps {
            Ok(prps) => {
                let bytes: Vec<u8> = list.iter().flat_map(|entry| entry.to_le_bytes()).collect();
                self.memory.write(PAGE_BYTES, &bytes);
                ([prps.prp1, prps.prp2], false)
            }
            // Gaps inside of pages.
            Err(_) => {
                let mut segment = vec![NvmeSgl::default(); ranges.len()];
                let one = sgl(ranges.iter(), &mut segment, lists[0])?;
                let bytes: Vec<u8> = segment.iter().flat_map(to_words).flat_map(u64::to_le_bytes).collect();
                self.memory.write(PAGE_BYTES, &bytes);
                (to_words(&one), true)
            }
        };
        let blocks = u32::try_from(ranges.bytes() / BLOCK)?;
        self.memory.write(0, &Command { is_write, is_sgl, data, block, blocks }.to_bytes());
        controller.ring(self.at.addr)?;
        Ok(is_sgl)
    }

    fn close(self) -> Result<(), Failure> {
        self.domain.unmap(self.at, Attributes::TO_DEVICE.require_coherent())?;
        Ok(())
    }
}

fn to_words(entry: &NvmeSgl) -> [u64; 2] {
    [entry.addr, u64::from(entry.len) | u64::from(entry.kind) << 56]
}

/// How the segments of one request get to the controller, and what has to be kept for that until it is done.
trait Way {
    fn map(&mut self, request: &PhysList, attributes: Attributes) -> Result<DmaList, Failure>;
    fn unmap(&mut self, attributes: Attributes) -> Result<(), Failure>;
    /// Bytes that are kept from map to unmap.
    fn kept_bytes(&self) -> u64;
}

/// One reservation for a request, linked in one call where the gaps allow; else group by group, by the domain.
struct TwoStep<'d> {
    domain: &'d Domain<'d>,
    kept: Kept,
}

enum Kept {
    Nothing,
    Run(Reservation),
    Groups(DmaMapping),
}

impl Way for TwoStep<'_> {
    fn map(&mut self, request: &PhysList, attributes: Attributes) -> Result<DmaList, Failure> {
        let page = self.domain.page_bytes();
        let first = request.iter().next().ok_or("a request has data")?;
        let bytes = (first.addr.0 % page + request.bytes()).next_multiple_of(page);
        let reservation = self.domain.reserve(bytes, page)?;
        match self.domain.link(&reservation, first.addr.0 % page, request.iter(), attributes) {
            Ok(span) => {
                let ranges = self.domain.sync(span)?.ranges().collect();
                self.kept = Kept::Run(reservation);
                Ok(ranges)
            }
            // Its gaps do not lie at pages of the IOMMU: nothing was linked, so there is nothing to undo.
            Err(DmaError::Misaligned { .. }) => {
                self.domain.free(reservation).map_err(|(_, error)| error)?;
                let mapping = self.domain.map_list(request.iter(), attributes)?;
                let ranges = mapping.ranges().clone();
                self.kept = Kept::Groups(mapping);
                Ok(ranges)
            }
            Err(error) => Err(error.into()),
        }
    }

    fn unmap(&mut self, attributes: Attributes) -> Result<(), Failure> {
        match std::mem::replace(&mut self.kept, Kept::Nothing) {
            Kept::Nothing => {}
            Kept::Run(reservation) => {
                self.domain.destroy(reservation, attributes).map_err(|(_, error)| error)?;
            }
            Kept::Groups(mapping) => {
                self.domain.unmap_list(mapping, attributes).map_err(|(_, error)| error)?;
            }
        }
        Ok(())
    }

    fn kept_bytes(&self) -> u64 {
        match &self.kept {
            Kept::Nothing => 0,
            Kept::Run(_) => size_of::<Reservation>() as u64,
            Kept::Groups(mapping) => (size_of::<DmaMapping>() + mapping.ranges().state_bytes()) as u64,
        }
    }
}

/// All segments in one call of the one-step way.
struct AsList<'d> {
    domain: &'d Domain<'d>,
    mapping: Option<DmaMapping>,
}

impl Way for AsList<'_> {
    fn map(&mut self, request: &PhysList, attributes: Attributes) -> Result<DmaList, Failure> {
        let mapping = self.domain.map_list(request.iter(), attributes)?;
        let ranges = mapping.ranges().clone();
        self.mapping = Some(mapping);
        Ok(ranges)
    }

    fn unmap(&mut self, attributes: Attributes) -> Result<(), Failure> {
        let mapping = self.mapping.take().ok_or("what is unmapped was mapped")?;
        self.domain.unmap_list(mapping, attributes).map_err(|(_, error)| error)?;
        Ok(())
    }

    fn kept_bytes(&self) -> u64 {
        let bytes = |mapping: &DmaMapping| size_of::<DmaMapping>() + mapping.ranges().state_bytes();
        self.mapping.as_ref().map_or(0, bytes) as u64
    }
}

/// Each segment by itself, with a scatter list that remembers what to unmap.
struct OneStep<'d> {
    domain: &'d Domain<'d>,
    list: Vec<(ScatterEntry, DmaRange)>,
}

impl Way for OneStep<'_> {
    fn map(&mut self, request: &PhysList, attributes: Attributes) -> Result<DmaList, Failure> {
        for range in request.iter() {
            let mapped = self.domain.map(range, attributes)?;
            let (dma, dma_bytes) = (mapped.addr, mapped.len);
            self.list.push((ScatterEntry { phys: range.addr, bytes: range.len, dma, dma_bytes }, mapped));
        }
        Ok(self.list.iter().map(|(_, range)| *range).collect())
    }

    fn unmap(&mut self, attributes: Attributes) -> Result<(), Failure> {
        for (_, range) in self.list.drain(..) {
            self.domain.unmap(range, attributes)?;
        }
        Ok(())
    }

    fn kept_bytes(&self) -> u64 {
        (self.list.len() * size_of::<ScatterEntry>()) as u64
    }
}

/// What a run of requests was.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
struct Shape {
    bios: u64,
    /// Segments as the bios had them, and as the requests have them.
    segments: u64,
    merged: u64,
    requests: u64,
    back_merges: u64,
    front_merges: u64,
    kept_apart: u64,
    bytes: u64,
}

/// Bios for `bytes` bytes of the disk from `block` on, in any order, and the memory of all of them in the order of the
/// disk: pieces of a pool, each byte once, often neighbours. Without `has_gaps` a bio is whole pages, but some begin or end
/// inside of one; with it, every segment may.
fn bios(
    pool: &Memory,
    random: &mut Random,
    block: u64,
    bytes: u64,
    has_gaps: bool,
) -> (Vec<Bio>, Vec<PhysRange>) {
    let mut used = vec![false; (pool.bytes() / BLOCK) as usize];
    let (mut all, mut chain): (Vec<Bio>, Vec<PhysRange>) = (Vec::new(), Vec::new());
    let (mut done, mut at) = (0, 0);
    while done < bytes {
        let (count, mut segments) = (1 + random.below(4) as usize, Vec::new());
        let first = block + done / BLOCK;
        while segments.len() < count && done < bytes {
            // A third of the segments goes on where the one before ended: the same page cache, filled in order.
            let goes_on = at < pool.bytes() && (has_gaps || at % PAGE_BYTES == 0);
            if done == 0 || random.below(3) > 0 || !goes_on {
                at = random.below(pool.bytes() / PAGE_BYTES) * PAGE_BYTES;
            }
            let mut part = |is_here: bool| if is_here { random.below(8) * BLOCK } else { 0 };
            let head = part(has_gaps || (segments.is_empty() && (done / PAGE_BYTES).is_multiple_of(8)));
            let tail = part(has_gaps || (segments.len() + 1 == count && done / PAGE_BYTES % 8 == 1));
            let start = if at % PAGE_BYTES == 0 { at + head } else { at };
            let end = ((at / PAGE_BYTES + 1 + random.below(8)) * PAGE_BYTES - tail).min(pool.bytes());
            let len = end.saturating_sub(start).min(bytes - done);
            let taken = &mut used[(start / BLOCK) as usize..((start + len) / BLOCK) as usize];
            if taken.is_empty() || taken.contains(&true) {
                at = random.below(pool.bytes() / PAGE_BYTES) * PAGE_BYTES;
                continue;
            }
            taken.fill(true);
            segments.push(pool.range(start, len));
            (done, at) = (done + len, start + len);
            if !has_gaps && at % PAGE_BYTES != 0 {
                break;
            }
        }
        chain.extend(&segments);
        all.push(Bio { block: first, segments });
    }
    for index in (1..all.len()).rev() {
        all.swap(index, random.below(index as u64 + 1) as usize);
    }
    (all, chain)
}

/// Copies between memory and a buffer, as the application does.
fn each_piece(pool: &Memory, chain: &[PhysRange], mut act: impl FnMut(u64, std::ops::Range<usize>)) {
    let mut done = 0;
    for range in chain {
        let len = range.len as usize;
        act(range.addr.bytes_since(pool.phys(0)), done..done + len);
        done += len;
    }
}

/// What one way did, on a machine of its own.
#[derive(Clone, Copy, Default)]
struct Done {
    shape: Shape,
    sgls: u64,
    /// Requests that are one run of IOVAs.
    runs: u64,
    flushes: u64,
    entries: u64,
    cost: Cost,
}

/// Gives the driver what waits in a queue, a request at a time.
fn drain(
    way: &mut dyn Way,
    iovas: &Iovas,
    shared: &Shared<'_>,
    controller: &Controller,
    queue: &mut Queue,
    is_write: bool,
    done: &mut Done,
) -> Result<(), Failure> {
    let attributes = if is_write { Attributes::TO_DEVICE } else { Attributes::FROM_DEVICE };
    for request in queue.take() {
        let list = request.memory();
        let pages = list.bytes().div_ceil(PAGE_BYTES);
        let cost = &mut done.cost;
        let ranges = cost.map(|| (way.map(&list, attributes), pages))?;
        cost.state_bytes += way.kept_bytes() + iovas.state_bytes();
        cost.pages += pages;
        done.runs += u64::from(ranges.len() == 1);
        done.sgls += u64::from(shared.submit(controller, &ranges, is_write, request.block)?);
        cost.unmap(|| (way.unmap(attributes), pages))?;
        done.shape.requests += 1;
        done.shape.merged += request.segments.len() as u64;
        done.shape.bytes += list.bytes();
    }
    let shape = &mut done.shape;
    shape.back_merges += std::mem::take(&mut queue.back_merges);
    shape.front_merges += std::mem::take(&mut queue.front_merges);
    shape.kept_apart += std::mem::take(&mut queue.kept_apart);
    Ok(())
}

/// Writes and reads back, over and over: half of the rounds without gaps, to a queue for PRPs, the others with gaps, to
/// one for SGLs.
fn run(
    way: &mut dyn Way,
    iovas: &Iovas,
    shared: &Shared<'_>,
    controller: &Controller,
    rounds: u64,
) -> Result<Done, Failure> {
    let (mut random, mut done) = (Random(11), Done::default());
    // Memory that is written from, and memory that is read into.
    let pools = [Memory::new(8 << 20, PAGE_BYTES), Memory::new(8 << 20, PAGE_BYTES)];
    let segments = SegmentLimits::new(128 << 10, 0, MOST_SEGMENTS)?;
    for round in 0..rounds {
        let has_gaps = round % 4 == 3;
        let gap_bytes = if has_gaps { 0 } else { PAGE_BYTES };
        let mut queue = Queue::new(Limits { bytes: MOST_BYTES, segments, gap_bytes });
        let length = (1 + random.below(2 * MOST_BYTES / PAGE_BYTES)) * PAGE_BYTES;
        let block = random.below((DISK_BYTES - length) / BLOCK);
        let mut data = vec![0; length as usize];
        random.fill(&mut data);
        let mut seen = vec![0; length as usize];
        for (pool, is_write) in [(&pools[0], true), (&pools[1], false)] {
            let (all, chain) = bios(pool, &mut random, block, length, has_gaps);
            if is_write {
                each_piece(pool, &chain, |at, part| pool.write(at, &data[part]));
            }
            done.shape.bios += all.len() as u64;
            done.shape.segments += chain.len() as u64;
            all.into_iter().try_for_each(|bio| queue.submit(bio))?;
            drain(way, iovas, shared, controller, &mut queue, is_write, &mut done)?;
            if !is_write {
                each_piece(pool, &chain, |at, part| pool.read(at, &mut seen[part]));
            }
        }
        let disk = &controller.disk.lock().expect("no panic")[(block * BLOCK) as usize..][..length as usize];
        assert!(disk == data, "the disk holds what round {round} wrote");
        assert!(seen == data, "round {round} came back");
    }
    Ok(done)
}

fn on_a_machine(
    rounds: u64,
    page_bytes: u64,
    way: &dyn for<'d> Fn(&'d Domain<'d>) -> Box<dyn Way + 'd>,
) -> Result<Done, Failure> {
    let emulated =
        IommuDomain::builder().reserved_window(IovaWindow::MSI_X86).page_bytes(page_bytes).build()?;
    let iovas = Iovas::of(emulated.iommu());
    let domain = Domain::builder(emulated.iommu(), &iovas).build();
    let builder = SoftwareDevice::builder().memory_bytes(2 << 20).engines(1);
    let device = builder.iommu_domain(&emulated).build()?;
    let disk = Mutex::new(vec![0; DISK_BYTES as usize]);
    let controller = Controller { device, disk, entries: Mutex::new(0) };
    let shared = Shared::new(&domain)?;
    let mut way = way(&domain);
    // Tables are there already when the clock runs.
    run(&mut *way, &iovas, &shared, &controller, 20)?;
    let entries = || *controller.entries.lock().expect("no panic");
    let before = (emulated.counters().flushes, entries());
    let mut done = run(&mut *way, &iovas, &shared, &controller, rounds)?;
    (done.flushes, done.entries) = (emulated.counters().flushes - before.0, entries() - before.1);
    drop(way);
    shared.close()?;
    assert_eq!(emulated.counters().leaves, Default::default(), "nothing stays mapped");
    Ok(done)
}

/// All ways behind an IOMMU with pages of so many bytes.
pub fn compare(rounds: u64, page_bytes: u64) -> Result<Compared, Failure> {
    let ours = on_a_machine(rounds, page_bytes, &|domain| Box::new(TwoStep { domain, kept: Kept::Nothing }))?;
    let list = on_a_machine(rounds, page_bytes, &|domain| Box::new(AsList { domain, mapping: None }))?;
    let single = on_a_machine(rounds, page_bytes, &|domain| Box::new(OneStep { domain, list: Vec::new() }))?;
    let ways = [("two-step", ours), ("one-step list", list), ("one-step", single)];
    let Shape { bios, segments, merged, requests, back_merges, front_merges, kept_apart, bytes } = ours.shape;
    let mut told = format!(
        "{} MiB behind an IOMMU with pages of {page_bytes}: every byte came back, all ways\n  {bios} bios of {segments} \
         segments: {back_merges} back merges, {front_merges} front merges, {kept_apart} kept apart;\n  {requests} \
         requests of {merged} segments",
        bytes >> 20
    );
    for (name, way) in &ways {
        assert_eq!(way.shape, ours.shape, "the same requests");
        let Done { entries, sgls, runs, flushes, .. } = way;
        write!(
            told,
            "\n  {name}: {runs} in one run of IOVAs, {entries} entries decoded, {sgls} SGLs, {flushes} flushes"
        )?;
    }
    Ok(Compared { told, ways: ways.map(|(name, way)| (name, way.cost)).into() })
}

fn main() -> Result<(), Failure> {
    let rounds = argument(200);
    for page_bytes in [PAGE_BYTES, 4 * PAGE_BYTES] {
        compare(rounds, page_bytes)?.print();
    }
    Ok(())
}
