//! Block requests to an NVMe controller: chains of segments are merged as a block layer merges them, linked as one run
//! of IOVAs where their gaps lie at pages of the IOMMU, and turned into PRP or SGL entries with no table in between. An
//! emulated controller reads commands, PRPs and SGLs by DMA, decodes them, and moves the bytes to and from its disk.
//!
//! Beside it, in the same run, the one-step way maps each segment by itself and keeps a scatter list for that. Every
//! byte that is written comes back by another request, into other memory, and is compared.
//!
//! `cargo run --release --example nvme`, with the number of requests if 400 is not what you want

mod dma_driver;

use std::sync::Mutex;

use dma_driver::{Cost, Iovas, Memory, Random, argument, print_costs};
use granule::dma::convert::{NvmeSgl, PrpList, prp, prp_list_entries, sgl};
use granule::dma::{
    Attributes, DmaList, DmaMapping, DmaRange, Domain, PhysList, Reservation, ScatterEntry, SegmentLimits,
    segments,
};
use granule::ports::IovaWindow;
use granule::units::{Iova, PAGE_BYTES, PhysRange};
use granule_backends::software::{AccessError, Engine, IommuDomain, SoftwareDevice};

type Failure = Box<dyn std::error::Error>;

const PAGE: usize = PAGE_BYTES as usize;
const BLOCK: u64 = 512;
/// What the controller takes in one request.
const MOST_BYTES: u64 = 1 << 20;
const DISK_BYTES: u64 = 16 << 20;
/// List pages for one request: more than the largest needs.
const LIST_PAGES: usize = 2;

/// A command, 64 bytes, with the fields that matter here at their places.
struct Command {
    is_write: bool,
    is_sgl: bool,
    /// PRP1 and PRP2, or the SGL descriptor.
    data: [u64; 2],
    block: u64,
    blocks: u32,
}

impl Command {
    const WRITE: u8 = 1;
    const READ: u8 = 2;
    /// PSDT: an SGL in the data pointer.
    const SGL: u8 = 0x40;

    fn to_bytes(&self) -> [u8; 64] {
        let mut bytes = [0; 64];
        bytes[0] = if self.is_write { Self::WRITE } else { Self::READ };
        bytes[1] = if self.is_sgl { Self::SGL } else { 0 };
        bytes[24..32].copy_from_slice(&self.data[0].to_le_bytes());
        bytes[32..40].copy_from_slice(&self.data[1].to_le_bytes());
        bytes[40..48].copy_from_slice(&self.block.to_le_bytes());
        bytes[48..52].copy_from_slice(&(self.blocks - 1).to_le_bytes());
        bytes
    }
}

fn word(bytes: &[u8], at: usize) -> u64 {
    u64::from_le_bytes(bytes[at..at + 8].try_into().expect("8 bytes"))
}

/// The controller: it knows addresses on the bus and nothing else.
struct Controller {
    device: SoftwareDevice,
    disk: Mutex<Vec<u8>>,
    /// Entries that it read.
    entries: Mutex<u64>,
}

impl Controller {
    /// Fetches the command at an address and does what it says.
    fn ring(&self, command: Iova) -> Result<(), AccessError> {
        self.device.run(|engine| {
            let mut bytes = [0; 64];
            engine.dma_read(command, &mut bytes)?;
            let blocks = u64::from(u32::from_le_bytes(bytes[48..52].try_into().expect("4 bytes"))) + 1;
            let length = (blocks * BLOCK) as usize;
            let pieces = if bytes[1] & Command::SGL != 0 {
                let descriptor: [u8; 16] = bytes[24..40].try_into().expect("16 bytes");
                decode_sgl(engine, descriptor)?
            } else {
                decode_prp(engine, word(&bytes, 24), word(&bytes, 32), length)?
            };
            *self.entries.lock().expect("no panic") += pieces.len() as u64;
            assert_eq!(pieces.iter().map(|piece| piece.1).sum::<usize>(), length, "data for every block");
            let disk = &mut *self.disk.lock().expect("no panic");
            let mut at = (word(&bytes, 40) * BLOCK) as usize;
            for (addr, bytes_here) in pieces {
                let part = &mut disk[at..at + bytes_here];
                if bytes[0] == Command::WRITE {
                    engine.dma_read(Iova(addr), part)?;
                } else {
                    engine.dma_write(Iova(addr), part)?;
                }
                at += bytes_here;
            }
            Ok(())
        })
    }
}

