//! Ports without contents: every page is mapped, followed, movable and where the library says. They cost next to nothing,
//! so that what is measured over them is the library.

use std::collections::VecDeque;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Mutex, PoisonError};

use granule::ports::{
    Count, Device, DeviceCaps, DeviceError, DeviceFault, FaultCause, FollowCount, Give, Host, HostError,
    HostEvent, Iommu, IommuError, Lookup, MapTarget, Mapped, Mirrored, Probe, StagingId, Take, Timing, Vma,
    VmaKind, WORDS_PER_PAGE, Word,
};
use granule::sync::AtomicU32;
use granule::units::{
    Access, BlockNo, DevAddr, DevMemAddr, Iova, PAGES_PER_BLOCK, PageMask, PhysAddr, SPACE_BYTES, VirtAddr,
    VirtRange,
};

/// Stands for any page's contents; nobody reads or writes it.
fn nowhere(pages: usize) -> &'static [Word] {
    static WORDS: [Word; PAGES_PER_BLOCK * WORDS_PER_PAGE] =
        [const { Word::new(0) }; PAGES_PER_BLOCK * WORDS_PER_PAGE];
    &WORDS[..pages * WORDS_PER_PAGE]
}

/// The CPU side.
#[derive(Default)]
pub struct FlatHost {
    events: Mutex<VecDeque<HostEvent>>,
}

impl FlatHost {
    /// Something for the reader.
    pub fn push(&self, event: HostEvent) {
        self.events.lock().unwrap_or_else(PoisonError::into_inner).push_back(event);
    }
}

/// What the library serves: the lower half of a 64-bit address space, as far as its table reaches.
pub fn window() -> VirtRange {
    VirtRange::between(VirtAddr(0), VirtAddr(SPACE_BYTES))
}

impl Host for FlatHost {
    fn window(&self) -> VirtRange {
        window()
    }
    fn vma(&self, _: VirtAddr) -> Result<Lookup, HostError> {
        let kind = VmaKind::Movable;
        Ok(Lookup::Mapped(Vma { range: window(), access: Some(Access::Write), kind }))
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
    fn poison(&self, _: VirtRange) -> (u64, Result<(), HostError>) {
        (0, Err(HostError::NotSupported))
    }
    fn wake(&self, _: VirtRange) {}
    fn unprotect(&self, _: VirtRange) -> Result<(), HostError> {
        Ok(())
    }
    fn staging(&self, _: &PageMask) -> Option<StagingId> {
        Some(StagingId(0))
    }
    fn staging_words(&self, _: StagingId) -> &[Word] {
        nowhere(PAGES_PER_BLOCK)
    }
    fn staging_done(&self, _: StagingId) {}
    fn drain(&self, out: &mut [HostEvent]) -> usize {
        let mut events = self.events.lock().unwrap_or_else(PoisonError::into_inner);
        let count = events.len().min(out.len());
        out.iter_mut().zip(events.drain(..count)).for_each(|(out, event)| *out = event);
        count
    }
    fn pause(&self) {}
    fn wait_word(&self, _: &AtomicU32, _: u32, _: u64) {}
    fn child_fill(&self, _: u32, _: VirtAddr, _: &[Word]) {}
    fn child_done(&self, _: u32) {}
}

/// A device of which only the size of its memory matters.
pub struct FlatDevice {
    /// In bytes, a multiple of 2 MiB.
    pub memory_bytes: u64,
}

impl Device for FlatDevice {
    fn caps(&self) -> DeviceCaps {
        let memory_bytes = self.memory_bytes;
        DeviceCaps { name: "flat", memory_bytes, driver_free: true, can_quiesce: true, links_any: true }
    }
    fn copy_in(&self, _: DevMemAddr, _: &[Word]) -> Result<(), DeviceError> {
        Ok(())
    }
    fn copy_out(&self, _: DevMemAddr, _: &[Word]) -> Result<(), DeviceError> {
        Ok(())
    }
    fn window(&self, _: DevMemAddr, bytes: u64) -> Option<&[Word]> {
        Some(nowhere(bytes as usize / (WORDS_PER_PAGE * size_of::<Word>())))
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

impl Iommu for FlatDevice {
    fn aperture(&self) -> (Iova, Iova) {
        (Iova(0), Iova((1 << 56) - 1))
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

/// Counts what the library counts, on one thread at a time.
pub struct Tally([AtomicU64; Count::ALL.len()]);

impl Default for Tally {
    fn default() -> Self {
        Self(std::array::from_fn(|_| AtomicU64::new(0)))
    }
}

impl Tally {
    /// How often.
    pub fn of(&self, what: Count) -> u64 {
        self.0[what as usize].load(Ordering::Relaxed)
    }
}

impl Probe for Tally {
    fn add(&self, what: Count, n: u64) {
        let count = &self.0[what as usize];
        count.store(count.load(Ordering::Relaxed) + n, Ordering::Relaxed);
    }
    fn time(&self, _: Timing, _: u64) {}
}
