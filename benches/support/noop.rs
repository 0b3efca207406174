//! Ports that do nothing, as fast as they can: what is left is the library's own work.

use granule::migrate::{Space, SpaceDevice};
use granule::os::FutexPark;
use granule::policy::Policy;
use granule::ports::{
    Count, Counts, Device, DeviceCaps, DeviceError, DeviceFault, FaultCause, FollowCount, Give, Host,
    HostError, HostEvent, Iommu, IommuError, Lookup, MapTarget, Mapped, Mirrored, Probe, StagingId, Take,
    Timing, Vma, VmaKind, WORDS_PER_PAGE, Word,
};
use granule::sync::AtomicU32;
use granule::units::{
    Access, BLOCK_BYTES, BlockNo, DevAddr, DevMemAddr, Iova, PAGE_BYTES, PAGES_PER_BLOCK, PageMask, PhysAddr,
    SPACE_BYTES, VirtAddr, VirtRange,
};

use super::memory::{Sizes, SpaceMemory};

/// Where the one mapping of a no-op space begins.
pub const REGION: VirtAddr = VirtAddr(1 << 40);

pub struct NoopHost {
    mapping: VirtRange,
    staging: Vec<Word>,
}

impl Host for NoopHost {
    fn window(&self) -> VirtRange {
        VirtRange::of_pages(VirtAddr(0), SPACE_BYTES / PAGE_BYTES)
    }
    fn vma(&self, _: VirtAddr) -> Result<Lookup, HostError> {
        Ok(Lookup::Mapped(Vma { range: self.mapping, access: Some(Access::Write), kind: VmaKind::Movable }))
    }
    fn mirror(&self, _: VirtRange) -> Result<Mirrored, HostError> {
        Ok(Mirrored::Already)
    }
    fn follow_count(&self) -> FollowCount {
        FollowCount(0)
    }
    fn arm(&self, _: VirtRange) -> Result<(), HostError> {
        Ok(())
    }
    fn disarm(&self, _: BlockNo) {}
    fn populate(&self, _: VirtRange, _: Access) -> Result<(), HostError> {
        Ok(())
    }
    fn take(&self, _: BlockNo, pages: &PageMask, _: StagingId) -> Take {
        Take { taken: *pages, ..Take::default() }
    }
    fn drop_taken(&self, _: BlockNo, pages: &PageMask) -> PageMask {
        *pages
    }
    fn give(&self, _: BlockNo, pages: &PageMask, _: StagingId) -> Give {
        Give::all(*pages)
    }
    fn give_words(&self, _: VirtAddr, words: &[Word]) -> (u64, Result<(), HostError>) {
        ((words.len() / WORDS_PER_PAGE) as u64, Ok(()))
    }
    fn fill_zero(&self, range: VirtRange) -> (u64, Result<(), HostError>) {
        (range.pages(), Ok(()))
    }
    fn poison(&self, range: VirtRange) -> (u64, Result<(), HostError>) {
        (range.pages(), Ok(()))
    }
    fn wake(&self, _: VirtRange) {}
    fn unprotect(&self, _: VirtRange) -> Result<(), HostError> {
        Ok(())
    }
    fn staging(&self, _: &PageMask) -> Option<StagingId> {
        Some(StagingId(0))
    }
    fn staging_words(&self, _: StagingId) -> &[Word] {
        &self.staging
    }
    fn staging_done(&self, _: StagingId) {}
    fn drain(&self, _: &mut [HostEvent]) -> usize {
        0
    }
    fn pause(&self) {}
    fn wait_word(&self, _: &AtomicU32, _: u32, _: u64) {}
    fn child_fill(&self, _: u32, _: VirtAddr, _: &[Word]) {}
    fn child_done(&self, _: u32) {}
}

pub struct NoopDevice {
    memory_bytes: u64,
}

impl Device for NoopDevice {
    fn caps(&self) -> DeviceCaps {
        DeviceCaps {
            name: "no-op",
            memory_bytes: self.memory_bytes,
            driver_free: true,
            can_quiesce: true,
            links_any: true,
        }
    }
    fn copy_in(&self, _: DevMemAddr, _: &[Word]) -> Result<(), DeviceError> {
        Ok(())
    }
    fn copy_out(&self, _: DevMemAddr, _: &[Word]) -> Result<(), DeviceError> {
        Ok(())
    }
    fn window(&self, _: DevMemAddr, _: u64) -> Option<&[Word]> {
        None
    }
    fn map(&self, _: DevAddr, _: u64, _: MapTarget, _: Access) -> Result<(), DeviceError> {
        Ok(())
    }
    fn unmap(&self, _: DevAddr, _: u64) {}
    fn flush(&self, _: DevAddr, _: u64) {}
    fn quiesce(&self) {}
    fn resume(&self) {}
    fn attach(&self) {}
    fn detach(&self) {}
    fn wait_fault(&self) {}
    fn interrupt(&self) {}
    fn fetch(&self, _: &mut [DeviceFault]) -> usize {
        0
    }
    fn replay(&self) {}
    fn cancel(&self, _: &DeviceFault, _: FaultCause) {}
    fn iommu(&self) -> &dyn Iommu {
        self
    }
}

