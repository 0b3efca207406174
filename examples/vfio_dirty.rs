//! Live migration in the manner of a VFIO driver: a device is given a list of pages, and no scatter list in between. It
//! writes the guest's memory, keeps track of what it wrote, and reports that, by DMA, into a buffer of scattered pages
//! which grows while it is in use. The host copies what is reported until little is left, stops the device, and copies
//! the rest together with the device's own state. Every byte at the destination is compared.
//!
//! The buffers are page lists over one reservation: page *i* is at `base + i * 4096`, so the device gets one address
//! and a length. Beside it, in the same run, the one-step way maps each page and hands the device a table.
//!
//! `cargo run --release --example vfio_dirty`, with the guest's memory in MiB if 6 is not what you want

mod dma_driver;

use std::sync::Mutex;

use dma_driver::{Compared, Cost, Iovas, Memory, Random, argument};
use granule::dma::{Attributes, DmaRange, Domain, Reservation, pin};
use granule::units::{Access, Iova, PAGE_BYTES, PAGE_SHIFT, PhysRange};
use granule_backends::software::{AccessError, Engine, IommuDomain, ProcessPins, SoftwareDevice};

type Failure = Box<dyn std::error::Error>;

/// Pages of the host in no order: what an allocator that hands out single pages gives.
struct Scattered {
    memory: Memory,
    /// The page of `memory` at each position of the list.
    order: Vec<u64>,
}

impl Scattered {
    fn new(pages: u64, random: &mut Random) -> Self {
        let mut order: Vec<u64> = (0..pages).collect();
        for index in (1..pages).rev() {
            order.swap(index as usize, random.below(index + 1) as usize);
        }
        Self { memory: Memory::new(pages << PAGE_SHIFT, PAGE_BYTES), order }
    }

    fn page(&self, position: u64) -> PhysRange {
        self.memory.range(self.order[position as usize] << PAGE_SHIFT, PAGE_BYTES)
    }

    /// What the pages hold, in the order of the list.
    fn read(&self, position: u64, into: &mut [u8]) {
        for (index, part) in into.chunks_mut(PAGE_BYTES as usize).enumerate() {
            self.memory.read(self.order[position as usize + index] << PAGE_SHIFT, part);
        }
    }
}

/// Memory as the device was told of it: how a driver's key for it translates a position.
#[derive(Clone, Copy)]
enum Key<'k> {
    /// One address; positions do the rest.
    Positional(Iova),
    /// An address per page.
    Table(&'k [DmaRange]),
}

impl Key<'_> {
    /// Writes into the buffer behind the key.
    fn write(self, engine: &mut Engine<'_>, offset: u64, data: &[u8]) -> Result<(), AccessError> {
        match self {
            Key::Positional(base) => engine.dma_write(base + offset, data),
            Key::Table(table) => {
                let mut done = 0;
                while done < data.len() {
                    let here = offset + done as u64;
                    let part = ((PAGE_BYTES - here % PAGE_BYTES) as usize).min(data.len() - done);
                    let page = table[(here >> PAGE_SHIFT) as usize].addr;
                    engine.dma_write(page + here % PAGE_BYTES, &data[done..done + part])?;
                    done += part;
                }
                Ok(())
            }
        }
    }
}

/// A buffer that a device writes and that grows: how the pages get to the device is the only difference.
trait Buffer {
    /// Adds pages behind those that there are.
    fn grow(&mut self, pages: &[PhysRange]) -> Result<(), Failure>;
    fn key(&self) -> Key<'_>;
    fn close(self: Box<Self>) -> Result<Cost, Failure>;
}

const FROM_DEVICE: Attributes = Attributes::FROM_DEVICE;

/// Step one at the beginning, step two as pages come.
struct TwoStep<'d> {
    domain: &'d Domain<'d>,
    iovas: &'d Iovas,
    reservation: Reservation,
    bytes: u64,
    cost: Cost,
}

