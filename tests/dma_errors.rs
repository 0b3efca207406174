//! Every variant of every error of the DMA layer is produced here, by the code that returns it, and compared with the
//! variants that the sources have: one that nothing produces fails this test. When each comes is the matter of the other
//! tests.
#![cfg(not(granule_loom))]

mod dma_device;
mod dma_support;

use std::collections::BTreeSet;
use std::fmt::Debug;
use std::path::Path;

use dma_device::{Memory, builder, read, read_as, write};
use dma_support::{BOUNCE, Machine, PAGE, Pins, WINDOW, WINDOW_BYTES, mem, plain, with_domain};
use granule::dma::convert::{
    ConvertError, NvmeError, NvmeSgl, PrpList, iovecs, prp, sgl, sparse_binds, vfio_maps,
};
use granule::dma::{
    Attributes, DmaError, DmaRange, Domain, IovaRequest, IovaSpace, P2pKind, PasidSpace, SegmentError,
    SegmentLimits, Topology, pin, segments,
};
use granule::ports::{
    AttachError, BounceFault, BounceMemory, Iommu, IommuCaps, IommuError, PasidDevice, PeerWindow,
};
use granule::sync::{AtomicU64, SpinPark};
use granule::units::{Access, BusAddr, Iova, PAGE_BYTES, Pasid, PeerNo, PhysAddr, PhysRange, VirtAddr};
use granule_backends::software::{BouncePages, IommuDomain, ProcessPins, SoftwareDevice, SpaceError};

const BOTH: Attributes = Attributes::BOTH;

/// The errors that are counted, and where they are written down.
const ENUMS: [(&str, &str); 12] = [
    ("src/dma/error.rs", "DmaError"),
    ("src/dma/iova_error.rs", "IovaError"),
    ("src/dma/pasid.rs", "PasidError"),
    ("src/dma/p2p.rs", "TopologyError"),
    ("src/dma/segments.rs", "SegmentError"),
    ("src/dma/convert/mod.rs", "ConvertError"),
    ("src/dma/convert/nvme.rs", "NvmeError"),
    ("src/ports/iommu.rs", "IommuError"),
    ("src/ports/pasid_port.rs", "AttachError"),
    ("src/ports/pin_memory.rs", "PinError"),
    ("gpu-backends/src/software/dma.rs", "DmaRefused"),
    ("gpu-backends/src/software/space.rs", "SpaceError"),
];

/// The names of what was produced, such as `PinError::OverLimit`.
#[derive(Default)]
struct Seen(BTreeSet<String>);

impl Seen {
    /// Notes the error of a call that has to fail.
    #[track_caller]
    fn fails<T: Debug, E: Debug>(&mut self, result: Result<T, E>) {
        let error = result.expect_err("this call is refused");
        let text = format!("{error:?}");
        let variant: String = text.chars().take_while(|c| c.is_alphanumeric()).collect();
        let name = std::any::type_name::<E>().rsplit("::").next().unwrap_or_default();
        self.0.insert(format!("{name}::{variant}"));
    }
}

/// The variants of an enum in a source text.
fn variants(text: &str, name: &str) -> Vec<String> {
    let start = text.find(&format!("pub enum {name} {{")).expect("the enum is there");
    let body = &text[start..];
    let body = &body[body.find('{').expect("it has a body") + 1..body.find("\n}").expect("it ends")];
    let at_top = |line: &&str| line.starts_with("    ") && !line.starts_with("     ");
    let names =
        body.lines().filter(at_top).map(str::trim).filter(|line| line.starts_with(char::is_uppercase));
    names.map(|line| line.chars().take_while(|c| c.is_alphanumeric()).collect()).collect()
}

