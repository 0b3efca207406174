//! Staging slots: 2 MiB of private memory each, where pages stand between the application and a device.
//!
//! # Rules
//! 1. Where pages are taken by moving, all slots lie on the *main* userfaultfd, in write-protect mode. The kernel
//!    checks the destination's userfaultfd under its lock: while a change of the address space waits to be read it
//!    refuses the move with EAGAIN. So what is taken was taken from the mapping that the tables know, never from one
//!    that stands at the same address already while the event of the old one is still to be read.
//!    Discarding such pages in place would wait for the reader, which waits for whoever holds the gate: they are
//!    moved to *trash*, the same positions of a range on a userfaultfd without events, and discarded there.
//! 2. `maybe` of a slot says which pages may be there. A page outside of it may be there, too, if its holder
//!    wrote it without giving it to anybody: a move into it is refused by the kernel, and then it is discarded.
//! 3. A slot belongs to one holder from `claim` to `release`; only he touches its masks.
#![allow(unsafe_code, reason = "discards pages of staging memory")]

use core::sync::atomic::{AtomicU32, AtomicU64, Ordering};

use super::abi::{Errno, MOVE_MODE_ALLOW_SRC_HOLES};
use super::park::FutexPark;
use super::private::{PrivateBytes, PrivateError, Slab, ZeroValid};
use super::userfaultfd::{Mode, Role, Userfaultfd, UserfaultfdError};
use super::walk::{Step, walk};
use crate::ports::{StagingId, Word};
use crate::sync::WordLock;
use crate::units::{BLOCK_BYTES, BlockNo, MASK_WORDS, PAGE_BYTES, PAGES_PER_BLOCK, PageMask, VirtAddr};

/// A page mask behind a shared reference; who may touch it when is the owner's rule.
pub(super) struct MaskCell([AtomicU64; MASK_WORDS]);

impl MaskCell {
    pub(super) fn get(&self) -> PageMask {
        PageMask::from_words(core::array::from_fn(|word| self.0[word].load(Ordering::Relaxed)))
    }
    pub(super) fn set(&self, mask: PageMask) {
        self.0.iter().zip(mask.words()).for_each(|(cell, &word)| cell.store(word, Ordering::Relaxed));
    }
}

struct Slot {
    held: AtomicU32,
    /// Block number whose `protected` pages wait to be dropped.
    block: AtomicU32,
    maybe: MaskCell,
    /// Pages that were protected and copied, and are still in the application's mapping.
    protected: MaskCell,
}
// SAFETY: atomics only: zero is a free slot without pages.
unsafe impl ZeroValid for Slot {}

/// Free slots that `claim` compares: the rest of the pool is for the rare moment when everything comes home at once.
const CANDIDATES: usize = 8;

/// Where pages of slots are discarded: position by position like the slots, so that a slot's holder has his own.
struct Trash {
    uffd: Userfaultfd,
    memory: PrivateBytes,
}

/// The pool of staging slots.
pub(super) struct Staging {
    /// The main userfaultfd, and trash, where pages are taken by moving.
    moving: Option<(Userfaultfd, Trash)>,
    memory: PrivateBytes,
    slots: Slab<Slot>,
    lock: WordLock,
}

impl Staging {
    /// `main`: the userfaultfd of the application's memory if pages are taken from there by moving them.
    pub(super) fn open(
        slots: usize,
        main: Option<&Userfaultfd>,
        force_user_mode_only: bool,
    ) -> Result<Self, StagingError> {
        let block = || PrivateBytes::aligned(slots as u64 * BLOCK_BYTES, BLOCK_BYTES);
        let refused = |errno: Errno| UserfaultfdError::Refused(errno.0);
        let mut staging =
            Self { moving: None, memory: block()?, slots: Slab::new(slots)?, lock: WordLock::new() };
        if let Some(main) = main {
            let trash =
                Trash { uffd: Userfaultfd::open(Role::Staging, force_user_mode_only)?, memory: block()? };
            let main = main.duplicate().map_err(refused)?;
            // SAFETY: nothing is ever protected in these ranges, so nothing is trapped.
            unsafe {
                trash.uffd.register(trash.memory.range(), Mode::WriteProtect).map_err(refused)?;
                main.register(staging.memory.range(), Mode::WriteProtect).map_err(refused)?;
            }
            staging.moving = Some((main, trash));
        }
        Ok(staging)
    }

    /// Pages that may be there, in bytes.
    pub(super) fn maybe_bytes(&self) -> u64 {
        self.slots.iter().map(|slot| slot.maybe.get().count() as u64 * PAGE_BYTES).sum()
    }

    /// A free slot whose pages are absent at `empty`. Of the free ones, that which costs least: with few pages to
    /// discard where they must be absent, else with many pages to give away.
    pub(super) fn claim(&self, empty: &PageMask) -> Option<StagingId> {
        let index = {
            let _guard = self.lock.lock(&FutexPark);
            let free =
                self.slots.iter().enumerate().filter(|(_, slot)| slot.held.load(Ordering::Relaxed) == 0);
            let cost = |slot: &Slot| {
                let maybe = slot.maybe.get();
                ((maybe & *empty).count(), PAGES_PER_BLOCK - maybe.count())
            };
            let (index, slot) = free.take(CANDIDATES).min_by_key(|(_, slot)| cost(slot))?;
            slot.held.store(1, Ordering::Relaxed);
            index
        };
        let id = StagingId(index as u32);
        self.discard(id, &(self.slots[index].maybe.get() & *empty));
        Some(id)
    }

