use thiserror::Error;

use super::{BlockGuard, BlockIndex, BlockRecord, DevicePlane, FineSlots, GranuleRecord};
use crate::sync::{AtomicU32, Ordering, Park, Rule, WordLock, holds};
use crate::units::{
    BLOCKS_PER_GRANULE, BlockNo, DeviceId, GRANULE_SHIFT, GranuleNo, Iova, SPACE_BYTES, VirtRange,
};

/// Entries of a node: 512 (2 under loom).
const LEVEL2: usize = if cfg!(granule_loom) { 2 } else { 512 };

/// 512 entries of the second level: index of the granule record, plus one.
#[derive(Debug)]
#[repr(C, align(64))]
pub struct TableNode([AtomicU32; LEVEL2]);

impl Default for TableNode {
    fn default() -> Self {
        Self(core::array::from_fn(|_| AtomicU32::new(0)))
    }
}

/// The memory that the tables live in: lazily filled slices, all zero (or default) at the start.
#[derive(Clone, Copy, Debug)]
pub struct TableMemory<'m> {
    /// Nodes of the second level; node 0 upwards are handed out.
    pub nodes: &'m [TableNode],
    /// The first level: `SPACE_BYTES / 512 MiB / 512` entries or more.
    pub level1: &'m [AtomicU32],
    /// Granule records.
    pub granules: &'m [GranuleRecord],
    /// Block records.
    pub blocks: &'m [BlockRecord],
    /// `blocks.len() * devices` planes.
    pub planes: &'m [DevicePlane],
    /// Records of 4 KiB slots.
    pub fine: &'m [FineSlots],
}

/// No record is left of one kind.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Error)]
#[error("all {capacity} {what} records are in use; build the space with room for a larger window")]
pub struct TableFull {
    /// Which kind of record.
    pub what: &'static str,
    /// How many there are.
    pub capacity: usize,
}

/// Address -> granule -> block, without a lock and without waiting. Records are made on demand, under one lock,
/// and stay until the space ends: a record that is found is found for good.
#[derive(Debug)]
pub struct Tables<'m> {
    memory: TableMemory<'m>,
    devices: usize,
    grow: WordLock,
    /// Held while an IOVA range is reserved, which may touch the heap: never taken by the reader.
    reserve: WordLock,
    used_nodes: AtomicU32,
    used_granules: AtomicU32,
    used_blocks: AtomicU32,
    used_fine: AtomicU32,
    /// Head of the list of freed 4 KiB-slot records, plus one; entry 0 of a free record is the next.
    free_fine: AtomicU32,
}

impl<'m> Tables<'m> {
    /// Empty tables. Asserts that the memory fits together.
    pub fn new(memory: TableMemory<'m>, devices: usize) -> Self {
        assert!(memory.planes.len() >= memory.blocks.len() * devices, "one plane per block and device");
        assert!(
            memory.level1.len() >= (SPACE_BYTES >> GRANULE_SHIFT) as usize / LEVEL2 || cfg!(granule_loom)
        );
        Self {
            memory,
            devices,
            grow: WordLock::new(),
            reserve: WordLock::new(),
            used_nodes: AtomicU32::new(0),
            used_granules: AtomicU32::new(0),
            used_blocks: AtomicU32::new(0),
            used_fine: AtomicU32::new(0),
            free_fine: AtomicU32::new(0),
        }
    }