/// Addresses and lengths from PRP entries, list pages read as they are needed.
fn decode_prp(
    engine: &mut Engine<'_>,
    prp1: u64,
    prp2: u64,
    length: usize,
) -> Result<Vec<(u64, usize)>, AccessError> {
    let first = (PAGE - prp1 as usize % PAGE).min(length);
    let mut pieces = vec![(prp1, first)];
    let mut left = length - first;
    if left > 0 && left <= PAGE {
        pieces.push((prp2, left));
        return Ok(pieces);
    }
    let mut list = prp2;
    while left > 0 {
        let mut page = [0u8; PAGE];
        engine.dma_read(Iova(list), &mut page)?;
        for index in 0..PAGE / 8 {
            let entry = word(&page, 8 * index);
            assert_eq!(entry % PAGE_BYTES, 0, "an entry of a list has no offset");
            if index == PAGE / 8 - 1 && left > PAGE {
                list = entry;
                break;
            }
            let part = left.min(PAGE);
            pieces.push((entry, part));
            left -= part;
            if left == 0 {
                break;
            }
        }
    }
    Ok(pieces)
}

/// Addresses and lengths from an SGL: data, or one last segment of data.
fn decode_sgl(engine: &mut Engine<'_>, descriptor: [u8; 16]) -> Result<Vec<(u64, usize)>, AccessError> {
    let data = |bytes: &[u8]| {
        assert_eq!(bytes[15], NvmeSgl::DATA, "a descriptor of data");
        (word(bytes, 0), u32::from_le_bytes(bytes[8..12].try_into().expect("4 bytes")) as usize)
    };
    if descriptor[15] == NvmeSgl::DATA {
        return Ok(vec![data(&descriptor)]);
    }
    assert_eq!(descriptor[15], NvmeSgl::LAST_SEGMENT);
    let length = u32::from_le_bytes(descriptor[8..12].try_into().expect("4 bytes")) as usize;
    let mut segment = vec![0; length];
    engine.dma_read(Iova(word(&descriptor, 0)), &mut segment)?;
    Ok(segment.chunks_exact(16).map(data).collect())
}

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
            Err(granule::dma::DmaError::Misaligned { .. }) => {
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
    /// Segments as they came, and after merging.
    segments: u64,
    merged: u64,
    /// Requests with gaps inside of pages.
    gaps: u64,
}

/// A request: pieces of a pool of memory, whole pages for the most part, some of them neighbours; every fourth one with
/// gaps inside of pages.
fn request(pool: &Memory, random: &mut Random, number: u64, shape: &mut Shape) -> Result<PhysList, Failure> {
    let has_gaps = number % 4 == 3;
    let target = (1 + random.below(MOST_BYTES / PAGE_BYTES / 4)) * PAGE_BYTES;
    let (mut chain, mut bytes, mut at) = (Vec::new(), 0, 0);
    while bytes < target {
        // A third of the segments goes on where the one before ended: the same page cache, filled in order.
        if chain.is_empty() || random.below(3) > 0 {
            at = random.below(pool.bytes() / PAGE_BYTES) * PAGE_BYTES;
        }
        let unit = if has_gaps { BLOCK } else { PAGE_BYTES };
        let len = ((1 + random.below(8)) * unit).min(target - bytes).min(pool.bytes() - at);
        if len == 0 {
            at = 0;
            continue;
        }
        chain.push(pool.range(at, len));
        (bytes, at) = (bytes + len, at + len);
    }
    // The block layer merges what touches, and cuts at what a segment may be.
    let limits = SegmentLimits::new(128 << 10, 0, 4096)?;
    let merged: Vec<PhysRange> = segments(chain.iter().copied(), limits).collect::<Result<_, _>>()?;
    shape.segments += chain.len() as u64;
    shape.merged += merged.len() as u64;
    shape.gaps += u64::from(has_gaps);
    Ok(merged.into_iter().collect())
}

/// Copies between a request's memory and a buffer, as the application does.
fn each_piece(pool: &Memory, request: &PhysList, mut act: impl FnMut(u64, std::ops::Range<usize>)) {
    let mut done = 0;
    for range in request.iter() {
        let len = range.len as usize;
        act(range.addr.bytes_since(pool.phys(0)), done..done + len);
        done += len;
    }
}

