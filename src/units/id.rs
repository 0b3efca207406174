use core::fmt;

use super::addr::VirtAddr;
use super::geometry::{BLOCK_SHIFT, BLOCKS_PER_GRANULE, GRANULE_SHIFT, PAGE_SHIFT, PAGES_PER_BLOCK};
use super::range::VirtRange;

macro_rules! id {
    ($(#[$doc:meta])* $name:ident($repr:ty), $prefix:literal) => {
        $(#[$doc])*
        #[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
        pub struct $name(pub $repr);

        impl fmt::Debug for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                write!(f, concat!($prefix, "{}"), self.0)
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                fmt::Debug::fmt(self, f)
            }
        }
    };
}

id!(
    /// A device of one address space, counted from 0 in the order in which the builder was given them.
    DeviceId(u8), "dev"
);
id!(
    /// Names an address space to a device that serves several: the tag of its DMA. 0 is no PASID (plain DMA); 20 bits
    /// at most.
    Pasid(u32), "pasid"
);
id!(
    /// A device as seen by a peer that reaches its memory; numbered by whoever describes the topology.
    PeerNo(u16), "peer"
);
id!(
    /// A place at the gate. Each thread that serves faults has one of its own.
    Seat(u16), "seat"
);
id!(
    /// A granule's number: address / 512 MiB.
    GranuleNo(u32), "granule"
);
id!(
    /// A block's number in the whole address space: address / 2 MiB.
    BlockNo(u32), "block"
);
id!(
    /// A page's position in its block, 0 to 511.
    PageIndex(u16), "page"
);

impl BlockNo {
    /// The block that holds an address.
    pub const fn of(at: VirtAddr) -> Self {
        Self((at.0 >> BLOCK_SHIFT) as u32)
    }
    /// The address of the block's first byte.
    pub const fn base(self) -> VirtAddr {
        VirtAddr((self.0 as u64) << BLOCK_SHIFT)
    }
    /// The block's whole range.
    pub fn range(self) -> VirtRange {
        VirtRange::of_pages(self.base(), PAGES_PER_BLOCK as u64)
    }
    /// The granule that the block belongs to.
    pub const fn granule(self) -> GranuleNo {
        GranuleNo(self.0 / BLOCKS_PER_GRANULE as u32)
    }
    /// The block's position in its granule, 0 to 255.
    pub const fn index_in_granule(self) -> usize {
        self.0 as usize % BLOCKS_PER_GRANULE
    }
    /// The address of one of its pages.
    pub fn page(self, page: PageIndex) -> VirtAddr {
        self.base() + ((page.0 as u64) << PAGE_SHIFT)
    }
}

impl GranuleNo {
    /// The granule that holds an address.
    pub const fn of(at: VirtAddr) -> Self {
        Self((at.0 >> GRANULE_SHIFT) as u32)
    }
    /// The address of the granule's first byte.
    pub const fn base(self) -> VirtAddr {
        VirtAddr((self.0 as u64) << GRANULE_SHIFT)
    }
}

impl PageIndex {
    /// The position of an address's page in its block.
    pub const fn of(at: VirtAddr) -> Self {
        Self(((at.0 >> PAGE_SHIFT) as usize % PAGES_PER_BLOCK) as u16)
    }
}
