use crate::sync::{AtomicU32, AtomicU64, Ordering};
use crate::units::{BLOCKS_PER_GRANULE, DeviceId, Iova, PAGE_BYTES};

/// How many devices one address space may have.
pub const MAX_DEVICES: usize = 4;

/// 512 MiB of the address space: the index of its blocks and the IOVA range of each device. 1,088 bytes.
#[derive(Debug)]
#[repr(C, align(64))]
pub struct GranuleRecord {
    /// Index of the block record, plus one; 0: none yet.
    pub(super) blocks: [AtomicU32; BLOCKS_PER_GRANULE],
    /// IOVA of the granule's first byte, with bit 0 set; 0: not reserved.
    iova: [AtomicU64; MAX_DEVICES],
}

impl Default for GranuleRecord {
    fn default() -> Self {
        Self {
            blocks: core::array::from_fn(|_| AtomicU32::new(0)),
            iova: core::array::from_fn(|_| AtomicU64::new(0)),
        }
    }
}

impl GranuleRecord {
    /// Where the granule begins for a device, once reserved.
    pub fn iova_base(&self, device: DeviceId) -> Option<Iova> {
        // Acquire pairs with the release in `set_iova_base`.
        match self.iova[device.0 as usize].load(Ordering::Acquire) {
            0 => None,
            word => Some(Iova(word & !1)),
        }
    }

    /// Enters the reservation. Under the lock that makes it once ([`Tables::reserve_once`](super::Tables)).
    pub(super) fn set_iova_base(&self, device: DeviceId, base: Iova) {
        assert!(base.0.is_multiple_of(PAGE_BYTES), "a granule is reserved at a page");
        self.iova[device.0 as usize].store(base.0 | 1, Ordering::Release);
    }

    /// Forgets the reservation, handing it out for the last time.
    pub fn take_iova_base(&self, device: DeviceId) -> Option<Iova> {
        match self.iova[device.0 as usize].swap(0, Ordering::AcqRel) {
            0 => None,
            word => Some(Iova(word & !1)),
        }
    }
}
