#![allow(unsafe_code, reason = "maps a memfd and hands out its address")]
//! Regions that the library allocates. How their pages move: `os::region_pages`.

use std::fmt;
use std::os::fd::AsFd;

use memfd::{FileSeal, MemfdOptions};
use rustix::mm::{MapFlags, ProtFlags};
use thiserror::Error;

use super::core::Core;
use super::request::{Answered, Ask, Asker, RequestError};
use crate::os::private::{PrivateArc, PrivateBytes, PrivateError};
use crate::os::regions::{RegionNo, Regions};
use crate::ports::{Host, Word};
use crate::units::{BLOCK_BYTES, DeviceId, PAGE_BYTES, SPACE_BYTES, VirtAddr, VirtRange, WrapError};

/// Memory that the library allocated: a memfd, mapped for the application and once more for the service. Its pages move
/// to devices and back like those of ordinary memory. Unmapped on drop; every device loses it then.
///
/// The mapping belongs to this value: the program may read, write and `mprotect` it, lock it, and discard what it has
/// mapped of it (`MADV_DONTNEED`, which loses nothing), but may not unmap, move or replace any part of it, nor collapse it
/// to huge pages (`MADV_COLLAPSE`). `MADV_REMOVE` is refused by the kernel.
pub struct Region {
    range: VirtRange,
    view: PrivateBytes,
    /// Whose devices know of it.
    core: PrivateArc<Core>,
    process: u32,
    /// Where it is entered, if its pages can move.
    entered: Option<(PrivateArc<Regions>, RegionNo)>,
}

