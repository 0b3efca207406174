//! The device: page table, TLB, IOMMU and memory. One word per page is looked at.

use std::collections::BTreeMap;
use std::sync::Mutex;
use std::sync::atomic::Ordering::Relaxed;

use granule::ports::{
    Device, DeviceCaps, DeviceError, DeviceFault, FaultCause, Iommu, IommuError, MapTarget, Mapped,
    WORDS_PER_PAGE, Word,
};
use granule::units::{Access, DevAddr, DevMemAddr, Iova, PAGE_BYTES, PhysAddr};

use super::{SimHost, Sleepers, Step, page_at};

type Pages = BTreeMap<u64, (MapTarget, Access)>;

#[derive(Default)]
struct Translations {
    pages: Pages,
    /// What engines have used: good until it is flushed, whatever the page table says.
    tlb: Pages,
    iommu: BTreeMap<u64, (PhysAddr, Access)>,
    /// Engines stay away from system memory.
    quiesced: bool,
    /// So many copies to system memory, and looks through the window, fail from now on.
    failing_copies: u32,
}

pub struct SimDevice {
    translations: Mutex<Translations>,
    memory: &'static [Word],
    step: Step,
    sleepers: Sleepers,
}

/// An access that the device could not make: to be served, then made again.
#[derive(Debug, PartialEq)]
pub struct Faulted;

/// What engines sleep on while the device is quiesced.
const RESUMED: usize = 1;

const fn no(at: DevAddr) -> u64 {
    at.0 / PAGE_BYTES
}

impl SimDevice {
    pub fn new(memory: &'static [Word]) -> Self {
        Self { translations: Mutex::default(), memory, step: Step::default(), sleepers: Sleepers::default() }
    }
    fn word(&self, at: DevMemAddr) -> &Word {
        &self.memory[at.0 as usize / 8]
    }
    /// Whether the page has a translation, and where to.
    pub fn translation(&self, page: u64) -> Option<(MapTarget, Access)> {
        self.translations.lock().unwrap().pages.get(&no(page_at(page).into())).copied()
    }
    /// Lets so many copies to system memory fail; a look through the window counts as one.
    pub fn fail_copies(&self, count: u32) {
        self.translations.lock().unwrap().failing_copies = count;
    }
    fn fails(&self) -> bool {
        let failing = &mut self.translations.lock().unwrap().failing_copies;
        let fails = *failing > 0;
        *failing -= u32::from(fails);
        fails
    }
    pub fn linked_pages(&self) -> usize {
        self.translations.lock().unwrap().iommu.len()
    }
    /// Applies `change` to the page's value as one access of an engine.
    pub fn touch(
        &self,
        host: &SimHost,
        page: u64,
        access: Access,
        change: impl Fn(u64) -> u64,
    ) -> Result<u64, Faulted> {
        loop {
            if matches!(self.translation(page), Some((MapTarget::System(_), _))) {
                host.dma_step();
            }
            let mut done = None;
            self.sleepers.sleep_if(RESUMED, || {
                self.step.take();
                done = self.access(host, page, access, &change);
                done.is_none()
            });
            if let Some(done) = done {
                return done;
            }
        }
    }

    /// One try; `None` while the device is quiesced and the page is in system memory.
    fn access(
        &self,
        host: &SimHost,
        page: u64,
        access: Access,
        change: &impl Fn(u64) -> u64,
    ) -> Option<Result<u64, Faulted>> {
        let mut all = self.translations.lock().unwrap();
        let page = no(page_at(page).into());
        let cached = all.tlb.get(&page).filter(|(_, right)| right.covers(access));
        let Some((target, right)) = cached.or(all.pages.get(&page)).copied() else {
            return Some(Err(Faulted));
        };
        if !right.covers(access) {
            return Some(Err(Faulted));
        }
        all.tlb.insert(page, (target, right));
        match target {
            MapTarget::DeviceMemory(at) => {
                let old = self.word(at).load(Relaxed);
                self.word(at).store(change(old), Relaxed);
                Some(Ok(old))
            }
            MapTarget::System(_) if all.quiesced => None,
            MapTarget::System(iova) => {
                let (phys, right) = *all.iommu.get(&(iova.0 / PAGE_BYTES)).expect("DMA through nothing");
                assert!(right.covers(access), "DMA against the IOMMU's rights");
                Some(host.dma(phys, change).ok_or(Faulted))
            }
        }
    }
}

