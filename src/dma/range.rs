use crate::units::{Iova, PAGE_BYTES};

/// A contiguous range of DMA addresses, 16 bytes: what a driver writes into its descriptors.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Hash)]
pub struct DmaRange {
    /// First address.
    pub addr: Iova,
    /// Length in bytes, at most [`DmaRange::MAX_BYTES`].
    pub bytes: u32,
    /// How the range is reached; see the constants.
    pub flags: u32,
}

impl DmaRange {
    /// The device may write it.
    pub const WRITABLE: u32 = 1;
    /// The longest range: 4 GiB less a page. Longer runs are split.
    pub const MAX_BYTES: u64 = (1 << 32) - PAGE_BYTES;

    /// The ranges of a run of `bytes` bytes from `addr`.
    pub fn of_run(addr: Iova, bytes: u64, flags: u32) -> impl Iterator<Item = Self> {
        let mut done = 0;
        core::iter::from_fn(move || {
            let part = (bytes - done).min(Self::MAX_BYTES);
            let range = Self { addr: addr + done, bytes: part as u32, flags };
            done += part;
            (part > 0).then_some(range)
        })
    }
}

const _: () = assert!(size_of::<DmaRange>() == 16);
