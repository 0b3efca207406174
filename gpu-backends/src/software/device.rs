//! The device as the library sees it.
//!
//! # Who keeps what alive
//! [`SoftwareDevice`] is a handle; clone it freely. The last one stops and joins the engines. Everything that
//! the calls of [`Device`] touch is [`Inner`], in private memory. Its domain knows it by address until it is dropped.
#![allow(unsafe_code, reason = "a device is attached to its domain by address")]

use granule::os::FutexPark;
use granule::os::private::{PrivateArc, PrivateError, Slab};
use granule::ports::{Device, DeviceCaps, DeviceError, DeviceFault, FaultCause, Iommu, MapTarget, Word};
use granule::sync::{AtomicU32, AtomicU64, Ordering, Park, WordLock};
use granule::units::{Access, DevAddr, DevMemAddr, PAGE_BYTES, SPACE_BYTES};

use super::builder::{BuildError, Builder, DmaSettings};
use super::counters::IommuLog;
use super::domain::{DomainState, IommuDomain};
use super::engine::{EngineThreads, Job};
use super::entry::{EngineRecord, Engines, Entry};
use super::fault_buffer::FaultBuffer;
use super::inject::{CopyFate, Fate, Step};
use super::iotlb::Iotlb;
use super::line_cache::LineCache;
use super::memory::DeviceMemory;
use super::page_table::{Found, PageTable};
use super::pasid::PasidTable;
use super::windows::OpenWindow;

/// A device made of threads and memory. Handles are clones of one another.
///
/// ```
/// use granule_backends::software::SoftwareDevice;
///
/// let device = SoftwareDevice::builder().memory_bytes(4 << 20).engines(2).build()?;
/// device.run(|engine| {
///     assert!(engine.index() < engine.count());
///     Ok(())
/// })?;
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
#[derive(Clone)]
pub struct SoftwareDevice {
    // Declared first: dropped first, and the last one joins the engines.
    threads: PrivateArc<EngineThreads>,
    pub(super) inner: PrivateArc<Inner>,
}

/// Places of a device's IOTLB, for each leaf size.
const DEVICE_IOTLB_SLOTS: usize = 32;

/// All state of a device, in private memory.
pub(crate) struct Inner {
    pub(super) entry: Entry,
    pub(super) engines: Slab<EngineRecord>,
    /// Where the memory stands. Declared before it: closed before the memory goes.
    pub(super) window: OpenWindow,
    pub(super) memory: DeviceMemory,
    pub(super) table: PageTable,
    /// The domain of its ordinary DMA.
    pub(super) domain: PrivateArc<DomainState>,
    pub(super) log: IommuLog,
    pub(super) settings: DmaSettings,
    pub(super) device_iotlb: Iotlb,
    pub(super) pasids: PasidTable,
    /// Of a device that is not coherent.
    pub(super) lines: Option<LineCache>,
    /// Test switch: 1 if flushes leave what is remembered under PASIDs.
    pub(super) forgets_pasids: AtomicU32,
    pub(super) faults: FaultBuffer,
    pub(super) fate: Fate,
    pub(super) job: Job,
    /// Held by whoever runs a kernel.
    pub(super) turn: WordLock,
    pub(super) pages_in: AtomicU64,
    pub(super) pages_out: AtomicU64,
}

