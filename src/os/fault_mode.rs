//! Which of three userfaultfds a page is registered with: the one whose faults are read, the one whose faults are SIGBUS
//! in the thread that touched the page, or the one of regions, whose faults are read, too.
//!
//! # Rules
//! 1. A mapping can be registered with one userfaultfd only, so a range chooses before it is followed.
//! 2. A call that moves, copies or fills goes through the userfaultfd with which its destination is registered: only
//!    that one answers EAGAIN while an event of that range waits to be read.
//!    So does what takes from it: the slot is lent to that userfaultfd while pages are moved into it.
//! 3. The choice moves with `mremap` and ends with `munmap`.
#![allow(unsafe_code, reason = "registers memory")]

use thiserror::Error;

use super::abi::Errno;
use super::host::LinuxHost;
use super::tables::Held;
use super::take::TakeWay;
use super::userfaultfd::{Mode, Userfaultfd};
use crate::ports::HostError;
use crate::units::{VirtAddr, VirtRange};

/// Who serves a touch of a page that is on a device.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default, Hash)]
pub enum FaultMode {
    /// The service's reader, while the thread sleeps in the kernel. System calls into such a page work, too.
    #[default]
    Blocking,
    /// The thread itself, in a handler of SIGBUS: no other thread has to wake up. **A system call into such a page
    /// (`read`, `write`, a futex) fails with EFAULT**, a thread that blocks SIGBUS is killed, and a stack in such
    /// memory needs an alternate signal stack elsewhere.
    Sigbus,
}

/// Why a range cannot have a fault mode. Nothing is changed then.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Error)]
#[non_exhaustive]
pub enum FaultModeRefused {
    /// A device has used the range, or a neighbour in its mapping.
    #[error("the range is followed already; choose its fault mode before a device first touches its mapping")]
    Followed,
    /// No second userfaultfd, or pages are taken by protecting them.
    #[error("faults as SIGBUS need UFFDIO_MOVE and UFFD_FEATURE_SIGBUS; use Linux 6.8 or newer")]
    NotSupported,
    /// Too many ranges.
    #[error("too many ranges have a fault mode of their own; choose fewer and larger ones")]
    TooMany,
}

impl LinuxHost {
    /// Chooses the fault mode of a range. Inside the gate, so that every event that was read is applied.
    ///
    /// # Errors
    /// [`HostError::Changing`]: an event that is still to be read may be of what was mapped there before, and would end
    /// the choice. [`FaultModeRefused`] otherwise.
    pub fn set_fault_mode(
        &self,
        range: VirtRange,
        mode: FaultMode,
    ) -> Result<Result<(), FaultModeRefused>, HostError> {
        if mode == FaultMode::Sigbus && (self.sigbus.is_none() || self.way != TakeWay::Move) {
            return Ok(Err(FaultModeRefused::NotSupported));
        }
        if self.is_changing() {
            return Err(HostError::Changing);
        }
        let held = self.tables.lock();
        if held.mirrored.first_in(range).is_some() {
            return Ok(Err(FaultModeRefused::Followed));
        }
        let chosen = match mode {
            FaultMode::Blocking => held.sigbus.remove(range),
            FaultMode::Sigbus => held.sigbus.insert(range),
        };
        Ok(chosen.map_err(|_| FaultModeRefused::TooMany))
    }

    /// Who serves a touch of the page at an address.
    pub fn fault_mode(&self, at: VirtAddr) -> FaultMode {
        let page = VirtRange::of_pages(at.page_floor(), 1);
        if self.tables.any_sigbus() && self.tables.lock().sigbus.first_in(page).is_some() {
            FaultMode::Sigbus
        } else {
            FaultMode::Blocking
        }
    }

    /// The userfaultfd of the page at `at`, and how many of `pages` pages from there on share it.
    pub(super) fn uffd_for(&self, at: VirtAddr, pages: u64) -> (&Userfaultfd, u64) {
        if !self.tables.any_sigbus() && !self.tables.any_region() {
            return (&self.uffd, pages);
        }
        let (uffd, part) = self.part_from(&self.tables.lock(), VirtRange::of_pages(at, pages));
        (uffd, part.pages())
    }

    /// Registers a range with the userfaultfds of its parts.
    ///
    /// # Safety
    /// As [`Userfaultfd::register`].
    pub(super) unsafe fn register(&self, held: &Held<'_>, range: VirtRange, mode: Mode) -> Result<(), Errno> {
        // SAFETY: the caller's promise.
        self.each_part(held, range, |uffd, part| unsafe { uffd.register(part, mode) })
    }

    /// Ends every trap in the range and wakes who waits there.
    pub(super) fn unregister(&self, held: &Held<'_>, range: VirtRange) {
        // Refused where another mapping stands now; closing the descriptor ends the rest.
        let _ = self.each_part(held, range, |uffd, part| {
            let _ = uffd.unregister(part);
            Ok(())
        });
    }

    fn each_part(
        &self,
        held: &Held<'_>,
        range: VirtRange,
        mut act: impl FnMut(&Userfaultfd, VirtRange) -> Result<(), Errno>,
    ) -> Result<(), Errno> {
        let mut rest = range;
        while !rest.is_empty() {
            let (uffd, part) = self.part_from(held, rest);
            act(uffd, part)?;
            rest = VirtRange::between(part.end(), rest.end());
        }
        Ok(())
    }

    /// The userfaultfd of the start of `range`, and the part from there on that shares it.
    fn part_from(&self, held: &Held<'_>, range: VirtRange) -> (&Userfaultfd, VirtRange) {
        let (range, is_region) = held.regions.part_around(range, range.start());
        if is_region {
            return (self.region_uffd.as_ref().unwrap_or(&self.uffd), range);
        }
        let (range, is_sigbus) = held.sigbus.part_around(range, range.start());
        (self.sigbus.as_ref().filter(|_| is_sigbus).unwrap_or(&self.uffd), range)
    }
}
