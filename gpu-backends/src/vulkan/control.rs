//! The words that every launch of a device shares: what `GranuleControl` in `shaders/granule.glsl` names, and the window
//! words. They lie in private memory that is imported into the device.
#![allow(unsafe_code, reason = "raw memory that a shader reads, seen as words of 32 bits")]

use granule::os::private::{PrivateBytes, PrivateError};
use granule::sync::{AtomicU32, Ordering};
use granule::units::PAGE_BYTES;

/// How many window words there are: a power of two.
const WINDOWS: usize = 16;
/// Where they begin, and how far each is from the next.
const WINDOWS_AT: usize = 1024;
const WINDOW_STRIDE: usize = 64;

/// The control memory.
pub(super) struct Control {
    pub(super) memory: PrivateBytes,
}

/// Device addresses that shaders need.
#[derive(Clone, Copy)]
pub(super) struct Addresses {
    pub(super) control: u64,
    pub(super) table: u64,
    pub(super) iommu: u64,
    pub(super) memory: u64,
    /// The directory of granules; 0 without sparse mode.
    pub(super) directory: u64,
}

impl Control {
    pub(super) fn new(align: u64) -> Result<Self, PrivateError> {
        Ok(Self { memory: PrivateBytes::aligned(align.max(PAGE_BYTES), align.max(PAGE_BYTES))? })
    }

    /// Tells shaders where things are. Before the first launch.
    pub(super) fn publish(&self, addresses: Addresses) {
        let words = self.memory.as_words();
        words[0].store(addresses.table, Ordering::SeqCst);
        words[1].store(addresses.iommu, Ordering::SeqCst);
        words[2].store(addresses.memory, Ordering::SeqCst);
        words[3].store(addresses.control + WINDOWS_AT as u64, Ordering::SeqCst);
        words[4].store(WINDOWS as u64 - 1, Ordering::SeqCst);
        words[5].store(addresses.directory, Ordering::SeqCst);
    }

    /// Every window word.
    pub(super) fn windows(&self) -> impl Iterator<Item = &AtomicU32> {
        (0..WINDOWS).map(|index| half(&self.memory, WINDOWS_AT + index * WINDOW_STRIDE))
    }
}

/// Four bytes of shared memory, at an offset that is a multiple of four.
pub(super) fn half(memory: &PrivateBytes, offset: usize) -> &AtomicU32 {
    assert!(offset.is_multiple_of(4) && offset < size_of_val(memory.as_words()), "a word of the memory");
    // SAFETY: inside of the mapping that `memory` keeps for as long as the result is borrowed, aligned, and reached
    // through atomics only.
    unsafe { &*((memory.base().0 as usize + offset) as *const AtomicU32) }
}
