#![allow(unsafe_code, reason = "lends slabs to a structure that lives beside them")]
//! The private memory of one space: slabs for every table, lazily filled.

use crate::granule::{
    BlockRecord, DevicePlane, FineSlots, GateSeat, GranuleRecord, HomecomingRecord, TableMemory, TableNode,
    TransitRecord, UserptrRecord,
};
use crate::migrate::ChunkRecord;
use crate::os::private::{PrivateError, Slab, ZeroValid};
use crate::sync::{AtomicU32, AtomicU64};
use crate::units::BLOCK_BYTES;

// SAFETY: it consists of atomics (and locks made of one), for which zero is a valid value (`Default` is zero), and has
// no destructor.
unsafe impl ZeroValid for BlockRecord {}
// SAFETY: as above.
unsafe impl ZeroValid for DevicePlane {}
// SAFETY: as above.
unsafe impl ZeroValid for FineSlots {}
// SAFETY: as above.
unsafe impl ZeroValid for GranuleRecord {}
// SAFETY: as above.
unsafe impl ZeroValid for TableNode {}
// SAFETY: as above.
unsafe impl ZeroValid for GateSeat {}
// SAFETY: as above.
unsafe impl ZeroValid for TransitRecord {}
// SAFETY: as above.
unsafe impl ZeroValid for ChunkRecord {}
// SAFETY: as above.
unsafe impl ZeroValid for HomecomingRecord {}
// SAFETY: as above.
unsafe impl ZeroValid for UserptrRecord {}

/// Slabs for one space. Addresses are reserved for all of it; memory is used as it is touched.
pub(super) struct Memory {
    level1: Slab<AtomicU32>,
    nodes: Slab<TableNode>,
    granules: Slab<GranuleRecord>,
    blocks: Slab<BlockRecord>,
    planes: Slab<DevicePlane>,
    fine: Slab<FineSlots>,
    seats: Slab<GateSeat>,
    transits: Slab<TransitRecord>,
    homecomings: Slab<HomecomingRecord>,
    userptrs: Slab<UserptrRecord>,
    userptr_words: Slab<AtomicU64>,
    chunks: Vec<Slab<ChunkRecord>>,
}

/// Granules that one space can know: 32 TiB of touched address space.
const GRANULES: usize = 1 << 16;
/// Userptrs that one space can have at once.
pub(super) const USERPTRS: usize = 1 << 14;
/// 64-page words of all their link bitmaps: 1 TiB of registered memory.
pub(super) const USERPTR_WORDS: usize = 1 << 22;
/// Blocks that one space can know: 4 TiB of touched address space.
const BLOCKS: usize = 1 << 21;

impl Memory {
    pub(super) fn new(device_memory_bytes: &[u64], seats: usize) -> Result<Self, PrivateError> {
        let blocks_on_devices: usize =
            device_memory_bytes.iter().map(|bytes| (bytes / BLOCK_BYTES) as usize).sum();
        Ok(Self {
            level1: Slab::new(512)?,
            nodes: Slab::new(512)?,
            granules: Slab::new(GRANULES)?,
            blocks: Slab::new(BLOCKS)?,
            planes: Slab::new(BLOCKS * device_memory_bytes.len())?,
            fine: Slab::new(BLOCKS)?,
            seats: Slab::new(seats)?,
            transits: Slab::new(seats)?,
            homecomings: Slab::new(2 * blocks_on_devices + 2 * seats)?,
            userptrs: Slab::new(USERPTRS)?,
            userptr_words: Slab::new(USERPTR_WORDS)?,
            chunks: device_memory_bytes
                .iter()
                .map(|bytes| Slab::new((bytes / BLOCK_BYTES) as usize))
                .collect::<Result<_, _>>()?,
        })
    }

    /// Lends a slab for as long as the caller keeps `Memory` in place.
    ///
    /// # Safety
    /// The result must not be used after this `Memory` is dropped.
    unsafe fn lend<T: ZeroValid>(slab: &Slab<T>) -> &'static [T] {
        let slice: &[T] = slab;
        // SAFETY: the slab's mapping does not move; the caller ends all use before it is unmapped.
        unsafe { std::slice::from_raw_parts(slice.as_ptr(), slice.len()) }
    }

    /// All slabs, lent.
    ///
    /// # Safety
    /// Nothing of the result may be used after this `Memory` is dropped.
    pub(super) unsafe fn lend_all(&self) -> Lent {
        // SAFETY: the caller's promise, passed on.
        unsafe {
            Lent {
                tables: TableMemory {
                    nodes: Self::lend(&self.nodes),
                    level1: Self::lend(&self.level1),
                    granules: Self::lend(&self.granules),
                    blocks: Self::lend(&self.blocks),
                    planes: Self::lend(&self.planes),
                    fine: Self::lend(&self.fine),
                },
                seats: Self::lend(&self.seats),
                transits: Self::lend(&self.transits),
                homecomings: Self::lend(&self.homecomings),
                userptrs: Self::lend(&self.userptrs),
                userptr_words: Self::lend(&self.userptr_words),
                chunks: self.chunks.iter().map(|chunks| Self::lend(chunks)).collect(),
            }
        }
    }

    /// Bytes of physical memory behind table, granules, blocks, 4 KiB-slot records and device memory's records.
    pub(super) fn resident_bytes(&self) -> [u64; 5] {
        [
            self.level1.resident_bytes() + self.nodes.resident_bytes(),
            self.granules.resident_bytes(),
            self.blocks.resident_bytes() + self.planes.resident_bytes(),
            self.fine.resident_bytes(),
            self.chunks.iter().map(Slab::resident_bytes).sum(),
        ]
    }
}

/// The slabs as slices.
pub(super) struct Lent {
    pub(super) tables: TableMemory<'static>,
    pub(super) seats: &'static [GateSeat],
    pub(super) transits: &'static [TransitRecord],
    pub(super) homecomings: &'static [HomecomingRecord],
    pub(super) userptrs: &'static [UserptrRecord],
    pub(super) userptr_words: &'static [AtomicU64],
    pub(super) chunks: Vec<&'static [ChunkRecord]>,
}