impl Buffer for TwoStep<'_> {
    fn grow(&mut self, pages: &[PhysRange]) -> Result<(), Failure> {
        let (domain, reservation, at) = (self.domain, &self.reservation, self.bytes);
        self.cost.map(|| {
            let linked = domain.link(reservation, at, pages.iter().copied(), FROM_DEVICE);
            (linked.and_then(|span| domain.sync(span)), pages.len() as u64)
        })?;
        self.bytes += pages.len() as u64 * PAGE_BYTES;
        Ok(())
    }
    fn key(&self) -> Key<'_> {
        Key::Positional(self.reservation.base())
    }
    fn close(self: Box<Self>) -> Result<Cost, Failure> {
        let Self { domain, iovas, reservation, bytes, mut cost } = *self;
        cost.pages = bytes >> PAGE_SHIFT;
        cost.state_bytes = size_of::<Reservation>() as u64 + iovas.state_bytes();
        cost.unmap(|| (domain.destroy(reservation, FROM_DEVICE), bytes >> PAGE_SHIFT))
            .map_err(|(_, error)| error)?;
        Ok(cost)
    }
}

/// Each page by itself.
struct OneStep<'d> {
    domain: &'d Domain<'d>,
    iovas: &'d Iovas,
    table: Vec<DmaRange>,
    cost: Cost,
}

impl Buffer for OneStep<'_> {
    fn grow(&mut self, pages: &[PhysRange]) -> Result<(), Failure> {
        let (domain, table) = (self.domain, &mut self.table);
        let result = self.cost.map(|| {
            let each = |page: &PhysRange| domain.map(*page, FROM_DEVICE).map(|range| table.push(range));
            (pages.iter().try_for_each(each), pages.len() as u64)
        });
        Ok(result?)
    }
    fn key(&self) -> Key<'_> {
        Key::Table(&self.table)
    }
    fn close(self: Box<Self>) -> Result<Cost, Failure> {
        let Self { domain, iovas, table, mut cost } = *self;
        cost.pages = table.len() as u64;
        cost.state_bytes = (table.capacity() * size_of::<DmaRange>()) as u64 + iovas.state_bytes();
        cost.unmap(|| {
            let each = |range: &DmaRange| domain.unmap(*range, FROM_DEVICE).map(drop);
            (table.iter().try_for_each(each), table.len() as u64)
        })?;
        Ok(cost)
    }
}

/// The device: what it keeps for itself of its state and of what it wrote.
struct Vf {
    device: SoftwareDevice,
    guest: Iova,
    guest_bytes: u64,
    state: Mutex<State>,
}

struct State {
    random: Random,
    /// A bit per page of the guest: written since the last report.
    dirty: Vec<u64>,
    /// Registers and queues: what a guest's driver set up, in no form that anybody else knows.
    inner: Vec<u8>,
}

/// Size of the device's registers and queues.
const INNER_BYTES: usize = 2 << 20;

/// A report ends with this.
const END: u64 = u64::MAX;

impl Vf {
    /// Lets the device write ranges of bytes all over the guest.
    fn work(&self, writes: u64) -> Result<(), AccessError> {
        self.device.run(|engine| {
            let state = &mut *self.state.lock().expect("kernels do not panic");
            let mut data = [0u8; 3000];
            for _ in 0..writes {
                let data = &mut data[..1 + state.random.below(2999) as usize];
                state.random.fill(data);
                let at = state.random.below(self.guest_bytes - data.len() as u64);
                engine.dma_write(self.guest + at, data)?;
                for page in at >> PAGE_SHIFT..=(at + data.len() as u64 - 1) >> PAGE_SHIFT {
                    state.dirty[(page / 64) as usize] |= 1 << (page % 64);
                }
                let place = state.random.below((INNER_BYTES - data.len()) as u64) as usize;
                state.inner[place..place + data.len()].copy_from_slice(data);
            }
            Ok(())
        })
    }