fn run(
    way: &mut dyn Way,
    iovas: &Iovas,
    shared: &Shared<'_>,
    controller: &Controller,
    requests: u64,
) -> Result<(Shape, u64, u64, Cost), Failure> {
    let (mut random, mut shape, mut cost) = (Random(11), Shape::default(), Cost::default());
    // Memory that is written from, and memory that is read into.
    let pools = [Memory::new(8 << 20, PAGE_BYTES), Memory::new(8 << 20, PAGE_BYTES)];
    let (mut sgls, mut moved) = (0, 0);
    for number in 0..requests / 2 {
        let out = request(&pools[0], &mut random, number, &mut shape)?;
        let mut back = request(&pools[1], &mut random, number, &mut shape)?;
        // As long as what was written.
        let mut left = out.bytes();
        let cut: PhysList = back
            .iter()
            .map(|range| {
                let len = u64::from(range.len).min(left);
                left -= len;
                PhysRange::new(range.addr, len)
            })
            .collect();
        back = cut;
        let tail = pools[1].range(0, left.min(pools[1].bytes()));
        if left > 0 {
            back.push(tail);
        }
        let length = out.bytes();
        let block = random.below((DISK_BYTES - length) / BLOCK);
        let mut data = vec![0; length as usize];
        random.fill(&mut data);
        each_piece(&pools[0], &out, |at, part| pools[0].write(at, &data[part]));
        // Pieces of one request may overlap in the pool: what is there in the end is what goes out.
        each_piece(&pools[0], &out, |at, part| pools[0].read(at, &mut data[part]));
        for (list, attributes, is_write) in
            [(&out, Attributes::TO_DEVICE, true), (&back, Attributes::FROM_DEVICE, false)]
        {
            let pages = list.bytes().div_ceil(PAGE_BYTES);
            let ranges = cost.map(|| (way.map(list, attributes), pages))?;
            cost.state_bytes += way.kept_bytes() + iovas.state_bytes();
            cost.pages += pages;
            sgls += u64::from(shared.submit(controller, &ranges, is_write, block)?);
            cost.unmap(|| (way.unmap(attributes), pages))?;
            moved += list.bytes();
        }
        assert!(
            controller.disk.lock().expect("no panic")[(block * BLOCK) as usize..][..length as usize] == data,
            "the disk holds what request {number} wrote"
        );
        let mut seen = vec![0; length as usize];
        each_piece(&pools[1], &back, |at, part| pools[1].read(at, &mut seen[part]));
        // Of pieces that overlap, the last one that the controller wrote is seen in all of them.
        let mut expected = data;
        overlay(&pools[1], &back, &mut expected);
        assert!(seen == expected, "request {number} came back");
    }
    Ok((shape, sgls, moved, cost))
}

/// What pieces of a pool hold after they were written in order.
fn overlay(pool: &Memory, list: &PhysList, data: &mut [u8]) {
    let mut holds = std::collections::HashMap::new();
    each_piece(pool, list, |at, part| {
        part.clone().for_each(|index| {
            holds.insert(at + (index - part.start) as u64, data[index]);
        });
    });
    let mut expected = data.to_vec();
    each_piece(pool, list, |at, part| {
        part.clone().for_each(|index| expected[index] = holds[&(at + (index - part.start) as u64)]);
    });
    data.copy_from_slice(&expected);
}

/// What one way did, on a machine of its own.
struct Done {
    shape: Shape,
    sgls: u64,
    moved: u64,
    flushes: u64,
    entries: u64,
    cost: Cost,
}

fn on_a_machine(
    requests: u64,
    way: &dyn for<'d> Fn(&'d Domain<'d>) -> Box<dyn Way + 'd>,
) -> Result<Done, Failure> {
    let emulated = IommuDomain::builder().reserved_window(IovaWindow::MSI_X86).build()?;
    let iovas = Iovas::of(emulated.iommu());
    let domain = Domain::builder(emulated.iommu(), &iovas).build();
    let builder = SoftwareDevice::builder().memory_bytes(2 << 20).engines(1);
    let device = builder.iommu_domain(&emulated).build()?;
    let disk = Mutex::new(vec![0; DISK_BYTES as usize]);
    let controller = Controller { device, disk, entries: Mutex::new(0) };
    let shared = Shared::new(&domain)?;
    let mut way = way(&domain);
    // Tables are there already when the clock runs.
    run(&mut *way, &iovas, &shared, &controller, 40)?;
    let entries = || *controller.entries.lock().expect("no panic");
    let before = (emulated.counters().flushes, entries());
    let (shape, sgls, moved, cost) = run(&mut *way, &iovas, &shared, &controller, requests)?;
    let (flushes, entries) = (emulated.counters().flushes - before.0, entries() - before.1);
    drop(way);
    shared.close()?;
    assert_eq!(emulated.counters().leaves, Default::default(), "nothing stays mapped");
    Ok(Done { shape, sgls, moved, flushes, entries, cost })
}

fn main() -> Result<(), Failure> {
    let requests = argument(400);
    let ours = on_a_machine(requests, &|domain| Box::new(TwoStep { domain, kept: Kept::Nothing }))?;
    let theirs = on_a_machine(requests, &|domain| Box::new(OneStep { domain, list: Vec::new() }))?;
    let shape = ours.shape;
    assert_eq!((theirs.shape, theirs.moved), (shape, ours.moved), "the same requests");
    println!("{requests} requests, {} MiB: every byte came back, both ways", ours.moved >> 20);
    println!(
        "  {} segments, {} after merging; {} requests have gaps",
        shape.segments, shape.merged, shape.gaps
    );
    for (name, way) in [("two-step", &ours), ("one-step", &theirs)] {
        let (entries, sgls, flushes) = (way.entries, way.sgls, way.flushes);
        println!("  {name}: {entries} entries decoded, {sgls} requests as SGLs, {flushes} flushes");
    }
    print_costs(&ours.cost, &theirs.cost);
    Ok(())
}
