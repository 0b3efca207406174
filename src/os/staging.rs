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
//!    wrote it without giving it to anybody: a move into it is refused by the kernel, and then it is discarded. Where
//!    nothing is moved it is discarded when the slot is given back.
//! 3. Pages that were taken from the application stay in their slot when it is given back, up to a limit: the pool.
//!    On the way home a page then needs neither to be allocated nor cleared, and throwing the pages of a 2 MiB slot
//!    away costs as much as copying them. Free slots hang in lists, by what they have.
//! 4. `shape` of a slot says what stands behind it: no page table, pages of 4 KiB, or one huge page. The kernel moves
//!    a huge page as a whole only to where no page table is; only a discard in place gives a page table back, so for
//!    that a slot leaves its userfaultfd for a moment. It is a hint: if the kernel had no huge page, or split it, that
//!    costs time.
//! 5. The last slots are the large ones: only there a touch gets a huge page from the kernel.
//! 6. A slot belongs to one holder from `claim` to `release`; only he touches its masks.
#![allow(unsafe_code, reason = "discards pages of staging memory")]

use core::sync::atomic::{AtomicU32, AtomicU64, Ordering};
use std::os::fd::AsFd;

use super::abi::{Errno, MOVE_MODE_ALLOW_SRC_HOLES};
use super::park::FutexPark;
use super::private::{PrivateBytes, PrivateError, Slab, ZeroValid};
use super::userfaultfd::{Mode, Role, Userfaultfd, UserfaultfdError};
use super::walk::{Step, walk};
use crate::ports::{StagingId, Word};
use crate::sync::WordLock;
use crate::units::{
    BLOCK_BYTES, BlockNo, MASK_WORDS, PAGE_BYTES, PAGES_PER_BLOCK, PageMask, VirtAddr, VirtRange,
};

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

/// What stands behind a slot (zero is a fresh one).
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[repr(u32)]
enum Shape {
    /// Nothing, and no page table.
    Bare = 0,
    /// A page table, with or without pages.
    Small = 1,
    /// One huge page.
    Whole = 2,
}

struct Slot {
    held: AtomicU32,
    /// A [`Shape`].
    shape: AtomicU32,
    /// Block number whose `protected` pages wait to be dropped.
    block: AtomicU32,
    maybe: MaskCell,
    /// Pages that were protected and copied, and are still in the application's mapping.
    protected: MaskCell,
    /// The next free slot of the same list, plus one. Guarded by the lock of the pool.
    next: AtomicU32,
}
// SAFETY: atomics only: zero is a free slot without pages.
unsafe impl ZeroValid for Slot {}

impl Slot {
    fn shape(&self) -> Shape {
        match self.shape.load(Ordering::Relaxed) {
            0 => Shape::Bare,
            1 => Shape::Small,
            _ => Shape::Whole,
        }
    }
    fn set_shape(&self, shape: Shape) {
        self.shape.store(shape as u32, Ordering::Relaxed);
    }
}

/// Large slots: as many blocks as may come home at once as huge pages that the pool does not have.
const LARGE: usize = 16;

/// Slots with some pages that `claim` looks at: pages of neighbouring units pass through one slot after the other.
const CANDIDATES: usize = 8;

/// Which list of free slots.
#[derive(Clone, Copy, PartialEq, Eq)]
#[repr(usize)]
enum List {
    /// No page.
    Empty,
    /// Some pages.
    Partial,
    /// Every page.
    Full,
    /// Every page, as one huge page.
    Whole,
    /// No page, and no page table.
    Bare,
    /// No page, and a touch gets a huge one.
    Large,
}

impl List {
    fn of(maybe: &PageMask, shape: Shape, is_large: bool) -> Self {
        match maybe.count() {
            _ if shape == Shape::Whole => List::Whole,
            0 if is_large => List::Large,
            0 if shape == Shape::Bare => List::Bare,
            0 => List::Empty,
            PAGES_PER_BLOCK => List::Full,
            _ => List::Partial,
        }
    }
}

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
    /// Guards `held` and `next` of all slots, and what follows.
    lock: WordLock,
    /// First free slot of each list, plus one.
    heads: [AtomicU32; 6],
    /// The index of the first large slot.
    large: usize,
    /// Pages in free slots.
    pooled_pages: AtomicU64,
    pool_limit_pages: u64,
}

