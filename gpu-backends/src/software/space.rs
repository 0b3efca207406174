//! Address spaces of one device: each with a page table, a fault buffer and an IOMMU domain of its own, and a part of
//! device memory. The device itself is the first one, without a PASID; [`SoftwareDevice::address_space`] makes others.
//!
//! # Rules
//! 1. Engines, TLBs, the gate and the device's memory are shared. A kernel runs in one space, on all engines, and
//!    kernels of all spaces take turns; an engine that meets another space than before knows no translation.
//! 2. A fault goes into the buffer of the space in which the kernel runs, and is answered from there: an engine's
//!    record names the space, and nobody else's replay, cancel or detach touches it.
//! 3. A PASID that is detached ends every fault that waits under it, and every later access, with
//!    [`FaultCause::ShuttingDown`].
//! 4. A flush or a quiesce of one space waits for the engines of all. That is slower than it must be, and right.
#![allow(unsafe_code, reason = "a device is attached to the domains of its spaces by address")]

use granule::os::private::{PrivateArc, PrivateError};
use granule::ports::{
    AttachError, Device, DeviceCaps, DeviceError, DeviceFault, FaultCause, Iommu, MapTarget, Word,
};
use granule::sync::{AtomicU32, AtomicU64, Ordering};
use granule::units::{Access, BLOCK_BYTES, DevAddr, DevMemAddr, PAGE_BYTES, Pasid, SPACE_BYTES};
use thiserror::Error;

use super::access::Engine;
use super::builder::BuildError;
use super::device::{Inner, SoftwareDevice};
use super::domain::{DomainState, IommuDomain};
use super::fault_buffer::FaultBuffer;
use super::inject::Step;
use super::page_table::{LeafCounts, PageTable};
use super::scalar::AccessError;

/// One address space of a device.
pub(crate) struct Space {
    /// 0 for the device itself.
    pub pasid: Pasid,
    pub table: PageTable,
    pub faults: FaultBuffer,
    pub domain: PrivateArc<DomainState>,
    /// 1 when the PASID was detached.
    pub detached: AtomicU32,
    /// Its part of device memory.
    first: u64,
    bytes: u64,
}

impl Space {
    pub(super) fn new(
        pasid: Pasid,
        memory: (u64, u64),
        nodes: usize,
        fault_entries: usize,
        domain: PrivateArc<DomainState>,
    ) -> Result<Self, PrivateError> {
        Ok(Self {
            pasid,
            table: PageTable::new(nodes)?,
            faults: FaultBuffer::new(fault_entries, pasid.0)?,
            domain,
            detached: AtomicU32::new(0),
            first: memory.0,
            bytes: memory.1,
        })
    }
}

/// A space of a device, as the library sees it: what is behind each [`Device`].
#[derive(Clone, Copy)]
pub(super) struct View<'a> {
    pub inner: &'a Inner,
    pub space: &'a Space,
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

impl<'a> View<'a> {
    fn caps(self) -> DeviceCaps {
        DeviceCaps {
            name: "software",
            memory_bytes: self.space.bytes,
            driver_free: self.inner.fate.has_window(),
            can_quiesce: true,
            links_any: true,
        }
    }

    /// Where a part of this space's memory is in the device's. Asserts that it is a part.
    fn part(self, at: DevMemAddr, bytes: u64) -> DevMemAddr {
        let end = at.0.checked_add(bytes);
        assert!(end.is_some_and(|end| end <= self.space.bytes), "an address in device memory");
        at + self.space.first
    }

    fn copy_in(self, dst: DevMemAddr, src: &[Word]) -> Result<(), DeviceError> {
        let inner = self.inner;
        if inner.is_lost() {
            return Err(DeviceError::Lost);
        }
        let bytes = size_of_val(src) as u64;
        let dst = self.part(dst, bytes);
        let number = inner.copy(Step::CopyIn, bytes / PAGE_BYTES)?;
        inner.memory.copy_in(dst, src)?;
        inner.pages_in.fetch_add(bytes / PAGE_BYTES, Ordering::Relaxed);
        if let Some((at, bit)) = inner.fate.flip(number, bytes) {
            let word = inner.memory.words(dst + (at & !7), 8).expect("just copied to");
            word[0].fetch_xor(u64::from(bit) << (at % 8 * 8), Ordering::SeqCst);
        }
        Ok(())
    }