    pub(super) fn release(&self, id: StagingId) {
        let slot = self.slot(id);
        debug_assert!(slot.protected.get().is_empty(), "a take was not ended by drop_taken or give");
        let _guard = self.lock.lock(&FutexPark);
        slot.held.store(0, Ordering::Relaxed);
    }

    fn slot(&self, id: StagingId) -> &Slot {
        let slot = &self.slots[id.0 as usize];
        assert!(slot.held.load(Ordering::Relaxed) != 0, "a staging slot is used by who holds it");
        slot
    }

    pub(super) fn address(&self, id: StagingId, page: usize) -> VirtAddr {
        self.memory.base() + (u64::from(id.0) * BLOCK_BYTES + page as u64 * PAGE_BYTES)
    }

    pub(super) fn words(&self, id: StagingId) -> &[Word] {
        let words = BLOCK_BYTES as usize / size_of::<Word>();
        &self.memory.as_words()[id.0 as usize * words..][..words]
    }

    /// Notes that pages of the slot may be there from now on.
    pub(super) fn filled(&self, id: StagingId, pages: &PageMask) {
        let maybe = &self.slot(id).maybe;
        maybe.set(maybe.get() | *pages);
    }

    /// Notes that pages of the slot were moved out.
    pub(super) fn emptied(&self, id: StagingId, pages: &PageMask) {
        let maybe = &self.slot(id).maybe;
        maybe.set(maybe.get() - *pages);
    }

    /// Throws pages of the slot away. A page that something has pinned stays.
    pub(super) fn discard(&self, id: StagingId, pages: &PageMask) {
        for run in pages.runs() {
            let at = match &self.moving {
                Some((_, trash)) => self.move_to_trash(id, &run, trash),
                None => self.address(id, run.start),
            };
            let bytes = run.len() * PAGE_BYTES as usize;
            // SAFETY: trash, or staging memory of a slot that the caller holds: nobody expects anything there.
            let rc = unsafe { libc::madvise(at.0 as *mut libc::c_void, bytes, libc::MADV_DONTNEED) };
            debug_assert_eq!(rc, 0, "staging memory is ordinary private memory");
        }
        self.emptied(id, pages);
    }

    /// Returns where the pages are then.
    fn move_to_trash(&self, id: StagingId, run: &core::ops::Range<usize>, trash: &Trash) -> VirtAddr {
        let from = self.address(id, 0);
        let to = trash.memory.base() + from.bytes_since(self.memory.base());
        walk(
            run.start as u64..run.end as u64,
            |page, count| {
                let at = page * PAGE_BYTES;
                // SAFETY: pages of a slot that the caller holds and throws away.
                unsafe {
                    trash.uffd.move_pages(to + at, from + at, count * PAGE_BYTES, MOVE_MODE_ALLOW_SRC_HOLES)
                }
            },
            |_| {},
            |_, errno| if errno.0 == libc::EAGAIN { Step::Again } else { Step::Skip },
        );
        to + run.start as u64 * PAGE_BYTES
    }

    /// Notes pages of `block` that were copied to the slot and stay protected in the application.
    pub(super) fn protected(&self, id: StagingId, block: BlockNo, pages: &PageMask) {
        let slot = self.slot(id);
        slot.block.store(block.0, Ordering::Relaxed);
        slot.protected.set(slot.protected.get() | *pages);
    }

    /// Which of `pages` of `block` still wait to be dropped, and in which slot. (A block is taken by one at a
    /// time for the same pages, so at most one slot answers for a page.)
    pub(super) fn waiting(&self, block: BlockNo, pages: &PageMask) -> Option<(StagingId, PageMask)> {
        self.slots.iter().enumerate().find_map(|(index, slot)| {
            let here =
                slot.held.load(Ordering::Relaxed) != 0 && slot.block.load(Ordering::Relaxed) == block.0;
            let waiting = slot.protected.get() & *pages;
            (here && !waiting.is_empty()).then_some((StagingId(index as u32), waiting))
        })
    }

    /// Notes that pages do not wait to be dropped any more.
    pub(super) fn settled(&self, id: StagingId, pages: &PageMask) {
        let protected = &self.slot(id).protected;
        protected.set(protected.get() - *pages);
    }
}

impl Drop for Staging {
    fn drop(&mut self) {
        // Unmapping memory that gives events would wait for a reader, and there is none any more.
        if let Some((main, _)) = &self.moving {
            let ended = main.unregister(self.memory.range());
            debug_assert_eq!(ended, Ok(()), "staging memory is registered as a whole");
        }
    }
}

/// Why there is no staging memory.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
pub(super) enum StagingError {
    #[error(transparent)]
    Userfaultfd(#[from] UserfaultfdError),
    #[error(transparent)]
    Private(#[from] PrivateError),
}
