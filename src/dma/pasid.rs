//! PASIDs for DMA. A domain has at most one PASID, which its devices share; who uses it is kept here, with the domain.

use super::Domain;
use crate::ports::{AttachError, PasidDevice};
use crate::sync::{AtomicU32, AtomicU64, Ordering, Park, WordLock};
use crate::units::Pasid;

use thiserror::Error;

/// Devices of one domain that may use its PASID at once.
const DEVICES: usize = 16;
/// PASIDs have 20 bits.
const BITS: u32 = 20;

/// Hands out PASIDs that are unique among everybody who asks it: a device may be attached to several domains, so one
/// of these serves all of them.
pub struct PasidSpace<'p> {
    lock: WordLock,
    park: &'p dyn Park,
    /// One bit per PASID, set: in use.
    words: alloc::boxed::Box<[AtomicU64]>,
    last: u32,
}

/// Why there is no PASID.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Error)]
#[non_exhaustive]
pub enum PasidError {
    /// The device cannot tag its DMA.
    #[error("the device cannot tag its DMA with a PASID; use its ordinary DMA")]
    NoPasid,
    /// The domain was built without PASIDs.
    #[error("this domain has no PASIDs to give; name a PasidSpace with DomainBuilder::pasids")]
    NoSpace,
    /// All numbers that the device can use are taken.
    #[error("no PASID of {0} bits is free; drop one that is in use")]
    Exhausted(u32),
    /// The PASID of the domain does not fit the device.
    #[error(
        "{pasid} of this domain does not fit a device with {bits} bits; ask for the narrowest device first"
    )]
    TooWide {
        /// The domain's PASID.
        pasid: Pasid,
        /// What the device has.
        bits: u32,
    },
    /// More devices use the PASID than are kept.
    #[error("16 devices use this PASID; give the others a domain of their own")]
    TooManyDevices,
    /// The layer below refused.
    #[error(transparent)]
    Attach(#[from] AttachError),
}

impl core::fmt::Debug for PasidSpace<'_> {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        write!(f, "PasidSpace(1..={})", self.last)
    }
}

impl<'p> PasidSpace<'p> {
    /// PASIDs 1 to `last`, inclusive; 0 means no PASID and is never given. Asserts that `last` is at least 1 and has
    /// at most 20 bits.
    pub fn new(last: Pasid, park: &'p dyn Park) -> Self {
        assert!(last.0 >= 1 && last.0 < 1 << BITS, "PASIDs run from 1 to at most 2^20 - 1");
        let words = (0..=last.0 / 64).map(|_| AtomicU64::new(0)).collect();
        Self { lock: WordLock::new(), park, words, last: last.0 }
    }

    /// The lowest PASID of at most `bits` bits that nobody has.
    ///
    /// # Errors
    /// [`PasidError::NoPasid`] for 0 bits, [`PasidError::Exhausted`].
    pub fn take(&self, bits: u32) -> Result<Pasid, PasidError> {
        if bits == 0 {
            return Err(PasidError::NoPasid);
        }
        let _lock = self.lock.lock(self.park);
        let end = self.last.min(((1u64 << bits.min(BITS)) - 1) as u32);
        for (index, word) in self.words.iter().enumerate() {
            let used = word.load(Ordering::Relaxed) | u64::from(index == 0);
            let free = index as u32 * 64 + used.trailing_ones();
            if used != u64::MAX && free <= end {
                word.store(word.load(Ordering::Relaxed) | 1 << (free % 64), Ordering::Relaxed);
                return Ok(Pasid(free));
            }
        }
        Err(PasidError::Exhausted(bits))
    }

    /// Gives a PASID back. Asserts that somebody has it.
    pub fn give_back(&self, pasid: Pasid) {
        assert!(pasid.0 >= 1 && pasid.0 <= self.last, "a PASID of this space");
        let _lock = self.lock.lock(self.park);
        let word = &self.words[pasid.0 as usize / 64];
        let (old, bit) = (word.load(Ordering::Relaxed), 1 << (pasid.0 % 64));
        assert!(old & bit != 0, "a PASID is given back once");
        word.store(old & !bit, Ordering::Relaxed);
    }

    /// PASIDs that somebody has.
    pub fn in_use(&self) -> u32 {
        let _lock = self.lock.lock(self.park);
        self.words.iter().map(|word| word.load(Ordering::Relaxed).count_ones()).sum()
    }
}

