use crate::units::{Access, Iova, PhysRange};

/// One request to map memory through a VFIO type 1 container, laid out as the kernel's. The kernel pins the pages; the
/// physical address of that backend is an address of the process.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
#[repr(C)]
pub struct VfioMap {
    /// Size of this structure.
    pub argsz: u32,
    /// Bit 0: the device may read; bit 1: it may write.
    pub flags: u32,
    /// The process's address.
    pub vaddr: u64,
    /// Where the device sees it.
    pub iova: u64,
    /// Length in bytes.
    pub size: u64,
}

const _: () = assert!(size_of::<VfioMap>() == 32);

impl VfioMap {
    /// The device may read.
    pub const READ: u32 = 1;
    /// The device may write.
    pub const WRITE: u32 = 2;
}

/// One request for each run of ranges that stand one behind the other from `iova` on; neighbours that touch are one
/// request, without the limit of 4 GiB that a range has. Requests of VFIO are for whole pages: whoever passes others is
/// refused by the kernel.
pub fn vfio_maps(
    iova: Iova,
    ranges: impl IntoIterator<Item = PhysRange>,
    access: Access,
) -> impl Iterator<Item = VfioMap> {
    let mut ranges = ranges.into_iter().filter(|range| range.len > 0).peekable();
    let mut at = iova.0;
    let flags = VfioMap::READ | if access == Access::Write { VfioMap::WRITE } else { 0 };
    core::iter::from_fn(move || {
        let first = ranges.next()?;
        let mut size = u64::from(first.len);
        while let Some(next) = ranges.next_if(|next| first.addr.checked_add(size) == Some(next.addr)) {
            size += u64::from(next.len);
        }
        let map = VfioMap { argsz: size_of::<VfioMap>() as u32, flags, vaddr: first.addr.0, iova: at, size };
        at += size;
        Some(map)
    })
}
