use alloc::vec::Vec;

use super::PhysList;
use super::convert::IoVec;
use crate::ports::{PinError, PinMemory};
use crate::units::{Access, VirtAddr};

/// Memory of the process that stays where it is, and where that is. Dropping it lets the memory go: not before it is
/// unlinked or unmapped everywhere.
#[must_use = "dropping it lets the memory go"]
pub struct Pinned<'p> {
    port: &'p dyn PinMemory,
    at: VirtAddr,
    bytes: u64,
    ranges: PhysList,
}

impl core::fmt::Debug for Pinned<'_> {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        write!(f, "Pinned({} bytes at {:?}, {} ranges)", self.bytes, self.at, self.ranges.len())
    }
}

/// Pins `bytes` bytes of the process from `at` on, and says where they are: byte-exact at both ends, neighbours merged.
/// May populate memory, wait and allocate.
///
/// # Errors
/// As [`PinMemory::pin`]; nothing is pinned then.
pub fn pin(port: &dyn PinMemory, at: VirtAddr, bytes: u64, access: Access) -> Result<Pinned<'_>, PinError> {
    if bytes == 0 || at.checked_add(bytes).is_none() {
        return Err(PinError::BadRange { at, bytes });
    }
    let mut ranges = PhysList::new();
    port.pin(at, bytes, access, &mut |range| ranges.push(range))?;
    Ok(Pinned { port, at, bytes, ranges })
}

/// Pins several pieces of the process's memory, in order.
///
/// # Errors
/// As [`pin`], for the first piece that cannot be pinned; nothing is pinned then.
pub fn pin_vectors<'p>(
    port: &'p dyn PinMemory,
    vectors: &[IoVec],
    access: Access,
) -> Result<Vec<Pinned<'p>>, PinError> {
    vectors.iter().map(|vector| pin(port, vector.at(), vector.len, access)).collect()
}

impl Pinned<'_> {
    /// Where the memory is, in order.
    pub fn ranges(&self) -> &PhysList {
        &self.ranges
    }
    /// First byte, as the process sees it.
    pub fn at(&self) -> VirtAddr {
        self.at
    }
    /// Length in bytes.
    pub fn bytes(&self) -> u64 {
        self.bytes
    }
}

impl Drop for Pinned<'_> {
    fn drop(&mut self) {
        self.port.unpin(self.at, self.bytes);
    }
}