impl Iommu for NoopDevice {
    fn aperture(&self) -> (Iova, Iova) {
        (Iova(0), Iova((1 << 47) - 1))
    }
    fn map(&self, _: Iova, _: PhysAddr, _: u64, _: Access) -> Result<(), IommuError> {
        Ok(())
    }
    fn protect(&self, _: Iova, _: u64, _: Access) -> Result<(), IommuError> {
        Ok(())
    }
    fn unmap(&self, _: Iova, _: u64) -> Result<(), IommuError> {
        Ok(())
    }
    fn mapped(&self, _: Iova, _: u64) -> Option<Mapped> {
        None
    }
    fn flush(&self, _: Iova, _: u64) {}
}

/// Counts as the service does.
#[derive(Default)]
pub struct AtomicProbe(Counts);

impl AtomicProbe {
    pub fn count(&self, what: Count) -> u64 {
        self.0.get(what)
    }
}

impl Probe for AtomicProbe {
    fn add(&self, what: Count, n: u64) {
        self.0.add(what, n);
    }
    fn time(&self, _: Timing, _: u64) {}
}

/// What a space over no-op ports borrows from.
pub struct NoopMemory {
    host: NoopHost,
    device: NoopDevice,
    memory: SpaceMemory,
    blocks: u64,
}

pub type NoopSpace<'m> = Space<'m, NoopHost>;

impl NoopMemory {
    /// For a mapping of `blocks` blocks from [`REGION`] on, a device with memory for all of it, and `seats` threads.
    pub fn new(blocks: usize, seats: usize) -> Self {
        let device = NoopDevice { memory_bytes: blocks as u64 * BLOCK_BYTES };
        let sizes = Sizes {
            level1: 512,
            nodes: 4,
            granules: blocks / 256 + 2,
            blocks,
            fine: blocks,
            seats,
            userptrs: 64,
        };
        let memory = SpaceMemory::new(sizes, &device);
        let host = NoopHost {
            mapping: VirtRange::of_pages(REGION, (blocks * PAGES_PER_BLOCK) as u64),
            staging: (0..PAGES_PER_BLOCK * WORDS_PER_PAGE).map(|_| Word::new(0)).collect(),
        };
        Self { host, device, memory, blocks: blocks as u64 }
    }

    /// The whole mapping.
    pub fn range(&self) -> VirtRange {
        VirtRange::of_pages(REGION, self.blocks * PAGES_PER_BLOCK as u64)
    }

    pub fn device(&self) -> SpaceDevice<'_> {
        self.memory.device(&self.device)
    }

    pub fn space<'m>(
        &'m self,
        devices: &'m [SpaceDevice<'m>],
        policy: &'m dyn Policy,
        probe: &'m dyn Probe,
    ) -> NoopSpace<'m> {
        self.memory.space(&self.host, &FutexPark, devices, policy, probe)
    }
}

/// One fault per 64 KiB over the blocks from `first` on, `per_block` in each, every fourth of them a write; in an order
/// that jumps between blocks, as faults of many engines do.
pub fn spread_faults(first: usize, blocks: usize, per_block: usize) -> Vec<DeviceFault> {
    let all = blocks * per_block;
    // Odd, so that it meets every place of a power of two once.
    let step = 0x9E37_79B1usize;
    assert!(all.is_power_of_two(), "the jumps meet every place of a power of two");
    (0..all)
        .map(|at| {
            let place = at.wrapping_mul(step) % all;
            let (block, unit) = (first + place / per_block, place % per_block);
            let at_bytes =
                REGION.0 + block as u64 * BLOCK_BYTES + unit as u64 * (64 << 10) + 8 * place as u64 % 4096;
            DeviceFault {
                at: DevAddr(at_bytes),
                access: if place.is_multiple_of(4) { Access::Write } else { Access::Read },
                engine: 0,
                cookie: place as u64,
            }
        })
        .collect()
}
