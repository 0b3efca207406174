//! On-demand paging in the manner of an RDMA memory region: a network card reads and writes memory of the process that
//! nobody pinned. It gets IOVAs for the whole region at once; pages are linked when its DMA needs them, unlinked exactly
//! where memory changes, and read-only where the card may only read.
//!
//! Beside it, in the same run, the one-step way does the same DMA: each page is mapped by itself and has an address of
//! its own that somebody has to keep. Every byte that is moved either way is checked.
//!
//! `cargo run --release --example odp`, with the number of transfers if 2000 is not what you want
#![allow(unsafe_code, reason = "makes memory of the process present")]

mod dma_driver;

use std::collections::HashMap;
use std::ops::Range;
use std::sync::atomic::AtomicU64;

use dma_driver::{Compared, Cost, Expected, Iovas, Memory, Random, argument, pages_of};
use granule::dma::{Attributes, DmaError, DmaRange, Domain, PageList, Reservation};
use granule::os::Pagemap;
use granule::ports::{HostError, Iommu, IommuError};
use granule::units::{
    Access, GRANULE_BYTES, GranuleNo, Iova, PAGE_BYTES, PAGE_SHIFT, PAGES_PER_GRANULE, PhysAddr, PhysRange,
    VirtAddr, VirtRange,
};
use granule_backends::software::{AccessError, DmaRefused, IommuDomain, SoftwareDevice};
use thiserror::Error;

type Failure = Box<dyn std::error::Error>;

