//! Who has which part of a device's memory. One bit per 4 KiB; a slot of 64 KiB or 2 MiB is an aligned run of
//! such bits. A block's slots all have one size; a page's place follows from its slot and its position.
//!
//! # Rules
//! 1. The bits of a chunk (2 MiB) change under the chunk's leaf lock, the entries of a block under the block's lock.
//! 2. A worker takes from the chunk that it took from last, and holds it: others pass it over as long as another chunk
//!    has room, so that workers do not meet in one chunk. Whoever finds none takes from any: memory is full only if no
//!    chunk has room. Who holds a chunk is a hint; it is no right, and no slot depends on it.
//! 3. How many pages of a chunk are used may be read without its lock, to pass over a chunk that is full; what is
//!    read then may be old. A slot that comes free during the search may be missed: the answer "full" makes the
//!    caller evict, or link, and never loses a page.

use thiserror::Error;

use crate::granule::{Bitmap, BlockGuard, SlotKind, Tables};
use crate::sync::{AtomicU32, LockedU32, Ordering, Park, Rule, WordLock, holds};
use crate::units::{
    DevMemAddr, DeviceId, PAGE_SHIFT, PAGES_PER_BLOCK, PAGES_PER_SLOT_64K, PageIndex, PageMask, Seat,
};

/// 2 MiB of device memory: which pages of it are handed out.
#[derive(Debug, Default)]
#[repr(C, align(64))]
pub struct ChunkRecord {
    lock: WordLock,
    /// Pages in `used`. Written under the lock.
    used_pages: AtomicU32,
    /// The hint of the workers that hold the chunk, plus one; 0: nobody.
    holder: AtomicU32,
    used: Bitmap,
}

impl ChunkRecord {
    fn add_used(&self, pages: i32) {
        let used = self.used_pages.load(Ordering::Relaxed);
        self.used_pages.store(used.wrapping_add_signed(pages), Ordering::Relaxed);
    }
}

/// The chunk in which a slot of each size was found last. In a cache line of its own.
#[derive(Debug, Default)]
#[repr(C, align(64))]
struct Hint([AtomicU32; 3]);

/// Workers that may hold chunks at once, and chunks there are for each of them: with less memory, or more workers, some
/// share.
const HINTS: usize = if cfg!(granule_loom) { 1 } else { 16 };
const CHUNKS_PER_HINT: usize = 8;

/// The groups of 16 pages of which `pages` holds a page, ascending.
fn groups_of(pages: &PageMask) -> impl Iterator<Item = usize> + '_ {
    let mut next = 0;
    pages.runs().flat_map(move |run| {
        let from = next.max(run.start / PAGES_PER_SLOT_64K);
        next = run.end.div_ceil(PAGES_PER_SLOT_64K);
        from..next
    })
}

/// The first page of a free slot in a chunk.
fn first_free(used: &PageMask, kind: SlotKind) -> Option<usize> {
    match kind {
        SlotKind::Mib2 => used.is_empty().then_some(0),
        SlotKind::Kib64 => {
            const SLOT: u64 = (1 << PAGES_PER_SLOT_64K) - 1;
            const SLOTS_PER_WORD: usize = 64 / PAGES_PER_SLOT_64K;
            used.words().iter().enumerate().find_map(|(at, word)| {
                let slot =
                    (0..SLOTS_PER_WORD).find(|slot| word >> (slot * PAGES_PER_SLOT_64K) & SLOT == 0)?;
                Some((at * SLOTS_PER_WORD + slot) * PAGES_PER_SLOT_64K)
            })
        }
        SlotKind::Kib4 => (!*used).first().map(|page| page.0 as usize),
    }
}

/// Device memory has no slot left of a size that would do.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Error)]
#[error("device memory is full; evict a block first")]
pub struct DeviceFull;

