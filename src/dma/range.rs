use crate::units::{Iova, PAGE_BYTES};

/// A contiguous range of DMA addresses, 16 bytes: what a driver writes into its descriptors.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Hash, Default)]
pub struct DmaRange {
    /// First address, as the device puts it on the bus: an IOVA, or what `flags` says.
    pub addr: Iova,
    /// Length in bytes, at most [`DmaRange::MAX_BYTES`].
    pub len: u32,
    /// How the range is reached; see the constants.
    pub flags: u32,
}

impl DmaRange {
    /// The device may write it.
    pub const WRITABLE: u32 = 1;
    /// A bus address of a peer's memory: not in the IOMMU, nothing to unmap, no cache to look after.
    pub const BUS_ADDRESS: u32 = 2;
    /// Leads to registers or memory of a device, through the host bridge.
    pub const MMIO: u32 = 4;
    /// A physical address plus the domain's offset: there is no IOMMU.
    pub const DIRECT: u32 = 8;
    /// A part of it is a bounce page: only unmapping (or an explicit sync) brings back what the device wrote.
    pub const BOUNCED: u32 = 16;
    /// The longest range: 4 GiB less a page. Longer runs are split.
    pub const MAX_BYTES: u64 = (1 << 32) - PAGE_BYTES;

    /// The ranges of a run of `bytes` bytes from `addr`, cut at page boundaries. Asserts that the run does not wrap.
    pub fn of_run(addr: Iova, bytes: u64, flags: u32) -> impl Iterator<Item = Self> {
        assert!(addr.checked_add(bytes).is_some(), "a run ends within 64 bits");
        let mut done = 0;
        core::iter::from_fn(move || {
            let at = addr + done;
            let part = (bytes - done).min(Self::MAX_BYTES - at.0 % PAGE_BYTES);
            done += part;
            (part > 0).then_some(Self { addr: at, len: part as u32, flags })
        })
    }
}

const _: () = assert!(size_of::<DmaRange>() == 16);
