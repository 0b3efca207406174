//! Which PASIDs a device has attached: to the domain of its ordinary DMA, or, in direct mode, to nothing at all.
//!
//! # Rules
//! 1. A PASID counts from the moment when `attach_pasid` stores it, which is the last thing that this does.
//! 2. `detach_pasid` takes it out first, then drops what was remembered under it, then waits for accesses under way.
//!    An engine enters its access before it looks here, so it is waited for, or it does not find the PASID.

use granule::os::FutexPark;
use granule::ports::{AttachError, PasidDevice};
use granule::sync::{AtomicU32, Ordering, WordLock, fence};
use granule::units::Pasid;

use super::device::{Inner, SoftwareDevice};

/// How many PASIDs a device has attached at most.
pub const MOST_PASIDS: usize = 32;

/// The attached ones; 0 is an empty place.
#[derive(Default)]
pub(crate) struct PasidTable {
    places: [AtomicU32; MOST_PASIDS],
    /// Held by whoever changes places.
    lock: WordLock,
}

impl PasidTable {
    pub(crate) fn contains(&self, pasid: Pasid) -> bool {
        self.attached().any(|attached| attached == pasid)
    }

    /// Those that are attached.
    pub(crate) fn attached(&self) -> impl Iterator<Item = Pasid> {
        // SeqCst pairs with the stores below.
        self.places.iter().map(|place| Pasid(place.load(Ordering::SeqCst))).filter(|pasid| pasid.0 != 0)
    }

    fn change(&self, from: u32, to: u32) -> bool {
        let place = self.places.iter().find(|place| place.load(Ordering::SeqCst) == from);
        place.is_some_and(|place| {
            place.store(to, Ordering::SeqCst);
            true
        })
    }
}

impl Inner {
    /// A PASID that this device could attach.
    fn names(&self, pasid: Pasid) -> bool {
        pasid.0 != 0 && u64::from(pasid.0) < 1 << self.settings.pasid_bits
    }
}

impl PasidDevice for SoftwareDevice {
    fn pasid_bits(&self) -> u32 {
        self.inner.settings.pasid_bits
    }

    fn key(&self) -> u64 {
        (&raw const *self.inner) as u64
    }

    /// Where the device cannot tag, the layer below does not know that and says success, as real ones do.
    fn attach_pasid(&self, pasid: Pasid) -> Result<(), AttachError> {
        let table = &self.inner.pasids;
        if self.inner.settings.pasid_bits == 0 {
            return Ok(());
        }
        if !self.inner.names(pasid) {
            return Err(AttachError::NotSupported(pasid));
        }
        if self.inner.is_lost() {
            return Err(AttachError::Resetting);
        }
        let _held = table.lock.lock(&FutexPark);
        if table.contains(pasid) {
            return Err(AttachError::Busy(pasid));
        }
        if table.change(0, pasid.0) { Ok(()) } else { Err(AttachError::NotSupported(pasid)) }
    }

    fn detach_pasid(&self, pasid: Pasid) {
        let _held = self.inner.pasids.lock.lock(&FutexPark);
        if pasid.0 == 0 || !self.inner.pasids.change(pasid.0, 0) {
            return;
        }
        // Pairs with the fence in `Iotlb::begin`.
        fence(Ordering::SeqCst);
        self.inner.domain.drop_tag(pasid);
        self.inner.device_iotlb.drop_range(0, u64::MAX, Some(pasid));
        self.inner.entry.flush(&self.inner.engines);
    }
}
