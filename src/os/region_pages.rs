//! How pages of regions leave the application's view and come back to it.
//!
//! | step | what the kernel is asked |
//! |---|---|
//! | alloc | the application's view is registered once for *minor* faults: a touch of a page that the file has and the view lacks is trapped; one that nobody has touched is none |
//! | take | the page is put into the file if it is not there (a hole would not be trapped), then the view loses it: `MADV_DONTNEED`, which for shared memory discards nothing |
//! | copy | straight between the service's view and the device |
//! | give | `UFFDIO_CONTINUE` maps it again and wakes who waits |
//!
//! # Rules
//! 1. A page is taken whole or not at all: a store of the CPU lands in the file before the view loses the page, or is
//!    trapped. (Read-ahead into neighbours is off in registered mappings, so no page comes back by itself.)
//! 2. Their userfaultfd has no events for `MADV_DONTNEED`: a take tells nobody, and waits for nobody. It has events for
//!    unmapping.
//! 3. A take acts on addresses: `regions` says until when they are the region's, and the file is sealed against the
//!    holes that `MADV_REMOVE` would punch.
//! 4. What is in RAM and absent from the view (after a discard by the application, say) is mapped again at a touch.
#![allow(unsafe_code, reason = "unmaps pages of the application's view, and copies to the service's")]

use core::sync::atomic::Ordering;

use super::abi::{Errno, Outcome};
use super::host::LinuxHost;
use super::regions::{RegionNo, words_of};
use super::userfaultfd::{Mode, Userfaultfd};
use super::walk::{Step, walk};
use crate::ports::{Give, HostError, StagingId, Take, WORDS_PER_PAGE, Word};
use crate::units::{BlockNo, PAGE_BYTES, PageIndex, PageMask, VirtAddr, VirtRange};

impl LinuxHost {
    /// Lets the pages of a region move. Its application's view is a fresh shared mapping of a memory file, of which the
    /// service has a view at `view`, as long. `None` where the kernel cannot trap touches of it (before 5.14), or
    /// there are too many regions: then it is shared memory like any other, and linked.
    ///
    /// Inside the gate, so that every event that was read is applied.
    ///
    /// # Errors
    /// [`HostError::Changing`]: an event that is still to be read may be of what was mapped there before, by whomever, and
    /// would end this.
    ///
    /// # Safety
    /// The owner ends takes before it unmaps the application's view, and retires the region before it unmaps the other.
    pub(crate) unsafe fn enter_region(
        &self,
        range: VirtRange,
        view: VirtAddr,
    ) -> Result<Option<RegionNo>, HostError> {
        let Some(uffd) = &self.region_uffd else { return Ok(None) };
        if self.is_changing() {
            return Err(HostError::Changing);
        }
        let held = self.tables.lock();
        if !held.has_room() {
            return Ok(None);
        }
        let Some(no) = self.regions.enter(range, view) else { return Ok(None) };
        let was_followed = held.mirrored.first_in(range).is_some();
        if was_followed {
            // A device has touched it since it was mapped: it is followed like any shared memory. Its owner, who alone may
            // change it, waits for us.
            self.unregister(&held, range);
        }
        // SAFETY: the caller of `open` vouches that faults are served.
        let entered = unsafe { uffd.register(range, Mode::Minor) }.is_ok()
            && [held.regions, held.mirrored, held.armed].into_iter().all(|set| set.insert(range).is_ok());
        if !entered {
            held.unmapped(range);
            let _ = uffd.unregister(range);
            self.regions.forget(no);
            // SAFETY: in this mode nothing is trapped.
            if was_followed && unsafe { self.uffd.register(range, Mode::WriteProtect) }.is_ok() {
                let _ = held.mirrored.insert(range);
            }
            return Ok(None);
        }
        held.followed();
        Ok(Some(no))
    }

    /// Which pages of a block lie in regions that can move.
    pub(super) fn region_pages(&self, block: BlockNo) -> PageMask {
        let mut mask = PageMask::EMPTY;
        if self.tables.any_region() {
            self.tables.lock().regions.for_each_in(block.range(), |part| mask |= part.mask_in(block));
        }
        mask
    }

    /// Takes pages of regions. Inside the gate; the pages are in transit.
    pub(super) fn take_region_pages(&self, block: BlockNo, pages: &PageMask, take: &mut Take) {
        for run in pages.runs() {
            let mut from = run.start;
            while from < run.end {
                match self.take_region_run(block, from..run.end) {
                    Ok((until, moves)) => {
                        let part = PageMask::of_range(from..until);
                        if moves {
                            take.taken |= part
                        } else {
                            take.refused |= part
                        }
                        from = until;
                    }
                    Err(error) => {
                        take.stopped = Some(error);
                        return;
                    }
                }
            }
        }
    }

