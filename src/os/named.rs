//! Which memory may be taken.
//!
//! | memory | may be taken |
//! |---|---|
//! | regions of the library | yes, unless a child shares them |
//! | private anonymous memory | yes; in the user-mode-only fault mode only what was *named*: ranges of userptrs that allow moving |
//! | the rest | no |
//!
//! In the user-mode-only mode the kernel serves no fault that it meets itself: a system call that reads or writes a page
//! on a device fails with EFAULT. So nothing is taken there of which the program has not said that it can live with that;
//! above all not the heap, on which the C library itself makes system calls.
//!
//! # Rules
//! 1. `vma` says what may move, and `take` asks again: a name that ended in between counts.
//! 2. A name goes with its pages: `mremap` takes it along, `munmap` ends it.

use super::host::LinuxHost;
use super::tables::Held;
use crate::ports::{HostError, Vma, VmaKind};
use crate::units::{BlockNo, PageMask, VirtAddr, VirtRange};

impl LinuxHost {
    /// Cuts a mapping to the part around an address that may move, or not, as a whole.
    pub(super) fn judge(&self, vma: Vma, at: VirtAddr) -> Vma {
        match vma.kind {
            VmaKind::LinkOnly if self.tables.any_region() => {
                let (range, is_region) = self.tables.lock().regions.part_around(vma.range, at);
                let moves = is_region && self.regions.may_move(at);
                Vma { range, kind: if moves { VmaKind::Movable } else { VmaKind::LinkOnly }, ..vma }
            }
            VmaKind::Movable if self.is_user_mode_only() => {
                let (range, is_named) = self.tables.lock().named.part_around(vma.range, at);
                Vma { range, kind: if is_named { VmaKind::Movable } else { VmaKind::LinkOnly }, ..vma }
            }
            _ => vma,
        }
    }

    /// Which pages of a block are not to be taken because nobody named them.
    pub(super) fn unnamed(&self, held: &Held<'_>, block: BlockNo) -> PageMask {
        if !self.is_user_mode_only() {
            return PageMask::EMPTY;
        }
        let mut named = PageMask::EMPTY;
        held.named.for_each_in(block.range(), |part| named |= part.mask_in(block));
        held.regions.for_each_in(block.range(), |part| named |= part.mask_in(block));
        !named
    }

    /// Lets a range be taken in the user-mode-only mode. In other modes nothing needs a name. Inside the gate, so that
    /// every event that was read is applied.
    ///
    /// # Errors
    /// [`HostError::Changing`]: an event that is still to be read may be of what was mapped there before, and would end
    /// the name. [`HostError::OutOfMemory`] if too many ranges are named.
    pub(crate) fn name(&self, range: VirtRange) -> Result<(), HostError> {
        if !self.is_user_mode_only() {
            return Ok(());
        }
        if self.is_changing() {
            return Err(HostError::Changing);
        }
        self.tables.lock().named.insert(range).map_err(|_| HostError::OutOfMemory)
    }

    /// Ends that. What is on a device stays there until it is fetched: whoever ends a name brings it home.
    pub(crate) fn end_name(&self, range: VirtRange) {
        // No room for the cut: it may be taken as before.
        let _ = self.tables.lock().named.remove(range);
    }

    /// Whether the kernel refuses its own accesses to absent pages of a range, or of a part of it.
    pub(super) fn traps_system_calls(&self, range: VirtRange) -> bool {
        let held = self.tables.lock();
        held.sigbus.first_in(range).is_some()
            || self.is_user_mode_only() && held.armed.first_in(range).is_some()
    }

    /// Whether the kernel serves touches of user mode only.
    pub fn is_user_mode_only(&self) -> bool {
        self.uffd.features().user_mode_only
    }
}