#[test]
fn every_variant_of_every_error_is_produced() {
    let mut seen = Seen::default();
    reservations_and_links(&mut seen);
    kinds_of_devices(&mut seen);
    peers(&mut seen);
    pasids(&mut seen);
    ranges(&mut seen);
    pins_and_bounces(&mut seen);
    the_emulated_iommu(&mut seen);
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let mut known = BTreeSet::new();
    for (path, name) in ENUMS {
        let text = std::fs::read_to_string(root.join(path)).expect("a source can be read");
        let names = variants(&text, name);
        assert!(names.len() > 1, "{name} in {path} has variants");
        known.extend(names.into_iter().map(|variant| format!("{name}::{variant}")));
    }
    let missing: Vec<_> = known.difference(&seen.0).collect();
    assert!(missing.is_empty(), "no test produces {missing:?}");
    let unknown: Vec<_> = seen.0.difference(&known).collect();
    assert!(unknown.is_empty(), "produced, but in no list of enums: {unknown:?}");
    assert!(known.len() > 75, "only {} variants were found", known.len());
}

/// No error of this crate's DMA part is left out of the list above.
#[test]
fn every_error_enum_of_the_dma_part_is_counted() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let mut folders = vec![root.join("src/dma")];
    while let Some(folder) = folders.pop() {
        for entry in std::fs::read_dir(folder).expect("the sources are there").flatten() {
            let path = entry.path();
            if path.is_dir() {
                folders.push(path);
                continue;
            }
            let text = std::fs::read_to_string(&path).expect("a source can be read");
            for name in text.lines().filter_map(|line| line.strip_prefix("pub enum ")) {
                let name: String = name.chars().take_while(|c| c.is_alphanumeric()).collect();
                let is_counted = ENUMS.iter().any(|(_, counted)| *counted == name);
                assert!(
                    is_counted || !name.ends_with("Error"),
                    "{name} in {} is not counted",
                    path.display()
                );
            }
        }
    }
}

fn reservations_and_links(seen: &mut Seen) {
    let mut space = IovaSpace::new((Iova(0), Iova((1 << 30) - 1)), &[]);
    seen.fails(space.reserve(1, PAGE));
    seen.fails(space.reserve(PAGE, 3));
    seen.fails(space.reserve(1 << 40, PAGE));
    seen.fails(space.reserve_for(&IovaRequest { last: Iova(0), ..IovaRequest::anywhere(PAGE, PAGE) }));
    seen.fails(space.free(Iova(PAGE), PAGE));

    let (machine, other_machine) = (Machine::new(), Machine::new());
    plain(&machine, |domain| {
        let at = domain.reserve(8 * PAGE, PAGE).unwrap();
        seen.fails(domain.reserve(0, PAGE));
        seen.fails(domain.link(&at, 0, [], BOTH));
        let high = PhysRange::new(PhysAddr(u64::MAX - 10), 100);
        seen.fails(domain.link(&at, 0, [high], BOTH));
        seen.fails(domain.link(&at, 0, [mem(0, 100), mem(2, PAGE)], BOTH));
        seen.fails(domain.link(&at, 4, [mem(0, 100)], BOTH));
        seen.fails(domain.link(&at, 8 * PAGE, [mem(0, PAGE)], BOTH));
        plain(&other_machine, |other| seen.fails(other.link(&at, 0, [mem(0, PAGE)], BOTH)));
        let span = domain.link(&at, 0, [mem(0, PAGE)], BOTH).unwrap();
        domain.sync(span).unwrap();
        seen.fails(domain.link(&at, 0, [mem(0, PAGE)], BOTH));
        seen.fails(domain.unlink(&at, PAGE, PAGE, BOTH));
        let (at, error) = domain.free(at).expect_err("a page is linked");
        seen.fails::<(), DmaError>(Err(error));
        seen.fails(domain.unmap(DmaRange { addr: at.base(), len: 4096, flags: 0 }, BOTH));
        machine.set_room(1);
        seen.fails(domain.map(mem(0, PAGE), BOTH));
        machine.set_room(usize::MAX);
        domain.destroy(at, BOTH).unwrap();
    });
    seen.fails(Domain::direct(0).build().reserve(PAGE, PAGE));
    let mut machine = Machine::new();
    machine.windows.clear();
    let iovas = dma_support::Iovas::of(&machine);
    machine.aperture = (Iova(0), Iova((1 << 30) - 1));
    let domain = Domain::builder(&machine, &iovas).build();
    let at = domain.reserve(512 << 20, PAGE).unwrap();
    seen.fails(domain.link(&at, 0, [mem(0, PAGE)], BOTH));
    domain.free(at).unwrap();
}