/// Why a region did not do what it was asked.
#[derive(Debug, Error)]
enum OdpError {
    #[error("the region may only be read; register it with the right to write")]
    ReadOnly,
    #[error("the region has no such address: {0}")]
    Outside(VirtAddr),
    #[error("the memory at {0} is not mapped or does not allow this")]
    NoMemory(VirtAddr),
    #[error(transparent)]
    Dma(#[from] DmaError),
    #[error(transparent)]
    Link(#[from] IommuError),
    #[error(transparent)]
    Device(#[from] AccessError),
    #[error(transparent)]
    Host(#[from] HostError),
}

/// What a program says of memory before the card needs it.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Advice {
    /// Fetch, for reading: never breaks the sharing of a page.
    Read,
    /// Fetch, for writing.
    Write,
    /// Link what is there, and fetch nothing.
    NoFault,
}

/// What a region counts, with the names that such counters have.
#[derive(Clone, Copy, Default, Debug, PartialEq, Eq)]
struct Counts {
    faults: u64,
    faults_handled: u64,
    invalidations: u64,
    invalidations_handled: u64,
    prefetch: u64,
}

/// A memory region of one granule: 512 MiB of the process's addresses, each at its own position in one reservation.
struct Region<'d> {
    domain: &'d Domain<'d>,
    iommu: &'d dyn Iommu,
    base: VirtAddr,
    reservation: Reservation,
    /// A bit per page, and nothing beside: what the card may do with a page is in the I/O page table.
    linked: Vec<AtomicU64>,
    /// What the card may do at most.
    mask: Access,
    counts: Counts,
    cost: Cost,
}

impl<'d> Region<'d> {
    /// Registers a granule: O(1), whatever is in it.
    fn new(
        domain: &'d Domain<'d>,
        iommu: &'d dyn Iommu,
        granule: GranuleNo,
        mask: Access,
    ) -> Result<Self, OdpError> {
        let reservation = domain.reserve(GRANULE_BYTES, GRANULE_BYTES)?;
        let linked = (0..PAGES_PER_GRANULE / 64).map(|_| AtomicU64::new(0)).collect();
        let (base, counts, cost) = (granule.base(), Counts::default(), Cost::default());
        Ok(Self { domain, iommu, base, reservation, linked, mask, counts, cost })
    }

    fn list(&self) -> Result<PageList<'_>, OdpError> {
        Ok(self.domain.page_list(&self.reservation, &self.linked)?.with_table_rights(self.iommu))
    }

    /// What the card is told to use for an address: known before anything is linked.
    fn iova(&self, at: VirtAddr) -> Iova {
        self.reservation.base() + at.bytes_since(self.base)
    }

    fn address(&self, page: u64) -> VirtAddr {
        self.base + (page << PAGE_SHIFT)
    }

    fn pages(&self, at: VirtAddr, bytes: u64) -> Result<Range<u64>, OdpError> {
        let offset = at.0.checked_sub(self.base.0).ok_or(OdpError::Outside(at))?;
        let inside = offset.checked_add(bytes).is_some_and(|end| end <= GRANULE_BYTES);
        if inside { Ok(pages_of(offset, bytes)) } else { Err(OdpError::Outside(at)) }
    }

    /// Makes pages of the process present and links those that are not yet linked so.
    fn fetch(&mut self, pages: Range<u64>, access: Access) -> Result<u64, OdpError> {
        populate(self.address(pages.start), pages.end - pages.start, access)?;
        self.link(pages, access)
    }

    fn link(&mut self, pages: Range<u64>, access: Access) -> Result<u64, OdpError> {
        let mut cost = self.cost;
        let list = self.list()?;
        // Position and address are the same thing, so a page of the list is at base + position in memory, too.
        let phys = PhysAddr(self.base.0);
        let linked = cost.map(|| {
            let linked = list.link(self.iommu, pages, phys, access);
            let pages = linked.unwrap_or(0);
            (linked, pages)
        })?;
        self.cost = cost;
        Ok(linked)
    }

    /// The card's DMA for `bytes` bytes at `at` found something missing.
    fn fault(&mut self, at: VirtAddr, bytes: u64, access: Access) -> Result<u64, OdpError> {
        self.counts.faults += 1;
        if access == Access::Write && self.mask == Access::Read {
            return Err(OdpError::ReadOnly);
        }
        let linked = self.fetch(self.pages(at, bytes)?, access)?;
        self.counts.faults_handled += 1;
        Ok(linked)
    }

    /// Advice for the bytes of a range.
    fn advise(
        &mut self,
        pagemap: &Pagemap,
        at: VirtAddr,
        bytes: u64,
        advice: Advice,
    ) -> Result<u64, OdpError> {
        let pages = self.pages(at, bytes)?;
        self.counts.prefetch += 1;
        match advice {
            Advice::Write if self.mask == Access::Read => Err(OdpError::ReadOnly),
            Advice::Write => self.fetch(pages, Access::Write),
            Advice::Read => self.fetch(pages, Access::Read),
            Advice::NoFault => {
                let range = VirtRange::of_pages(self.address(pages.start), pages.end - pages.start);
                let mut linked = 0;
                for block in range.blocks() {
                    let present = pagemap.present(block, &range.mask_in(block))?;
                    let first = block.base().bytes_since(self.base) >> PAGE_SHIFT;
                    for run in present.runs() {
                        // For reading: whether the process may write them is found out by the first write.
                        linked +=
                            self.link(first + run.start as u64..first + run.end as u64, Access::Read)?;
                    }
                }
                Ok(linked)
            }
        }
    }

    /// The process is about to change what is mapped there. Once this has returned, the card reaches none of it.
    fn invalidate(&mut self, at: VirtAddr, bytes: u64) -> Result<u64, OdpError> {
        self.counts.invalidations += 1;
        let pages = self.pages(at, bytes)?;
        let mut cost = self.cost;
        let list = self.list()?;
        let unlinked = cost.unmap(|| {
            let pages = list.unlink(self.iommu, pages);
            (pages, pages)
        });
        self.cost = cost;
        self.counts.invalidations_handled += u64::from(unlinked > 0);
        Ok(unlinked)
    }

    /// Ends the registration.
    fn close(mut self) -> Result<(Counts, Cost), OdpError> {
        self.cost.state_bytes = (size_of::<Reservation>() + size_of_val(&self.linked[..])) as u64;
        self.cost.pages = PAGES_PER_GRANULE as u64;
        self.list()?.unlink(self.iommu, 0..PAGES_PER_GRANULE as u64);
        self.domain.free(self.reservation).map_err(|(_, error)| error)?;
        Ok((self.counts, self.cost))
    }
}

/// Makes pages of the process present, with the right to do `access`.
fn populate(at: VirtAddr, pages: u64, access: Access) -> Result<(), OdpError> {
    let advice = match access {
        Access::Read => libc::MADV_POPULATE_READ,
        Access::Write => libc::MADV_POPULATE_WRITE,
    };
    // SAFETY: makes pages present; what they hold stays.
    let rc = unsafe { libc::madvise(at.0 as *mut _, (pages * PAGE_BYTES) as usize, advice) };
    if rc == 0 { Ok(()) } else { Err(OdpError::NoMemory(at)) }
}

/// Where a card's DMA goes on after a fault, and what it wanted.
fn faulted(error: AccessError) -> Result<(Iova, Access), AccessError> {
    match error {
        AccessError::Dma(DmaRefused::NotMapped(at)) => Ok((at, Access::Read)),
        AccessError::Dma(DmaRefused::ReadOnly(at)) => Ok((at, Access::Write)),
        other => Err(other),
    }
}

/// Everything by virtual address: children of 512 MiB, each made when it is first touched.
struct Implicit<'d> {
    domain: &'d Domain<'d>,
    iommu: &'d dyn Iommu,
    children: HashMap<GranuleNo, Region<'d>>,
}

