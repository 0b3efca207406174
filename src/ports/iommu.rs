use thiserror::Error;

use crate::units::{Access, Iova, PAGE_BYTES, PhysAddr};

/// The page table between devices and system memory: one IOMMU domain. Holds mappings only; who owns which address is
/// the business of `dma`.
///
/// # Rules for an implementation
/// 1. Called under block locks: it touches private memory only and allocates nothing from the heap.
/// 2. `iova` and `bytes` are multiples of [`IommuCaps::page_bytes`], and so is `phys`. What is not is misuse and
///    asserts; what lies outside the aperture is an error.
/// 3. A call that fails changes nothing. Calls on ranges that do not overlap may run at once, on any threads; calls on
///    ranges that overlap are the caller's to order.
/// 4. A device sees a mapping once [`Iommu::sync`] has returned, and perhaps before. It may see an unmapped one until
///    [`Iommu::flush`] has returned.
/// 5. It may use huge leaves wherever alignment and length allow, and splits them itself where a part is unmapped.
pub trait Iommu: Sync {
    /// The usable IOVAs, first and last inclusive.
    fn aperture(&self) -> (Iova, Iova);

    /// What it can do. Constant.
    fn caps(&self) -> IommuCaps {
        IommuCaps::default()
    }

    /// IOVAs inside the aperture that nobody may map, such as that of message-signalled interrupts. Constant.
    fn reserved_windows(&self) -> &[IovaWindow] {
        &[]
    }

    /// Maps `bytes` of system memory at `iova`. Nothing may be mapped there yet.
    ///
    /// # Errors
    /// [`IommuError::AlreadyMapped`], [`IommuError::OutOfTables`], [`IommuError::OutsideAperture`]; nothing is mapped
    /// then.
    fn map(&self, iova: Iova, phys: PhysAddr, bytes: u64, access: Access) -> Result<(), IommuError>;

    /// Maps several runs (first address, bytes) of whole pages one behind the other from `iova` on: all or nothing.
    /// Says how many bytes that were. An implementation that walks its tables once for all of them is faster than this one.
    ///
    /// # Errors
    /// As [`Iommu::map`]; nothing is mapped then.
    fn map_runs(
        &self,
        iova: Iova,
        runs: &mut dyn Iterator<Item = (PhysAddr, u64)>,
        access: Access,
    ) -> Result<u64, IommuError> {
        let mut done = 0;
        for (phys, bytes) in runs {
            let at = iova.checked_add(done).ok_or(IommuError::OutsideAperture(iova));
            if let Err(error) = at.and_then(|at| self.map(at, phys, bytes, access)) {
                if done > 0 {
                    self.unmap(iova, done).expect("it was mapped by the call that is undone");
                    self.flush(iova, done);
                }
                return Err(error);
            }
            done += bytes;
        }
        Ok(done)
    }

    /// Makes what was mapped since the last call, in this range, visible to devices. Where mapping does so at once
    /// there is nothing to do.
    fn sync(&self, iova: Iova, bytes: u64) {
        let _ = (iova, bytes);
    }

    /// Changes what the device may do with pages that are mapped, at the same address. More rights hold at once, fewer
    /// after the next `flush`.
    ///
    /// # Errors
    /// [`IommuError::NotMapped`] if a page of the range is not mapped; nothing is changed then.
    fn protect(&self, iova: Iova, bytes: u64, access: Access) -> Result<(), IommuError>;

    /// Unmaps a range that is wholly mapped. No device can reach it once [`Iommu::flush`] has returned.
    ///
    /// # Errors
    /// [`IommuError::NotMapped`] with the first hole if a page of the range is not mapped; nothing is changed then.
    fn unmap(&self, iova: Iova, bytes: u64) -> Result<(), IommuError>;