/// What device memory is wanted.
#[derive(Clone, Copy, Debug)]
pub struct Wish {
    /// The size of slots, for a block that has none yet.
    pub kind: SlotKind,
    /// Whose memory.
    pub device: DeviceId,
    /// Who asks.
    pub seat: Seat,
}

/// The memory of one device.
#[derive(Debug)]
pub struct DeviceMemory<'m> {
    chunks: &'m [ChunkRecord],
    hints: [Hint; HINTS],
}

const fn pages_of(kind: SlotKind) -> usize {
    match kind {
        SlotKind::Mib2 => PAGES_PER_BLOCK,
        SlotKind::Kib64 => PAGES_PER_SLOT_64K,
        SlotKind::Kib4 => 1,
    }
}

const fn smaller(kind: SlotKind) -> Option<SlotKind> {
    match kind {
        SlotKind::Mib2 => Some(SlotKind::Kib64),
        SlotKind::Kib64 => Some(SlotKind::Kib4),
        SlotKind::Kib4 => None,
    }
}

impl<'m> DeviceMemory<'m> {
    /// All of it free; one record per 2 MiB.
    pub fn new(chunks: &'m [ChunkRecord]) -> Self {
        Self { chunks, hints: core::array::from_fn(|_| Hint::default()) }
    }

    /// Pages in all.
    pub fn total_pages(&self) -> u64 {
        (self.chunks.len() * PAGES_PER_BLOCK) as u64
    }

    /// Pages handed out, whole slots counted. A sum over all chunks.
    pub fn used_pages(&self) -> u64 {
        self.chunks.iter().map(|chunk| u64::from(chunk.used_pages.load(Ordering::Relaxed))).sum()
    }

    /// A slot; its first page, plus one.
    fn take(&self, kind: SlotKind, seat: Seat, park: &dyn Park) -> Option<u32> {
        let hints = (self.chunks.len() / CHUNKS_PER_HINT).clamp(1, HINTS);
        let own = seat.0 as usize % hints;
        let hint = &self.hints[own].0[kind as usize - 1];
        let start = hint.load(Ordering::Relaxed) as usize;
        self.take_near(start, kind, own as u32 + 1, false, park)
            .or_else(|| self.take_near(start, kind, own as u32 + 1, true, park))
            .map(|(no, entry)| {
                if no != start {
                    let left = &self.chunks[start].holder;
                    if left.load(Ordering::Relaxed) == own as u32 + 1 {
                        left.store(0, Ordering::Relaxed);
                    }
                    hint.store(no as u32, Ordering::Relaxed);
                }
                entry
            })
    }

    /// Takes a slot from the first chunk from `start` on that has one, and holds it: the chunk's number and the slot's
    /// first page, plus one.
    fn take_near(
        &self,
        start: usize,
        kind: SlotKind,
        holder: u32,
        from_others: bool,
        park: &dyn Park,
    ) -> Option<(usize, u32)> {
        let pages = pages_of(kind);
        let count = self.chunks.len();
        for no in (start..count).chain(0..start) {
            let chunk = &self.chunks[no];
            let held = chunk.holder.load(Ordering::Relaxed);
            let is_full = chunk.used_pages.load(Ordering::Relaxed) as usize + pages > PAGES_PER_BLOCK;
            if is_full || held != 0 && held != holder && !from_others {
                continue;
            }
            let _lock = chunk.lock.lock(park);
            let Some(first) = first_free(&chunk.used.load(), kind) else { continue };
            chunk.used.insert(&PageMask::of_range(first..first + pages));
            chunk.add_used(pages as i32);
            if held != holder {
                chunk.holder.store(holder, Ordering::Relaxed);
            }
            return Some((no, (no * PAGES_PER_BLOCK + first) as u32 + 1));
        }
        None
    }

