use core::fmt;

use super::geometry::PAGE_BYTES;

macro_rules! address {
    ($(#[$doc:meta])* $name:ident, $prefix:literal) => {
        $(#[$doc])*
        #[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
        pub struct $name(pub u64);

        impl $name {
            /// The address `bytes` further on; `None` if that wraps.
            pub const fn checked_add(self, bytes: u64) -> Option<Self> {
                match self.0.checked_add(bytes) {
                    Some(sum) => Some(Self(sum)),
                    None => None,
                }
            }
            /// Bytes from `earlier` to this address. Asserts that `earlier` is not later.
            pub const fn bytes_since(self, earlier: Self) -> u64 {
                assert!(self.0 >= earlier.0, "an address lies before the one it is measured from");
                self.0 - earlier.0
            }
            /// The start of the page that holds this address.
            pub const fn page_floor(self) -> Self {
                Self(self.0 & !(PAGE_BYTES - 1))
            }
            /// Whether this is the first byte of a page.
            pub const fn is_page_aligned(self) -> bool {
                self.0 % PAGE_BYTES == 0
            }
        }

        impl core::ops::Add<u64> for $name {
            type Output = Self;
            /// Asserts that the sum does not wrap; use `checked_add` for numbers of other people.
            fn add(self, bytes: u64) -> Self {
                self.checked_add(bytes).expect("address arithmetic wraps")
            }
        }

        impl fmt::Debug for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                write!(f, concat!($prefix, ":{:#x}"), self.0)
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                write!(f, "{:#x}", self.0)
            }
        }
    };
}

address!(
    /// A virtual address of the process: what a pointer holds.
    VirtAddr, "va"
);
address!(
    /// An address that a device kernel uses. Equal to the process's address, but for a userptr that the driver
    /// placed elsewhere.
    DevAddr, "dva"
);
address!(
    /// An address on the device's side of an IOMMU.
    Iova, "iova"
);
address!(
    /// Whatever names a page to the layer below the IOMMU. This is the only place that says what that is:
    ///
    /// * the software device: an address in the emulated machine's physical memory, which is the process's own
    ///   address space, followed by events and not pinned, plus the windows of the devices' memories;
    /// * VFIO and memory imported by Vulkan or CUDA: an address of the process whose page the kernel pins;
    /// * a driver in a kernel: a physical address.
    ///
    /// It is never an [`Iova`] and never a [`VirtAddr`], also where the numbers are equal: only a backend, or whoever
    /// pins, turns one into the other.
    PhysAddr, "pa"
);
address!(
    /// An address on the bus between two devices: reaches the peer's memory without passing through an IOMMU.
    BusAddr, "bus"
);
address!(
    /// A byte offset in the memory of one device.
    DevMemAddr, "dm"
);

impl From<VirtAddr> for DevAddr {
    fn from(at: VirtAddr) -> Self {
        Self(at.0)
    }
}