impl Staging {
    /// `slots` slots, of which the free ones keep at most `pool_bytes` bytes of pages. `main`: the userfaultfd of the
    /// application's memory if pages are taken from there by moving them.
    pub(super) fn open(
        slots: usize,
        pool_bytes: u64,
        main: Option<&Userfaultfd>,
        force_user_mode_only: bool,
    ) -> Result<Self, StagingError> {
        let block = || PrivateBytes::aligned(slots as u64 * BLOCK_BYTES, BLOCK_BYTES);
        let refused = |errno: Errno| UserfaultfdError::Refused(errno.0);
        let mut staging = Self {
            moving: None,
            memory: block()?,
            slots: Slab::new(slots)?,
            lock: WordLock::new(),
            heads: Default::default(),
            large: slots - (slots / 4).min(LARGE),
            pooled_pages: AtomicU64::new(0),
            pool_limit_pages: pool_bytes / PAGE_BYTES,
        };
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
        let (at, count) = (staging.memory.base() + staging.large as u64 * BLOCK_BYTES, slots - staging.large);
        // SAFETY: memory of our own, in which nothing stands yet. A kernel without huge pages refuses: then touches
        // get small ones.
        unsafe { libc::madvise(at.0 as *mut _, count * BLOCK_BYTES as usize, libc::MADV_HUGEPAGE) };
        // Slot 0 ends up first.
        (0..slots).rev().for_each(|index| {
            staging.push(index, List::of(&PageMask::EMPTY, Shape::Bare, index >= staging.large));
        });
        Ok(staging)
    }

    /// Nothing is taken any more: ends this part's hold on the main userfaultfd.
    pub(super) fn retire(&self, instead: &impl AsFd) {
        if let Some((main, _)) = &self.moving {
            main.retire(instead);
        }
    }

    /// Pages that may be there, in bytes.
    pub(super) fn maybe_bytes(&self) -> u64 {
        self.slots.iter().map(|slot| slot.maybe.get().count() as u64 * PAGE_BYTES).sum()
    }

    fn push(&self, index: usize, list: List) {
        let head = &self.heads[list as usize];
        self.slots[index].next.store(head.load(Ordering::Relaxed), Ordering::Relaxed);
        head.store(index as u32 + 1, Ordering::Relaxed);
    }

    /// Takes the first slot out of a list that `fits`, of the first `most`. Under the lock.
    fn pop(&self, list: List, most: usize, fits: impl Fn(&Slot) -> bool) -> Option<usize> {
        let mut link = &self.heads[list as usize];
        for _ in 0..most {
            let index = link.load(Ordering::Relaxed).checked_sub(1)? as usize;
            let slot = &self.slots[index];
            if fits(slot) {
                link.store(slot.next.load(Ordering::Relaxed), Ordering::Relaxed);
                return Some(index);
            }
            link = &slot.next;
        }
        None
    }

    /// A free slot whose pages are absent at `empty`: one that has none there if there is one near by, else any, and
    /// the pages are thrown away. With nothing to be absent, one with as many pages to give away as possible.
    pub(super) fn claim(&self, empty: &PageMask) -> Option<StagingId> {
        let id = self.hold(|| {
            let any = |lists: [List; 6]| lists.into_iter().find_map(|list| self.pop(list, 1, |_| true));
            use List::{Bare, Empty, Full, Large, Partial, Whole};
            if empty.is_empty() {
                any([Full, Partial, Empty, Bare, Large, Whole])
            } else if empty.is_full() {
                any([Bare, Empty, Large, Partial, Whole, Full])
            } else {
                self.pop(Partial, CANDIDATES, |slot| !slot.maybe.get().intersects(empty))
                    .or_else(|| any([Empty, Bare, Large, Partial, Full, Whole]))
            }
        })?;
        let slot = self.slot(id);
        match slot.shape() {
            Shape::Whole => self.make_bare(id),
            _ => self.discard(id, &(slot.maybe.get() & *empty)),
        }
        if !empty.is_full() {
            // Its holder will touch it.
            slot.set_shape(Shape::Small);
        }
        Some(id)
    }

    /// A free slot to which a whole block is about to be copied: one with a huge page if there is one, else a bare
    /// large one, in which the first touch gets one, else any.
    pub(super) fn claim_whole(&self) -> Option<StagingId> {
        let Some(id) = self.hold(|| {
            let first = |list: List| self.pop(list, 1, |_| true);
            first(List::Whole).or_else(|| first(List::Large))
        }) else {
            return self.claim(&PageMask::EMPTY);
        };
        if self.slot(id).shape() != Shape::Whole {
            self.make_bare(id);
            self.holds_whole(id);
        }
        Some(id)
    }

    /// Holds the slot that `choose` takes out of a list.
    fn hold(&self, choose: impl FnOnce() -> Option<usize>) -> Option<StagingId> {
        let _guard = self.lock.lock(&FutexPark);
        let index = choose()?;
        let slot = &self.slots[index];
        slot.held.store(1, Ordering::Relaxed);
        self.count_pooled(-(slot.maybe.get().count() as i64));
        Some(StagingId(index as u32))
    }