impl Inner {
    pub(super) fn new(of: &Builder, fate: Fate) -> Result<Self, BuildError> {
        let nodes = (of.table_bytes / PAGE_BYTES) as usize;
        let private: Result<_, PrivateError> = (|| {
            Ok((
                Slab::new(of.engines)?,
                PageTable::new(nodes)?,
                Iotlb::new(DEVICE_IOTLB_SLOTS)?,
                if of.dma.coherent { None } else { Some(LineCache::new()?) },
                FaultBuffer::new(of.fault_buffer_entries)?,
            ))
        })();
        let (engines, table, device_iotlb, lines, faults) = private?;
        let domain = match &of.domain {
            Some(domain) => domain.clone(),
            None => IommuDomain::builder().table_bytes(of.table_bytes).build()?,
        };
        let memory = DeviceMemory::new(of.memory_bytes, of.populate)?;
        let window = OpenWindow::open(memory.host_address(0), of.memory_bytes, of.dma.switch)
            .ok_or(BuildError::TooManyDevices)?;
        Ok(Self {
            entry: Entry::new(),
            engines,
            memory,
            table,
            domain: domain.0,
            log: IommuLog::default(),
            settings: of.dma,
            device_iotlb,
            pasids: PasidTable::default(),
            lines,
            window,
            forgets_pasids: AtomicU32::new(0),
            faults,
            fate,
            job: Job::default(),
            turn: WordLock::new(),
            pages_in: AtomicU64::new(0),
            pages_out: AtomicU64::new(0),
        })
    }

    pub(super) fn quiet(&self) -> Engines<'_> {
        Engines(&self.entry, &self.engines)
    }

    pub(super) fn is_lost(&self) -> bool {
        self.entry.lost.load(Ordering::SeqCst) != 0
    }

    fn lose(&self) {
        self.entry.lost.store(1, Ordering::SeqCst);
        // With its translations void, each engine looks at the table again, and finds the device lost.
        self.entry.flush(&self.engines);
        self.faults.lose(&self.engines);
    }

    /// Whether a copy of `pages` pages may go on, and its number.
    fn copy(&self, step: Step, pages: u64) -> Result<u64, DeviceError> {
        match self.fate.copy(step, pages) {
            (CopyFate::Good, number) => Ok(number),
            (CopyFate::Fails, _) => Err(DeviceError::CopyFailed),
            (CopyFate::Loses, number) => {
                self.lose();
                if step == Step::CopyOut { Ok(number) } else { Err(DeviceError::Lost) }
            }
        }
    }
}

impl Drop for Inner {
    fn drop(&mut self) {
        self.domain.detach(self);
    }
}

impl SoftwareDevice {
    /// Settings for a new device.
    pub fn builder() -> Builder {
        Builder::default()
    }

    pub(super) fn start(inner: PrivateArc<Inner>, stack_bytes: u64) -> Result<Self, BuildError> {
        // SAFETY: the device lies in a private mapping of its own until it is dropped, and `drop` detaches it.
        if !unsafe { inner.domain.attach(&inner) } {
            return Err(BuildError::DomainFull);
        }
        let threads = PrivateArc::new(EngineThreads::start(&inner, stack_bytes)?)?;
        Ok(Self { threads, inner })
    }

    /// How many engines it has.
    pub fn engine_count(&self) -> usize {
        debug_assert_eq!(self.threads.len(), self.inner.engines.len());
        self.inner.engines.len()
    }

    /// Loses the device, as if it had fallen off the bus: kernels end with an error, `map` and `copy_in` fail.
    /// Its memory stays readable.
    pub fn lose(&self) {
        self.inner.lose();
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
        let word = self.inner.memory.words(DevMemAddr(at.0 & !7), 8).expect("an address in device memory");
        word[0].fetch_xor(0x10 << (at.0 % 8 * 8), Ordering::SeqCst);
    }

    /// Switches one of the device's promises off, so that a test can show that somebody notices.
    #[doc(hidden)]
    pub fn break_promise(&self, promise: Broken) {
        match promise {
            Broken::FlushWaits => self.inner.entry.hasty.store(1, Ordering::SeqCst),
            Broken::FlushReachesPasids => self.inner.forgets_pasids.store(1, Ordering::SeqCst),
            Broken::KeepsFaults => self.inner.faults.drop_every.store(3, Ordering::SeqCst),
        }
    }
}