impl Device for SimDevice {
    fn caps(&self) -> DeviceCaps {
        let memory_bytes = (self.memory.len() * 8) as u64;
        DeviceCaps { name: "simulated", memory_bytes, driver_free: true, can_quiesce: true, links_any: true }
    }
    fn copy_in(&self, dst: DevMemAddr, src: &[Word]) -> Result<(), DeviceError> {
        self.step.take();
        for page in 0..src.len() / WORDS_PER_PAGE {
            self.word(dst + page as u64 * PAGE_BYTES)
                .store(src[page * WORDS_PER_PAGE].load(Relaxed), Relaxed);
        }
        Ok(())
    }
    fn copy_out(&self, src: DevMemAddr, dst: &[Word]) -> Result<(), DeviceError> {
        self.step.take();
        if self.fails() {
            return Err(DeviceError::CopyFailed);
        }
        for page in 0..dst.len() / WORDS_PER_PAGE {
            dst[page * WORDS_PER_PAGE]
                .store(self.word(src + page as u64 * PAGE_BYTES).load(Relaxed), Relaxed);
        }
        Ok(())
    }
    fn window(&self, at: DevMemAddr, bytes: u64) -> Option<&[Word]> {
        if self.fails() {
            return None;
        }
        Some(&self.memory[at.0 as usize / 8..][..bytes as usize / 8])
    }
    fn map(&self, at: DevAddr, pages: u64, target: MapTarget, access: Access) -> Result<(), DeviceError> {
        self.step.take();
        let mut translations = self.translations.lock().unwrap();
        for page in 0..pages {
            let target = match target {
                MapTarget::DeviceMemory(to) => MapTarget::DeviceMemory(to + page * PAGE_BYTES),
                MapTarget::System(to) => MapTarget::System(to + page * PAGE_BYTES),
            };
            translations.pages.insert(no(at) + page, (target, access));
        }
        Ok(())
    }
    fn unmap(&self, at: DevAddr, pages: u64) {
        self.step.take();
        let first = no(at);
        self.translations.lock().unwrap().pages.retain(|page, _| !(first..first + pages).contains(page));
    }
    fn flush(&self, at: DevAddr, pages: u64) {
        self.step.take();
        let first = no(at);
        self.translations.lock().unwrap().tlb.retain(|page, _| !(first..first + pages).contains(page));
    }
    fn quiesce(&self) {
        self.step.take();
        self.translations.lock().unwrap().quiesced = true;
    }
    fn resume(&self) {
        self.step.take();
        self.translations.lock().unwrap().quiesced = false;
        self.sleepers.wake(RESUMED);
    }
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

impl Iommu for SimDevice {
    fn aperture(&self) -> (Iova, Iova) {
        (Iova(0), Iova((1 << 40) - 1))
    }
    fn map(&self, iova: Iova, phys: PhysAddr, bytes: u64, access: Access) -> Result<(), IommuError> {
        let mut translations = self.translations.lock().unwrap();
        for page in 0..bytes / PAGE_BYTES {
            let old =
                translations.iommu.insert(iova.0 / PAGE_BYTES + page, (phys + page * PAGE_BYTES, access));
            assert!(old.is_none(), "a page is linked twice");
        }
        Ok(())
    }
    fn protect(&self, iova: Iova, bytes: u64, access: Access) -> Result<(), IommuError> {
        let mut translations = self.translations.lock().unwrap();
        for page in 0..bytes / PAGE_BYTES {
            translations.iommu.get_mut(&(iova.0 / PAGE_BYTES + page)).ok_or(IommuError::NotMapped(iova))?.1 =
                access;
        }
        Ok(())
    }
    fn unmap(&self, iova: Iova, bytes: u64) -> Result<(), IommuError> {
        let mut translations = self.translations.lock().unwrap();
        for page in 0..bytes / PAGE_BYTES {
            translations.iommu.remove(&(iova.0 / PAGE_BYTES + page)).ok_or(IommuError::NotMapped(iova))?;
        }
        Ok(())
    }
    fn mapped(&self, iova: Iova, bytes: u64) -> Option<Mapped> {
        let translations = self.translations.lock().unwrap();
        let pages = iova.0 / PAGE_BYTES..(iova.0 + bytes) / PAGE_BYTES;
        let (page, (phys, access)) = translations.iommu.range(pages).next()?;
        Some(Mapped { iova: Iova(page * PAGE_BYTES), phys: *phys, bytes: PAGE_BYTES, access: *access })
    }
    fn flush(&self, _: Iova, _: u64) {}
}
