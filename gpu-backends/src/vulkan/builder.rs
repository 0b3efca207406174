//! How a Vulkan device is made.
#![allow(unsafe_code, reason = "device memory is filled")]

use std::sync::Arc;

use ash::vk;
use granule::os::private::{PrivateArc, PrivateBytes, PrivateError};
use granule::sync::{AtomicU32, AtomicU64};
use granule::units::{BLOCK_BYTES, PAGE_BYTES};

use super::binder::Binder;
use super::control::{Addresses, Control};
use super::device::{Inner, VulkanDevice};
use super::driver::{Driver, SharedQueue};
use super::error::VulkanError;
use super::faults::FaultQueue;
use super::info::{Mode, look};
use super::pool::HostView;
use super::residency::Residency;
use super::select::{self, Found, Loaded, Select};
use super::views::Views;
use super::windows::Closing;
use crate::software::page_table::PageTable;

/// What an application lends that has a Vulkan device: its own instance (of Vulkan 1.2), device and queue.
///
/// The device has the extension `VK_EXT_external_memory_host` and the features `shaderInt64`, `bufferDeviceAddress` and
/// `timelineSemaphore`.
#[derive(Clone)]
#[allow(missing_debug_implementations, reason = "tables of functions")]
pub struct Lent {
    /// The loader.
    pub entry: ash::Entry,
    /// The instance.
    pub instance: ash::Instance,
    /// The device, as the instance names it.
    pub physical: vk::PhysicalDevice,
    /// The device.
    pub device: ash::Device,
    /// The family of the queue; it computes, and binds sparse memory if `has_sparse`.
    pub family: u32,
    /// The queue. The application and the library hold its lock while they hand something to it.
    pub queue: SharedQueue,
    /// Whether `shaderBufferInt64Atomics` is enabled.
    pub has_atomic64: bool,
    /// Whether `sparseBinding` and `sparseResidencyBuffer` are enabled.
    pub has_sparse: bool,
}

/// Settings of a [`VulkanDevice`]. Start with [`VulkanDevice::builder`].
#[derive(Clone, Debug)]
pub struct Builder {
    select: Select,
    memory_bytes: u64,
    table_bytes: u64,
    validate: bool,
    mode: Option<Mode>,
    sparse_unit: u64,
}

impl Default for Builder {
    fn default() -> Self {
        Self {
            select: Select::Any,
            memory_bytes: 64 << 20,
            table_bytes: 256 << 20,
            validate: false,
            mode: None,
            sparse_unit: 0,
        }
    }
}

impl Builder {
    /// Which device. Default: the first one that has everything.
    pub fn select(mut self, select: Select) -> Self {
        self.select = select;
        self
    }
    /// Device memory in bytes, a multiple of 2 MiB; it is filled when the device is made. Default 64 MiB.
    pub fn memory_bytes(mut self, bytes: u64) -> Self {
        self.memory_bytes = bytes;
        self
    }
    /// The most that the page table, and the table of linked pages, may each occupy. Default 256 MiB.
    pub fn table_bytes(mut self, bytes: u64) -> Self {
        self.table_bytes = bytes;
        self
    }
    /// Has the validation layer check every call, and the order of accesses. Default no.
    pub fn validate(mut self, validate: bool) -> Self {
        self.validate = validate;
        self
    }

    /// Has shaders reach device memory in this way. Default: see [`DeviceInfo::mode`](super::DeviceInfo::mode).
    pub fn mode(mut self, mode: Mode) -> Self {
        self.mode = Some(mode);
        self
    }
    /// Sparse mode: binds memory in units of so many bytes, a power of two, or of the driver's alignment if that is more.
    /// Default: the driver's alignment.
    pub fn sparse_unit(mut self, bytes: u64) -> Self {
        self.sparse_unit = bytes;
        self
    }

    fn check(&self) -> Result<(), VulkanError> {
        if self.memory_bytes == 0 || !self.memory_bytes.is_multiple_of(BLOCK_BYTES) {
            return Err(VulkanError::MemorySize(self.memory_bytes));
        }
        if !(self.sparse_unit == 0 || self.sparse_unit.is_power_of_two() && self.sparse_unit <= BLOCK_BYTES) {
            return Err(VulkanError::SparseUnit(self.sparse_unit));
        }
        Ok(())
    }

    /// Opens the device.
    ///
    /// # Errors
    /// [`VulkanError`]; nothing is left behind.
    pub fn build(self) -> Result<VulkanDevice, VulkanError> {
        self.check()?;
        let loaded = select::load(self.validate)?;
        let found = select::choose(select::found(&loaded.instance)?, &self.select)?;
        let mode = self.mode_of(&found)?;
        let driver = Driver::new(loaded, found, self.validate, mode == Mode::Sparse)?;
        self.finish(driver, mode)
    }