    /// Throws everything in the slot away, and its page table.
    pub(super) fn make_bare(&self, id: StagingId) {
        let slot = self.slot(id);
        if slot.shape() == Shape::Bare {
            return;
        }
        slot.set_shape(Shape::Small);
        let whole = VirtRange::of_pages(self.address(id, 0), PAGES_PER_BLOCK as u64);
        let main = self.moving.as_ref().map(|(main, _)| main);
        if main.is_some_and(|main| main.unregister(whole).is_err()) {
            // The limit on mappings: the page table stays.
            return self.discard(id, &PageMask::FULL);
        }
        // SAFETY: memory of a slot that the caller holds and throws away; off its userfaultfd it gives no event.
        let rc =
            unsafe { libc::madvise(whole.start().0 as *mut _, whole.bytes() as usize, libc::MADV_DONTNEED) };
        debug_assert_eq!(rc, 0, "staging memory is ordinary private memory");
        if let Some(main) = main {
            // SAFETY: nothing is ever protected in this range, so nothing is trapped.
            let back = unsafe { main.register(whole, Mode::WriteProtect) };
            // A slot that is not registered refuses what is taken: such pages are linked.
            debug_assert_eq!(back, Ok(()), "joining its neighbours needs no mapping");
        }
        slot.maybe.set(PageMask::EMPTY);
        slot.set_shape(Shape::Bare);
    }

    /// Hands the slot's registration over to another userfaultfd (`true`), or back to the main one: what is moved into
    /// it is refused while an event of *that* one waits to be read. Its pages stay.
    pub(super) fn lend(&self, id: StagingId, other: &Userfaultfd, lend: bool) -> Result<(), Errno> {
        let Some((main, _)) = &self.moving else { return Ok(()) };
        let whole = VirtRange::of_pages(self.address(id, 0), PAGES_PER_BLOCK as u64);
        let (from, to) = if lend { (main, other) } else { (other, main) };
        from.unregister(whole)?;
        // SAFETY: memory of a slot that the caller holds, in which nothing is ever protected: nothing is trapped.
        unsafe { to.register(whole, Mode::WriteProtect) }.inspect_err(|_| {
            // SAFETY: as above. Where that fails, too, the slot refuses what is taken, and such pages are linked.
            let _ = unsafe { from.register(whole, Mode::WriteProtect) };
        })
    }

    /// Notes that the slot holds one huge page, or will at the next touch.
    pub(super) fn holds_whole(&self, id: StagingId) {
        self.slot(id).set_shape(Shape::Whole);
    }

    pub(super) fn release(&self, id: StagingId) {
        let slot = self.slot(id);
        // What is left was moved away by mremap, or unmapped, before it could be dropped.
        slot.protected.set(PageMask::EMPTY);
        let pages = slot.maybe.get();
        if self.moving.is_none() {
            // Rule 2 needs a move that refuses. Without one, what a holder wrote and did not give would show as the
            // contents of an absent page, which is taken as it is found here.
            self.discard(id, &(PageMask::FULL - pages));
        }
        // Read without the lock: several who release at once may pass the limit by a slot each.
        let is_over =
            self.pooled_pages.load(Ordering::Relaxed) + pages.count() as u64 > self.pool_limit_pages;
        if slot.shape() == Shape::Whole {
            // If it is not full, what was copied to it was not given.
            if is_over || !pages.is_full() {
                self.make_bare(id);
            }
        } else if is_over {
            self.discard(id, &pages);
        }
        let _guard = self.lock.lock(&FutexPark);
        let (pages, index) = (slot.maybe.get(), id.0 as usize);
        slot.held.store(0, Ordering::Relaxed);
        self.count_pooled(pages.count() as i64);
        self.push(index, List::of(&pages, slot.shape(), index >= self.large));
    }

    /// Under the lock.
    fn count_pooled(&self, pages: i64) {
        let pooled = self.pooled_pages.load(Ordering::Relaxed);
        self.pooled_pages.store(pooled.wrapping_add_signed(pages), Ordering::Relaxed);
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
        let slot = self.slot(id);
        slot.maybe.set(slot.maybe.get() | *pages);
        if slot.shape() == Shape::Bare {
            slot.set_shape(Shape::Small);
        }
    }

    /// Notes that pages of the slot were moved out.
    pub(super) fn emptied(&self, id: StagingId, pages: &PageMask) {
        let slot = self.slot(id);
        slot.maybe.set(slot.maybe.get() - *pages);
        if slot.shape() == Shape::Whole && !pages.is_empty() {
            slot.set_shape(if pages.is_full() { Shape::Bare } else { Shape::Small });
        }
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
            let is_retired = ended == Err(Errno(libc::ENOTTY));
            debug_assert!(ended == Ok(()) || is_retired, "staging memory is registered as a whole");
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