    /// Lets the device write the numbers of the dirty pages into a buffer of so many bytes, at most as many as fit.
    fn report(&self, key: Key<'_>, bytes: u64) -> Result<(), AccessError> {
        self.device.run(|engine| {
            let state = &mut *self.state.lock().expect("kernels do not panic");
            let room = (bytes / 8 - 1) as usize;
            let mut entries = Vec::new();
            for (index, word) in state.dirty.iter_mut().enumerate() {
                while *word != 0 && entries.len() < room {
                    entries.push(index as u64 * 64 + u64::from(word.trailing_zeros()));
                    *word &= *word - 1;
                }
            }
            entries.push(END);
            let bytes: Vec<u8> = entries.iter().flat_map(|entry| entry.to_le_bytes()).collect();
            key.write(engine, 0, &bytes)
        })
    }

    /// How long the device's state is.
    fn state_bytes(&self) -> u64 {
        let state = self.state.lock().expect("kernels do not panic");
        (8 * (1 + state.dirty.len()) + state.inner.len()) as u64
    }

    /// Lets the device write its state into a buffer.
    fn save(&self, key: Key<'_>) -> Result<(), AccessError> {
        self.device.run(|engine| {
            let state = self.state.lock().expect("kernels do not panic");
            let words = [state.random.0].into_iter().chain(state.dirty.iter().copied());
            let mut bytes: Vec<u8> = words.flat_map(u64::to_le_bytes).collect();
            bytes.extend_from_slice(&state.inner);
            key.write(engine, 0, &bytes)
        })
    }
}

/// Reads the pages of a report.
fn reported(pages: &Scattered, count: u64) -> Vec<u64> {
    let mut bytes = vec![0; (count << PAGE_SHIFT) as usize];
    pages.read(0, &mut bytes);
    let words = bytes.chunks_exact(8).map(|word| u64::from_le_bytes(word.try_into().expect("8 bytes")));
    words.take_while(|word| *word != END).collect()
}