    /// Takes the part of a run that lies in its first region; says where in the run that ends. `false`: it does not
    /// move.
    fn take_region_run(
        &self,
        block: BlockNo,
        run: core::ops::Range<usize>,
    ) -> Result<(usize, bool), HostError> {
        let at = block.base() + run.start as u64 * PAGE_BYTES;
        // An ended region is about to be unmapped; its event is still to be read.
        let (_taking, region) = self.regions.begin_take(at).ok_or(HostError::Changing)?;
        let part = region.intersection(VirtRange::of_pages(at, run.len() as u64));
        let until = run.start + part.pages() as usize;
        if !self.regions.may_move(at) {
            return Ok((until, false));
        }
        let (view, _) = self.regions.view(at, part.pages()).ok_or(HostError::Changing)?;
        let advise = |at: VirtAddr, advice: i32| {
            loop {
                // SAFETY: the service's own view, in which nothing is discarded; and the application's, which is this
                // region's as long as `_taking` lives, and of shared memory, which keeps its contents.
                let rc = unsafe { libc::madvise(at.0 as *mut _, part.bytes() as usize, advice) };
                match if rc == 0 { 0 } else { Errno::last().0 } {
                    0 => return Ok(()),
                    libc::EINTR | libc::EAGAIN => {}
                    errno => return Err(Errno(errno)),
                }
            }
        };
        advise(view, libc::MADV_POPULATE_WRITE).map_err(|_| HostError::OutOfMemory)?;
        // EINVAL: locked in memory.
        Ok((until, advise(at, libc::MADV_DONTNEED).is_ok()))
    }

    /// Maps pages of regions again and wakes who waits.
    pub(super) fn give_region_pages(&self, block: BlockNo, pages: &PageMask, give: &mut Give) {
        let Some(uffd) = &self.region_uffd else { return };
        let mut there = PageMask::EMPTY;
        for run in pages.runs() {
            walk(
                run.start as u64..run.end as u64,
                |page, count| map_pages(uffd, block.base() + page * PAGE_BYTES, count),
                |done| give.given |= PageMask::of_range(done.start as usize..done.end as usize),
                |page, errno| match errno.0 {
                    // There is one memory, whoever maps it.
                    libc::EEXIST => {
                        uffd.wake(VirtRange::of_pages(block.base() + page * PAGE_BYTES, 1));
                        there.insert(PageIndex(page as u16));
                        Step::Skip
                    }
                    _ => {
                        give.stopped = Some(errno.into());
                        if errno.0 == libc::EAGAIN { Step::Stop } else { Step::Skip }
                    }
                },
            );
            if give.stopped == Some(HostError::Changing) {
                break;
            }
        }
        give.given |= there;
    }

    /// Puts one page's words into a region and maps it; `None` if the page is of no region.
    pub(super) fn give_region_words(
        &self,
        at: VirtAddr,
        words: &[Word],
    ) -> Option<(u64, Result<(), HostError>)> {
        if !self.is_region(at) {
            return None;
        }
        let (view, _) = self.regions.view(at, 1)?;
        // SAFETY: rule 2 of `regions`: the caller is inside the gate, or the reader.
        let to = unsafe { words_of(view, 1) };
        for (from, to) in words[..WORDS_PER_PAGE].iter().zip(to) {
            to.store(from.load(Ordering::Relaxed), Ordering::Relaxed);
        }
        let mut give = Give::default();
        self.give_region_pages(BlockNo::of(at), &PageMask::of(PageIndex::of(at)), &mut give);
        Some((give.given.count() as u64, give.stopped.map_or(Ok(()), Err)))
    }

    /// Whether a page belongs to a region that can move.
    pub(super) fn is_region(&self, at: VirtAddr) -> bool {
        let page = VirtRange::of_pages(at.page_floor(), 1);
        self.tables.any_region() && self.tables.lock().regions.first_in(page).is_some()
    }

    /// Where the first of some pages in transit stands, and those behind it that stand there, too: in the service's
    /// view of their region, or in the staging slot.
    pub(super) fn words_in_transit(
        &self,
        block: BlockNo,
        run: core::ops::Range<usize>,
        staging: StagingId,
    ) -> &[Word] {
        let at = block.base() + run.start as u64 * PAGE_BYTES;
        let mut pages = run.len() as u64;
        if self.tables.any_region() {
            let (part, inside) = self.tables.lock().regions.part_around(VirtRange::of_pages(at, pages), at);
            pages = part.pages();
            if inside && let Some((view, pages)) = self.regions.view_with(staging, at, pages) {
                // SAFETY: rule 3 of `regions`: the view stays until the slot is released, which its holder does when
                // he uses its words no more.
                return unsafe { words_of(view, pages) };
            }
        }
        &self.staging.words(staging)[run.start * WORDS_PER_PAGE..][..pages as usize * WORDS_PER_PAGE]
    }
}

/// Maps what the file has at `at`.
pub(super) fn map_pages(uffd: &Userfaultfd, at: VirtAddr, pages: u64) -> Outcome {
    uffd.map_file_pages(VirtRange::of_pages(at, pages))
}