    fn copy_out(self, src: DevMemAddr, dst: &[Word]) -> Result<(), DeviceError> {
        let bytes = size_of_val(dst) as u64;
        let src = self.part(src, bytes);
        self.inner.copy(Step::CopyOut, bytes / PAGE_BYTES)?;
        self.inner.memory.copy_out(src, dst)?;
        self.inner.pages_out.fetch_add(bytes / PAGE_BYTES, Ordering::Relaxed);
        Ok(())
    }

    fn window(self, at: DevMemAddr, bytes: u64) -> Option<&'a [Word]> {
        if !self.inner.fate.has_window() {
            return None;
        }
        at.0.checked_add(bytes).filter(|end| *end <= self.space.bytes)?;
        self.inner.memory.words(at + self.space.first, bytes)
    }

    fn map(self, at: DevAddr, pages: u64, target: MapTarget, access: Access) -> Result<(), DeviceError> {
        let bytes = check(at, pages);
        if self.inner.is_lost() {
            return Err(DeviceError::Lost);
        }
        let (target, system) = match target {
            MapTarget::DeviceMemory(memory) => (self.part(memory, bytes).0, false),
            MapTarget::System(iova) => (iova.0, true),
        };
        assert!(target % PAGE_BYTES == 0, "a device maps whole pages");
        if !self.inner.fate.map() {
            return Err(DeviceError::OutOfTables);
        }
        self.space
            .table
            .set(at.0, bytes, target, system, access, &self.inner.quiet())
            .map_err(|_| DeviceError::OutOfTables)
    }

    fn unmap(self, at: DevAddr, pages: u64) {
        if pages > 0 {
            self.space.table.clear(at.0, check(at, pages), &self.inner.quiet());
        }
    }

    fn detach(self) {
        self.space.faults.detach(&self.inner.engines, &self.inner.room);
    }

    fn fetch(self, out: &mut [DeviceFault]) -> usize {
        self.space.faults.fetch(&self.inner.engines, &self.inner.room, out)
    }
}

/// A device is its view of a space.
macro_rules! device_of_view {
    ($of:ty) => {
        impl Device for $of {
            fn caps(&self) -> DeviceCaps {
                self.view().caps()
            }
            fn copy_in(&self, dst: DevMemAddr, src: &[Word]) -> Result<(), DeviceError> {
                self.view().copy_in(dst, src)
            }
            fn copy_out(&self, src: DevMemAddr, dst: &[Word]) -> Result<(), DeviceError> {
                self.view().copy_out(src, dst)
            }
            fn window(&self, at: DevMemAddr, bytes: u64) -> Option<&[Word]> {
                self.view().window(at, bytes)
            }
            fn map(
                &self,
                at: DevAddr,
                pages: u64,
                target: MapTarget,
                access: Access,
            ) -> Result<(), DeviceError> {
                self.view().map(at, pages, target, access)
            }
            fn unmap(&self, at: DevAddr, pages: u64) {
                self.view().unmap(at, pages);
            }
            fn flush(&self, _: DevAddr, _: u64) {
                let inner = self.view().inner;
                inner.entry.flush(&inner.engines);
            }
            fn quiesce(&self) {
                let inner = self.view().inner;
                inner.entry.quiesce(&inner.engines);
            }
            fn resume(&self) {
                self.view().inner.entry.resume();
            }
            fn attach(&self) {
                self.view().space.faults.attach();
            }
            fn detach(&self) {
                self.view().detach();
            }
            fn wait_fault(&self) {
                self.view().space.faults.wait();
            }
            fn interrupt(&self) {
                self.view().space.faults.interrupt();
            }
            fn fetch(&self, out: &mut [DeviceFault]) -> usize {
                self.view().fetch(out)
            }
            fn replay(&self) {
                self.view().space.faults.replay(&self.view().inner.engines);
            }
            fn cancel(&self, fault: &DeviceFault, cause: FaultCause) {
                self.view().space.faults.cancel(&self.view().inner.engines, fault, cause);
            }
            fn iommu(&self) -> &dyn Iommu {
                &*self.view().space.domain
            }
        }
    };
}
device_of_view!(SoftwareDevice);
device_of_view!(AddressSpace);

/// Why there is no further address space.
#[derive(Clone, PartialEq, Eq, Debug, Error)]
#[non_exhaustive]
pub enum SpaceError {
    /// The device cannot tag its accesses, or not with this PASID, or it is in use.
    #[error(transparent)]
    Attach(#[from] AttachError),
    /// Memory of no size, or not in whole blocks, or more than is left for spaces.
    #[error(
        "{0} bytes of device memory cannot be had for a space; ask for a multiple of 2 MiB that is left of what \
         Builder::space_memory_bytes set aside"
    )]
    Memory(u64),
    /// No memory on the host.
    #[error(transparent)]
    Build(#[from] BuildError),
}

