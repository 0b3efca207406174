//! Taking pages from the application, and giving them back.
//!
//! | way | take | drop_taken | give |
//! |---|---|---|---|
//! | [`TakeWay::Move`] | `UFFDIO_MOVE` into staging: atomic | nothing | `UFFDIO_MOVE` out of staging; `UFFDIO_COPY` for a page that it refuses |
//! | [`TakeWay::WriteProtect`] | protect | copy, discard | `UFFDIO_COPY`; a page not yet discarded is unprotected |
//!
//! Pages of regions of the library go their own way, whatever this is: `region_pages`.
//!
//! # Rules
//! 1. A page of a range that is being removed is not taken until it was seen absent: between the event and the
//!    discard its old contents are still there, and would come back from the dead.
//! 2. A protected page that is present is never read by a plain load: it is copied by a call that reports a fault
//!    instead of raising it, and outside of the gate: the page may have gone with `mremap(MREMAP_DONTUNMAP)`, whose event
//!    is not read yet, and then the call waits for the reader like any touch of an absent page. Whoever looks for such a
//!    page in staging before it is copied (mremap, fork) finds it present where he wants to bring it.
//! 3. A block that is one huge page is taken into a slot without a page table, and given back from a slot that holds
//!    one: where either side has a page table, the kernel splits. (The application's side has none: it was taken away
//!    whole, and a touch of an absent page in a mapping with huge pages is trapped before a table is made.)
//! 4. Absent pages are taken as what they are, zeros: nothing is moved, and staging reads as zeros there.
//! 5. Nothing is taken while a change is under way: a mapping that another thread has put in the place of one whose
//!    event is not read yet is followed by nobody. The kernel answers EAGAIN then, under its locks, because both ways
//!    act through the main userfaultfd (staging lies on it).
//! 6. The kernel's page of zeros is refused: a move of it races with the copy that a CPU makes when it writes there.
//!    Measured on Linux 6.18: the store has completed, the zeros are in staging, and the store is nowhere. Once a page
//!    is armed and in transit no such page can come there any more, so that one look before the move is enough.
//!    Who wants it on a device makes it the process's own page first, by a touch for writing.
#![allow(unsafe_code, reason = "moves and discards pages of the application")]

use super::abi::{MOVE_MODE_ALLOW_SRC_HOLES, MOVE_MODE_DONTWAKE, Outcome};
use super::host::LinuxHost;
use super::tables::Held;
use super::userfaultfd::Userfaultfd;
use super::walk::{Step, walk};
use crate::ports::{Give, Host, HostError, StagingId, Take, WORDS_PER_PAGE};
use crate::units::{BlockNo, PAGE_BYTES, PAGES_PER_BLOCK, PageIndex, PageMask, VirtAddr, VirtRange};

/// How pages leave the application's mapping.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum TakeWay {
    /// `UFFDIO_MOVE` (Linux 6.8).
    Move,
    /// Write-protect, copy, discard: any kernel. Pages that something has pinned are taken, too, and what that
    /// something writes later is lost (the kernel does not tell).
    WriteProtect,
}

fn run_range(block: BlockNo, run: &core::ops::Range<usize>) -> VirtRange {
    VirtRange::of_pages(block.base() + run.start as u64 * PAGE_BYTES, run.len() as u64)
}

fn run_of(run: core::ops::Range<u64>) -> PageMask {
    PageMask::of_range(run.start as usize..run.end as usize)
}

impl LinuxHost {
    pub(super) fn take_pages(&self, block: BlockNo, pages: &PageMask, staging: StagingId) -> Take {
        let mut take = Take::default();
        match self.not_to_take(block, pages) {
            Ok(removing) => take.refused = removing,
            Err(error) => return Take { stopped: Some(error), ..take },
        }
        let pages = *pages - take.refused;
        let regions = self.region_pages(block) & pages;
        self.take_region_pages(block, &regions, &mut take);
        if take.stopped.is_some() {
            return take;
        }
        for run in (pages - regions).runs() {
            // Usually done by the caller; a page that is taken unarmed would read as zeros.
            let armed = self.arm(run_range(block, &run));
            let stopped = armed.and_then(|()| match self.way {
                TakeWay::Move => {
                    let run = PageMask::of_range(run);
                    let zero = self.pagemap.zero_pages(block, &run)?;
                    take.refused |= zero;
                    (run - zero).runs().try_for_each(|run| self.move_parts(block, run, staging, &mut take))
                }
                TakeWay::WriteProtect => self.protect(block, run, staging, &mut take),
            });
            if let Err(error) = stopped {
                take.stopped = Some(error);
                break;
            }
        }
        take
    }

