use crate::units::{Direction, PhysAddr};

/// Keeps memory the same for the CPU and for a device that does not look into the CPU's caches (or has one of its own
/// that nobody looks into). A coherent device has none of this.
///
/// # Rules for an implementation
/// 1. It touches private memory and the range itself, allocates nothing from the heap and waits for no fault.
/// 2. It acts on whole lines of [`CacheSync::line_bytes`]. If device and CPU write different bytes of one line, one of
///    the writes is lost, whatever is called when: so `dma` never hands an unaligned end of writable memory to such a
///    device, but a bounce page.
/// 3. MMIO has no cache: it is never called for such ranges.
pub trait CacheSync: Sync {
    /// The unit of maintenance in bytes, a power of two.
    fn line_bytes(&self) -> u64;

    /// Before the device uses the range: what the CPU wrote is what the device will read (`ToDevice`, `Both`), and
    /// nothing stale of the CPU's will cover what the device writes (`FromDevice`, `Both`). Returns when that holds.
    fn sync_for_device(&self, phys: PhysAddr, bytes: u64, direction: Direction);

    /// After the device used the range and before the CPU does: what the device wrote is what the CPU will read. Does
    /// nothing for `ToDevice`. Returns when that holds.
    fn sync_for_cpu(&self, phys: PhysAddr, bytes: u64, direction: Direction);
}
