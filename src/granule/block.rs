use super::sequence::{Sequence, SequenceWord};
use super::{Bitmap, Direction, TransitBusy, TransitRecord};
use crate::dma::{self, PageList};
use crate::ports::StagingId;
use crate::sync::{AtomicU32, LockedU32, Ordering, Park, Rule, WordGuard, WordLock, holds};
use crate::units::{
    BlockNo, DeviceId, Iova, PAGES_PER_BLOCK, PageIndex, PageMask, SLOTS_64K_PER_BLOCK, Seat,
};

/// A block record's position in the slab of records.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug, Hash)]
pub struct BlockIndex(pub u32);

/// State of 2 MiB of the address space: 320 bytes. The part that all devices share; see [`DevicePlane`] for the
/// rest.
#[derive(Debug, Default)]
#[repr(C, align(64))]
pub struct BlockRecord {
    lock: WordLock,
    /// Counts ends of transits. Whoever waits for one parks on it.
    transit_ends: AtomicU32,
    /// How many wait on `transit_ends`: with none, its end needs no wake.
    transit_waiters: AtomicU32,
    sequence: SequenceWord,
    /// Which block this is. Written once, before the record is published.
    number: AtomicU32,
    /// Bits `ARMED`, `CPU_WAITS`, `RELEASE_LATER`; bits 8.. the slot kind; bits 16.. the owner device.
    flags: LockedU32,
    /// Seat of the worker that moves pages of this block, plus one; 0: none.
    mover: LockedU32,
    /// Index of the record of 4 KiB slots, plus one; 0: none.
    fine: LockedU32,
    /// The list of the order of eviction that the block is in, plus one; 0: none.
    pub(crate) order_shard: LockedU32,
    /// Neighbours in that list, plus one; guarded by the list's lock, not by the block's.
    pub(crate) order_prev: LockedU32,
    pub(crate) order_next: LockedU32,
    /// When it came in; guarded like the neighbours.
    pub(crate) order_stamp: LockedU32,
    device_private: Bitmap,
    in_transit: Bitmap,
    /// Device memory: entry *i* holds the slot of pages 16*i* to 16*i*+15, plus one, in units of 64 KiB. With a
    /// slot of 2 MiB only entry 0 is used.
    slots: [LockedU32; SLOTS_64K_PER_BLOCK],
}

/// The bits that each device has for itself: 128 bytes per block.
#[derive(Debug, Default)]
#[repr(C, align(64))]
pub struct DevicePlane {
    /// The page's system memory is linked at its position in this device's IOVA range.
    pub(super) dma_mapped: Bitmap,
    /// The device may write the linked page.
    pub(super) writable: Bitmap,
}

/// Device memory of a block page by page: entry *i* is page *i*'s slot in units of 4 KiB, plus one. Only blocks
/// whose device memory is handed out in 4 KiB slots have one.
#[derive(Debug)]
#[repr(C, align(64))]
pub struct FineSlots(pub(crate) [LockedU32; PAGES_PER_BLOCK]);

impl Default for FineSlots {
    fn default() -> Self {
        Self(core::array::from_fn(|_| LockedU32::new(0)))
    }
}

const ARMED: u32 = 1;
const CPU_WAITS: u32 = 2;
const RELEASE_LATER: u32 = 4;
const KIND_SHIFT: u32 = 8;
const OWNER_SHIFT: u32 = 16;

/// The size of the slots that hold a block's device memory. One size per block while it has any.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Hash)]
#[repr(u32)]
pub enum SlotKind {
    /// One slot of 2 MiB.
    Mib2 = 1,
    /// Up to 32 slots of 64 KiB.
    Kib64 = 2,
    /// Up to 512 slots of 4 KiB, indexed by a [`FineSlots`] record.
    Kib4 = 3,
}

impl BlockRecord {
    pub(super) fn set_number(&self, number: BlockNo) {
        self.number.store(number.0, Ordering::Relaxed);
    }

    /// Which block this is.
    #[inline]
    pub fn number(&self) -> BlockNo {
        BlockNo(self.number.load(Ordering::Relaxed))
    }

    /// Samples the sequence, without a lock.
    #[inline]
    pub fn sample(&self) -> Sequence {
        self.sequence.sample()
    }

