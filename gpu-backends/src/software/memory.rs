//! The device's own memory: a memfd, mapped once in private memory. Whoever reads or writes it goes through
//! `guarded`, so that a host without memory for it gives an error and not a signal.
#![allow(unsafe_code, reason = "copies between raw memory of the device and of the library")]

use granule::os::guarded;
use granule::os::private::PrivateBytes;
use granule::ports::{DeviceError, Word};
use granule::sync::AtomicU32;
use granule::units::{BLOCK_BYTES, DevMemAddr, PAGE_BYTES};

use super::builder::BuildError;

/// The stop word of accesses that nobody stops.
pub(super) static NEVER: AtomicU32 = AtomicU32::new(0);

pub(crate) struct DeviceMemory {
    view: PrivateBytes,
    bytes: u64,
}

impl DeviceMemory {
    /// Memory of `bytes` bytes, a multiple of 2 MiB, filled as it is touched, or at once.
    pub(crate) fn new(bytes: u64, populate: bool) -> Result<Self, BuildError> {
        debug_assert!(bytes > 0 && bytes.is_multiple_of(BLOCK_BYTES));
        let file = memfd::MemfdOptions::new()
            .create("granule-device")
            .map_err(|error| BuildError::Memfd(error.to_string()))?;
        file.as_file().set_len(bytes).map_err(|error| BuildError::Memfd(error.to_string()))?;
        let view = PrivateBytes::map_memfd(std::os::fd::AsFd::as_fd(file.as_file()), bytes)?;
        let at = view.base().0 as *mut libc::c_void;
        // SAFETY: the whole of a fresh mapping that `view` keeps; neither call changes what it holds.
        unsafe {
            // A wish: where the kernel grants no huge pages to memory files, small ones serve.
            libc::madvise(at, bytes as usize, libc::MADV_HUGEPAGE);
            if populate && libc::madvise(at, bytes as usize, libc::MADV_POPULATE_WRITE) != 0 {
                return Err(BuildError::Populate {
                    bytes,
                    errno: std::io::Error::last_os_error().to_string(),
                });
            }
        }
        Ok(Self { view, bytes })
    }

    pub(crate) fn bytes(&self) -> u64 {
        self.bytes
    }

    /// Where the host sees an offset. The caller has checked the offset.
    #[inline]
    pub(super) fn host_address(&self, at: u64) -> u64 {
        self.view.base().0 + at
    }

    /// The host's view of a range, if it lies in the memory.
    pub(crate) fn words(&self, at: DevMemAddr, bytes: u64) -> Option<&[Word]> {
        let end = at.0.checked_add(bytes).filter(|&end| end <= self.bytes)?;
        assert!(at.0.is_multiple_of(8) && bytes.is_multiple_of(8), "a window consists of words");
        Some(&self.view.as_words()[at.0 as usize / 8..end as usize / 8])
    }

    fn check(&self, at: DevMemAddr, words: &[Word]) -> u64 {
        let bytes = size_of_val(words) as u64;
        assert!(
            at.is_page_aligned() && bytes.is_multiple_of(PAGE_BYTES),
            "copies to and from a device are whole pages"
        );
        assert!(
            at.0.checked_add(bytes).is_some_and(|end| end <= self.bytes),
            "a copy ends inside of device memory"
        );
        bytes
    }

    pub(crate) fn copy_in(&self, to: DevMemAddr, from: &[Word]) -> Result<(), DeviceError> {
        let bytes = self.check(to, from);
        // SAFETY: `from` is memory of the library that lives for the call; the target lies in the view, checked;
        // the handlers were installed when the device was built.
        unsafe { guarded::copy(self.host_address(to.0), from.as_ptr() as u64, bytes as usize, &NEVER) }
            .map_err(|_| DeviceError::CopyFailed)
    }

    pub(crate) fn copy_out(&self, from: DevMemAddr, to: &[Word]) -> Result<(), DeviceError> {
        let bytes = self.check(from, to);
        // SAFETY: as in `copy_in`; `to` consists of atomics, so others may look at it.
        unsafe { guarded::copy(to.as_ptr() as u64, self.host_address(from.0), bytes as usize, &NEVER) }
            .map_err(|_| DeviceError::CopyFailed)
    }
}
