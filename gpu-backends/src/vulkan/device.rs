//! The device as the library sees it. Nothing in the implementation of [`Device`] calls the driver, but for `admit` and
//! `dismiss`, which threads of the program call: everything that it touches is [`Inner`], in private memory.
#![allow(unsafe_code, reason = "copies between device memory and memory of the library")]

use std::sync::Arc;

use granule::os::private::PrivateArc;
use granule::ports::{Device, DeviceCaps, DeviceError, DeviceFault, FaultCause, Iommu, MapTarget, Word};
use granule::sync::{AtomicU32, AtomicU64, Ordering};
use granule::units::{Access, DevAddr, DevMemAddr, PAGE_BYTES, SPACE_BYTES, VirtAddr, VirtRange};

use super::builder::Builder;
use super::control::Control;
use super::driver::Driver;
use super::error::VulkanError;
use super::faults::FaultQueue;
use super::info::{DeviceInfo, Mode};
use super::kernel::Kernel;
use super::pool::HostView;
use super::residency::Residency;

use super::views::Views;
use super::windows::{Closing, Windows};
use crate::software::page_table::{Found, PageTable};

/// A Vulkan device. Handles are clones of one another.
#[derive(Clone)]
pub struct VulkanDevice {
    // Declared first: the driver lets go of private memory before the memory goes.
    pub(super) driver: Arc<Driver>,
    pub(super) inner: PrivateArc<Inner>,
    /// Where shaders find the control memory.
    pub(super) control: u64,
}

/// All state that is reached by the calls of [`Device`].
pub(super) struct Inner {
    pub(super) closing: Closing,
    pub(super) control: Control,
    pub(super) memory: HostView,
    /// Sparse mode only.
    pub(super) residency: Option<Residency>,
    pub(super) table: PageTable,
    pub(super) iommu: PageTable,
    pub(super) views: Views,
    pub(super) faults: FaultQueue,
    pub(super) lost: AtomicU32,
    /// Test switch: promises that are not kept, as bits of [`Broken`].
    pub(super) broken: AtomicU32,
    pub(super) pages_in: AtomicU64,
    pub(super) pages_out: AtomicU64,
}

/// A promise that a test has a device break.
#[doc(hidden)]
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[repr(u32)]
pub enum Broken {
    /// `flush` waits for nobody.
    Flush = 1,
    /// `quiesce` and `resume` do nothing.
    Quiesce = 2,
}

/// What a device did since it was made.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Counters {
    /// Faults that launches announced.
    pub faults: u64,
    /// Of these, cancelled by the service.
    pub faults_cancelled: u64,
    /// Pages copied into device memory.
    pub pages_in: u64,
    /// Pages copied out of device memory.
    pub pages_out: u64,
    /// Bytes of memory that the device page table occupies.
    pub table_bytes: u64,
    /// Bytes of memory that the table of linked pages occupies.
    pub iommu_table_bytes: u64,
    /// Sparse mode: pages that shaders may reach directly now.
    pub direct_pages: u64,
    /// Sparse mode: units of memory that were bound so far.
    pub binds: u64,
    /// Sparse mode: runs that are bound now.
    pub bound_runs: u64,
}

impl Inner {
    pub(super) fn windows(&self) -> Windows<'_> {
        Windows(&self.closing, &self.control)
    }
    pub(super) fn memory_bytes(&self) -> u64 {
        self.memory.bytes()
    }
    fn keeps(&self, promise: Broken) -> bool {
        self.broken.load(Ordering::Relaxed) & promise as u32 == 0
    }
    pub(super) fn is_lost(&self) -> bool {
        self.lost.load(Ordering::SeqCst) != 0
    }

    fn words(&self, at: DevMemAddr, bytes: u64) -> Option<&[Word]> {
        let end = at.0.checked_add(bytes).filter(|&end| end <= self.memory_bytes())?;
        assert!(at.0.is_multiple_of(8) && bytes.is_multiple_of(8), "a window consists of words");
        Some(&self.memory.as_words()[at.0 as usize / 8..end as usize / 8])
    }

    /// The part of device memory that a copy of `words` at `at` means.
    fn pages(&self, at: DevMemAddr, words: &[Word]) -> &[Word] {
        let bytes = size_of_val(words) as u64;
        assert!(
            at.is_page_aligned() && bytes.is_multiple_of(PAGE_BYTES),
            "copies to and from a device are whole pages"
        );
        self.words(at, bytes).expect("a copy ends inside of device memory")
    }
}

