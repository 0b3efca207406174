//! What a kernel loads and stores, and why it may not.

use granule::ports::FaultCause;
use granule::units::{Access, Iova};
use thiserror::Error;

use super::dma::DmaRefused;

/// Why a kernel's access, or the kernel, failed.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Error)]
#[non_exhaustive]
pub enum AccessError {
    /// Its fault could not be served.
    #[error("the device cannot access {at:#x}: {cause}")]
    Fault {
        /// The byte that was accessed.
        at: u64,
        /// What was tried.
        access: Access,
        /// Why it cannot be served.
        cause: FaultCause,
    },
    /// A word that does not lie at a multiple of its size.
    #[error(
        "an access of {bytes} bytes at {at:#x} is not aligned; a device accesses words at multiples of their size"
    )]
    Unaligned {
        /// Where.
        at: u64,
        /// Size of the word.
        bytes: usize,
    },
    /// A slice that ends beyond the last address.
    #[error("an access of {bytes} bytes at {at:#x} wraps around the end of the address space")]
    Wraps {
        /// Where.
        at: u64,
        /// Size of the slice.
        bytes: usize,
    },
    /// The IOMMU refused the access: a mistake in the library, not in the kernel.
    #[error(
        "DMA for {at:#x} through {iova}, which is not linked for it; a page must leave the device before its link goes"
    )]
    Iommu {
        /// The byte that was accessed.
        at: u64,
        /// Through which IOVA.
        iova: Iova,
    },
    /// DMA by IOVA was refused.
    #[error(transparent)]
    Dma(#[from] DmaRefused),
    /// The host has no memory for the device's memory.
    #[error("the device's own memory at {at:#x} failed; free memory on the host")]
    DeviceMemory {
        /// The byte that was accessed.
        at: u64,
    },
    /// The device does not answer any more.
    #[error("the device was lost")]
    DeviceLost,
    /// The kernel panicked.
    #[error("the kernel panicked on engine {engine}; the device can be used further")]
    KernelPanicked {
        /// On which engine.
        engine: usize,
    },
}

mod sealed {
    pub trait Sealed {}
}

/// A number that a device can load and store: integers of 8 to 64 bits, `f32`, `f64`.
pub trait Scalar: sealed::Sealed + Copy + Default {
    #[doc(hidden)]
    fn to_word(self) -> u64;
    #[doc(hidden)]
    fn from_word(word: u64) -> Self;
}

macro_rules! scalar {
    ($($of:ty: $word:ident => $to:expr, $from:expr;)*) => {
        $(impl sealed::Sealed for $of {}
        impl Scalar for $of {
            #[inline]
            fn to_word(self) -> u64 { $to(self) }
            #[inline]
            fn from_word($word: u64) -> Self { $from }
        })*
    };
}
scalar! {
    u8: word => u64::from, word as u8;
    u16: word => u64::from, word as u16;
    u32: word => u64::from, word as u32;
    u64: word => u64::from, word;
    i8: word => |value: i8| u64::from(value as u8), word as i8;
    i16: word => |value: i16| u64::from(value as u16), word as i16;
    i32: word => |value: i32| u64::from(value as u32), word as i32;
    i64: word => |value: i64| value as u64, word as i64;
    f32: word => |value: f32| u64::from(value.to_bits()), f32::from_bits(word as u32);
    f64: word => f64::to_bits, f64::from_bits(word);
}