    /// The granule, if it was ever touched.
    #[inline]
    pub fn granule(&self, no: GranuleNo) -> Option<&'m GranuleRecord> {
        // Acquire at each level pairs with the release in `install`: the record behind an index is complete.
        let node = self.memory.level1.get(no.0 as usize / LEVEL2)?.load(Ordering::Acquire).checked_sub(1)?;
        let granule = self.memory.nodes[node as usize].0[no.0 as usize % LEVEL2].load(Ordering::Acquire);
        Some(&self.memory.granules[granule.checked_sub(1)? as usize])
    }

    /// The block's index, if it was ever touched.
    #[inline]
    pub fn block(&self, no: BlockNo) -> Option<BlockIndex> {
        let granule = self.granule(no.granule())?;
        granule.blocks[no.index_in_granule()].load(Ordering::Acquire).checked_sub(1).map(BlockIndex)
    }

    /// The record behind an index.
    #[inline]
    pub fn record(&self, index: BlockIndex) -> &'m BlockRecord {
        &self.memory.blocks[index.0 as usize]
    }

    /// Takes a block's lock.
    #[inline]
    pub fn lock<'a>(&'a self, index: BlockIndex, park: &'a dyn Park) -> BlockGuard<'a> {
        let first = index.0 as usize * self.devices;
        self.record(index).lock(&self.memory.planes[first..first + self.devices], park)
    }

    /// The block, made if need be. Whoever races gets the same one.
    ///
    /// # Errors
    /// [`TableFull`]; nothing is changed.
    pub fn block_or_make(&self, no: BlockNo, park: &dyn Park) -> Result<BlockIndex, TableFull> {
        if let Some(found) = self.block(no) {
            return Ok(found);
        }
        let _grow = self.grow.lock(park);
        let granule = self.granule_or_make(no.granule())?;
        let entry = &granule.blocks[no.index_in_granule()];
        if let Some(found) = entry.load(Ordering::Relaxed).checked_sub(1) {
            return Ok(BlockIndex(found));
        }
        let index = take_next(&self.used_blocks, self.memory.blocks.len(), "block")?;
        self.memory.blocks[index as usize].set_number(no);
        install(entry, index);
        Ok(BlockIndex(index))
    }

    fn granule_or_make(&self, no: GranuleNo) -> Result<&'m GranuleRecord, TableFull> {
        let outside = TableFull { what: "table", capacity: self.memory.level1.len() };
        let entry = self.memory.level1.get(no.0 as usize / LEVEL2).ok_or(outside)?;
        if entry.load(Ordering::Relaxed) == 0 {
            install(entry, take_next(&self.used_nodes, self.memory.nodes.len(), "table")?);
        }
        let node = &self.memory.nodes[entry.load(Ordering::Relaxed) as usize - 1];
        let entry = &node.0[no.0 as usize % LEVEL2];
        if entry.load(Ordering::Relaxed) == 0 {
            install(entry, take_next(&self.used_granules, self.memory.granules.len(), "granule")?);
        }
        Ok(&self.memory.granules[entry.load(Ordering::Relaxed) as usize - 1])
    }

    /// The IOVA of the granule for a device, reserved by `reserve` if this is the first fault in it: once,
    /// whoever races. Returns whether this call reserved it. Called by workers without gate and locks.
    ///
    /// # Errors
    /// What `reserve` says; nothing is reserved then, and the next fault tries again.
    pub fn reserve_once<E>(
        &self,
        granule: &GranuleRecord,
        device: DeviceId,
        park: &dyn Park,
        reserve: impl FnOnce() -> Result<Iova, E>,
    ) -> Result<(Iova, bool), E> {
        if let Some(base) = granule.iova_base(device) {
            return Ok((base, false));
        }
        let _reserve = self.reserve.lock(park);
        if let Some(base) = granule.iova_base(device).filter(|_| holds(Rule::ReserveOnce)) {
            return Ok((base, false));
        }
        let base = reserve()?;
        granule.set_iova_base(device, base);
        Ok((base, true))
    }

    /// The blocks of a range that were ever touched, ascending. Skips whole granules that were not.
    pub fn blocks_in(&self, range: VirtRange) -> impl Iterator<Item = (BlockNo, BlockIndex)> + '_ {
        let core::ops::Range { start: mut next, end } = range.block_numbers();
        core::iter::from_fn(move || {
            while next < end {
                let no = BlockNo(next);
                if self.granule(no.granule()).is_none() {
                    next = (no.granule().0 + 1) * BLOCKS_PER_GRANULE as u32;
                    continue;
                }
                next += 1;
                if let Some(index) = self.block(no) {
                    return Some((no, index));
                }
            }
            None
        })
    }

    /// Every block record that is in use.
    pub fn all_blocks(&self) -> impl Iterator<Item = BlockIndex> + use<> {
        // Acquire pairs with the release in `take_next`.
        (0..self.used_blocks.load(Ordering::Acquire)).map(BlockIndex)
    }

    /// A record of 4 KiB slots, all zero; its index.
    pub(crate) fn take_fine(&self, park: &dyn Park) -> Result<u32, TableFull> {
        let _grow = self.grow.lock(park);
        if let Some(free) = self.free_fine.load(Ordering::Relaxed).checked_sub(1) {
            let entry = &self.memory.fine[free as usize].0[0];
            self.free_fine.store(entry.load(Ordering::Relaxed), Ordering::Relaxed);
            entry.store(0, Ordering::Relaxed);
            return Ok(free);
        }
        take_next(&self.used_fine, self.memory.fine.len(), "4 KiB slot")
    }

    /// Gives one back; all its entries are zero.
    pub(crate) fn put_fine(&self, index: u32, park: &dyn Park) {
        let _grow = self.grow.lock(park);
        let entry = &self.memory.fine[index as usize].0[0];
        entry.store(self.free_fine.load(Ordering::Relaxed), Ordering::Relaxed);
        self.free_fine.store(index + 1, Ordering::Relaxed);
    }

    /// The record behind a 4 KiB-slot index.
    pub(crate) fn fine(&self, index: u32) -> &'m FineSlots {
        &self.memory.fine[index as usize]
    }

    /// Bytes of records in use: table, granules, blocks with their planes, 4 KiB-slot records.
    pub fn used_bytes(&self) -> [u64; 4] {
        let bytes = |used: &AtomicU32, each: usize| u64::from(used.load(Ordering::Relaxed)) * each as u64;
        [
            size_of_val(self.memory.level1) as u64 + bytes(&self.used_nodes, size_of::<TableNode>()),
            bytes(&self.used_granules, size_of::<GranuleRecord>()),
            bytes(&self.used_blocks, size_of::<BlockRecord>() + self.devices * size_of::<DevicePlane>()),
            bytes(&self.used_fine, size_of::<FineSlots>()),
        ]
    }
}

fn take_next(used: &AtomicU32, capacity: usize, what: &'static str) -> Result<u32, TableFull> {
    let next = used.load(Ordering::Relaxed);
    if next as usize == capacity {
        return Err(TableFull { what, capacity });
    }
    used.store(next + 1, Ordering::Release);
    Ok(next)
}

fn install(entry: &AtomicU32, index: u32) {
    // Release pairs with the acquire of lookups.
    entry.store(index + 1, Ordering::Release);
}

impl Tables<'_> {
    /// How many devices the space has.
    pub fn devices(&self) -> usize {
        self.devices
    }
}
