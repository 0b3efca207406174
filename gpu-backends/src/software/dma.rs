//! DMA by IOVA: what a device does with the addresses that a driver puts into its descriptors. No page table of the
//! device is involved, and no fault: an address that does not lead to memory is an error.
//!
//! # One access
//! enter -> reach and tag of the device -> bus window of a peer below the same switch, or: device IOTLB -> the domain's
//! IOTLB -> walk (or, in direct mode, the address less the offset) -> memory of the process, through the cache of a
//! device that is not coherent, or a peer's memory through the host bridge -> leave.
//!
//! # Rules
//! 1. As in `access`: between enter and leave an engine touches private memory and the one address of its access;
//!    slices that do not lie in private memory are copied by way of a private buffer.
//! 2. An access never leaves a leaf: a longer one is several, each with a translation of its own.
//! 3. A PASID is looked up inside of the access (see `pasid`).
#![allow(unsafe_code, reason = "the accesses themselves")]

use std::sync::{Mutex, PoisonError};

use granule::os::guarded::{self, Failed};
use granule::os::private;
use granule::sync::{AtomicU32, Ordering};
use granule::units::{Access, Iova, Pasid, PhysAddr, VirtAddr, VirtRange};
use thiserror::Error;

use super::access::{BOUNCE_BYTES, CHUNK_BYTES, Engine};
use super::builder::Way;
use super::device::{Inner, SoftwareDevice};
use super::line_cache::{LINE, Part};
use super::memory::NEVER;
use super::scalar::AccessError;
use super::windows::{self, Reached};

/// DMA without a PASID.
const PLAIN: Pasid = Pasid(0);

/// Why DMA was refused.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Error)]
#[non_exhaustive]
pub enum DmaRefused {
    /// No page is mapped at the IOVA.
    #[error("no page is mapped at {0}; link it, and sync, before a device uses it")]
    NotMapped(Iova),
    /// The page may only be read.
    #[error("the page at {0} is mapped for reading only; map it for the direction of the DMA")]
    ReadOnly(Iova),
    /// The device has not so many address bits.
    #[error("the device reaches addresses up to {last} and not {at}; reserve below its limit, or bounce")]
    BeyondReach {
        /// What was accessed.
        at: Iova,
        /// The last address that the device reaches.
        last: Iova,
    },
    /// The PASID is not attached.
    #[error("{0} is not attached to this device; attach it before its first DMA")]
    NotAttached(Pasid),
    /// The device tags all of its DMA.
    #[error("this device can do DMA under a PASID only; attach one and use it")]
    Untagged,
    /// The page is mapped, but the memory behind it is gone, or does not permit the access.
    #[error("{at} leads to {phys}, where no memory is that permits this; unlink memory before it goes")]
    MemoryGone {
        /// What was accessed.
        at: Iova,
        /// Where it leads.
        phys: PhysAddr,
    },
    /// The end lies beyond the last address.
    #[error("{bytes} bytes from {at} wrap around the end of the address space")]
    Wraps {
        /// First address.
        at: Iova,
        /// Length.
        bytes: usize,
    },
}

/// Where an address leads at this moment. The engine is inside of an access.
struct Place {
    phys: u64,
    /// How many bytes from here on lie in the same leaf.
    bytes: u64,
    /// Memory of a device: that stays while this is held.
    window: Option<Reached>,
}

impl Inner {
    /// Where an address leads for DMA under a tag.
    fn dma_place(&self, tag: Pasid, at: u64, access: Access) -> Result<Place, DmaRefused> {
        let settings = &self.settings;
        if at > settings.dma_last {
            return Err(DmaRefused::BeyondReach { at: Iova(at), last: Iova(settings.dma_last) });
        }
        if tag == PLAIN && settings.tagged_only {
            return Err(DmaRefused::Untagged);
        }
        if tag != PLAIN && !self.pasids.contains(tag) {
            return Err(DmaRefused::NotAttached(tag));
        }
        if let Some(window) = settings.switch.and_then(|switch| windows::reach_bus(at, switch)) {
            return Ok(Place { phys: window.host, bytes: window.bytes, window: Some(window) });
        }
        let (phys, bytes) = match settings.way {
            Way::Direct { offset } => (at.wrapping_sub(offset), u64::MAX - at),
            Way::Translated => {
                let leaf = self
                    .device_iotlb
                    .look_up(tag, at, access, || self.space.domain.translate(tag, at, access));
                let Some(leaf) = leaf else {
                    let is_mapped = self.space.domain.is_mapped(tag, at);
                    let refused = if is_mapped { DmaRefused::ReadOnly } else { DmaRefused::NotMapped };
                    return Err(refused(Iova(at)));
                };
                (leaf.target + (at - leaf.base), leaf.base + leaf.bytes - at)
            }
        };
        if !windows::is_window(phys) {
            return Ok(Place { phys, bytes, window: None });
        }
        let window =
            windows::reach_phys(phys).ok_or(DmaRefused::MemoryGone { at: Iova(at), phys: PhysAddr(phys) })?;
        Ok(Place { phys, bytes: bytes.min(window.bytes), window: Some(window) })
    }

