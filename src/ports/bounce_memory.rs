use crate::units::PhysAddr;

/// Pages that stand in for pages a device must not or cannot reach: those that hold other people's bytes, next to an
/// untrusted device, and those above an address-limited device's reach (in direct mode).
///
/// # Rules for an implementation
/// 1. The pages are reachable for every device that the pool was made for, page aligned, all of
///    [`BounceMemory::page_bytes`], and stay where they are.
/// 2. A page holds nothing of anybody else: `dma` calls [`BounceMemory::clear`] before it is lent to a device.
/// 3. Copies survive memory that vanished meanwhile: they say so.
/// 4. Which page is lent to whom is kept by `dma`, not here.
pub trait BounceMemory: Sync {
    /// How many pages there are. Constant.
    fn pages(&self) -> usize;

    /// Size of each in bytes: that of the IOMMU's page, or 4096 without an IOMMU. Constant.
    fn page_bytes(&self) -> u64;

    /// Where page `slot` lies.
    fn phys(&self, slot: usize) -> PhysAddr;

    /// Fills page `slot` with zeros.
    fn clear(&self, slot: usize);

    /// Copies `bytes` from system memory at `from` into page `slot` at `offset`.
    ///
    /// # Errors
    /// [`BounceFault`]; the contents of the target are undefined then.
    fn copy_in(&self, slot: usize, offset: u64, from: PhysAddr, bytes: u64) -> Result<(), BounceFault>;

    /// Copies `bytes` from page `slot` at `offset` to system memory at `to`.
    ///
    /// # Errors
    /// [`BounceFault`]; the contents of the target are undefined then.
    fn copy_out(&self, slot: usize, offset: u64, to: PhysAddr, bytes: u64) -> Result<(), BounceFault>;
}

/// System memory that a bounce page stands for is not there (any more).
#[derive(Clone, Copy, PartialEq, Eq, Debug, thiserror::Error)]
#[error("the memory at {0} behind a bounce buffer is gone; keep it mapped until it is unlinked")]
pub struct BounceFault(pub PhysAddr);