    /// Maps `bytes` from `phys` at `iova`, whatever was mapped there or not. Each page changes by one store: a single
    /// access of a device sees wholly the old or wholly the new page, and never a hole, also where a huge leaf is made
    /// or split. The old pages may be reached until the next `flush`. Putting back what stood there before a replace that
    /// succeeded needs no table that is not there: it cannot fail.
    ///
    /// # Errors
    /// [`IommuError::CannotReplace`] if the hardware has no such thing ([`IommuCaps::can_replace`] says so, too);
    /// otherwise as [`Iommu::map`] without `AlreadyMapped`. Nothing is changed then.
    fn replace(&self, iova: Iova, phys: PhysAddr, bytes: u64, access: Access) -> Result<(), IommuError> {
        let _ = (phys, bytes, access);
        Err(IommuError::CannotReplace(iova))
    }

    /// The first piece that is mapped at or after `iova`, below `iova + bytes`: contiguous on both sides, one
    /// permission, clipped to the range. Not necessarily the longest such piece. `None`: nothing is mapped there.
    ///
    /// An IOMMU that cannot be read keeps what it needs for this answer.
    fn mapped(&self, iova: Iova, bytes: u64) -> Option<Mapped>;

    /// Drops every cached translation of the range, and returns when no access that used one is under way. That
    /// includes what a device cached itself (a device IOTLB), for each attached device, under its own id and under
    /// each PASID of this domain.
    fn flush(&self, iova: Iova, bytes: u64);

    /// Flushes several ranges at the price of one wait, where the hardware can.
    fn flush_runs(&self, runs: &[(Iova, u64)]) {
        runs.iter().for_each(|(iova, bytes)| self.flush(*iova, *bytes));
    }
}

/// What an IOMMU can do.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct IommuCaps {
    /// Its smallest page in bytes: a power of two, at least 4096.
    pub page_bytes: u64,
    /// Whether [`Iommu::replace`] works.
    pub can_replace: bool,
    /// Whether a mapped page is pinned while it is mapped. If not, it is followed by events only.
    pub pins: bool,
}

impl Default for IommuCaps {
    fn default() -> Self {
        Self { page_bytes: PAGE_BYTES, can_replace: false, pins: false }
    }
}

/// IOVAs that nobody may map.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct IovaWindow {
    /// First address; rounded down to a page by whoever reserves around it.
    pub start: Iova,
    /// Length in bytes; its end is rounded up to a page.
    pub bytes: u64,
}

impl IovaWindow {
    /// Where message-signalled interrupts are written to on x86: 1 MiB at 0xfee00000.
    pub const MSI_X86: Self = Self { start: Iova(0xfee0_0000), bytes: 1 << 20 };
}

/// A piece that is mapped.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Mapped {
    /// Where.
    pub iova: Iova,
    /// To what.
    pub phys: PhysAddr,
    /// Length in bytes.
    pub bytes: u64,
    /// What the device may do.
    pub access: Access,
}

/// Why the IOMMU refused.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Error)]
#[non_exhaustive]
pub enum IommuError {
    /// A page of the range is mapped already.
    #[error("a page at {0} is mapped already; unmap it first")]
    AlreadyMapped(Iova),
    /// A page of the range is not mapped.
    #[error("no page is mapped at {0}; unmap only what was mapped")]
    NotMapped(Iova),
    /// No memory for page tables.
    #[error(
        "no memory is left for I/O page tables; unmap something or give the device a larger table budget"
    )]
    OutOfTables,
    /// The device has no way to this memory.
    #[error(
        "the device cannot reach system memory at {0}; only memory that moves, or that the library allocated"
    )]
    NotReachable(PhysAddr),
    /// The address lies outside of the aperture.
    #[error("{0} lies outside of the IOMMU's aperture; reserve addresses through the IOVA space")]
    OutsideAperture(Iova),
    /// The hardware cannot exchange a mapped page.
    #[error("this IOMMU cannot replace the page at {0} in place; stop the device, unmap and map")]
    CannotReplace(Iova),
}
