use thiserror::Error;

use super::{Iommu, Word};
use crate::units::{Access, DevAddr, DevMemAddr, Iova, VirtAddr, VirtRange};

/// A device that shares the address space.
///
/// # What an implementation promises
/// 1. `map`, `unmap`, `flush`, `quiesce`, `resume`, `copy_out`, `window`, `cancel` and everything of
///    [`Device::iommu`] are called by the thread that serves CPU faults, or under block locks: they touch private
///    memory only (`os::private`), allocate nothing from the heap, and wait for nothing that may fault.
/// 2. After `flush` returns, no engine uses a translation that was unmapped before the call, and every write
///    that went through one is visible to `copy_out`.
/// 3. `fetch` loses no fault: what does not fit in the buffer makes its engine wait.
/// 4. A fault that was fetched is answered by `replay` (the access is executed again) or by `cancel`.
pub trait Device: Sync {
    /// What it is and can do. Constant over the device's life.
    fn caps(&self) -> DeviceCaps;

    /// Copies pages into device memory. `src` is private memory of the library, `dst` and its length are
    /// multiples of a page.
    ///
    /// # Errors
    /// [`DeviceError`]; the contents of the target are undefined then, the source is untouched.
    fn copy_in(&self, dst: DevMemAddr, src: &[Word]) -> Result<(), DeviceError>;

    /// Copies pages out of device memory.
    ///
    /// # Errors
    /// [`DeviceError`]; the device's copy stays what it was.
    fn copy_out(&self, src: DevMemAddr, dst: &[Word]) -> Result<(), DeviceError>;

    /// The host's own view of device memory, where there is one (`DeviceCaps::driver_free`): lets a page be
    /// copied to the application by one system call. `None`, too, when the memory behind it cannot be read any more:
    /// it is what a page is read through when `copy_out` fails, and what it shows is believed.
    fn window(&self, at: DevMemAddr, bytes: u64) -> Option<&[Word]>;

    /// Enters `pages` translations from `at` on into the device page table, over whatever was there. The device
    /// chooses the leaf sizes that alignment and length allow.
    ///
    /// # Errors
    /// [`DeviceError::OutOfTables`]; nothing is mapped then.
    fn map(&self, at: DevAddr, pages: u64, target: MapTarget, access: Access) -> Result<(), DeviceError>;

    /// Removes the translations of a range; holes are fine. Takes effect with the next `flush`.
    fn unmap(&self, at: DevAddr, pages: u64);

    /// Drops cached translations of the range and waits for accesses that use them. Engines that sleep in a
    /// page fault of the CPU are made to give up the access, which becomes a device fault.
    fn flush(&self, at: DevAddr, pages: u64);

    /// Returns when no engine is inside an access, to system memory or to the device's own; none begins one until
    /// `resume`. Called by one thread (the reader of events) only, never twice without a `resume` between.
    ///
    /// Device memory, too: the caller of munmap goes on when its event was read, and what an engine then wrote
    /// through a translation that is still to be removed would be dropped with it; and a child after fork is given
    /// copies of what device memory held when the event was read.
    fn quiesce(&self);

    /// Ends `quiesce`.
    fn resume(&self);

    /// Somebody serves faults from now on. Called once per service, before the first `fetch`.
    fn attach(&self);

    /// Nobody serves faults any more: every fault that is outstanding, and every later one until `attach`, ends with
    /// [`FaultCause::ShuttingDown`].
    fn detach(&self);

    /// Waits until there is a fault to fetch or somebody called `interrupt`; consumes the interrupt.
    fn wait_fault(&self);

    /// Makes one `wait_fault` (the current or the next) return.
    fn interrupt(&self);

    /// Takes up to `out.len()` faults out of the fault buffer, oldest first, and says how many.
    fn fetch(&self, out: &mut [DeviceFault]) -> usize;

    /// Executes again every access whose fault was fetched and not cancelled.
    fn replay(&self);

    /// Ends the access behind a fetched fault with an error that the kernel sees. Takes effect at once.
    fn cancel(&self, fault: &DeviceFault, cause: FaultCause);

    /// The IOMMU through which it reaches system memory.
    fn iommu(&self) -> &dyn Iommu;

    /// Told of memory that the library maps a second time, for itself, before any of it is linked: the application has
    /// it at `memory`, the library at `view` (private memory, which stays as it is until `dismiss`). A device that must
    /// import what it links does it now; if it cannot, it refuses links of this memory later. Called by a thread of the
    /// program, without gate and locks: may call a driver.
    fn admit(&self, memory: VirtRange, view: VirtAddr) {
        let _ = (memory, view);
    }

