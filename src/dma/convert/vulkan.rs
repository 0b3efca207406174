use crate::dma::DmaRange;

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
/// one bind. A range's address is `memory_start` plus an offset in the memory object; `None` in place of a bind, and
/// nothing after it, if a range begins before that.
pub fn sparse_binds(
    resource_offset: u64,
    memory: u64,
    memory_start: u64,
    ranges: impl IntoIterator<Item = DmaRange>,
) -> impl Iterator<Item = Option<SparseBind>> {
    let mut ranges = ranges.into_iter().filter(|range| range.len > 0).peekable();
    let mut at = resource_offset;
    let mut is_over = false;
    core::iter::from_fn(move || {
        if is_over {
            return None;
        }
        let first = ranges.next()?;
        let Some(memory_offset) = first.addr.0.checked_sub(memory_start) else {
            is_over = true;
            return Some(None);
        };
        let mut size = u64::from(first.len);
        while let Some(next) = ranges.next_if(|next| first.addr.checked_add(size) == Some(next.addr)) {
            size += u64::from(next.len);
        }
        let bind = SparseBind { resource_offset: at, size, memory, memory_offset, flags: 0 };
        at += size;
        Some(Some(bind))
    })
}