    fn put(&self, entry: u32, kind: SlotKind, park: &dyn Park) {
        let pages = pages_of(kind);
        let first = entry as usize - 1;
        let chunk = &self.chunks[first / PAGES_PER_BLOCK];
        let slot = PageMask::of_range(first % PAGES_PER_BLOCK..first % PAGES_PER_BLOCK + pages);
        let _lock = chunk.lock.lock(park);
        assert!(chunk.used.load().covers(&slot), "a slot of device memory is freed twice");
        chunk.used.remove(&slot);
        chunk.add_used(-(pages as i32));
    }

    /// Makes sure that every page of `pages` has device memory at its position. A block that has none yet gets
    /// slots as wished, or smaller ones if those are used up.
    ///
    /// # Errors
    /// [`DeviceFull`]; slots of `pages` that were got before it are given back.
    pub fn reserve(
        &self,
        block: &mut BlockGuard<'_>,
        tables: &Tables<'_>,
        pages: &PageMask,
        wish: Wish,
        park: &dyn Park,
    ) -> Result<(), DeviceFull> {
        assert!(
            block.slot_kind().is_none() || block.owner() == wish.device || !holds(Rule::OwnerWhileThere),
            "a block's device memory is all of one device"
        );
        let mut kind = block.slot_kind().unwrap_or(wish.kind);
        let is_new = block.slot_kind().is_none();
        loop {
            if self.try_reserve(block, tables, pages, Wish { kind, ..wish }, park).is_ok() {
                return Ok(());
            }
            self.release_unused_but(block, tables, &PageMask::FULL, &PageMask::EMPTY, park);
            match smaller(kind).filter(|_| is_new) {
                Some(next) => kind = next,
                None => return Err(DeviceFull),
            }
        }
    }

    fn try_reserve(
        &self,
        block: &mut BlockGuard<'_>,
        tables: &Tables<'_>,
        pages: &PageMask,
        wish: Wish,
        park: &dyn Park,
    ) -> Result<(), DeviceFull> {
        let Wish { kind, device, seat } = wish;
        if block.slot_kind().is_none() {
            if kind == SlotKind::Kib4 {
                let fine = tables.take_fine(park).map_err(|_| DeviceFull)?;
                block.fine().store(fine + 1, Ordering::Relaxed);
            }
            block.set_slots(Some((kind, device)));
        }
        let fill = |entry: &LockedU32| {
            if entry.load(Ordering::Relaxed) == 0 {
                entry.store(self.take(kind, seat, park).ok_or(DeviceFull)?, Ordering::Relaxed);
            }
            Ok(())
        };
        match kind {
            SlotKind::Mib2 => fill(&block.slots()[0]),
            SlotKind::Kib64 => {
                let slots = block.slots();
                groups_of(pages).try_for_each(|group| fill(&slots[group]))
            }
            SlotKind::Kib4 => {
                let fine = tables.fine(block.fine().load(Ordering::Relaxed) - 1);
                pages.pages().try_for_each(|page| fill(&fine.0[page.0 as usize]))
            }
        }
    }

    /// Gives back the slots of pages that `left` the device, as far as they hold no device-private page; a block without
    /// any page on the device keeps no slot at all, and has no owner. (Pages in transit without a mover are on their way
    /// home after an mremap: staging holds them, and they have no slot.) While a worker
    /// moves pages of the block nothing is given back, even if an invalidation took the pages: the mover may still
    /// be copying. It is noted in the block instead, and the mover calls this at its end.
    pub fn release_unused(
        &self,
        block: &mut BlockGuard<'_>,
        tables: &Tables<'_>,
        left: &PageMask,
        park: &dyn Park,
    ) {
        if block.mover().is_some() && holds(Rule::SlotsStayWithMover) {
            block.note_release_later();
            return;
        }
        let left = if block.take_release_later() { PageMask::FULL } else { *left };
        let moving = if block.mover().is_some() || !holds(Rule::OwnerWhileThere) {
            block.in_transit()
        } else {
            PageMask::EMPTY
        };
        self.release_unused_but(block, tables, &left, &moving, park);
    }