fn kinds_of_devices(seen: &mut Seen) {
    let mut machine = Machine::new();
    machine.caps = IommuCaps { page_bytes: 4 * PAGE, can_replace: false, ..machine.caps };
    plain(&machine, |domain| {
        let at = domain.reserve(4 * PAGE, PAGE).unwrap();
        seen.fails(domain.replace(&at, 0, [mem(0, 4 * PAGE)], BOTH));
        seen.fails(domain.page_list(&at, &[AtomicU64::new(0)]));
        domain.free(at).unwrap();
    });
    let mut machine = Machine::new();
    machine.caches = true;
    with_domain(
        &machine,
        |builder, machine| builder.cache(machine).untrusted().bounce(machine),
        |domain| {
            let at = domain.reserve(64 * PAGE, PAGE).unwrap();
            seen.fails(domain.link(&at, 0, [mem(0, PAGE)], BOTH.require_coherent()));
            seen.fails(domain.link(&at, 0, [mem(0, 8)], BOTH.mmio()));
            seen.fails(domain.link(&at, 0, [mem(0, PAGE).with(PhysRange::MMIO)], BOTH));
            machine.set_gone(true);
            seen.fails(domain.link(&at, 0, [mem(0, 8)], BOTH));
            machine.set_gone(false);
            for page in 0..BOUNCE {
                let span = domain.link(&at, page * PAGE, [mem(page, 8)], BOTH).unwrap();
                domain.sync(span).unwrap();
            }
            seen.fails(domain.link(&at, 20 * PAGE, [mem(20, 8)], BOTH));
            domain.destroy(at, BOTH).unwrap();
        },
    );
    let machine = Machine::new();
    with_domain(
        &machine,
        |builder, machine| builder.untrusted().bounce(machine),
        |domain| {
            let at = domain.reserve(8 * PAGE, PAGE).unwrap();
            let span = domain.link(&at, 0, [mem(0, 8)], BOTH).unwrap();
            domain.sync(span).unwrap();
            seen.fails(domain.link(&at, PAGE, [mem(1, PAGE)], BOTH.require_coherent()));
            domain.destroy(at, BOTH).unwrap();
        },
    );
    seen.fails(Domain::direct(0).last(Iova(PAGE - 1)).build().map(mem(0, PAGE), BOTH));
}

fn peers(seen: &mut Seen) {
    let machine = Machine::new();
    let window = PeerWindow { phys: PhysAddr(WINDOW), bus: BusAddr(1 << 40), bytes: WINDOW_BYTES };
    with_domain(
        &machine,
        |builder, _| {
            let builder = builder.peer(PeerNo(1), window, P2pKind::BusAddress);
            builder.peer(PeerNo(2), window, P2pKind::NotSupported)
        },
        |domain| {
            let page = PhysRange::new(PhysAddr(WINDOW), PAGE);
            let at = domain.reserve(PAGE, PAGE).unwrap();
            seen.fails(domain.map(page.of_peer(PeerNo(9)), BOTH));
            seen.fails(domain.map(mem(0, PAGE).of_peer(PeerNo(1)), BOTH));
            seen.fails(domain.map(page.of_peer(PeerNo(2)), BOTH));
            seen.fails(domain.link(&at, 0, [page.of_peer(PeerNo(1))], BOTH));
            domain.free(at).unwrap();
        },
    );
    let mut topology = Topology::new();
    let bridge = topology.host_bridge();
    let device = topology.device(bridge).unwrap();
    seen.fails(topology.device(device));
    seen.fails(topology.passes(bridge, device));
}