/// Who uses the PASID of a domain.
pub(super) struct PasidUsers<'d> {
    lock: WordLock,
    park: &'d dyn Park,
    space: Option<&'d PasidSpace<'d>>,
    /// 0: the domain has none.
    pasid: AtomicU32,
    /// Key and number of users of each device; 0 users: the place is free.
    devices: [(AtomicU64, AtomicU32); DEVICES],
}

impl<'d> PasidUsers<'d> {
    pub(super) fn new(park: &'d dyn Park, space: Option<&'d PasidSpace<'d>>) -> Self {
        let devices = core::array::from_fn(|_| (AtomicU64::new(0), AtomicU32::new(0)));
        Self { lock: WordLock::new(), park, space, pasid: AtomicU32::new(0), devices }
    }

    fn users(&self, at: usize) -> u32 {
        self.devices[at].1.load(Ordering::Relaxed)
    }

    fn find(&self, key: u64) -> Option<usize> {
        (0..DEVICES).find(|at| self.users(*at) > 0 && self.devices[*at].0.load(Ordering::Relaxed) == key)
    }
}

/// A PASID that is attached to the domain of a device's ordinary DMA: tagged and untagged, the device reaches the same
/// memory at the same addresses. Dropping it detaches the device, if it was the device's last one, and gives the number
/// back, if it was the domain's last one.
#[must_use = "dropping it detaches the device"]
pub struct DmaPasid<'p> {
    domain: &'p Domain<'p>,
    device: &'p dyn PasidDevice,
    pasid: Pasid,
}

impl core::fmt::Debug for DmaPasid<'_> {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        write!(f, "DmaPasid({})", self.pasid)
    }
}

impl DmaPasid<'_> {
    /// What the device tags its DMA with.
    pub fn pasid(&self) -> Pasid {
        self.pasid
    }
}

impl Domain<'_> {
    /// A PASID for a device of this domain. The same for all its devices, attached once per device, however many use it.
    /// Returns when the attach has succeeded: no fault under the PASID is reported before. May wait for the hardware;
    /// not for use under locks. Asserts that `device` names itself by the same key each time.
    ///
    /// # Errors
    /// [`PasidError`]; nothing is attached then. [`PasidError::NoPasid`] without asking the layer below.
    pub fn dma_pasid<'p>(&'p self, device: &'p dyn PasidDevice) -> Result<DmaPasid<'p>, PasidError> {
        let bits = device.pasid_bits();
        if bits == 0 {
            return Err(PasidError::NoPasid);
        }
        let users = &self.pasids;
        let space = users.space.ok_or(PasidError::NoSpace)?;
        let _lock = users.lock.lock(users.park);
        let known = users.pasid.load(Ordering::Relaxed);
        if known != 0 && u64::from(known) >= 1 << bits.min(BITS) {
            return Err(PasidError::TooWide { pasid: Pasid(known), bits });
        }
        if let Some(at) = users.find(device.key()) {
            users.devices[at].1.store(users.users(at) + 1, Ordering::Relaxed);
            return Ok(DmaPasid { domain: self, device, pasid: Pasid(known) });
        }
        let at = (0..DEVICES).find(|at| users.users(*at) == 0).ok_or(PasidError::TooManyDevices)?;
        let pasid = if known != 0 { Pasid(known) } else { space.take(bits)? };
        if let Err(error) = device.attach_pasid(pasid) {
            if known == 0 {
                space.give_back(pasid);
            }
            return Err(error.into());
        }
        users.pasid.store(pasid.0, Ordering::Relaxed);
        users.devices[at].0.store(device.key(), Ordering::Relaxed);
        users.devices[at].1.store(1, Ordering::Relaxed);
        Ok(DmaPasid { domain: self, device, pasid })
    }

    /// The domain's PASID, while anybody uses it.
    pub fn pasid(&self) -> Option<Pasid> {
        let users = &self.pasids;
        let _lock = users.lock.lock(users.park);
        Some(Pasid(users.pasid.load(Ordering::Relaxed))).filter(|pasid| pasid.0 != 0)
    }
}

impl Drop for DmaPasid<'_> {
    fn drop(&mut self) {
        let users = &self.domain.pasids;
        let _lock = users.lock.lock(users.park);
        let at = users.find(self.device.key()).expect("who has a PASID is among its users");
        let left = users.users(at) - 1;
        users.devices[at].1.store(left, Ordering::Relaxed);
        if left > 0 {
            return;
        }
        self.device.detach_pasid(self.pasid);
        if (0..DEVICES).all(|at| users.users(at) == 0) {
            users.pasid.store(0, Ordering::Relaxed);
            users.space.expect("it gave the PASID").give_back(self.pasid);
        }
    }
}