    /// The pages among `pages` that nobody named, where that is needed, and those that a `madvise` whose event was read
    /// may still discard.
    fn not_to_take(&self, block: BlockNo, pages: &PageMask) -> Result<PageMask, HostError> {
        let held = self.tables.lock();
        let unnamed = self.unnamed(&held, block) & *pages;
        Ok(unnamed | self.still_removing(&held, block, &(*pages - unnamed))?)
    }

    /// The pages among `pages` that a `madvise` whose event was read may still discard. Those that are absent now
    /// are forgotten: what appears there from now on is new.
    fn still_removing(
        &self,
        held: &Held<'_>,
        block: BlockNo,
        pages: &PageMask,
    ) -> Result<PageMask, HostError> {
        let mut removing = PageMask::EMPTY;
        held.removing.for_each_in(block.range(), |part| removing |= part.mask_in(block));
        if !removing.intersects(pages) {
            return Ok(PageMask::EMPTY);
        }
        let present = self.pagemap.present(block, &removing)?;
        for run in (removing - present).runs() {
            // No room for the cut: the page is refused once more.
            let _ = held.removing.remove(run_range(block, &run));
        }
        Ok(present & *pages)
    }

    /// Looks whether pages being removed are absent by now. [`LinuxHost::wait`] does so a few times after each
    /// such event; costs a scan of the ranges (about a nanosecond per page).
    pub fn settle_removed(&self) {
        let held = self.tables.lock();
        let mut rest = VirtRange::of_pages(VirtAddr(0), crate::units::SPACE_BYTES / PAGE_BYTES);
        while let Some(range) = held.removing.first_in(rest) {
            rest = VirtRange::between(range.end(), rest.end());
            let mut absent_from = range.start();
            let forget = |from: VirtAddr, to: VirtAddr| {
                if from < to {
                    // No room for the cut: the pages are refused without need.
                    let _ = held.removing.remove(VirtRange::between(from, to));
                }
            };
            let seen = self.pagemap.for_each_present(range, |part| {
                forget(absent_from, part.start());
                absent_from = part.end();
            });
            if seen.is_err() {
                return;
            }
            forget(absent_from, range.end());
        }
    }

    /// A run, part by part of one userfaultfd each.
    fn move_parts(
        &self,
        block: BlockNo,
        run: core::ops::Range<usize>,
        staging: StagingId,
        take: &mut Take,
    ) -> Result<(), HostError> {
        let mut from = run.start;
        while from < run.end {
            let at = block.base() + from as u64 * PAGE_BYTES;
            let (uffd, pages) = self.uffd_for(at, (run.end - from) as u64);
            let part = from..from + pages as usize;
            from = part.end;
            self.move_run(block, part, staging, uffd, take)?;
        }
        Ok(())
    }

