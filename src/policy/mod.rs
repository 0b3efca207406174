//! Policies decide and do nothing: where a faulting page shall live, how far to widen, what comes home on a CPU
//! fault. They are plug-ins; the fault path clips what they answer to what is possible.
//!
//! Called without locks, by several threads, and (`homecoming`) by the thread that serves CPU faults: a policy's
//! state is in itself and in atomics, never behind a pointer to the heap.

mod migrate_on_fault;

pub use migrate_on_fault::{LinkOnly, MigrateOnFault};

use crate::units::{BlockNo, DeviceId, PAGES_PER_BLOCK, PageIndex, PageMask};

/// The unit in which pages move.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Hash, Default)]
pub enum Granularity {
    /// One page.
    Kib4,
    /// 16 pages.
    #[default]
    Kib64,
    /// A block.
    Mib2,
}

impl Granularity {
    /// Pages in one unit.
    pub const fn pages(self) -> usize {
        match self {
            Granularity::Kib4 => 1,
            Granularity::Kib64 => 16,
            Granularity::Mib2 => PAGES_PER_BLOCK,
        }
    }
}

/// What a policy sees of a device fault: one block, one device.
#[derive(Clone, Copy, Debug)]
pub struct DeviceFaultView {
    /// Which block.
    pub block: BlockNo,
    /// Which device faulted.
    pub device: DeviceId,
    /// Pages that were touched.
    pub faulted: PageMask,
    /// Of these, pages that were written.
    pub written: PageMask,
    /// Pages of the block that are on a device already.
    pub resident: PageMask,
    /// Pages of the block that belong to the faulting mapping.
    pub mapping: PageMask,
    /// Whether the mapping may move at all.
    pub movable: bool,
}

/// What a policy answers to a device fault.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Placement {
    /// Where the pages shall be.
    pub place: Place,
    /// Which pages: at least the faulted ones. Those outside of the mapping are ignored.
    pub pages: PageMask,
}

/// Where a page may live.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Place {
    /// In the memory of the faulting device.
    Device,
    /// In system memory, linked.
    System,
}

/// Decides.
pub trait Policy: Sync {
    /// Where the pages of a device fault go, and how far the fault is widened.
    fn place(&self, fault: &DeviceFaultView) -> Placement;

    /// Which pages come home with a page that the CPU touched. `resident` is what of the block is on the device;
    /// the answer is clipped to it. Called under the block lock.
    fn homecoming(&self, block: BlockNo, touched: PageIndex, resident: &PageMask) -> PageMask;

    /// The unit in which device memory should be handed out.
    fn granularity(&self) -> Granularity;
}