    fn release_unused_but(
        &self,
        block: &mut BlockGuard<'_>,
        tables: &Tables<'_>,
        left: &PageMask,
        keep: &PageMask,
        park: &dyn Park,
    ) {
        let Some(kind) = block.slot_kind() else { return };
        let used = block.device_private() | *keep;
        if kind == SlotKind::Mib2 && !used.is_empty() {
            return;
        }
        let left = if used.is_empty() { PageMask::FULL } else { *left };
        let release = |entry: &LockedU32| {
            let slot = entry.load(Ordering::Relaxed);
            if slot != 0 {
                entry.store(0, Ordering::Relaxed);
                self.put(slot, kind, park);
            }
        };
        match kind {
            SlotKind::Mib2 => release(&block.slots()[0]),
            SlotKind::Kib64 => {
                let slots = block.slots();
                groups_of(&(left - used.widened_to(PAGES_PER_SLOT_64K)))
                    .for_each(|group| release(&slots[group]));
            }
            SlotKind::Kib4 => {
                let index = block.fine().load(Ordering::Relaxed) - 1;
                let fine = tables.fine(index);
                (left - used).pages().for_each(|page| release(&fine.0[page.0 as usize]));
                if used.is_empty() {
                    block.fine().store(0, Ordering::Relaxed);
                    tables.put_fine(index, park);
                }
            }
        }
        if used.is_empty() {
            block.set_slots(None);
        }
    }
}

/// Where one page of the block lies in device memory. Asserts that it has a slot.
pub(crate) fn place(block: &BlockGuard<'_>, tables: &Tables<'_>, page: PageIndex) -> DevMemAddr {
    let position = page.0 as u32;
    let first = |entry: &LockedU32| {
        entry.load(Ordering::Relaxed).checked_sub(1).expect("a page on the device has a slot")
    };
    let unit = match block.slot_kind().expect("a page on the device has a slot") {
        SlotKind::Mib2 => first(&block.slots()[0]) + position,
        SlotKind::Kib64 => {
            let group = PAGES_PER_SLOT_64K as u32;
            first(&block.slots()[(position / group) as usize]) + position % group
        }
        SlotKind::Kib4 => first(&tables.fine(block.fine().load(Ordering::Relaxed) - 1).0[position as usize]),
    };
    DevMemAddr(u64::from(unit) << PAGE_SHIFT)
}

/// A run of pages that is contiguous in the block and in device memory.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Extent {
    /// First page, by position.
    pub(crate) start: usize,
    /// Pages.
    pub(crate) len: usize,
    /// Where the first of them lies.
    pub(crate) at: DevMemAddr,
}

/// Calls `each` for every run of `pages` that is contiguous in the block and in device memory: first page, page
/// count, place. Stops at the first error.
pub(crate) fn extents<E>(
    block: &BlockGuard<'_>,
    tables: &Tables<'_>,
    pages: &PageMask,
    mut each: impl FnMut(usize, usize, DevMemAddr) -> Result<(), E>,
) -> Result<(), E> {
    let step = pages_of(block.slot_kind().unwrap_or(SlotKind::Kib4));
    for run in pages.runs() {
        let mut at = run.start;
        while at < run.end {
            let begin = place(block, tables, PageIndex(at as u16));
            let mut end = ((at / step + 1) * step).min(run.end);
            while end < run.end
                && place(block, tables, PageIndex(end as u16)) == begin + (((end - at) as u64) << PAGE_SHIFT)
            {
                end = ((end / step + 1) * step).min(run.end);
            }
            each(at, end - at, begin)?;
            at = end;
        }
    }
    Ok(())
}

/// The first of the extents of `pages`, if there is a page.
pub(crate) fn first_extent(block: &BlockGuard<'_>, tables: &Tables<'_>, pages: &PageMask) -> Option<Extent> {
    let mut first = None;
    let _ = extents(block, tables, pages, |start, len, at| {
        first = Some(Extent { start, len, at });
        Err(())
    });
    first
}
