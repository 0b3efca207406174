//! Translations that DMA by IOVA remembers: the IOMMU's own (one per domain) and a device's (one per device). Nothing
//! is forgotten here unless somebody says so, or unless another translation needs the place: an omitted flush is seen.
//!
//! # Rules
//! 1. A translation is looked up, and walked for if it is missing, under the lock. Whoever unmaps changes the table
//!    first and then drops here, under the same lock: either what was entered before is dropped, or the walk comes
//!    later and sees the change.
//! 2. A device fills its IOTLB from that of the IOMMU and holds its own lock meanwhile. So the IOMMU's is dropped
//!    first. Whoever holds an IOTLB's lock takes that of a table's IOTLB at most, and walks tables without a lock.
//! 3. Absence is remembered only where somebody asks for it ([`Iotlb::remember_absence`]), until it is dropped; more
//!    rights are found by walking again.

use granule::os::FutexPark;
use granule::os::private::{PrivateError, Slab};
use granule::sync::{AtomicU32, AtomicU64, Ordering, WordLock};
use granule::units::{Access, BLOCK_BYTES, PAGE_BYTES, Pasid};

use super::page_table::Leaf;

/// log2 of the leaf sizes, largest first.
const SHIFTS: [u32; 3] = [21, 16, 12];

/// Words of an entry: tag and size in one (0: empty), base, target with the write bit.
const WORDS: usize = 3;
const VALID: u64 = 1 << 63;
/// Nothing is mapped there; the target says nothing.
const ABSENT: u64 = 1 << 62;
const WRITE: u64 = 1;

/// Direct-mapped, one array per leaf size. All words are read and written under the lock.
pub(crate) struct Iotlb {
    lock: WordLock,
    words: Slab<AtomicU64>,
    slots: usize,
    /// 1 once anybody looked anything up: until then there is nothing to drop.
    used: AtomicU32,
    pub(super) hits: AtomicU64,
    pub(super) misses: AtomicU64,
    pub(super) dropped: AtomicU64,
}

impl Iotlb {
    /// An empty one with `slots` places for each leaf size.
    pub(crate) fn new(slots: usize) -> Result<Self, PrivateError> {
        Ok(Self {
            lock: WordLock::new(),
            words: Slab::new(SHIFTS.len() * slots * WORDS)?,
            slots,
            used: AtomicU32::new(0),
            hits: AtomicU64::new(0),
            misses: AtomicU64::new(0),
            dropped: AtomicU64::new(0),
        })
    }

    /// Says that there may be something to drop from now on. Comes before the access for which it is looked up.
    ///
    /// After it the caller looks, sequentially consistent, at what those change who drop, before they drop: either they
    /// see this, or the caller sees what they did.
    pub(crate) fn begin(&self) {
        if self.used.load(Ordering::Relaxed) == 0 {
            // SeqCst pairs with the load in `drop_range`.
            self.used.store(1, Ordering::SeqCst);
        }
    }

    fn entry(&self, size: usize, at: u64, tag: Pasid) -> &[AtomicU64] {
        let place = ((at >> SHIFTS[size]) as usize ^ tag.0 as usize) % self.slots;
        &self.words[(size * self.slots + place) * WORDS..][..WORDS]
    }

    /// A word's worth of a place: the tag and the leaf, and whether that is one of absence.
    fn read(entry: &[AtomicU64]) -> Option<(Pasid, Leaf, bool)> {
        let [key, base, target] = [0, 1, 2].map(|word: usize| entry[word].load(Ordering::Relaxed));
        let leaf = Leaf {
            base,
            bytes: 1 << (key >> 32 & 0xff),
            target: target & !WRITE,
            system: true,
            write: target & WRITE != 0,
        };
        (key & VALID != 0).then_some((Pasid(key as u32), leaf, key & ABSENT != 0))
    }

    /// The translation of an address for DMA under `tag`: what is remembered, else what `walk` finds.
    pub(crate) fn look_up(
        &self,
        tag: Pasid,
        at: u64,
        access: Access,
        walk: impl FnOnce() -> Option<Leaf>,
    ) -> Option<Leaf> {
        let _held = self.lock.lock(&FutexPark);
        for size in 0..SHIFTS.len() {
            let known = Self::read(self.entry(size, at, tag));
            if let Some((_, leaf, is_absent)) = known.filter(|(known, leaf, is_absent)| {
                *known == tag
                    && at.wrapping_sub(leaf.base) < leaf.bytes
                    && (*is_absent || leaf.covers(access))
            }) {
                self.hits.fetch_add(1, Ordering::Relaxed);
                return (!is_absent).then_some(leaf);
            }
        }
        self.misses.fetch_add(1, Ordering::Relaxed);
        let leaf = walk()?;
        let size = match leaf.bytes {
            BLOCK_BYTES => 0,
            PAGE_BYTES => 2,
            _ => 1,
        };
        self.enter(size, tag, &leaf, VALID);
        Some(leaf)
    }

    fn enter(&self, size: usize, tag: Pasid, leaf: &Leaf, kind: u64) {
        let entry = self.entry(size, leaf.base, tag);
        entry[0].store(kind | u64::from(SHIFTS[size]) << 32 | u64::from(tag.0), Ordering::Relaxed);
        entry[1].store(leaf.base, Ordering::Relaxed);
        entry[2].store(leaf.target | if leaf.write { WRITE } else { 0 }, Ordering::Relaxed);
    }

