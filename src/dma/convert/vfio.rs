use super::{ConvertError, runs};
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
///
/// An error in place of a request, and nothing after it, where a range or its IOVAs wrap.
pub fn vfio_maps(
    iova: Iova,
    ranges: impl IntoIterator<Item = PhysRange>,
    access: Access,
) -> impl Iterator<Item = Result<VfioMap, ConvertError>> {
    let mut at = Some(iova.0);
    let flags = VfioMap::READ | if access == Access::Write { VfioMap::WRITE } else { 0 };
    runs(ranges).map_while(move |run| {
        let iova = at?;
        let (vaddr, size) = match run {
            Ok((phys, size)) => (phys.0, size),
            Err(error) => return Some(Err(error)),
        };
        at = iova.checked_add(size);
        if at.is_none() {
            return Some(Err(ConvertError::Wraps { at: iova, bytes: size }));
        }
        Some(Ok(VfioMap { argsz: size_of::<VfioMap>() as u32, flags, vaddr, iova, size }))
    })
}