/// An address space of a [`SoftwareDevice`] under a PASID: a [`Device`] of its own for the library, so that one device
/// serves several `Svm`. Handles are clones of one another; the last one detaches the PASID.
#[derive(Clone)]
pub struct AddressSpace {
    owner: PrivateArc<Owner>,
}

struct Owner {
    device: SoftwareDevice,
    space: Space,
}

/// What an address space did so far.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct SpaceCounters {
    /// Faults that went into its buffer.
    pub faults: u64,
    /// Faults that ended with an error.
    pub cancelled: u64,
    /// Replays.
    pub replays: u64,
    /// Leaves of its page table.
    pub leaves: LeafCounts,
    /// Leaves of its IOMMU domain.
    pub iommu_leaves: LeafCounts,
}

impl SoftwareDevice {
    pub(super) fn view(&self) -> View<'_> {
        View { inner: &self.inner, space: &self.inner.space }
    }

    /// A further address space under a PASID, with `memory_bytes` bytes of what
    /// [`Builder::space_memory_bytes`](super::Builder::space_memory_bytes) set aside.
    ///
    /// # Errors
    /// [`SpaceError`]; nothing is attached then.
    pub fn address_space(&self, pasid: Pasid, memory_bytes: u64) -> Result<AddressSpace, SpaceError> {
        let inner = &*self.inner;
        if memory_bytes == 0 || !memory_bytes.is_multiple_of(BLOCK_BYTES) {
            return Err(SpaceError::Memory(memory_bytes));
        }
        let nodes = inner.settings.nodes;
        let domain = IommuDomain::builder().table_bytes(nodes as u64 * PAGE_BYTES).build()?.0;
        inner.attach_space(pasid)?;
        let Some(first) = inner.take_memory(memory_bytes) else {
            inner.detach_space(pasid);
            return Err(SpaceError::Memory(memory_bytes));
        };
        let made = Space::new(pasid, (first, memory_bytes), nodes, inner.settings.fault_entries, domain)
            .and_then(|space| PrivateArc::new(Owner { device: self.clone(), space }));
        let owner = made.map_err(|error| {
            inner.give_memory(first);
            inner.detach_space(pasid);
            SpaceError::Build(error.into())
        })?;
        // SAFETY: `owner` holds a handle of the device, which therefore stays where it is until `drop` has detached it.
        let attached = unsafe { owner.space.domain.attach(inner) };
        assert!(attached, "a fresh domain has a place for a device");
        Ok(AddressSpace { owner })
    }
}

impl AddressSpace {
    fn view(&self) -> View<'_> {
        View { inner: &self.owner.device.inner, space: &self.owner.space }
    }

    /// Its PASID.
    pub fn pasid(&self) -> Pasid {
        self.owner.space.pasid
    }

    /// Runs a kernel in this space: [`SoftwareDevice::run`].
    ///
    /// # Errors
    /// As [`SoftwareDevice::run`].
    pub fn run<F>(&self, kernel: F) -> Result<(), AccessError>
    where
        F: Fn(&mut Engine<'_>) -> Result<(), AccessError> + Sync,
    {
        self.owner.device.run_in(&self.owner.space, kernel)
    }

    /// Detaches the PASID while kernels may run under it: faults that wait, and every later access, end with
    /// [`FaultCause::ShuttingDown`]. Waits for accesses under way.
    pub fn detach_pasid(&self) {
        self.owner.end();
    }

    /// What it did so far. Looks at every leaf: not for hot paths.
    pub fn counters(&self) -> SpaceCounters {
        let space = &self.owner.space;
        let read = |counter: &AtomicU64| counter.load(Ordering::Relaxed);
        SpaceCounters {
            faults: read(&space.faults.recorded),
            cancelled: read(&space.faults.cancelled),
            replays: read(&space.faults.replays),
            leaves: space.table.leaves(),
            iommu_leaves: space.domain.table.leaves(),
        }
    }
}

impl Owner {
    fn end(&self) {
        // SeqCst pairs with the load of an engine that looks a translation up: it sees this, or is waited for.
        self.space.detached.store(1, Ordering::SeqCst);
        let view = View { inner: &self.device.inner, space: &self.space };
        view.detach();
        view.inner.entry.flush(&view.inner.engines);
    }
}

impl Drop for Owner {
    fn drop(&mut self) {
        self.end();
        let inner = &*self.device.inner;
        self.space.domain.detach(inner);
        inner.give_memory(self.space.first);
        inner.detach_space(self.space.pasid);
    }
}