    /// Uses the device of an application that has one. [`Builder::select`] and [`Builder::validate`] do nothing then.
    ///
    /// # Errors
    /// [`VulkanError`]; nothing is left behind.
    ///
    /// # Safety
    /// What is lent outlives the last handle of the device that is returned, its kernels and every space that has it;
    /// the extensions and features that [`Lent`] names are enabled; whoever hands something to the queue holds its lock.
    pub unsafe fn build_on(self, lent: Lent) -> Result<VulkanDevice, VulkanError> {
        self.check()?;
        let loaded = Loaded { instance: lent.instance, entry: lent.entry, is_lent: true };
        let mut found = look(&loaded.instance, 0, lent.physical);
        found.info.has_atomic64 &= lent.has_atomic64;
        found.info.has_sparse &= lent.has_sparse;
        found.family = lent.family;
        if let Some(lacks) = found.info.lacks {
            return Err(VulkanError::Lacks { device: found.info.name, lacks });
        }
        let mode = self.mode_of(&found)?;
        self.finish(Driver::on(loaded, found, lent.device, lent.queue), mode)
    }

    fn mode_of(&self, found: &Found) -> Result<Mode, VulkanError> {
        let mode = self.mode.unwrap_or_else(|| found.info.mode().0);
        if mode == Mode::Sparse && !found.info.has_sparse {
            let lacks = "sparse buffers on a queue that computes (sparseBinding, sparseResidencyBuffer)";
            return Err(VulkanError::Lacks { device: found.info.name.clone(), lacks });
        }
        Ok(mode)
    }

    /// Makes what shaders and the service share.
    fn finish(self, mut driver: Driver, mode: Mode) -> Result<VulkanDevice, VulkanError> {
        let align = driver.found.import_align.max(PAGE_BYTES);
        let nodes = (self.table_bytes.next_multiple_of(align) / PAGE_BYTES).max(16) as usize;
        let is_sparse = mode == Mode::Sparse;
        let mut pool = None;
        let memory = if is_sparse {
            let (binder, made) = Binder::new(&driver, self.memory_bytes, self.sparse_unit)?;
            pool = Some(made.address);
            let view = HostView::Mapped(made.at, made.bytes);
            driver.keep_sparse(binder, made);
            view
        } else {
            HostView::Private(PrivateBytes::aligned(self.memory_bytes, align.max(BLOCK_BYTES))?)
        };
        populate(&memory)?;
        let private: Result<_, PrivateError> = (|| {
            Ok(Inner {
                closing: Closing::default(),
                control: Control::new(align)?,
                memory,
                residency: if is_sparse { Some(Residency::new(align)?) } else { None },
                table: PageTable::new(nodes)?,
                iommu: PageTable::new(nodes)?,
                views: Views::new()?,
                faults: FaultQueue::new()?,
                lost: AtomicU32::new(0),
                broken: AtomicU32::new(0),
                pages_in: AtomicU64::new(0),
                pages_out: AtomicU64::new(0),
            })
        })();
        let inner = PrivateArc::new(private?)?;
        driver.keep(inner.clone());
        let whole = |memory: &PrivateBytes| driver.import_for_ever(memory.base().0, memory.range().bytes());
        let table = |table: &PageTable| {
            driver.import_for_ever(table.nodes().as_ptr() as u64, size_of_val(table.nodes()) as u64)
        };
        let directory = match &inner.residency {
            None => 0,
            Some(residency) => {
                residency.publish(whole(&residency.records)?.address);
                whole(&residency.directory)?.address
            }
        };
        let memory = match (&inner.memory, pool) {
            (HostView::Private(memory), _) => whole(memory)?.address,
            (HostView::Mapped(..), pool) => pool.unwrap_or(0),
        };
        let addresses = Addresses {
            control: whole(&inner.control.memory)?.address,
            table: table(&inner.table)?.address,
            iommu: table(&inner.iommu)?.address,
            memory,
            directory,
        };
        inner.control.publish(addresses);
        Ok(VulkanDevice { driver: Arc::new(driver), inner, control: addresses.control })
    }
}

/// Fills device memory now, as a device's own memory is there.
fn populate(memory: &HostView) -> Result<(), VulkanError> {
    let (at, bytes) = (memory.base(), memory.bytes());
    // SAFETY: the whole of a fresh mapping that `memory` keeps; the call does not change what it holds.
    let filled = unsafe { libc::madvise(at as *mut libc::c_void, bytes as usize, libc::MADV_POPULATE_WRITE) };
    if filled == 0 {
        return Ok(());
    }
    Err(VulkanError::Populate { bytes, errno: std::io::Error::last_os_error().to_string() })
}