    /// Remembers that nothing is mapped at an address, if `is_absent` says so still.
    pub(crate) fn remember_absence(&self, tag: Pasid, at: u64, is_absent: impl FnOnce() -> bool) {
        let _held = self.lock.lock(&FutexPark);
        if is_absent() {
            let base = at & !(PAGE_BYTES - 1);
            let leaf = Leaf { base, bytes: PAGE_BYTES, target: 0, system: true, write: false };
            self.enter(2, tag, &leaf, VALID | ABSENT);
        }
    }

    /// Whether it is remembered that nothing is mapped at an address.
    pub(crate) fn knows_absence(&self, tag: Pasid, at: u64) -> bool {
        let _held = self.lock.lock(&FutexPark);
        Self::read(self.entry(2, at, tag)).is_some_and(|(known, leaf, is_absent)| {
            is_absent && known == tag && at.wrapping_sub(leaf.base) < leaf.bytes
        })
    }

    /// Forgets every translation of the range, of one tag or of all, and says how many those were. For the caller see
    /// `begin`.
    pub(crate) fn drop_range(&self, at: u64, bytes: u64, tag: Option<Pasid>) -> u64 {
        // SeqCst pairs with the store in `begin`.
        if self.used.load(Ordering::SeqCst) == 0 {
            return 0;
        }
        let _held = self.lock.lock(&FutexPark);
        let mut dropped = 0;
        for entry in self.words.chunks_exact(WORDS) {
            let Some((of, leaf, _)) = Self::read(entry) else { continue };
            let hit = leaf.base < at.saturating_add(bytes) && at < leaf.base + leaf.bytes;
            if hit && tag.is_none_or(|tag| tag == of) {
                entry[0].store(0, Ordering::Relaxed);
                dropped += 1;
            }
        }
        self.dropped.fetch_add(dropped, Ordering::Relaxed);
        dropped
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn leaf(base: u64, bytes: u64, write: bool) -> Leaf {
        Leaf { base, bytes, target: base + (1 << 40), system: true, write }
    }

    #[test]
    fn what_is_remembered_stays_until_it_is_dropped_under_its_tag() {
        let iotlb = Iotlb::new(8).expect("memory");
        iotlb.begin();
        let (one, two) = (Pasid(0), Pasid(7));
        let look = |tag, at, access, found: Option<Leaf>| iotlb.look_up(tag, at, access, || found);
        let page = leaf(0x5000, PAGE_BYTES, false);
        assert_eq!(look(one, 0x5010, Access::Read, Some(page)), Some(page));
        assert_eq!(look(one, 0x5fff, Access::Read, None), Some(page), "remembered");
        assert_eq!(look(one, 0x5fff, Access::Write, None), None, "rights are looked up again");
        assert_eq!(look(two, 0x5010, Access::Read, None), None, "another tag knows nothing");
        assert_eq!(look(two, 0x5010, Access::Read, Some(page)), Some(page));
        assert_eq!(iotlb.drop_range(0x6000, 0x1000, None), 0, "its neighbour");
        assert_eq!(iotlb.drop_range(0x5000, 1, Some(two)), 1);
        assert_eq!(look(one, 0x5010, Access::Read, None), Some(page));
        let large = leaf(BLOCK_BYTES, BLOCK_BYTES, true);
        assert_eq!(look(one, BLOCK_BYTES + 5, Access::Write, Some(large)), Some(large));
        assert_eq!(iotlb.drop_range(0, u64::MAX, None), 2);
        assert_eq!(look(one, BLOCK_BYTES, Access::Read, None), None);
    }

    #[test]
    fn absence_is_not_remembered() {
        let iotlb = Iotlb::new(8).expect("memory");
        iotlb.begin();
        let page = leaf(0x5000, PAGE_BYTES, true);
        assert_eq!(iotlb.look_up(Pasid(0), 0x5000, Access::Read, || None), None);
        assert_eq!(iotlb.look_up(Pasid(0), 0x5000, Access::Write, || Some(page)), Some(page));
        assert!(!iotlb.knows_absence(Pasid(0), 0x5000));
    }

    #[test]
    fn absence_is_remembered_on_request_until_it_is_dropped() {
        let iotlb = Iotlb::new(8).expect("memory");
        iotlb.begin();
        let page = leaf(0x5000, PAGE_BYTES, true);
        iotlb.remember_absence(Pasid(3), 0x5010, || false);
        assert!(!iotlb.knows_absence(Pasid(3), 0x5010), "it is mapped by now");
        iotlb.remember_absence(Pasid(3), 0x5010, || true);
        assert_eq!(iotlb.look_up(Pasid(3), 0x5fff, Access::Read, || Some(page)), None);
        assert_eq!(iotlb.look_up(Pasid(4), 0x5fff, Access::Read, || Some(page)), Some(page), "another tag");
        assert!(iotlb.knows_absence(Pasid(3), 0x5000) && !iotlb.knows_absence(Pasid(3), 0x6000));
        assert_eq!(iotlb.drop_range(0x5000, PAGE_BYTES, None), 2);
        assert_eq!(iotlb.look_up(Pasid(3), 0x5000, Access::Read, || Some(page)), Some(page));
    }
}