    /// Takes the block's lock. `planes` are this block's, one per device.
    #[inline]
    pub fn lock<'a>(&'a self, planes: &'a [DevicePlane], park: &'a dyn Park) -> BlockGuard<'a> {
        BlockGuard { record: self, planes, _lock: self.lock.lock(park) }
    }

    /// Parks until a transit ends that had not ended when `seen` was read. Holds nothing.
    pub fn wait_transit(&self, busy: TransitBusy, park: &dyn Park) {
        // SeqCst pairs with the load in `announce_transit_end`: either this waiter sees the end, or it is seen.
        self.transit_waiters.fetch_add(1, Ordering::SeqCst);
        // SeqCst includes the acquire that pairs with `BlockGuard::end_transit`.
        while self.transit_ends.load(Ordering::SeqCst) == busy.seen {
            park.park(&self.transit_ends, busy.seen);
        }
        // SeqCst, too: loom lets the load in `announce_transit_end` miss an addition that follows a relaxed one.
        self.transit_waiters.fetch_sub(1, Ordering::SeqCst);
    }

    /// After the lock was dropped: lets those go on who wait for the transit that ended.
    #[inline]
    pub fn announce_transit_end(&self, park: &dyn Park) {
        // SeqCst pairs with the addition in `wait_transit`, after the SeqCst addition in `bump_transit_ends`.
        if self.transit_waiters.load(Ordering::SeqCst) != 0 && holds(Rule::WakeAfterTransit) {
            park.unpark_all(&self.transit_ends);
        }
    }
}

/// The block's lock, held. Every change of a page's state is a method here.
pub struct BlockGuard<'a> {
    record: &'a BlockRecord,
    planes: &'a [DevicePlane],
    _lock: WordGuard<'a>,
}

impl<'a> BlockGuard<'a> {
    /// Which block this is.
    pub fn number(&self) -> BlockNo {
        self.record.number()
    }

    // ---- what is true ----

    /// Pages whose only up-to-date copy is in the owner device's memory.
    #[inline]
    pub fn device_private(&self) -> PageMask {
        self.record.device_private.load()
    }
    /// Pages that somebody is moving.
    #[inline]
    pub fn in_transit(&self) -> PageMask {
        self.record.in_transit.load()
    }
    /// Pages linked for a device.
    #[inline]
    pub fn dma_mapped(&self, device: DeviceId) -> PageMask {
        self.planes[device.0 as usize].dma_mapped.load()
    }
    /// Linked pages that the device may write.
    #[inline]
    pub fn writable(&self, device: DeviceId) -> PageMask {
        self.planes[device.0 as usize].writable.load()
    }
    /// How many devices the space has.
    pub fn devices(&self) -> impl Iterator<Item = DeviceId> + use<> {
        (0..self.planes.len() as u8).map(DeviceId)
    }
    /// Whether touches of absent pages are trapped in some part of the block.
    pub fn is_armed(&self) -> bool {
        self.flag(ARMED)
    }
    /// Whether no page is on a device or on its way.
    pub fn is_all_in_ram(&self) -> bool {
        self.device_private().is_empty() && self.in_transit().is_empty()
    }

    // ---- sequence ----

    /// Whether nothing was invalidated in this block since the sample.
    #[inline]
    pub fn is_unchanged(&self, sample: Sequence) -> bool {
        self.record.sequence.is_unchanged(sample)
    }
    /// An invalidation of this block begins.
    pub fn begin_invalidation(&mut self) {
        self.record.sequence.begin();
    }
    /// Whether an invalidation of this block has begun and not ended.
    pub fn is_invalidating(&self) -> bool {
        self.record.sequence.is_active()
    }
    /// An invalidation of this block ends.
    pub fn end_invalidation(&mut self) {
        self.record.sequence.end();
    }

    // ---- transit ----

    /// The transit that a worker has in this block.
    #[inline]
    pub fn mover(&self) -> Option<Seat> {
        match self.record.mover.load(Ordering::Relaxed) {
            0 => None,
            seat => Some(Seat(seat as u16 - 1)),
        }
    }

    /// What to wait on for the end of a transit.
    #[inline]
    pub fn transit_busy(&self) -> TransitBusy {
        TransitBusy { seen: self.record.transit_ends.load(Ordering::Relaxed) }
    }

    /// Whether a worker must wait before it moves these pages.
    pub fn is_busy(&self, pages: &PageMask) -> bool {
        holds(Rule::OneMover) && (self.mover().is_some() || self.in_transit().intersects(pages))
    }

