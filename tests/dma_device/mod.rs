//! What tests of DMA through the software device share: memory that stays, devices, and both in one line.
#![allow(dead_code, unused_imports, reason = "each test binary uses the part that it needs")]

pub use granule::os::SharedIova as Iovas;
use granule::os::private::PrivateBytes;
use granule::ports::Iommu;
use granule::sync::Ordering;
use granule::units::{Access, Iova, PAGE_BYTES, Pasid, PhysAddr, PhysRange};
use granule_backends::software::{AccessError, Builder, DmaRefused, IommuDomain, SoftwareDevice};

pub const RW: Access = Access::Write;
pub const PLAIN: Pasid = Pasid(0);
pub const MIB: u64 = 1 << 20;

/// Memory of the process that stays mapped and is never taken, aligned to 2 MiB.
pub struct Memory(pub PrivateBytes);

impl Memory {
    pub fn new(pages: u64) -> Self {
        Self(PrivateBytes::aligned(pages * PAGE_BYTES, 2 * MIB).expect("memory"))
    }
    /// The physical address of a page.
    pub fn phys(&self, page: u64) -> PhysAddr {
        PhysAddr(self.0.base().0 + page * PAGE_BYTES)
    }
    /// Fills every word of a page.
    pub fn fill(&self, page: u64, value: u64) {
        let words = &self.0.as_words()[page as usize * 512..][..512];
        words.iter().for_each(|word| word.store(value, Ordering::SeqCst));
    }
    /// One word of a page.
    pub fn word(&self, page: u64, word: usize) -> u64 {
        self.0.as_words()[page as usize * 512 + word].load(Ordering::SeqCst)
    }
}

pub fn builder() -> Builder {
    SoftwareDevice::builder().memory_bytes(2 * MIB).engines(1)
}

pub fn in_domain(domain: &IommuDomain) -> SoftwareDevice {
    builder().iommu_domain(domain).pasid_bits(16).build().expect("a device")
}

pub fn domain() -> IommuDomain {
    IommuDomain::builder().table_bytes(4 * MIB).build().expect("a domain")
}

/// 8 bytes that a device reads by DMA.
pub fn read_as(device: &SoftwareDevice, pasid: Pasid, at: Iova) -> Result<u64, DmaRefused> {
    let mut bytes = [0; 8];
    device.dma_read(pasid, at, &mut bytes).map(|()| u64::from_le_bytes(bytes)).map_err(refused)
}

pub fn read(device: &SoftwareDevice, at: Iova) -> Result<u64, DmaRefused> {
    read_as(device, PLAIN, at)
}

/// 8 bytes that a device writes by DMA.
pub fn write_as(device: &SoftwareDevice, pasid: Pasid, at: Iova, value: u64) -> Result<(), DmaRefused> {
    device.dma_write(pasid, at, &value.to_le_bytes()).map_err(refused)
}

pub fn write(device: &SoftwareDevice, at: Iova, value: u64) -> Result<(), DmaRefused> {
    write_as(device, PLAIN, at, value)
}

pub fn refused(error: AccessError) -> DmaRefused {
    match error {
        AccessError::Dma(refused) => refused,
        other => panic!("DMA is refused as such, not as {other:?}"),
    }
}

pub fn unlink(iommu: &dyn Iommu, at: Iova, bytes: u64) {
    iommu.unmap(at, bytes).expect("it is mapped");
    iommu.flush(at, bytes);
}

impl Memory {
    /// Whole pages as a physical range.
    pub fn range(&self, page: u64, pages: u64) -> PhysRange {
        PhysRange::new(self.phys(page), pages * PAGE_BYTES)
    }
    /// A part of the memory, byte-exact.
    pub fn part(&self, from: u64, bytes: u64) -> PhysRange {
        PhysRange::new(self.phys(0) + from, bytes)
    }
}
