use thiserror::Error;

use crate::units::Pasid;

/// A device that can tag its DMA with a PASID, as the layer that attaches domains to it sees it. What it is attached
/// to is the domain of its ordinary DMA (or no IOMMU at all, in direct mode): the addresses are the same, tagged or not.
///
/// # Rules for an implementation
/// 1. It keeps no list of PASIDs for `dma`: how many use one is kept with the domain.
/// 2. No fault with a PASID is reported before its `attach_pasid` returned with success, and none after its
///    `detach_pasid` returned. Detaching answers every fault that is outstanding under the PASID.
/// 3. After `detach_pasid` returns, nothing is cached under the PASID, in the IOMMU or in the device.
pub trait PasidDevice: Sync {
    /// Width of its PASIDs in bits; 0: it cannot tag. Whoever can tag nothing is not asked to attach.
    fn pasid_bits(&self) -> u32;

    /// Tells devices of one domain apart; the same as long as the device lives.
    fn key(&self) -> u64;

    /// From now on DMA under `pasid` is translated by the domain of the device's ordinary DMA.
    ///
    /// # Errors
    /// [`AttachError`]; nothing is attached then.
    fn attach_pasid(&self, pasid: Pasid) -> Result<(), AttachError>;

    /// Ends `attach_pasid`. DMA under `pasid` is refused from now on.
    fn detach_pasid(&self, pasid: Pasid);
}

/// Why a PASID cannot be attached.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Error)]
#[non_exhaustive]
pub enum AttachError {
    /// The device has something else attached there.
    #[error("{0} is in use on this device; detach it first")]
    Busy(Pasid),
    /// The device is being reset.
    #[error("the device is being reset; attach again when it is back")]
    Resetting,
    /// The hardware below cannot do it.
    #[error("the layer below the device cannot attach {0}")]
    NotSupported(Pasid),
}
