use super::{ConvertError, runs};
use crate::dma::DmaRange;
use crate::units::{PhysAddr, PhysRange};

/// One bind of memory to a part of a sparse resource, with the fields of Vulkan's structure in its order. `memory` is the
/// handle of the memory object that the ranges are offsets into.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
#[repr(C)]
pub struct SparseBind {
    /// Offset in the resource, in bytes.
    pub resource_offset: u64,
    /// Length in bytes.
    pub size: u64,
    /// The memory object; 0 unbinds.
    pub memory: u64,
    /// Offset in the memory object, in bytes.
    pub memory_offset: u64,
    /// None is defined for memory.
    pub flags: u32,
}

const _: () = assert!(size_of::<SparseBind>() == 40);

/// One bind for each run of ranges that stand one behind the other from `resource_offset` on; neighbours that touch are
/// one bind. A range's address is `memory_start` plus an offset in the memory object.
///
/// An error in place of a bind, and nothing after it, where a range begins before `memory_start`, or where it, or its
/// place in the resource, wraps.
pub fn sparse_binds(
    resource_offset: u64,
    memory: u64,
    memory_start: u64,
    ranges: impl IntoIterator<Item = DmaRange>,
) -> impl Iterator<Item = Result<SparseBind, ConvertError>> {
    let ranges =
        ranges.into_iter().map(|range| PhysRange { addr: PhysAddr(range.addr.0), len: range.len, flags: 0 });
    let mut at = Some(resource_offset);
    runs(ranges).map_while(move |run| {
        let resource_offset = at?;
        at = None;
        let (from, size) = match run {
            Ok((from, size)) => (from.0, size),
            Err(error) => return Some(Err(error)),
        };
        let Some(memory_offset) = from.checked_sub(memory_start) else {
            return Some(Err(ConvertError::BeforeMemory { at: from, start: memory_start }));
        };
        at = resource_offset.checked_add(size);
        if at.is_none() {
            return Some(Err(ConvertError::Wraps { at: resource_offset, bytes: size }));
        }
        Some(Ok(SparseBind { resource_offset, size, memory, memory_offset, flags: 0 }))
    })
}
