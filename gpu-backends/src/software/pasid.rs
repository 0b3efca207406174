//! Which PASIDs a device has attached: to the domain of its ordinary DMA, or, in direct mode, to nothing at all.
//!
//! # Rules
//! 1. A PASID counts from the moment when `attach_pasid` stores it, which is the last thing that this does.
//! 2. `detach_pasid` takes it out first, then drops what was remembered under it, then waits for accesses under way.
//!    An engine enters its access before it looks here, so it is waited for, or it does not find the PASID.

use granule::os::FutexPark;
use granule::ports::{AttachError, PasidDevice};
use granule::sync::{AtomicU32, Ordering, WordLock};
use granule::units::Pasid;

use super::device::{Inner, SoftwareDevice};

/// How many PASIDs a device has attached at most.
pub const MOST_PASIDS: usize = 32;

/// The attached ones; 0 is an empty place.
#[derive(Default)]
pub(crate) struct PasidTable {
    places: [AtomicU32; MOST_PASIDS],
    /// Those of address spaces: their accesses are no DMA by IOVA.
    spaces: [AtomicU32; MOST_PASIDS],
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

    /// Puts `to` where `from` is. Under the lock.
    fn change(&self, places: &[AtomicU32], from: u32, to: u32) -> Option<()> {
        find(places, from).map(|place| place.store(to, Ordering::SeqCst))
    }
}

fn find(places: &[AtomicU32], pasid: u32) -> Option<&AtomicU32> {
    places.iter().find(|place| place.load(Ordering::SeqCst) == pasid)
}

impl Inner {
    /// A PASID that this device could attach.
    fn names(&self, pasid: Pasid) -> bool {
        pasid.0 != 0 && u64::from(pasid.0) < 1 << self.settings.pasid_bits
    }
}

impl Inner {
    /// Takes a PASID for an address space.
    pub(super) fn attach_space(&self, pasid: Pasid) -> Result<(), AttachError> {
        if !self.names(pasid) {
            return Err(AttachError::NotSupported(pasid));
        }
        if self.is_lost() {
            return Err(AttachError::Resetting);
        }
        let table = &self.pasids;
        let _held = table.lock.lock(&FutexPark);
        if table.contains(pasid) || find(&table.spaces, pasid.0).is_some() {
            return Err(AttachError::Busy(pasid));
        }
        table.change(&table.spaces, 0, pasid.0).ok_or(AttachError::NotSupported(pasid))
    }

    /// Gives the PASID of an address space back.
    pub(super) fn detach_space(&self, pasid: Pasid) {
        let _held = self.pasids.lock.lock(&FutexPark);
        let known = self.pasids.change(&self.pasids.spaces, pasid.0, 0);
        debug_assert_eq!(known, Some(()), "a space gives its PASID back once");
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
        if table.contains(pasid) || find(&table.spaces, pasid.0).is_some() {
            return Err(AttachError::Busy(pasid));
        }
        table.change(&table.places, 0, pasid.0).ok_or(AttachError::NotSupported(pasid))
    }

    fn detach_pasid(&self, pasid: Pasid) {
        let _held = self.inner.pasids.lock.lock(&FutexPark);
        if pasid.0 == 0 || self.inner.pasids.change(&self.inner.pasids.places, pasid.0, 0).is_none() {
            return;
        }
        self.inner.space.domain.drop_tag(pasid);
        self.inner.device_iotlb.drop_range(0, u64::MAX, Some(pasid));
        self.inner.entry.flush(&self.inner.engines);
    }
}
