use crate::ports::DeviceFault;
use crate::units::{Access, BlockNo, DeviceId, PageIndex, PageMask, VirtAddr};

/// The faults of one device on one block, coalesced.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct BlockFault {
    /// Which block.
    pub block: BlockNo,
    /// Whose faults.
    pub device: DeviceId,
    /// Pages touched in any way.
    pub faulted: PageMask,
    /// Of these, pages written.
    pub written: PageMask,
    /// Nobody faulted: the program asks that the pages be on the device. Pages that are linked are tried again, since the
    /// reason for which they could not move (a device without room, a pin) may be gone.
    pub prefetch: bool,
}

impl BlockFault {
    /// No page of block 0: a place holder.
    pub const NONE: Self = Self {
        block: BlockNo(0),
        device: DeviceId(0),
        faulted: PageMask::EMPTY,
        written: PageMask::EMPTY,
        prefetch: false,
    };
}

/// Sorts a batch by address and writes one [`BlockFault`] per block to `groups`, ascending. Returns how many, and
/// how many faults were duplicates of another in the batch. Asserts that `groups` has room for a block per fault.
pub fn group(faults: &mut [DeviceFault], device: DeviceId, groups: &mut [BlockFault]) -> (usize, u64) {
    assert!(groups.len() >= faults.len(), "a batch has at most one block per fault");
    faults.sort_unstable_by_key(|fault| (fault.at, fault.cookie));
    let mut used = 0;
    let mut duplicates = 0;
    for fault in faults.iter() {
        let at = VirtAddr(fault.at.0);
        let (block, page) = (BlockNo::of(at), PageIndex::of(at));
        if used == 0 || groups[used - 1].block != block {
            groups[used] = BlockFault { block, device, ..BlockFault::NONE };
            used += 1;
        }
        let group = &mut groups[used - 1];
        duplicates += u64::from(group.faulted.contains(page));
        group.faulted.insert(page);
        if fault.access == Access::Write {
            group.written.insert(page);
        }
    }
    (used, duplicates)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::units::{BLOCK_BYTES, DevAddr};

    #[test]
    fn a_batch_is_grouped_by_block_and_keeps_every_page() {
        let fault = |at: u64, access| DeviceFault { at: DevAddr(at), access, ..DeviceFault::default() };
        let base = 7 * BLOCK_BYTES;
        let mut faults = [
            fault(base + BLOCK_BYTES, Access::Read),
            fault(base + 5, Access::Read),
            fault(base + 4097, Access::Write),
            fault(base + 9, Access::Write),
        ];
        let empty = BlockFault::NONE;
        let mut groups = [empty; 4];
        assert_eq!(group(&mut faults, DeviceId(3), &mut groups), (2, 1));
        assert_eq!(groups[0].block, BlockNo(7));
        assert_eq!(groups[0].faulted, PageMask::of_range(0..2));
        assert_eq!(groups[0].written, PageMask::of_range(0..2));
        assert_eq!((groups[1].block, groups[1].device), (BlockNo(8), DeviceId(3)));
        assert_eq!(groups[1].written, PageMask::EMPTY);
    }
}