    /// Told that memory which was admitted is unmapped for the application, and about to be for the library: nothing of
    /// it is linked any more. Called as `admit`.
    fn dismiss(&self, memory: VirtRange) {
        let _ = memory;
    }
}

/// What a device is and can do.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct DeviceCaps {
    /// Short name for people.
    pub name: &'static str,
    /// Size of its own memory in bytes, a multiple of 2 MiB.
    pub memory_bytes: u64,
    /// Whether device memory is mapped by the host, so that the way to RAM needs no driver call.
    pub driver_free: bool,
    /// Whether `quiesce` works. A device that cannot be stopped reaches only memory that cannot vanish.
    pub can_quiesce: bool,
    /// Whether its IOMMU reaches any system memory of the process. If not, it links only memory of which the library has
    /// a view; what neither moves nor has a view cannot be served ([`FaultCause::NotReachable`]).
    pub links_any: bool,
}

/// What a translation leads to.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum MapTarget {
    /// The device's own memory, contiguous from this offset.
    DeviceMemory(DevMemAddr),
    /// System memory through the IOMMU, contiguous from this IOVA.
    System(Iova),
}

/// One fault as the device recorded it.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct DeviceFault {
    /// The byte that was accessed.
    pub at: DevAddr,
    /// What was tried.
    pub access: Access,
    /// Which engine waits; meaning is the device's.
    pub engine: u32,
    /// The device's own name for this fault; handed back in `cancel`.
    pub cookie: u64,
}

/// Why an access cannot be served: delivered to the device, and by it to the kernel that made the access.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Error, Hash)]
#[repr(u8)]
#[non_exhaustive]
pub enum FaultCause {
    /// Nothing is mapped there.
    #[error("nothing is mapped at this address")]
    NoMapping = 1,
    /// The mapping does not allow any access, or has nothing there.
    #[error("the mapping allows no access (PROT_NONE, or beyond the end of its file)")]
    NoAccess = 2,
    /// A write to a mapping that may only be read.
    #[error("the mapping is read-only")]
    ReadOnly = 3,
    /// The memory gives no events when it changes; it is served through a userptr only.
    #[error("changes of this mapping cannot be followed; register it as a userptr")]
    NoEvents = 4,
    /// The address lies outside of the window of this address space.
    #[error("the address lies outside of the window of this address space")]
    OutsideWindow = 5,
    /// No memory, or the limit on mappings is reached.
    #[error("out of memory or mappings; raise vm.max_map_count or free memory")]
    OutOfMemory = 6,
    /// Every rung of the retry ladder was tried.
    #[error(
        "the fault was retried until its budget was spent; the mapping changes faster than it can be served"
    )]
    RetriesSpent = 7,
    /// The device failed to copy or to map.
    #[error("the device failed")]
    DeviceFailed = 8,
    /// The address space is being shut down.
    #[error("the address space is shutting down")]
    ShuttingDown = 9,
    /// The page stays in system memory, and the device does not reach it there.
    #[error(
        "this page cannot move, and the device does not reach it in system memory; allocate it from the library \
         (Svm::alloc), or where the kernel lets pages move"
    )]
    NotReachable = 10,
}

impl FaultCause {
    /// How many causes there are; their numbers run from 1 to this.
    pub const COUNT: usize = 10;
    /// Every cause, in the order of their numbers.
    pub const ALL: [FaultCause; Self::COUNT] = [
        FaultCause::NoMapping,
        FaultCause::NoAccess,
        FaultCause::ReadOnly,
        FaultCause::NoEvents,
        FaultCause::OutsideWindow,
        FaultCause::OutOfMemory,
        FaultCause::RetriesSpent,
        FaultCause::DeviceFailed,
        FaultCause::ShuttingDown,
        FaultCause::NotReachable,
    ];
}

/// Why a device could not do what it was told.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Error)]
#[non_exhaustive]
pub enum DeviceError {
    /// The device does not answer any more. Its memory may still be readable.
    #[error("the device was lost; data still in its memory is read back if it can be")]
    Lost,
    /// No memory for page tables.
    #[error(
        "no memory is left for device page tables; unmap something or give the device a larger table budget"
    )]
    OutOfTables,
    /// A copy failed; nothing of it may be trusted.
    #[error("the device failed to copy")]
    CopyFailed,
}
