use super::{ConvertError, runs};
use crate::units::{PhysRange, VirtAddr};

/// A piece of the process's memory, laid out as the C library's `iovec` on 64-bit machines. What it names is a virtual
/// address: [`pin`](crate::dma::pin) makes physical ranges of it.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
#[repr(C)]
pub struct IoVec {
    /// First byte.
    pub base: u64,
    /// Length in bytes.
    pub len: u64,
}

const _: () = assert!(size_of::<IoVec>() == 16);

impl IoVec {
    /// Its first byte.
    pub const fn at(self) -> VirtAddr {
        VirtAddr(self.base)
    }
}

impl From<(VirtAddr, u64)> for IoVec {
    fn from((at, bytes): (VirtAddr, u64)) -> Self {
        Self { base: at.0, len: bytes }
    }
}

/// One vector for each run of ranges that touch, for calls that take such vectors of the process's own memory. For
/// backends whose physical addresses are addresses of the process: the software device, VFIO, imported memory.
///
/// An error in place of a vector, and nothing after it, for a range that wraps.
pub fn iovecs(
    ranges: impl IntoIterator<Item = PhysRange>,
) -> impl Iterator<Item = Result<IoVec, ConvertError>> {
    runs(ranges).map(|run| run.map(|(at, len)| IoVec { base: at.0, len }))
}
