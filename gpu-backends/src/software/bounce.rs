//! Bounce pages: private memory that stands in for pages which a device must not or cannot reach.
#![allow(unsafe_code, reason = "copies between memory of the process and of the library")]

use granule::os::guarded;
use granule::os::private::PrivateBytes;
use granule::ports::{BounceFault, BounceMemory};
use granule::sync::Ordering;
use granule::units::{PAGE_BYTES, PhysAddr};

use super::builder::BuildError;
use super::memory::NEVER;

/// Bounce pages for software devices, contiguous in physical memory.
#[derive(Debug)]
pub struct BouncePages {
    memory: PrivateBytes,
    pages: usize,
    page_bytes: u64,
}

impl BouncePages {
    /// `pages` pages of `page_bytes` bytes each (that of the IOMMU's page, or 4096), filled as they are touched.
    ///
    /// # Errors
    /// [`BuildError::IommuPage`], [`BuildError::Private`], [`BuildError::Signals`].
    pub fn new(pages: usize, page_bytes: u64) -> Result<Self, BuildError> {
        if !page_bytes.is_power_of_two() || page_bytes < PAGE_BYTES {
            return Err(BuildError::IommuPage(page_bytes));
        }
        guarded::install()?;
        let memory = PrivateBytes::aligned(pages as u64 * page_bytes, page_bytes)?;
        Ok(Self { memory, pages, page_bytes })
    }

    /// Where the host sees a part of a page. Asserts that it is one.
    fn host(&self, slot: usize, offset: u64, bytes: u64) -> u64 {
        assert!(
            slot < self.pages && offset.checked_add(bytes).is_some_and(|end| end <= self.page_bytes),
            "a copy ends inside of its bounce page"
        );
        self.memory.base().0 + slot as u64 * self.page_bytes + offset
    }
}

impl BounceMemory for BouncePages {
    fn pages(&self) -> usize {
        self.pages
    }

    fn page_bytes(&self) -> u64 {
        self.page_bytes
    }

    fn phys(&self, slot: usize) -> PhysAddr {
        PhysAddr(self.host(slot, 0, self.page_bytes))
    }

    fn clear(&self, slot: usize) {
        let words = (self.page_bytes / 8) as usize;
        self.memory.as_words()[slot * words..][..words]
            .iter()
            .for_each(|word| word.store(0, Ordering::Relaxed));
    }

    fn copy_in(&self, slot: usize, offset: u64, from: PhysAddr, bytes: u64) -> Result<(), BounceFault> {
        let to = self.host(slot, offset, bytes);
        // SAFETY: the target lies in the pages, checked; the source is memory that the application lent to a device,
        // and may vanish; the handlers were installed when the pages were made.
        unsafe { guarded::copy(to, from.0, bytes as usize, &NEVER) }.map_err(|_| BounceFault(from))
    }

    fn copy_out(&self, slot: usize, offset: u64, to: PhysAddr, bytes: u64) -> Result<(), BounceFault> {
        let from = self.host(slot, offset, bytes);
        // SAFETY: as in `copy_in`, the other way: the application lent the memory for writing.
        unsafe { guarded::copy(to.0, from, bytes as usize, &NEVER) }.map_err(|_| BounceFault(to))
    }
}