impl<'d> Implicit<'d> {
    fn child(&mut self, at: VirtAddr) -> Result<&mut Region<'d>, OdpError> {
        let granule = GranuleNo::of(at);
        if !self.children.contains_key(&granule) {
            let child = Region::new(self.domain, self.iommu, granule, Access::Write)?;
            self.children.insert(granule, child);
        }
        self.children.get_mut(&granule).ok_or(OdpError::Outside(at))
    }

    /// Moves bytes between the card and the process's memory at `at`, through as many children as that takes.
    fn transfer(
        &mut self,
        card: &Card,
        at: VirtAddr,
        data: &mut [u8],
        access: Access,
    ) -> Result<(), OdpError> {
        let mut done = 0;
        while done < data.len() {
            let here = at + done as u64;
            let left = (GranuleNo::of(here).base() + GRANULE_BYTES).bytes_since(here) as usize;
            let part = left.min(data.len() - done);
            card.transfer(self.child(here)?, here, &mut data[done..done + part], access)?;
            done += part;
        }
        Ok(())
    }

    /// The process is about to change a range: children without links end.
    fn invalidate(&mut self, at: VirtAddr, bytes: u64) -> Result<(), OdpError> {
        let granule = GranuleNo::of(at);
        let Some(child) = self.children.get_mut(&granule) else { return Ok(()) };
        child.invalidate(at, bytes)?;
        if child.reservation.linked_pages() == 0
            && let Some(child) = self.children.remove(&granule)
        {
            child.close()?;
        }
        Ok(())
    }
}

/// The network card: DMA, and a fault where that finds nothing.
struct Card(SoftwareDevice);

impl Card {
    fn dma(&self, at: Iova, data: &mut [u8], access: Access) -> Result<(), AccessError> {
        match access {
            Access::Read => self.0.dma_read(granule::units::Pasid(0), at, data),
            Access::Write => self.0.dma_write(granule::units::Pasid(0), at, data),
        }
    }

    /// Moves bytes between the card and the process's memory at `at`. A fault asks for the whole rest of the transfer.
    fn transfer(
        &self,
        region: &mut Region<'_>,
        at: VirtAddr,
        data: &mut [u8],
        access: Access,
    ) -> Result<(), OdpError> {
        loop {
            let Err(error) = self.dma(region.iova(at), data, access) else { return Ok(()) };
            let (missing, least) = faulted(error)?;
            let done = missing.bytes_since(region.iova(at));
            let wanted = if access == Access::Write { access } else { least };
            region.fault(at + done, data.len() as u64 - done, wanted)?;
        }
    }
}

/// The rival: each page by itself, with its DMA address in a table.
struct PageByPage<'d> {
    domain: &'d Domain<'d>,
    iovas: &'d Iovas,
    base: VirtAddr,
    table: Vec<Option<DmaRange>>,
    cost: Cost,
}

impl PageByPage<'_> {
    fn transfer(
        &mut self,
        card: &Card,
        at: VirtAddr,
        data: &mut [u8],
        access: Access,
    ) -> Result<(), OdpError> {
        let offset = at.bytes_since(self.base);
        let pages = pages_of(offset, data.len() as u64);
        let missing: Vec<u64> = pages.clone().filter(|page| self.table[*page as usize].is_none()).collect();
        if !missing.is_empty() {
            populate(self.base + (pages.start << PAGE_SHIFT), pages.end - pages.start, Access::Write)?;
        }
        let (domain, base, table) = (self.domain, self.base, &mut self.table);
        self.cost
            .map(|| {
                let each = |page: &u64| {
                    let phys = PhysRange::new(PhysAddr(base.0 + (page << PAGE_SHIFT)), PAGE_BYTES);
                    table[*page as usize] = Some(domain.map(phys, Attributes::BOTH)?);
                    Ok(())
                };
                (missing.iter().try_for_each(each), missing.len() as u64)
            })
            .map_err(OdpError::Dma)?;
        let mut done = 0;
        while done < data.len() {
            let here = offset + done as u64;
            let part = ((PAGE_BYTES - here % PAGE_BYTES) as usize).min(data.len() - done);
            let page = self.table[(here >> PAGE_SHIFT) as usize].expect("it was mapped above").addr;
            card.dma(page + here % PAGE_BYTES, &mut data[done..done + part], access)?;
            done += part;
        }
        Ok(())
    }

    fn invalidate(&mut self, at: VirtAddr, bytes: u64) -> Result<(), OdpError> {
        let pages = pages_of(at.bytes_since(self.base), bytes);
        let (domain, table) = (self.domain, &mut self.table);
        self.cost.unmap(|| {
            let mut count = 0;
            for page in pages {
                let Some(range) = table[page as usize].take() else { continue };
                if let Err(error) = domain.unmap(range, Attributes::BOTH) {
                    return (Err(OdpError::Dma(error)), count);
                }
                count += 1;
            }
            (Ok(()), count)
        })
    }

    fn close(mut self) -> Result<Cost, OdpError> {
        self.cost.state_bytes =
            (self.table.capacity() * size_of::<Option<DmaRange>>()) as u64 + self.iovas.state_bytes();
        self.cost.pages = PAGES_PER_GRANULE as u64;
        self.invalidate(self.base, GRANULE_BYTES)?;
        Ok(self.cost)
    }
}