fn pasids(seen: &mut Seen) {
    let park = SpinPark;
    let space = PasidSpace::new(Pasid(20), &park);
    let domain = Domain::direct(0).pasids(&space).build();
    let machine = |key, bits| {
        let mut machine = Machine::new();
        (machine.key, machine.pasid_bits) = (key, bits);
        machine
    };
    let devices: Vec<Machine> = (1..18).map(|key| machine(key, 20)).collect();
    seen.fails(domain.dma_pasid(&machine(90, 0)));
    plain(&Machine::new(), |none| seen.fails(none.dma_pasid(&devices[0])));
    devices[0].set_attach(Err(AttachError::Resetting));
    seen.fails(domain.dma_pasid(&devices[0]));
    devices[0].set_attach(Ok(()));
    let held: Vec<Pasid> = (0..4).map(|_| space.take(20).unwrap()).collect();
    seen.fails(space.take(2));
    let narrow = machine(91, 2);
    let users: Vec<_> = devices[..16].iter().map(|device| domain.dma_pasid(device).unwrap()).collect();
    seen.fails(domain.dma_pasid(&narrow));
    seen.fails(domain.dma_pasid(&devices[16]));
    drop(users);
    held.into_iter().for_each(|pasid| space.give_back(pasid));

    // What the layer below says, by a device.
    let device = builder().memory_bytes(8 << 20).pasid_bits(4).space_memory_bytes(4 << 20).build().unwrap();
    device.attach_pasid(Pasid(1)).unwrap();
    seen.fails(device.attach_pasid(Pasid(1)));
    seen.fails(device.attach_pasid(Pasid(16)));
    seen.fails(device.address_space(Pasid(1), 2 << 20).map(drop));
    seen.fails(device.address_space(Pasid(2), 1).map(drop));
    device.lose();
    seen.fails(device.attach_pasid(Pasid(3)));
}

fn ranges(seen: &mut Seen) {
    seen.fails(SegmentLimits::new(0, 0, 1));
    seen.fails(SegmentLimits::new(1, 3, 1));
    seen.fails(SegmentLimits::new(1, 0, 0));
    let all = |ranges: &[PhysRange], count| {
        let limits = SegmentLimits::new(PAGE, 0, count).unwrap();
        segments(ranges.iter().copied(), limits).collect::<Result<Vec<_>, SegmentError>>()
    };
    let wraps = PhysRange::new(PhysAddr(u64::MAX), 2);
    seen.fails(all(&[wraps], 1));
    seen.fails(all(&[mem(0, PAGE), mem(2, PAGE)], 1));

    seen.fails(iovecs([wraps]).collect::<Result<Vec<_>, ConvertError>>());
    seen.fails(vfio_maps(Iova(u64::MAX), [mem(0, PAGE)], Access::Read).collect::<Result<Vec<_>, _>>());
    let dma = |addr, len| DmaRange { addr: Iova(addr), len, flags: 0 };
    seen.fails(sparse_binds(0, 1, PAGE, [dma(0, 8)]).collect::<Result<Vec<_>, _>>());

    let mut list = [0u64; 512];
    let mut try_prp = |ranges: &[DmaRange], page, at: &[Iova]| -> Result<_, NvmeError> {
        let entries = &mut list[..512 * at.len().min(1)];
        prp(ranges.iter().copied(), page, PrpList { entries, pages: at })
    };
    seen.fails(try_prp(&[], PAGE, &[]));
    seen.fails(try_prp(&[dma(0, 8)], 5, &[]));
    seen.fails(try_prp(&[dma(0, 8), dma(PAGE, 8)], PAGE, &[]));
    seen.fails(try_prp(&[dma(1, 8)], PAGE, &[]));
    seen.fails(try_prp(&[dma(u64::MAX - 3, 8)], PAGE, &[]));
    seen.fails(try_prp(&[dma(0, 3 << 12)], PAGE, &[Iova(8)]));
    seen.fails(try_prp(&[dma(0, 3 << 12)], PAGE, &[Iova(0), Iova(PAGE)]));
    seen.fails(sgl([dma(0, 8), dma(PAGE, 8)], &mut [NvmeSgl::default()], Iova(0)));
}

fn pins_and_bounces(seen: &mut Seen) {
    let pins = ProcessPins::new();
    seen.fails(pin(&pins, VirtAddr(PAGE), 0, Access::Read));
    seen.fails(pin(&pins, VirtAddr(PAGE), 8, Access::Read));
    let pins = Pins { memory_pages: Some(3), limit_bytes: Some(4 * PAGE), ..Pins::default() };
    seen.fails(pin(&pins, VirtAddr(0), 4 * PAGE, Access::Read));
    let held = pin(&pins, VirtAddr(0), 3 * PAGE, Access::Read).unwrap();
    seen.fails(pin(&pins, VirtAddr(0), 2 * PAGE, Access::Read));
    drop(held);
    // The one error that is no enum.
    let pages = BouncePages::new(1, PAGE_BYTES).unwrap();
    assert_eq!(pages.copy_in(0, 0, PhysAddr(PAGE), 8), Err(BounceFault(PhysAddr(PAGE))));
}