    /// Marks `pages` in transit for the worker at `seat`. Asserts the bits that the direction needs: none set for
    /// pages to the device, device-private for pages to RAM.
    ///
    /// # Errors
    /// [`TransitBusy`] if another worker moves pages of this block, or one of these pages is in transit.
    pub fn begin_transit(
        &mut self,
        seat: Seat,
        record: &TransitRecord,
        pages: &PageMask,
        staging: StagingId,
        direction: Direction,
    ) -> Result<(), TransitBusy> {
        if self.is_busy(pages) {
            return Err(self.transit_busy());
        }
        match direction {
            Direction::ToDevice => {
                assert!(
                    !self.device_private().intersects(pages),
                    "a page on a device is not taken from the CPU"
                );
                for plane in self.planes {
                    assert!(
                        !plane.dma_mapped.load().intersects(pages),
                        "a page is unlinked before it is taken"
                    );
                }
            }
            Direction::ToRam => {
                assert!(self.device_private().covers(pages), "only a page on the device goes home")
            }
        }
        record.pages.store(pages);
        record.set(staging, direction);
        if holds(Rule::InTransitBeforeTake) {
            self.record.in_transit.insert(pages);
        }
        self.record.mover.store(u32::from(seat.0) + 1, Ordering::Relaxed);
        Ok(())
    }

    /// What a mover still owns of its transit.
    pub fn transit_pages(&self, record: &TransitRecord) -> PageMask {
        record.pages.load()
    }

    /// Ends the worker's transit: every page that it still owns becomes `arrived` (device-private if it went to
    /// the device, in system memory if it went to RAM) or stays where it came from. Pages of `arrived` that an
    /// invalidation took away are left alone. Returns the pages that did arrive.
    #[must_use = "pages that did not arrive are the caller's to drop or to move back"]
    pub fn end_transit(&mut self, record: &TransitRecord, arrived: &PageMask) -> PageMask {
        let owned = record.pages.load();
        let arrived = if holds(Rule::CommitWhatIsOwned) { *arrived & owned } else { *arrived };
        match record.direction() {
            Direction::ToDevice => self.record.device_private.insert(&arrived),
            Direction::ToRam => self.record.device_private.remove(&arrived),
        }
        self.record.in_transit.remove(&owned);
        record.pages.store(&PageMask::EMPTY);
        self.record.mover.store(0, Ordering::Relaxed);
        self.bump_transit_ends();
        arrived
    }

    /// Pages of a worker's transit are in system memory: brought to RAM, back undone, or not taken at all. The transit
    /// goes on for the rest.
    pub fn arrive_in_ram(&mut self, record: &TransitRecord, arrived: &PageMask) {
        let arrived = *arrived & record.pages.load();
        self.record.device_private.remove(&arrived);
        self.record.in_transit.remove(&arrived);
        record.pages.remove(&arrived);
    }

    /// Marks pages that the reader itself will bring to RAM later (moved by mremap). Not owned by any worker.
    pub fn begin_homecoming(&mut self, pages: &PageMask) {
        debug_assert!(!self.in_transit().intersects(pages), "a page has one mover");
        self.record.in_transit.insert(pages);
    }

    /// They are in RAM, or gone.
    pub fn end_homecoming(&mut self, pages: &PageMask) {
        self.record.in_transit.remove(pages);
        self.bump_transit_ends();
    }

    fn bump_transit_ends(&self) {
        // SeqCst pairs with the loads in `wait_transit`, and orders it before the look for waiters.
        self.record.transit_ends.fetch_add(1, Ordering::SeqCst);
    }

    /// A thread waits for a page in transit: whoever ends the transit wakes the block.
    pub fn note_cpu_waits(&mut self) {
        self.set_flag(CPU_WAITS, true);
    }

    /// Whether threads wait; forgets it. Whoever is told yes wakes the block after unlocking.
    #[must_use = "threads wait for a wake-up"]
    pub fn take_cpu_waits(&mut self) -> bool {
        let waits = self.flag(CPU_WAITS) && holds(Rule::WakeAfterTransit);
        if waits && holds(Rule::WakeOnce) {
            self.set_flag(CPU_WAITS, false);
        }
        waits
    }

    // ---- other moves ----