/// A promise that a broken twin does not keep.
#[doc(hidden)]
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Broken {
    /// `flush` and `quiesce` do not wait.
    FlushWaits,
    /// A flush of the domain leaves what the device remembers under PASIDs.
    FlushReachesPasids,
    /// Every third fault is lost.
    KeepsFaults,
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

impl Device for SoftwareDevice {
    fn caps(&self) -> DeviceCaps {
        DeviceCaps {
            name: "software",
            memory_bytes: self.inner.memory.bytes(),
            driver_free: self.inner.fate.has_window(),
            can_quiesce: true,
        }
    }

    fn copy_in(&self, dst: DevMemAddr, src: &[Word]) -> Result<(), DeviceError> {
        if self.inner.is_lost() {
            return Err(DeviceError::Lost);
        }
        let bytes = size_of_val(src) as u64;
        let number = self.inner.copy(Step::CopyIn, bytes / PAGE_BYTES)?;
        self.inner.memory.copy_in(dst, src)?;
        self.inner.pages_in.fetch_add(bytes / PAGE_BYTES, Ordering::Relaxed);
        if let Some((at, bit)) = self.inner.fate.flip(number, bytes) {
            let word = self.inner.memory.words(dst + (at & !7), 8).expect("just copied to");
            word[0].fetch_xor(u64::from(bit) << (at % 8 * 8), Ordering::SeqCst);
        }
        Ok(())
    }

    fn copy_out(&self, src: DevMemAddr, dst: &[Word]) -> Result<(), DeviceError> {
        let pages = size_of_val(dst) as u64 / PAGE_BYTES;
        self.inner.copy(Step::CopyOut, pages)?;
        self.inner.memory.copy_out(src, dst)?;
        self.inner.pages_out.fetch_add(pages, Ordering::Relaxed);
        Ok(())
    }

    fn window(&self, at: DevMemAddr, bytes: u64) -> Option<&[Word]> {
        if !self.inner.fate.has_window() {
            return None;
        }
        self.inner.memory.words(at, bytes)
    }

    fn map(&self, at: DevAddr, pages: u64, target: MapTarget, access: Access) -> Result<(), DeviceError> {
        let bytes = check(at, pages);
        if self.inner.is_lost() {
            return Err(DeviceError::Lost);
        }
        let (target, system) = match target {
            MapTarget::DeviceMemory(memory) => {
                let end = memory.0.checked_add(bytes);
                assert!(end.is_some_and(|end| end <= self.inner.memory.bytes()), "a target in device memory");
                (memory.0, false)
            }
            MapTarget::System(iova) => (iova.0, true),
        };
        assert!(target % PAGE_BYTES == 0, "a device maps whole pages");
        if !self.inner.fate.map() {
            return Err(DeviceError::OutOfTables);
        }
        self.inner
            .table
            .set(at.0, bytes, target, system, access, &self.inner.quiet())
            .map_err(|_| DeviceError::OutOfTables)
    }

    fn unmap(&self, at: DevAddr, pages: u64) {
        if pages > 0 {
            self.inner.table.clear(at.0, check(at, pages), &self.inner.quiet());
        }
    }

    fn flush(&self, _: DevAddr, _: u64) {
        self.inner.entry.flush(&self.inner.engines);
    }

    fn quiesce(&self) {
        self.inner.entry.quiesce(&self.inner.engines);
    }

    fn resume(&self) {
        self.inner.entry.resume();
    }

    fn attach(&self) {
        self.inner.faults.attach();
    }

    fn detach(&self) {
        self.inner.faults.detach(&self.inner.engines);
    }

    fn wait_fault(&self) {
        self.inner.faults.wait();
    }

    fn interrupt(&self) {
        self.inner.faults.interrupt();
    }

    fn fetch(&self, out: &mut [DeviceFault]) -> usize {
        self.inner.faults.fetch(&self.inner.engines, out)
    }

    fn replay(&self) {
        self.inner.faults.replay(&self.inner.engines);
    }

    fn cancel(&self, fault: &DeviceFault, cause: FaultCause) {
        self.inner.faults.cancel(&self.inner.engines, fault, cause);
    }

    fn iommu(&self) -> &dyn Iommu {
        &*self.inner.domain
    }
}

/// How the device parks; a constant so that guards may borrow it for ever.
pub(super) static PARK: &dyn Park = &FutexPark;
