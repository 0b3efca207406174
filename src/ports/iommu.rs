use thiserror::Error;

use crate::units::{Access, Iova, PhysAddr};

/// The page table between a device and system memory. Holds mappings only; who owns which address is the
/// business of `dma`.
///
/// Called under block locks: an implementation touches private memory only and allocates nothing from the heap.
pub trait Iommu: Sync {
    /// The usable IOVAs, first and last inclusive.
    fn aperture(&self) -> (Iova, Iova);

    /// Maps `bytes` (a multiple of 4096) of system memory at `iova`. Nothing may be mapped there yet.
    ///
    /// # Errors
    /// [`IommuError`]; nothing is mapped then.
    fn map(&self, iova: Iova, phys: PhysAddr, bytes: u64, access: Access) -> Result<(), IommuError>;

    /// Changes what the device may do with pages that are mapped, at the same address.
    ///
    /// # Errors
    /// [`IommuError::NotMapped`] if a page of the range is not mapped; nothing is changed then.
    fn protect(&self, iova: Iova, bytes: u64, access: Access) -> Result<(), IommuError>;

    /// Unmaps a range that is wholly mapped. No device can reach it once [`Iommu::flush`] has returned.
    ///
    /// # Errors
    /// [`IommuError::NotMapped`] if a page of the range is not mapped; nothing is changed then.
    fn unmap(&self, iova: Iova, bytes: u64) -> Result<(), IommuError>;

    /// Drops every cached translation of the range, and returns when no access that used one is under way.
    fn flush(&self, iova: Iova, bytes: u64);
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
    /// The address lies outside of the aperture.
    #[error("{0} lies outside of the IOMMU's aperture; reserve addresses through the IOVA space")]
    OutsideAperture(Iova),
}