    /// Pages came to RAM while the lock was held throughout (a CPU fault). Asserts that they were on the device
    /// and not in transit.
    pub fn came_home(&mut self, pages: &PageMask) {
        debug_assert!(self.device_private().covers(pages) && !self.in_transit().intersects(pages));
        self.record.device_private.remove(pages);
    }

    /// A device's links of this block, as a list of its pages at their positions in the granule's reservation: what
    /// links and unlinks goes through it. Only pages that are in RAM, and on no way, are linked.
    pub fn links(&mut self, device: DeviceId, granule_base: Iova) -> PageList<'_> {
        let plane = &self.planes[device.0 as usize];
        let base = dma::position(granule_base, self.number(), 0);
        PageList::new(base, PAGES_PER_BLOCK as u64, plane.dma_mapped.words())
            .with_writable(plane.writable.words())
    }

    /// The contents of these pages are gone, or belong to another address now: the device has no copy that
    /// counts. Takes them from the worker that moves them, if any; `transits` are all seats' records.
    pub fn forget(&mut self, pages: &PageMask, transits: &[TransitRecord]) {
        self.record.device_private.remove(pages);
        self.record.in_transit.remove(pages);
        if let Some(seat) = self.mover() {
            transits[seat.0 as usize].pages.remove(pages);
        }
    }

    /// Device memory could not be given back while a worker moves pages of the block: the worker does it at its end.
    pub(crate) fn note_release_later(&mut self) {
        self.set_flag(RELEASE_LATER, true);
    }

    /// Whether somebody left device memory to be given back; forgets it.
    pub(crate) fn take_release_later(&mut self) -> bool {
        let later = self.flag(RELEASE_LATER);
        if later {
            self.set_flag(RELEASE_LATER, false);
        }
        later
    }

    /// Whether touches are trapped in some part of the block from now on.
    pub fn set_armed(&mut self, armed: bool) {
        self.set_flag(ARMED, armed);
    }

    // ---- device memory ----

    /// Slot size of the block's device memory, if it has any.
    #[inline]
    pub fn slot_kind(&self) -> Option<SlotKind> {
        match self.record.flags.load(Ordering::Relaxed) >> KIND_SHIFT & 0xff {
            1 => Some(SlotKind::Mib2),
            2 => Some(SlotKind::Kib64),
            3 => Some(SlotKind::Kib4),
            _ => None,
        }
    }
    /// The device that has the block's private pages. Meaningful while `slot_kind` is some.
    #[inline]
    pub fn owner(&self) -> DeviceId {
        DeviceId((self.record.flags.load(Ordering::Relaxed) >> OWNER_SHIFT) as u8)
    }
    /// Sets slot size and owner, or clears both.
    pub(crate) fn set_slots(&mut self, of: Option<(SlotKind, DeviceId)>) {
        let low = self.record.flags.load(Ordering::Relaxed) & (ARMED | CPU_WAITS | RELEASE_LATER);
        let high =
            of.map_or(0, |(kind, owner)| (kind as u32) << KIND_SHIFT | u32::from(owner.0) << OWNER_SHIFT);
        self.record.flags.store(low | high, Ordering::Relaxed);
    }
    /// The slot entries, for whoever hands out device memory.
    #[inline]
    pub(crate) fn slots(&self) -> &'a [LockedU32; SLOTS_64K_PER_BLOCK] {
        &self.record.slots
    }
    /// The index of the 4 KiB slots' record, plus one.
    pub(crate) fn fine(&self) -> &'a LockedU32 {
        &self.record.fine
    }

    #[inline]
    fn flag(&self, flag: u32) -> bool {
        self.record.flags.load(Ordering::Relaxed) & flag != 0
    }
    fn set_flag(&self, flag: u32, on: bool) {
        let flags = self.record.flags.load(Ordering::Relaxed);
        self.record.flags.store(if on { flags | flag } else { flags & !flag }, Ordering::Relaxed);
    }

    /// Whether one page is in transit.
    pub fn is_in_transit(&self, page: PageIndex) -> bool {
        self.in_transit().contains(page)
    }
}

#[cfg(not(granule_loom))]
const _: () = {
    assert!(size_of::<BlockRecord>() == 320, "the budget of a block record");
    assert!(size_of::<DevicePlane>() == 128);
    assert!(size_of::<BlockRecord>() + size_of::<DevicePlane>() <= PAGES_PER_BLOCK, "one byte per page");
};