/// Copies words. Nobody else touches either side meanwhile: the state machine's promise.
fn copy(to: &[Word], from: &[Word]) {
    assert_eq!(to.len(), from.len());
    // SAFETY: two disjoint mappings of equal length (private memory of the library and of the device), kept by whoever
    // lent the slices; words are interior mutable, and the state machine keeps everybody else away.
    unsafe { core::ptr::copy_nonoverlapping(from.as_ptr(), to.as_ptr().cast_mut(), to.len()) };
}

impl VulkanDevice {
    /// Settings for a device.
    pub fn builder() -> Builder {
        Builder::default()
    }

    /// How shaders reach device memory.
    pub fn mode(&self) -> Mode {
        if self.inner.residency.is_some() { Mode::Sparse } else { Mode::Translation }
    }

    /// What it is.
    pub fn info(&self) -> &DeviceInfo {
        &self.driver.found.info
    }

    /// Makes a kernel from SPIR-V: a compute shader that includes `granule.glsl`, with a literal `local_size_x`.
    ///
    /// # Errors
    /// [`VulkanError`].
    pub fn kernel(&self, code: &[u8]) -> Result<Kernel, VulkanError> {
        Kernel::new(&self.driver, code)
    }

    /// Lets the device link private memory: imports it. Address and length are multiples of 4096.
    ///
    /// # Errors
    /// [`VulkanError`]; the device reaches nothing of it then.
    ///
    /// # Safety
    /// The range lies in private memory ([`granule::os::private`]) and stays mapped until no launch reaches it any
    /// more, through no link.
    pub unsafe fn import(&self, memory: VirtRange) -> Result<(), VulkanError> {
        self.import_view(memory, memory.start())
    }

    /// Imports a view and enters it for the memory that it shows.
    fn import_view(&self, memory: VirtRange, view: VirtAddr) -> Result<(), VulkanError> {
        let import = self.driver.import(view.0, memory.bytes())?;
        if self.inner.views.add(memory.start().0, memory.bytes(), import.address) {
            self.driver.keep_import(import);
            return Ok(());
        }
        self.driver.forget(import);
        Err(VulkanError::TooManyViews)
    }

    /// What the validation layer said so far; nothing without [`Builder::validate`].
    pub fn validation_messages(&self) -> Vec<String> {
        self.driver.messages()
    }

    /// What it did so far. Counts the resident pages of its tables, so do not call it in a loop.
    pub fn counters(&self) -> Counters {
        let inner = &*self.inner;
        let (binds, bound_runs) = self.driver.bind_counts();
        let direct = inner.residency.as_ref().map_or(0, |sparse| sparse.direct.load(Ordering::Relaxed));
        Counters {
            direct_pages: direct,
            binds,
            bound_runs,
            faults: inner.faults.recorded.load(Ordering::Relaxed),
            faults_cancelled: inner.faults.cancelled.load(Ordering::Relaxed),
            pages_in: inner.pages_in.load(Ordering::Relaxed),
            pages_out: inner.pages_out.load(Ordering::Relaxed),
            table_bytes: inner.table.resident_bytes(),
            iommu_table_bytes: inner.iommu.resident_bytes(),
        }
    }

    /// Where in device memory a device address leads; `None` if it leads to system memory or nowhere. True at the
    /// moment of the call only.
    pub fn place(&self, at: DevAddr) -> Option<DevMemAddr> {
        match self.inner.table.find(at.0) {
            Found::Leaf(leaf) if !leaf.system => Some(DevMemAddr(leaf.target + (at.0 - leaf.base))),
            Found::Leaf(_) | Found::Hole(_) => None,
        }
    }

    /// Turns one bit of a byte of device memory over. For tests of tests.
    ///
    /// Asserts that the address lies in device memory.
    pub fn flip_byte(&self, at: DevMemAddr) {
        let word = self.inner.words(DevMemAddr(at.0 & !7), 8).expect("an address in device memory");
        word[0].fetch_xor(0x10 << (at.0 % 8 * 8), Ordering::SeqCst);
    }

    /// Breaks a promise from now on, so that a test can show that somebody notices.
    #[doc(hidden)]
    pub fn break_promise(&self, promise: Broken) {
        self.inner.broken.fetch_or(promise as u32, Ordering::SeqCst);
    }

    /// Loses every third fault from now on, so that a test can show that somebody notices.
    #[doc(hidden)]
    pub fn lose_faults(&self) {
        self.inner.faults.drop_every.store(3, Ordering::SeqCst);
    }
}