/// An IOMMU whose hardware has no way to exchange an entry, and whose devices reach the first GiB of memory only.
struct Plain(IommuDomain);

impl Iommu for Plain {
    fn aperture(&self) -> (Iova, Iova) {
        self.0.iommu().aperture()
    }
    fn map(&self, iova: Iova, phys: PhysAddr, bytes: u64, access: Access) -> Result<(), IommuError> {
        if phys.0 + bytes > 1 << 30 {
            return Err(IommuError::NotReachable(phys));
        }
        self.0.iommu().map(iova, phys, bytes, access)
    }
    fn protect(&self, iova: Iova, bytes: u64, access: Access) -> Result<(), IommuError> {
        self.0.iommu().protect(iova, bytes, access)
    }
    fn unmap(&self, iova: Iova, bytes: u64) -> Result<(), IommuError> {
        self.0.iommu().unmap(iova, bytes)
    }
    fn mapped(&self, iova: Iova, bytes: u64) -> Option<granule::ports::Mapped> {
        self.0.iommu().mapped(iova, bytes)
    }
    fn flush(&self, iova: Iova, bytes: u64) {
        self.0.iommu().flush(iova, bytes);
    }
}

fn the_emulated_iommu(seen: &mut Seen) {
    let at = Iova(1 << 30);
    let small = IommuDomain::builder().table_bytes(64 << 10).build().unwrap();
    let (iommu, memory) = (small.iommu(), Memory::new(1));
    iommu.map(at, memory.phys(0), PAGE, Access::Read).unwrap();
    seen.fails(iommu.map(at, memory.phys(0), PAGE, Access::Read));
    seen.fails(iommu.unmap(at + PAGE, PAGE));
    seen.fails(iommu.map(Iova(u64::MAX - PAGE + 1), memory.phys(0), PAGE, Access::Read));
    seen.fails((1..64).try_for_each(|n| iommu.map(Iova(n << 40), memory.phys(0), PAGE, Access::Read)));
    let plain = Plain(small.clone());
    seen.fails(plain.replace(at, memory.phys(0), PAGE, Access::Read));
    seen.fails(plain.map(at, memory.phys(0), PAGE, Access::Read));
    let iovas = dma_device::Iovas::of(&plain);
    seen.fails(Domain::builder(&plain, &iovas).build().map(memory.range(0, 1), BOTH));

    let device = builder().iommu_domain(&small).pasid_bits(4).dma_last(at + 4 * PAGE).build().unwrap();
    seen.fails(read(&device, at + PAGE));
    seen.fails(write(&device, at, 1));
    seen.fails(read(&device, at + 5 * PAGE));
    seen.fails(read(&device, Iova(u64::MAX - 3)));
    seen.fails(read_as(&device, Pasid(3), at));
    iommu.unmap(at, PAGE).unwrap();
    iommu.map(at, PhysAddr(PAGE), PAGE, Access::Read).unwrap();
    iommu.flush(at, PAGE);
    seen.fails(read(&device, at));
    let tagged = builder().pasid_bits(4).tagged_dma_only().build().unwrap();
    seen.fails(read(&tagged, at));
    // Spaces with tables as large as can be had at all: soon there is no room for another one's.
    let device = (28..40).rev().find_map(|log| {
        let builder = builder().memory_bytes(64 << 20).space_memory_bytes(62 << 20).pasid_bits(6);
        builder.table_bytes(1 << log).build().ok()
    });
    let device: SoftwareDevice = device.expect("tables of 256 MiB can be had");
    let mut spaces = Vec::new();
    seen.fails((1..30).try_for_each(|pasid| {
        spaces.push(device.address_space(Pasid(pasid), 2 << 20)?);
        Ok::<(), SpaceError>(())
    }));
}