    /// Drops what the device remembers of IOVAs, under its own id and under each PASID, and waits for every access.
    pub(super) fn flush_iovas(&self, runs: &[(Iova, u64)]) {
        for (iova, bytes) in runs {
            self.device_iotlb.drop_range(iova.0, *bytes, Some(PLAIN));
            if self.forgets_pasids.load(Ordering::Relaxed) == 0 {
                for pasid in self.pasids.attached() {
                    self.device_iotlb.drop_range(iova.0, *bytes, Some(pasid));
                }
            }
        }
        self.entry.flush(&self.engines);
    }
}

impl Engine<'_> {
    /// Reads memory by DMA, as a device does that was given an address: an IOVA, or, in direct mode or below a switch,
    /// whatever the driver was given.
    ///
    /// # Errors
    /// [`AccessError::Dma`] (counted; a part may have been read), [`AccessError::DeviceLost`].
    pub fn dma_read(&mut self, at: Iova, into: &mut [u8]) -> Result<(), AccessError> {
        self.dma_read_as(PLAIN, at, into)
    }

    /// Writes memory by DMA. What was written is seen once the domain was flushed, or the device said that it is done.
    ///
    /// # Errors
    /// [`AccessError::Dma`] (counted; a part may have been written), [`AccessError::DeviceLost`].
    pub fn dma_write(&mut self, at: Iova, from: &[u8]) -> Result<(), AccessError> {
        self.dma_write_as(PLAIN, at, from)
    }

    /// As [`Engine::dma_read`], under a PASID.
    ///
    /// # Errors
    /// As [`Engine::dma_read`].
    pub fn dma_read_as(&mut self, pasid: Pasid, at: Iova, into: &mut [u8]) -> Result<(), AccessError> {
        self.dma(pasid, at, into.as_mut_ptr() as u64, into.len(), Access::Read)
    }

    /// As [`Engine::dma_write`], under a PASID.
    ///
    /// # Errors
    /// As [`Engine::dma_write`].
    pub fn dma_write_as(&mut self, pasid: Pasid, at: Iova, from: &[u8]) -> Result<(), AccessError> {
        self.dma(pasid, at, from.as_ptr() as u64, from.len(), Access::Write)
    }

    fn dma(
        &mut self,
        tag: Pasid,
        at: Iova,
        slice: u64,
        bytes: usize,
        access: Access,
    ) -> Result<(), AccessError> {
        if at.checked_add(bytes as u64).is_none() {
            return Err(self.refuse(at.0, DmaRefused::Wraps { at, bytes }));
        }
        self.inner.space.domain.begin(&self.inner.device_iotlb);
        let covering = VirtRange::covering(VirtAddr(slice), bytes as u64);
        let is_private = covering.is_ok_and(private::contains);
        let bounce = self.bounce.base().0;
        let mut done = 0;
        while done < bytes {
            let here = slice + done as u64;
            let most = (bytes - done).min(if is_private { CHUNK_BYTES } else { BOUNCE_BYTES });
            let own = if is_private { here } else { bounce };
            if !is_private && access == Access::Write {
                // SAFETY: `here..` is a part of the caller's slice; the buffer is as long and private. Outside of
                // any access: the slice may fault.
                unsafe { core::ptr::copy_nonoverlapping(here as *const u8, bounce as *mut u8, most) };
            }
            let mut moved = 0;
            while moved < most {
                let at = at.0 + (done + moved) as u64;
                moved += self.dma_part(tag, at, own + moved as u64, most - moved, access)?;
            }
            if !is_private && access == Access::Read {
                // SAFETY: as above, the other way: the caller lent the slice mutably.
                unsafe { core::ptr::copy_nonoverlapping(bounce as *const u8, here as *mut u8, most) };
            }
            done += most;
        }
        let counter = if access == Access::Write { &self.record.dma_written } else { &self.record.dma_read };
        counter.store(counter.load(Ordering::Relaxed) + bytes as u64, Ordering::Relaxed);
        Ok(())
    }

    #[cold]
    fn refuse(&self, at: u64, why: DmaRefused) -> AccessError {
        self.inner.log.record(at);
        AccessError::Dma(why)
    }

    /// Moves bytes at most to the end of a leaf and says how many.
    fn dma_part(
        &mut self,
        tag: Pasid,
        at: u64,
        own: u64,
        most: usize,
        access: Access,
    ) -> Result<usize, AccessError> {
        loop {
            let is_open = self.inner.entry.enter(self.record).is_some();
            let place = is_open.then(|| self.inner.dma_place(tag, at, access));
            let moved = match &place {
                Some(Ok(place)) => {
                    self.inner.entry.enter_system(self.record);
                    Some((place.phys, self.dma_move(place, own, most, access)))
                }
                _ => None,
            };
            let refused = place.and_then(Result::err);
            self.inner.entry.leave(self.record);
            if self.inner.is_lost() {
                return Err(AccessError::DeviceLost);
            }
            match (refused, moved) {
                (Some(why), _) => return Err(self.refuse(at, why)),
                (None, Some((_, Ok(bytes)))) => return Ok(bytes),
                (None, Some((phys, Err(Failed::Vanished)))) => {
                    let (at, phys) = (Iova(at), PhysAddr(phys));
                    return Err(self.refuse(at.0, DmaRefused::MemoryGone { at, phys }));
                }
                (None, Some((_, Err(Failed::Stopped)))) => self.inner.entry.wait_unstopped(self.record),
                (None, None) => self.inner.entry.wait_open(),
            }
        }
    }

    fn dma_move(&self, place: &Place, own: u64, most: usize, access: Access) -> Result<usize, Failed> {
        let bytes = most.min(usize::try_from(place.bytes).unwrap_or(usize::MAX));
        let lines = self.inner.lines.as_ref().filter(|_| place.window.is_none());
        if let Some(lines) = lines {
            let bytes = bytes.min((LINE - place.phys % LINE) as usize);
            lines.reach(&Part { phys: place.phys, own, bytes, access }, &self.record.stop)?;
            return Ok(bytes);
        }
        let never: &AtomicU32 = &NEVER;
        let (host, stop) = match &place.window {
            Some(window) => (window.host, never),
            None => (place.phys, &self.record.stop),
        };
        let (to, from) = if access == Access::Write { (host, own) } else { (own, host) };
        // SAFETY: the far side is memory that the application lent to the device by linking it (or said that all of
        // it is the device's, in direct mode), or a device's memory, which stays while `window` is held; the near side
        // is private memory of this engine. The engine is admitted.
        match unsafe { guarded::copy(to, from, bytes, stop) } {
            Ok(()) => Ok(bytes),
            // What was copied stays copied; the next part begins where this one stopped, and meets the cause.
            Err(failed) if failed.bytes_left < bytes => Ok(bytes - failed.bytes_left),
            Err(failed) => Err(failed.why),
        }
    }
}