impl fmt::Debug for Region {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Region").field("range", &self.range).finish_non_exhaustive()
    }
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
    /// The service did not take note of it.
    #[error(transparent)]
    Request(#[from] RequestError),
    /// The service's own view.
    #[error(transparent)]
    Private(#[from] PrivateError),
    /// The window of the space is full.
    #[error("no {bytes} bytes of addresses are free in the window of this space; give it a larger window")]
    NoAddress {
        /// What was asked for.
        bytes: u64,
    },
}

impl Region {
    pub(super) fn new(core: &PrivateArc<Core>, asker: &Asker, bytes: u64) -> Result<Self, RegionError> {
        if bytes == 0 {
            return Err(RegionError::Empty);
        }
        asker.check(DeviceId(0))?;
        let bytes = VirtRange::covering(VirtAddr(0), bytes)?.bytes();
        let file = MemfdOptions::default()
            .close_on_exec(true)
            .allow_sealing(true)
            .create("granule-region")
            .map_err(|error| RegionError::File { bytes, error: std::io::Error::other(error) })?;
        file.as_file().set_len(bytes).map_err(|error| RegionError::File { bytes, error })?;
        let view = PrivateBytes::map_memfd(file.as_file().as_fd(), bytes)?;
        let range = VirtRange::of_pages(place(core, bytes)?, bytes / PAGE_BYTES);
        // SAFETY: over the reservation that `place` made, which is nobody else's; it belongs to this region until `drop`.
        let mapped = unsafe {
            rustix::mm::mmap(
                range.start().0 as *mut _,
                bytes as usize,
                ProtFlags::READ | ProtFlags::WRITE,
                MapFlags::SHARED | MapFlags::FIXED,
                file.as_file(),
                0,
            )
        };
        if let Err(error) = mapped {
            // SAFETY: the reservation, which nobody uses.
            let _ = unsafe { rustix::mm::munmap(range.start().0 as *mut _, bytes as usize) };
            return Err(RegionError::Mapping { bytes, error: error.into() });
        }
        let mut region = Self { range, view, core: core.clone(), process: std::process::id(), entered: None };
        for device in core.space.devices {
            device.port.admit(range, region.view.base());
        }
        // Both mappings stay writable. Before Linux 5.1 the last of these is unknown, but there nothing moves either.
        let seals = [FileSeal::SealShrink, FileSeal::SealGrow, FileSeal::SealFutureWrite, FileSeal::SealSeal];
        let sealed = seals.iter().all(|seal| file.add_seals(std::slice::from_ref(seal)).is_ok());
        if sealed && core.host.window().covers(range) {
            // From here on `drop` ends takes, unmaps, and retires, in this order, before it unmaps `view`.
            match asker.ask(DeviceId(0), Ask::EnterRegion(range, region.view.base()))? {
                Answered::Region(no) => region.entered = no.map(|no| (core.host.regions().clone(), no)),
                other => panic!("a region is answered by its number, not {other:?}"),
            }
        }
        Ok(region)
    }

    /// Whether its pages can move to a device (Linux 5.14). If not, devices link them. After a `fork` they are linked
    /// as well, since the child shares them.
    pub fn is_movable(&self) -> bool {
        self.entered.is_some()
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
    /// What it shows of a page that is on a device is what was there when the page left.
    pub fn view(&self) -> &[Word] {
        self.view.as_words()
    }
}

/// Reserves addresses for a region in the window: from a multiple of 2 MiB on if it is as long.
fn place(core: &Core, bytes: u64) -> Result<VirtAddr, RegionError> {
    let window = core.host.window();
    let align = if bytes < BLOCK_BYTES { PAGE_BYTES } else { BLOCK_BYTES };
    let reserve = |at: u64, bytes: u64, flags: MapFlags| {
        // SAFETY: a fresh mapping where nothing is, of nothing.
        unsafe {
            rustix::mm::mmap_anonymous(
                at as *mut _,
                bytes as usize,
                ProtFlags::empty(),
                MapFlags::PRIVATE | MapFlags::NORESERVE | flags,
            )
        }
    };
    if window.bytes() == SPACE_BYTES {
        let spare = align - PAGE_BYTES;
        let got = reserve(0, bytes + spare, MapFlags::empty())
            .map_err(|error| RegionError::Mapping { bytes, error: error.into() })? as u64;
        let start = got.next_multiple_of(align);
        let (head, tail) = (start - got, spare - (start - got));
        for (at, bytes) in [(got, head), (start + bytes, tail)] {
            if bytes > 0 {
                // SAFETY: the ends of the reservation made above.
                let result = unsafe { rustix::mm::munmap(at as *mut _, bytes as usize) };
                debug_assert!(result.is_ok(), "a reservation is cut");
            }
        }
        return Ok(VirtAddr(start));
    }
    let mut at = window.start().0.next_multiple_of(align);
    while at + bytes <= window.end().0 {
        let next = core.host.next_mapped(VirtAddr(at)).unwrap_or(None);
        let free_until = next.map_or(window.end(), VirtRange::start).0;
        // Somebody else may take the place first: then behind him.
        if at + bytes <= free_until
            && reserve(at, bytes, MapFlags::FIXED_NOREPLACE).is_ok_and(|got| got as u64 == at)
        {
            return Ok(VirtAddr(at));
        }
        let behind = next.map_or(at + align, |next| next.end().0.max(at + align));
        at = behind.next_multiple_of(align);
    }
    Err(RegionError::NoAddress { bytes })
}

impl Drop for Region {
    fn drop(&mut self) {
        if std::process::id() != self.process {
            return;
        }
        if let Some((regions, no)) = &self.entered {
            regions.end_takes(*no);
        }
        // SAFETY: mapped by `new`, unmapped once, here; pointers into it are the caller's to end before.
        let result = unsafe { rustix::mm::munmap(self.as_ptr().cast(), self.len()) };
        debug_assert!(result.is_ok(), "a region's mapping is unmapped whole");
        if let Some((regions, no)) = &self.entered {
            regions.retire(*no);
        }
        // The call returned when its event was read, with every device stopped until the event was applied.
        for device in self.core.space.devices {
            device.port.dismiss(self.range);
        }
    }
}