/// One program, run by either way: the card writes and reads ranges of bytes, the process writes, reads and discards.
trait Way {
    fn transfer(&mut self, at: VirtAddr, data: &mut [u8], access: Access) -> Result<(), OdpError>;
    fn invalidate(&mut self, at: VirtAddr, bytes: u64) -> Result<(), OdpError>;
}

impl Way for (&Card, &mut Region<'_>) {
    fn transfer(&mut self, at: VirtAddr, data: &mut [u8], access: Access) -> Result<(), OdpError> {
        self.0.transfer(self.1, at, data, access)
    }
    fn invalidate(&mut self, at: VirtAddr, bytes: u64) -> Result<(), OdpError> {
        self.1.invalidate(at, bytes).map(drop)
    }
}

impl Way for (&Card, &mut PageByPage<'_>) {
    fn transfer(&mut self, at: VirtAddr, data: &mut [u8], access: Access) -> Result<(), OdpError> {
        self.1.transfer(self.0, at, data, access)
    }
    fn invalidate(&mut self, at: VirtAddr, bytes: u64) -> Result<(), OdpError> {
        self.1.invalidate(at, bytes)
    }
}

fn program(way: &mut impl Way, memory: &Memory, transfers: u64) -> Result<u64, OdpError> {
    let (mut random, mut expected) = (Random(1), Expected::default());
    let mut moved = 0;
    for number in 0..transfers {
        let mut data = vec![0u8; 1 + random.below(48 << 10) as usize];
        let offset = random.below(memory.bytes() - data.len() as u64);
        // Half of the transfers fall into the first 4 MiB, so that pages are met again.
        let offset = if number % 2 == 0 { offset % (4 << 20) } else { offset };
        let at = memory.at() + offset;
        match random.below(8) {
            0..4 => {
                random.fill(&mut data);
                expected.write(offset, &data);
                way.transfer(at, &mut data, Access::Write)?;
                let mut seen = vec![0; data.len()];
                memory.read(offset, &mut seen);
                assert!(seen == data, "the process sees what the card wrote");
            }
            4..6 => {
                random.fill(&mut data);
                memory.write(offset, &data);
                expected.write(offset, &data);
            }
            6 => {
                way.transfer(at, &mut data, Access::Read)?;
                expected.check(offset, &data);
            }
            _ => {
                let pages = pages_of(offset, data.len() as u64);
                let (first, bytes) = (pages.start << PAGE_SHIFT, (pages.end - pages.start) << PAGE_SHIFT);
                way.invalidate(memory.at() + first, bytes)?;
                memory.discard(first, bytes);
                expected.discard(pages);
            }
        }
        moved += data.len() as u64;
    }
    expected.check_all(memory);
    Ok(moved)
}