    fn move_run(
        &self,
        block: BlockNo,
        run: core::ops::Range<usize>,
        staging: StagingId,
        uffd: &Userfaultfd,
        take: &mut Take,
    ) -> Result<(), HostError> {
        let mode = MOVE_MODE_ALLOW_SRC_HOLES | MOVE_MODE_DONTWAKE;
        let whole = run.len() == PAGES_PER_BLOCK && self.pagemap.is_huge(block);
        if whole {
            self.staging.make_bare(staging);
        }
        let lent = !core::ptr::eq(uffd, &self.uffd);
        if lent {
            self.staging.lend(staging, uffd, true).map_err(|_| HostError::MappingLimit)?;
        }
        let (mut taken, mut refused, mut stopped) = (PageMask::EMPTY, PageMask::EMPTY, Ok(()));
        let mut discarded = None;
        walk(
            run.start as u64..run.end as u64,
            |page, count| {
                let src = block.base() + page * PAGE_BYTES;
                let dst = self.staging.address(staging, page as usize);
                // SAFETY: the source is armed, so that touches of what leaves are trapped; the destination is a
                // slot that the caller holds. Through the source's own userfaultfd, which refuses while an event waits.
                unsafe { uffd.move_pages(dst, src, count * PAGE_BYTES, mode) }
            },
            |done| taken |= run_of(done),
            |page, errno| match errno.0 {
                // The slot's holder left a page there. Once: the second time it is not the slot.
                libc::EEXIST if discarded != Some(page) => {
                    self.staging.discard(staging, &PageMask::of(PageIndex(page as u16)));
                    discarded = Some(page);
                    Step::Again
                }
                // EFAULT: a guard (MADV_GUARD_INSTALL), or memory that has failed. Linking it fails with the cause.
                libc::EBUSY | libc::EINVAL | libc::EEXIST | libc::EFAULT => {
                    refused.insert(PageIndex(page as u16));
                    Step::Skip
                }
                _ => {
                    stopped = Err(errno.into());
                    Step::Stop
                }
            },
        );
        if lent {
            let back = self.staging.lend(staging, uffd, false);
            debug_assert_eq!(back, Ok(()), "joining its neighbours needs no mapping");
        }
        self.staging.filled(staging, &taken);
        let whole = whole && taken.is_full();
        if whole {
            self.staging.holds_whole(staging);
        }
        self.whole.set(block, whole);
        take.taken |= taken;
        take.refused |= refused;
        stopped
    }

    fn protect(
        &self,
        block: BlockNo,
        run: core::ops::Range<usize>,
        staging: StagingId,
        take: &mut Take,
    ) -> Result<(), HostError> {
        let range = run_range(block, &run);
        let asked = PageMask::of_range(run);
        self.uffd.write_protect(range, true)?;
        let present = self.pagemap.present(block, &asked).inspect_err(|_| {
            let _ = self.uffd.write_protect(range, false);
        })?;
        self.staging.protected(staging, block, &present);
        take.taken |= asked;
        Ok(())
    }

    /// Copies present pages to their positions in staging; returns how many whole pages were copied.
    fn copy_out(&self, block: BlockNo, run: &core::ops::Range<usize>, staging: StagingId) -> usize {
        let (from, bytes) = (run_range(block, run).start(), run.len() * PAGE_BYTES as usize);
        let mut done = 0;
        while done < bytes {
            let to = self.staging.address(staging, run.start).0 as usize + done;
            let local = libc::iovec { iov_base: to as *mut _, iov_len: bytes - done };
            let remote = libc::iovec { iov_base: (from.0 as usize + done) as *mut _, iov_len: bytes - done };
            // SAFETY: the local part lies in a slot that the caller holds; the kernel checks the remote part and
            // reports instead of faulting.
            let got = unsafe { libc::process_vm_readv(libc::getpid(), &local, 1, &remote, 1, 0) };
            match usize::try_from(got) {
                Ok(got) if got > 0 => done += got,
                _ => break,
            }
        }
        done / PAGE_BYTES as usize
    }

    /// What was absent when the take protected is absent still (the block is armed, and the pages are in transit): it is in
    /// staging as what it is.
    pub(super) fn copy_protected(&self, block: BlockNo, pages: &PageMask) -> PageMask {
        let (mut copied, mut rest) = (*pages, *pages);
        while let Some((slot, waiting)) = self.staging.waiting(block, &rest) {
            rest -= waiting;
            copied -= waiting;
            for run in waiting.runs() {
                let count = self.copy_out(block, &run, slot);
                copied |= PageMask::of_range(run.start..run.start + count);
            }
            self.staging.filled(slot, &(waiting & copied));
        }
        copied
    }

    pub(super) fn drop_protected(&self, block: BlockNo, pages: &PageMask) -> PageMask {
        let (mut gone, mut rest) = (*pages, *pages);
        while let Some((slot, waiting)) = self.staging.waiting(block, &rest) {
            rest -= waiting;
            gone -= waiting;
            for run in waiting.runs() {
                gone |= self.drop_copied(block, run);
            }
            self.staging.settled(slot, &gone);
        }
        gone
    }