fn check(at: DevAddr, pages: u64) -> u64 {
    let bytes = pages.checked_mul(PAGE_BYTES).expect("a page count fits in bytes");
    assert!(at.is_page_aligned() && pages > 0, "a device maps whole pages, at least one");
    assert!(
        at.0.checked_add(bytes).is_some_and(|end| end <= SPACE_BYTES),
        "a device address has 47 bits; check ranges before they come here"
    );
    bytes
}

impl Device for VulkanDevice {
    fn caps(&self) -> DeviceCaps {
        DeviceCaps {
            name: "vulkan",
            memory_bytes: self.inner.memory_bytes(),
            driver_free: true,
            can_quiesce: true,
            links_any: false,
        }
    }

    fn copy_in(&self, dst: DevMemAddr, src: &[Word]) -> Result<(), DeviceError> {
        if self.inner.is_lost() {
            return Err(DeviceError::Lost);
        }
        let to = self.inner.pages(dst, src);
        copy(to, src);
        self.inner.pages_in.fetch_add(size_of_val(src) as u64 / PAGE_BYTES, Ordering::Relaxed);
        Ok(())
    }

    fn copy_out(&self, src: DevMemAddr, dst: &[Word]) -> Result<(), DeviceError> {
        copy(dst, self.inner.pages(src, dst));
        self.inner.pages_out.fetch_add(size_of_val(dst) as u64 / PAGE_BYTES, Ordering::Relaxed);
        Ok(())
    }

    fn window(&self, at: DevMemAddr, bytes: u64) -> Option<&[Word]> {
        self.inner.words(at, bytes)
    }

    fn map(&self, at: DevAddr, pages: u64, target: MapTarget, access: Access) -> Result<(), DeviceError> {
        let bytes = check(at, pages);
        if self.inner.is_lost() {
            return Err(DeviceError::Lost);
        }
        let (target, system) = match target {
            MapTarget::DeviceMemory(memory) => {
                let end = memory.0.checked_add(bytes);
                assert!(end.is_some_and(|end| end <= self.inner.memory_bytes()), "a target in device memory");
                (memory.0, false)
            }
            MapTarget::System(iova) => (iova.0, true),
        };
        assert!(target % PAGE_BYTES == 0, "a device maps whole pages");
        self.inner
            .table
            .set(at.0, bytes, target, system, access, &self.inner.windows())
            .map_err(|_| DeviceError::OutOfTables)?;
        match &self.inner.residency {
            Some(residency) if system => drop(residency.cleared(at.0, bytes)),
            Some(residency) => residency.mapped(at.0, bytes, target),
            None => {}
        }
        Ok(())
    }

    fn unmap(&self, at: DevAddr, pages: u64) {
        if pages > 0 {
            let bytes = check(at, pages);
            self.inner.table.clear(at.0, bytes, &self.inner.windows());
            if let Some(residency) = &self.inner.residency {
                residency.cleared(at.0, bytes);
            }
        }
    }

    fn flush(&self, _: DevAddr, _: u64) {
        if self.inner.keeps(Broken::Flush) {
            self.inner.windows().flush();
        }
    }

    fn quiesce(&self) {
        if self.inner.keeps(Broken::Quiesce) {
            self.inner.windows().quiesce();
        }
    }

    fn resume(&self) {
        if self.inner.keeps(Broken::Quiesce) {
            self.inner.windows().resume();
        }
    }

    fn attach(&self) {
        self.inner.faults.attach();
    }

    fn detach(&self) {
        self.inner.faults.detach();
    }

    fn wait_fault(&self) {
        self.inner.faults.wait();
    }

    fn interrupt(&self) {
        self.inner.faults.interrupt();
    }

    fn fetch(&self, out: &mut [DeviceFault]) -> usize {
        self.inner.faults.fetch(out)
    }

    fn replay(&self) {
        self.inner.faults.replay();
    }

    fn cancel(&self, fault: &DeviceFault, cause: FaultCause) {
        self.inner.faults.cancel(fault, cause);
    }

    fn iommu(&self) -> &dyn Iommu {
        &*self.inner
    }

    fn admit(&self, memory: VirtRange, view: VirtAddr) {
        // What was not imported is refused when it is to be linked.
        let _ = self.import_view(memory, view);
    }

    fn dismiss(&self, memory: VirtRange) {
        if let Some(address) = self.inner.views.remove(memory.start().0) {
            self.driver.forget_at(address);
        }
    }
}
