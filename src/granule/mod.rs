//! Table -> granule -> block: what is true of every page, at most one byte per page.
//!
//! ```text
//! Tables.level1 [512] -> TableNode [512] -> GranuleRecord (512 MiB)
//!                                             blocks [256] -> BlockRecord (2 MiB): lock, sequence, mover,
//!                                                               device_private, in_transit, slots
//!                                             iova [device]     DevicePlane (block x device): dma_mapped, writable
//! ```
//!
//! # Roles
//! * *Reader*: the one thread per space that reads events and serves CPU faults.
//! * *Worker*: a thread that serves device faults, prefetches and evictions; it owns a [`units::Seat`].
//! * *Own server*: a thread of the application that serves its own CPU fault in a signal handler; it borrows a seat.
//! * *Engine*: a thread of the device; it sees none of this.
//!
//! # The bits of a page, and who may change them
//! | dma-mapped | device-private | in transit | means |
//! |---|---|---|---|
//! | 0 | 0 | 0 | not known to the device: it will fault |
//! | 1 | 0 | 0 | in system memory, linked at its position |
//! | 0 | 1 | 0 | in device memory, at its position in its slot; the CPU has no mapping |
//! | 0 | 0 | 1 | being moved to the device: the application's mapping or a staging slot holds it |
//! | 0 | 1 | 1 | being moved to RAM: device memory holds it until the commit |
//! | 1 | 1 | - | never for one device |
//! | 1 | 0 | 1 | never: a page is unlinked before it is taken |
//!
//! `writable` means something for dma-mapped pages only.
//!
//! # Rules
//! 1. Bits change under the block's lock, and only through a [`BlockGuard`].
//! 2. Lock order: gate, then one block lock, then the leaf locks (device memory, order of eviction). No thread
//!    holds two block locks. Nobody enters the gate with a block lock held.
//! 3. In transit is set before the page is taken from the CPU, and cleared by commit, by undo, or by an
//!    invalidation that declares the page gone.
//! 4. A block has at most one worker's transit at a time ([`TransitRecord`], one per seat). An invalidation takes
//!    its pages *out of that record*: what is no longer in the record at the commit is not the mover's any more,
//!    even if the same address is in transit again for somebody else.
//! 5. A commit is valid only if the block's sequence is what it was when the fault looked at the mapping.
//!
//! # Lost races
//! * Commit against invalidation: the sequence has moved; the fault undoes and is served again (`sequence`).
//! * Two workers on one block: the second parks until the first one's transit ends.
//! * CPU fault on a page in transit: queued by a flag on the block; whoever ends the transit wakes the block.
//!
//! [`units::Seat`]: crate::units::Seat

mod bitmap;
mod block;
mod gate;
mod granule_record;
mod homecoming;
mod invariants;
mod sequence;
mod table;
mod transit;
mod userptr;

pub use bitmap::Bitmap;
pub use block::{BlockGuard, BlockIndex, BlockRecord, DevicePlane, FineSlots, SlotKind};
pub use gate::{Gate, GateClosed, GateInside, GateSeat};
pub use granule_record::{GranuleRecord, MAX_DEVICES};
pub use homecoming::{HomecomingRecord, Homecomings};
pub use invariants::{Broken, check_block};
pub use sequence::Sequence;
pub use table::{TableFull, TableMemory, TableNode, Tables};
pub use transit::{Direction, TransitBusy, TransitRecord};
pub use userptr::{UserptrGuard, UserptrNo, UserptrRecord, UserptrSpec, Userptrs};