    /// Discards a run of pages that are copied and protected; says which are gone.
    fn drop_copied(&self, block: BlockNo, run: core::ops::Range<usize>) -> PageMask {
        let copied = PageMask::of_range(run.clone());
        let range = run_range(block, &run);
        let id = self.drops.enter(range);
        // SAFETY: the pages are copied, protected and marked in transit: no write is lost; rule 4 of `drops` names the
        // window that stays.
        let rc =
            unsafe { libc::madvise(range.start().0 as *mut _, range.bytes() as usize, libc::MADV_DONTNEED) };
        self.drops.leave(id);
        match rc {
            0 => copied,
            // A part of it was unmapped or moved meanwhile: the rest was discarded all the same.
            _ => copied - self.pagemap.present(block, &copied).unwrap_or(PageMask::EMPTY),
        }
    }

    pub(super) fn give_pages(&self, block: BlockNo, pages: &PageMask, staging: StagingId) -> Give {
        let mut give = Give::default();
        if self.way == TakeWay::WriteProtect
            && let Some((slot, waiting)) = self.staging.waiting(block, pages)
        {
            for run in waiting.runs() {
                match self.uffd.write_protect(run_range(block, &run), false) {
                    Ok(()) => give.given |= PageMask::of_range(run),
                    Err(errno) => give.stopped = Some(errno.into()),
                }
            }
            self.staging.settled(slot, &give.given);
            if give.stopped.is_some() {
                return give;
            }
        }
        let regions = self.region_pages(block) & (*pages - give.given);
        self.give_region_pages(block, &regions, &mut give);
        let rest = *pages - give.given - regions;
        if rest.is_empty() || give.stopped == Some(HostError::Changing) {
            return give;
        }
        self.whole.set(block, false);
        self.staging.filled(staging, &rest);
        for run in rest.runs() {
            if self.give_run(block, run, staging, &mut give) == Step::Stop {
                break;
            }
        }
        give
    }

    fn give_run(
        &self,
        block: BlockNo,
        run: core::ops::Range<usize>,
        staging: StagingId,
        give: &mut Give,
    ) -> Step {
        let (mut moved, mut copied, mut outcome) = (PageMask::EMPTY, PageMask::EMPTY, Step::Skip);
        let at = |page: u64| -> VirtAddr { block.base() + page * PAGE_BYTES };
        walk(
            run.start as u64..run.end as u64,
            |page, count| {
                if self.way == TakeWay::WriteProtect {
                    let words = &self.staging.words(staging)[page as usize * WORDS_PER_PAGE..];
                    return self.uffd.copy(at(page), &words[..count as usize * WORDS_PER_PAGE]);
                }
                let src = self.staging.address(staging, page as usize);
                let (uffd, count) = self.uffd_for(at(page), count);
                // SAFETY: the source is a slot that the caller holds and whose pages he gives away.
                unsafe { uffd.move_pages(at(page), src, count * PAGE_BYTES, MOVE_MODE_ALLOW_SRC_HOLES) }
            },
            |done| moved |= run_of(done),
            |page, errno| {
                let mut errno = errno;
                if self.way == TakeWay::Move
                    && matches!(errno.0, libc::EINVAL | libc::EBUSY | libc::ENOENT | libc::EEXIST)
                {
                    // A copy takes the place of a page that was poisoned, too; a move does not.
                    let words =
                        &self.staging.words(staging)[page as usize * WORDS_PER_PAGE..][..WORDS_PER_PAGE];
                    match self.uffd_for(at(page), 1).0.copy(at(page), words) {
                        Outcome::Done(_) => {
                            copied.insert(PageIndex(page as u16));
                            return Step::Skip;
                        }
                        Outcome::Refused(why) => errno = why,
                    }
                }
                if errno.0 == libc::EEXIST {
                    give.present.insert(PageIndex(page as u16));
                    self.uffd.wake(VirtRange::of_pages(at(page), 1));
                    return Step::Skip;
                }
                give.stopped = Some(errno.into());
                match errno.0 {
                    libc::ENOENT | libc::EINVAL => Step::Skip,
                    _ => {
                        outcome = Step::Stop;
                        Step::Stop
                    }
                }
            },
        );
        if self.way == TakeWay::Move {
            self.staging.emptied(staging, &moved);
        }
        give.given |= moved | copied;
        outcome
    }
}
