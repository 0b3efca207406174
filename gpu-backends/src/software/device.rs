//! The device: its state and its handles. What the library sees of it is in `space`.
//!
//! # Who keeps what alive
//! [`SoftwareDevice`] is a handle; clone it freely. The last one stops and joins the engines. Everything that
//! the calls of [`Device`](granule::ports::Device) touch is [`Inner`], in private memory. Its domain knows it by address until it is dropped.
#![allow(unsafe_code, reason = "a device is attached to its domain by address")]

use std::sync::{Mutex, PoisonError};

use granule::os::FutexPark;
use granule::os::private::{PrivateArc, PrivateError, Slab};
use granule::ports::DeviceError;
use granule::sync::{AtomicU32, AtomicU64, Ordering, Park, WordLock};
use granule::units::{DevAddr, DevMemAddr, PAGE_BYTES, Pasid};

use super::builder::{BuildError, Builder, DmaSettings};
use super::counters::IommuLog;
use super::domain::IommuDomain;
use super::engine::{EngineThreads, Job};
use super::entry::{EngineRecord, Engines, Entry};
use super::fault_buffer::FaultBuffer;
use super::inject::{CopyFate, Fate, Step};
use super::iotlb::Iotlb;
use super::line_cache::LineCache;
use super::memory::DeviceMemory;
use super::page_table::Found;
use super::pasid::PasidTable;
use super::space::Space;
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
    /// The device's own space, without a PASID. Its domain is that of the device's ordinary DMA.
    pub(super) space: Space,
    /// Parts of the memory that is set aside for further spaces: first byte and bytes of those that are taken.
    taken: Mutex<Vec<(u64, u64)>>,
    /// Changes when there is room again in a fault buffer, of whichever space.
    pub(super) room: AtomicU32,
    pub(super) log: IommuLog,
    pub(super) settings: DmaSettings,
    pub(super) device_iotlb: Iotlb,
    pub(super) pasids: PasidTable,
    /// Of a device that is not coherent.
    pub(super) lines: Option<LineCache>,
    /// Test switch: 1 if flushes leave what is remembered under PASIDs.
    pub(super) forgets_pasids: AtomicU32,
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
                Iotlb::new(DEVICE_IOTLB_SLOTS)?,
                if of.dma.coherent { None } else { Some(LineCache::new()?) },
            ))
        })();
        let (engines, device_iotlb, lines) = private?;
        let domain = match &of.domain {
            Some(domain) => domain.clone(),
            None => IommuDomain::builder().table_bytes(of.table_bytes).build()?,
        };
        let memory = DeviceMemory::new(of.memory_bytes, of.populate)?;
        let window = OpenWindow::open(memory.host_address(0), of.memory_bytes, of.dma.switch)
            .ok_or(BuildError::TooManyDevices)?;
        let own = (0, of.memory_bytes - of.space_memory_bytes);
        let space = Space::new(Pasid(0), own, nodes, of.fault_buffer_entries, domain.0)?;
        Ok(Self {
            entry: Entry::new(),
            engines,
            memory,
            space,
            taken: Mutex::default(),
            room: AtomicU32::new(0),
            log: IommuLog::default(),
            settings: DmaSettings {
                nodes,
                fault_entries: of.fault_buffer_entries,
                space_memory: (own.1, of.memory_bytes),
                ..of.dma
            },
            device_iotlb,
            pasids: PasidTable::default(),
            lines,
            window,
            forgets_pasids: AtomicU32::new(0),
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
        FaultBuffer::lose(&self.engines, &self.room);
    }

    /// Whether a copy of `pages` pages may go on, and its number.
    pub(super) fn copy(&self, step: Step, pages: u64) -> Result<u64, DeviceError> {
        match self.fate.copy(step, pages) {
            (CopyFate::Good, number) => Ok(number),
            (CopyFate::Fails, _) => Err(DeviceError::CopyFailed),
            (CopyFate::Loses, number) => {
                self.lose();
                if step == Step::CopyOut { Ok(number) } else { Err(DeviceError::Lost) }
            }
        }
    }

    /// Takes a part of the memory that is set aside for spaces.
    pub(super) fn take_memory(&self, bytes: u64) -> Option<u64> {
        let mut taken = self.taken.lock().unwrap_or_else(PoisonError::into_inner);
        let (mut first, end) = self.settings.space_memory;
        let mut place = taken.len();
        for (index, (start, length)) in taken.iter().enumerate() {
            if start - first >= bytes {
                place = index;
                break;
            }
            first = start + length;
        }
        if end - first < bytes {
            return None;
        }
        taken.insert(place, (first, bytes));
        Some(first)
    }

    /// Gives a part back.
    pub(super) fn give_memory(&self, first: u64) {
        let mut taken = self.taken.lock().unwrap_or_else(PoisonError::into_inner);
        taken.retain(|(start, _)| *start != first);
    }
}

impl Drop for Inner {
    fn drop(&mut self) {
        self.space.domain.detach(self);
    }
}

impl SoftwareDevice {
    /// Settings for a new device.
    pub fn builder() -> Builder {
        Builder::default()
    }

    pub(super) fn start(inner: PrivateArc<Inner>, stack_bytes: u64) -> Result<Self, BuildError> {
        // SAFETY: the device lies in a private mapping of its own until it is dropped, and `drop` detaches it.
        if !unsafe { inner.space.domain.attach(&inner) } {
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
        match self.inner.space.table.find(at.0) {
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
            Broken::KeepsFaults => self.inner.space.faults.drop_every.store(3, Ordering::SeqCst),
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

/// How the device parks; a constant so that guards may borrow it for ever.
pub(super) static PARK: &dyn Park = &FutexPark;