/// Migrates a guest; says how many pages were copied in how many rounds.
fn migrate<'d>(
    domain: &'d Domain<'d>,
    emulated: &IommuDomain,
    guest_bytes: u64,
    open: &dyn Fn(u64) -> Result<Box<dyn Buffer + 'd>, Failure>,
) -> Result<(u64, u64, Cost), Failure> {
    let builder = SoftwareDevice::builder().memory_bytes(2 << 20).engines(1);
    let device = builder.iommu_domain(emulated).build()?;
    let mut random = Random(3);
    let (source, destination) = (Memory::new(guest_bytes, 2 << 20), Memory::new(guest_bytes, 2 << 20));
    // The guest: pinned, as memory of a guest with a device is, and mapped as a whole.
    let pins = ProcessPins::new();
    let pinned = pin(&pins, source.at(), guest_bytes, Access::Write)?;
    let guest = domain.map_list(pinned.ranges().iter(), Attributes::BOTH)?;
    let base = guest.ranges().iter().next().expect("a guest has memory").addr;
    let words = (guest_bytes >> PAGE_SHIFT).div_ceil(64) as usize;
    let state = State { random: Random(7), dirty: vec![0; words], inner: vec![0; INNER_BYTES] };
    let vf = Vf { device, guest: base, guest_bytes, state: Mutex::new(state) };

    // The buffer begins with one page and is doubled whenever a report filled it.
    let most = 1024;
    let pages = Scattered::new(most, &mut random);
    let mut buffer = open(most << PAGE_SHIFT)?;
    let mut grown = 0;
    let grow = |buffer: &mut Box<dyn Buffer + 'd>, grown: &mut u64, to: u64| -> Result<(), Failure> {
        let list: Vec<PhysRange> = (*grown..to).map(|position| pages.page(position)).collect();
        *grown = to;
        if list.is_empty() { Ok(()) } else { buffer.grow(&list) }
    };
    grow(&mut buffer, &mut grown, 1)?;

    let (mut copied, mut rounds) = (0, 0);
    let mut page_bytes = vec![0u8; PAGE_BYTES as usize];
    let mut writes = (guest_bytes >> PAGE_SHIFT) / 2;
    let mut copy = |page: u64, copied: &mut u64| {
        source.read(page << PAGE_SHIFT, &mut page_bytes);
        destination.write(page << PAGE_SHIFT, &page_bytes);
        *copied += 1;
    };
    loop {
        // The guest runs on while it is copied; the last round is the one in which it stands still.
        vf.work(writes)?;
        rounds += 1;
        loop {
            vf.report(buffer.key(), grown << PAGE_SHIFT)?;
            let list = reported(&pages, grown);
            list.iter().for_each(|page| copy(*page, &mut copied));
            let was_full = list.len() as u64 == (grown << PAGE_SHIFT) / 8 - 1;
            if !was_full {
                break;
            }
            let to = (grown * 2).min(most);
            grow(&mut buffer, &mut grown, to)?;
        }
        if writes == 0 {
            break;
        }
        writes /= 2;
    }
    // The device stands still: its state moves through the same pages.
    let state_pages = vf.state_bytes().div_ceil(PAGE_BYTES);
    let needed = state_pages.max(grown);
    grow(&mut buffer, &mut grown, needed)?;
    vf.save(buffer.key())?;
    let mut moved = vec![0; (state_pages << PAGE_SHIFT) as usize];
    pages.read(0, &mut moved);
    let word = |index: usize| u64::from_le_bytes(moved[8 * index..][..8].try_into().expect("8 bytes"));
    let state = vf.state.lock().expect("kernels do not panic");
    assert_eq!(word(0), state.random.0, "the device's state arrived");
    assert!((0..words).all(|index| word(1 + index) == 0), "and nothing is dirty any more");
    assert!(moved[8 * (1 + words)..][..INNER_BYTES] == state.inner, "and every byte of the rest");

    let mut both = [vec![0u8; 1 << 20], vec![0u8; 1 << 20]];
    for part in 0..guest_bytes >> 20 {
        source.read(part << 20, &mut both[0]);
        destination.read(part << 20, &mut both[1]);
        assert!(both[0] == both[1], "the destination differs in MiB {part}");
    }
    drop(state);
    let cost = buffer.close()?;
    domain.unmap_list(guest, Attributes::BOTH).map_err(|(_, error)| error)?;
    drop(pinned);
    Ok((copied, rounds, cost))
}

/// The same migration of so many MiB, either way.
pub fn compare(guest_mib: u64) -> Result<Compared, Failure> {
    let emulated = IommuDomain::builder().build()?;
    let iovas = Iovas::of(emulated.iommu());
    let domain = Domain::builder(emulated.iommu(), &iovas).build();
    let two_step = |bytes: u64| -> Result<Box<dyn Buffer + '_>, Failure> {
        let reservation = domain.reserve(bytes, PAGE_BYTES)?;
        let (domain, iovas, cost) = (&domain, &iovas, Cost::default());
        Ok(Box::new(TwoStep { domain, iovas, reservation, bytes: 0, cost }))
    };
    let one_step = |_: u64| -> Result<Box<dyn Buffer + '_>, Failure> {
        let (domain, iovas, cost) = (&domain, &iovas, Cost::default());
        Ok(Box::new(OneStep { domain, iovas, table: Vec::new(), cost }))
    };
    let guest_bytes = guest_mib << 20;
    let (copied, rounds, ours) = migrate(&domain, &emulated, guest_bytes, &two_step)?;
    let (again, same_rounds, theirs) = migrate(&domain, &emulated, guest_bytes, &one_step)?;
    assert_eq!((again, same_rounds), (copied, rounds), "the same migration");
    let told = format!(
        "{guest_mib} MiB of a guest in {rounds} rounds, {copied} dirty pages copied: every byte arrived, both ways"
    );
    Ok(Compared { told, ways: vec![("two-step", ours), ("one-step", theirs)] })
}

fn main() -> Result<(), Failure> {
    compare(argument(6))?.print();
    Ok(())
}