fn advice(card: &Card, domain: &Domain<'_>, iommu: &dyn Iommu) -> Result<(), Failure> {
    let memory = Memory::new(GRANULE_BYTES, GRANULE_BYTES);
    let (granule, pagemap, at) = (GranuleNo::of(memory.at()), Pagemap::open()?, memory.at());
    let mut region = Region::new(domain, iommu, granule, Access::Write)?;
    memory.write(0, &[7; 3 * PAGE_BYTES as usize]);
    let snapshot = region.advise(&pagemap, at, 16 * PAGE_BYTES, Advice::NoFault)?;
    let read = region.advise(&pagemap, at, 16 * PAGE_BYTES, Advice::Read)?;
    let write = region.advise(&pagemap, at + 16 * PAGE_BYTES, 16 * PAGE_BYTES, Advice::Write)?;
    assert_eq!((snapshot, read, write), (3, 13, 16));
    card.transfer(&mut region, at, &mut [0; 16 << 12], Access::Read)?;
    card.transfer(&mut region, at + (16 << 12), &mut [1; 16 << 12], Access::Write)?;
    assert_eq!(region.counts.faults, 0, "everything was fetched in advance");
    card.transfer(&mut region, at + 5, &mut [2; 10], Access::Write)?;
    assert_eq!(region.counts.faults, 1, "a first write to a page that was fetched for reading");
    assert_eq!(region.cost.mapped, 32, "its address stays, and it is not linked again");
    region.close()?;

    let mut readable = Region::new(domain, iommu, granule, Access::Read)?;
    card.transfer(&mut readable, at, &mut [0; 100], Access::Read)?;
    let refused = card.transfer(&mut readable, at, &mut [0; 100], Access::Write);
    assert!(matches!(refused, Err(OdpError::ReadOnly)));
    let refused = readable.advise(&pagemap, at, 100, Advice::Write);
    assert!(matches!(refused, Err(OdpError::ReadOnly)));
    readable.close()?;
    println!(
        "advice: a snapshot linked {snapshot} pages, reading fetched {read} more, writing {write}; then no fault"
    );
    Ok(())
}

fn implicit(card: &Card, domain: &Domain<'_>, iommu: &dyn Iommu) -> Result<(), Failure> {
    let mut all = Implicit { domain, iommu, children: HashMap::new() };
    let memory = Memory::new(GRANULE_BYTES + (4 << 20), GRANULE_BYTES);
    let edge = memory.at() + (GRANULE_BYTES - 100);
    let mut data = *b"across the edge of two children, and nobody registered anything";
    let text = data;
    all.transfer(card, edge + 60, &mut data, Access::Write)?;
    let mut on_heap = vec![0u8; 5000];
    all.transfer(card, VirtAddr(on_heap.as_mut_ptr() as u64), &mut [9; 5000], Access::Write)?;
    // The card wrote it: looked at through a pointer that was not there before.
    let on_heap = std::hint::black_box(on_heap);
    assert!(on_heap.iter().all(|byte| *byte == 9));
    let mut seen = [0; 63];
    memory.read(GRANULE_BYTES - 40, &mut seen);
    assert_eq!(seen, text);
    let children = all.children.len();
    assert!(children >= 3, "two for the mapping, one for the heap");
    all.invalidate(memory.at() + GRANULE_BYTES, 4 << 20)?;
    assert_eq!(all.children.len(), children - 1, "a child without links ends");
    for (_, child) in all.children.drain() {
        child.close()?;
    }
    println!("implicit region: {children} children of 512 MiB for two mappings and the heap");
    Ok(())
}

/// A machine with one card.
fn on_a_machine<R>(
    act: impl FnOnce(&Card, &Domain<'_>, &dyn Iommu, &Iovas) -> Result<R, Failure>,
) -> Result<R, Failure> {
    let emulated = IommuDomain::builder().build()?;
    let builder = SoftwareDevice::builder().memory_bytes(2 << 20).engines(1);
    let card = Card(builder.iommu_domain(&emulated).build()?);
    let (iommu, iovas) = (emulated.iommu(), Iovas::of(emulated.iommu()));
    let domain = Domain::builder(iommu, &iovas).build();
    act(&card, &domain, iommu, &iovas)
}

/// The same transfers, either way.
pub fn compare(transfers: u64) -> Result<Compared, Failure> {
    on_a_machine(|card, domain, iommu, iovas| {
        let memory = Memory::new(GRANULE_BYTES, GRANULE_BYTES);
        let mut region = Region::new(domain, iommu, GranuleNo::of(memory.at()), Access::Write)?;
        let iova_bytes = iovas.state_bytes();
        let moved = program(&mut (card, &mut region), &memory, transfers)?;
        let (counts, mut two_step) = region.close()?;
        two_step.state_bytes += iova_bytes;
        memory.discard(0, GRANULE_BYTES);
        let table = vec![None; PAGES_PER_GRANULE];
        let mut pages = PageByPage { domain, iovas, base: memory.at(), table, cost: Cost::default() };
        assert_eq!(program(&mut (card, &mut pages), &memory, transfers)?, moved, "the same program");
        let one_step = pages.close()?;
        let told = format!(
            "{transfers} transfers over 512 MiB, {} MiB: every byte is right, both ways\n{counts:?}",
            moved >> 20
        );
        Ok(Compared { told, ways: vec![("two-step", two_step), ("one-step", one_step)] })
    })
}

fn main() -> Result<(), Failure> {
    on_a_machine(|card, domain, iommu, _| {
        advice(card, domain, iommu)?;
        implicit(card, domain, iommu)
    })?;
    compare(argument(2000))?.print();
    Ok(())
}
