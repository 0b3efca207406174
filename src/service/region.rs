#![allow(unsafe_code, reason = "maps a memfd and hands out its address")]
//! Regions that the library allocates.

use std::os::fd::AsFd;

use memfd::MemfdOptions;
use thiserror::Error;

use crate::os::private::{PrivateBytes, PrivateError};
use crate::ports::Word;
use crate::units::{PAGE_BYTES, VirtAddr, VirtRange, WrapError};

/// Memory that the library allocated: a memfd, mapped for the application and once more for the service. Unmapped on
/// drop; every device loses it then.
#[derive(Debug)]
pub struct Region {
    range: VirtRange,
    view: PrivateBytes,
    process: u32,
}

/// Why no region was made.
#[derive(Debug, Error)]
#[non_exhaustive]
pub enum RegionError {
    /// Length zero.
    #[error("a region of zero bytes has nothing to map; give a length")]
    Empty,
    /// The length does not fit in the address space.
    #[error(transparent)]
    Wrap(#[from] WrapError),
    /// The kernel gave no file in memory.
    #[error(
        "the kernel made no memory file of {bytes} bytes ({error}); free memory or raise the limit on open files"
    )]
    File {
        /// What was asked for.
        bytes: u64,
        /// What the kernel said.
        error: std::io::Error,
    },
    /// The kernel did not map it.
    #[error("the kernel refused a mapping of {bytes} bytes ({error}); free memory or raise vm.max_map_count")]
    Mapping {
        /// What was asked for.
        bytes: u64,
        /// What the kernel said.
        error: std::io::Error,
    },
    /// The service's own view.
    #[error(transparent)]
    Private(#[from] PrivateError),
}

impl Region {
    pub(super) fn new(bytes: u64) -> Result<Self, RegionError> {
        if bytes == 0 {
            return Err(RegionError::Empty);
        }
        let bytes = VirtRange::covering(VirtAddr(0), bytes)?.bytes();
        let file = MemfdOptions::default()
            .close_on_exec(true)
            .create("granule-region")
            .map_err(|error| RegionError::File { bytes, error: std::io::Error::other(error) })?;
        file.as_file().set_len(bytes).map_err(|error| RegionError::File { bytes, error })?;
        let view = PrivateBytes::map_memfd(file.as_file().as_fd(), bytes)?;
        // SAFETY: a fresh mapping at an address that the kernel chooses; it belongs to this region until `drop`.
        let mapped = unsafe {
            rustix::mm::mmap(
                std::ptr::null_mut(),
                bytes as usize,
                rustix::mm::ProtFlags::READ | rustix::mm::ProtFlags::WRITE,
                rustix::mm::MapFlags::SHARED,
                file.as_file(),
                0,
            )
        };
        let start = mapped.map_err(|error| RegionError::Mapping { bytes, error: error.into() })? as u64;
        let range = VirtRange::of_pages(VirtAddr(start), bytes / PAGE_BYTES);
        Ok(Self { range, view, process: std::process::id() })
    }

    /// The application's view: readable and writable while the region lives, zeroed at first.
    pub fn as_ptr(&self) -> *mut u8 {
        self.range.start().0 as *mut u8
    }

    /// Length in bytes, whole pages.
    pub fn len(&self) -> usize {
        self.range.bytes() as usize
    }

    /// Never: a region has at least one page.
    pub fn is_empty(&self) -> bool {
        false
    }

    /// The pages of the application's view.
    pub fn range(&self) -> VirtRange {
        self.range
    }

    /// The service's own view of the same memory: never mirrored, and valid whatever the application does to its own.
    pub fn view(&self) -> &[Word] {
        self.view.as_words()
    }
}

impl Drop for Region {
    fn drop(&mut self) {
        if std::process::id() == self.process {
            // SAFETY: mapped by `new`, unmapped once, here; pointers into it are the caller's to end before.
            let result = unsafe { rustix::mm::munmap(self.as_ptr().cast(), self.len()) };
            debug_assert!(result.is_ok(), "a region's mapping is unmapped whole");
        }
    }
}