impl SoftwareDevice {
    /// Reads memory by DMA on the device's first engine: [`Engine::dma_read_as`]. `Pasid(0)` is plain DMA.
    ///
    /// # Errors
    /// As [`Engine::dma_read`].
    ///
    /// Blocks while a kernel runs.
    pub fn dma_read(&self, pasid: Pasid, at: Iova, into: &mut [u8]) -> Result<(), AccessError> {
        let into = Mutex::new(into);
        self.run(|engine| match engine.index() {
            0 => engine.dma_read_as(pasid, at, &mut into.lock().unwrap_or_else(PoisonError::into_inner)),
            _ => Ok(()),
        })
    }

    /// Writes memory by DMA on the device's first engine: [`Engine::dma_write_as`]. `Pasid(0)` is plain DMA.
    ///
    /// # Errors
    /// As [`Engine::dma_write`].
    ///
    /// Blocks while a kernel runs.
    pub fn dma_write(&self, pasid: Pasid, at: Iova, from: &[u8]) -> Result<(), AccessError> {
        self.run(|engine| match engine.index() {
            0 => engine.dma_write_as(pasid, at, from),
            _ => Ok(()),
        })
    }

    /// The domain of the device's ordinary DMA.
    pub fn iommu_domain(&self) -> super::IommuDomain {
        super::IommuDomain(self.inner.space.domain.clone())
    }
}
