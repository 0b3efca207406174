//! Ranges in the forms that other interfaces have. Nothing here maps, allocates or keeps anything.
//!
//! | form | from | |
//! |---|---|---|
//! | [`IoVec`] | pieces of the process's memory | to and from `(address, length)` |
//! | [`VfioMap`] | physical ranges behind a VFIO container | one map request each |
//! | [`NvmePrp`], [`NvmeSgl`] | DMA ranges of one command | with the lists in memory that the caller gives |
//! | [`SparseBind`] | DMA ranges or ranges of device memory of a Vulkan resource | one bind each |

mod iovec;
mod nvme;
mod vfio;
mod vulkan;

pub use iovec::IoVec;
pub use nvme::{NvmeError, NvmePrp, NvmeSgl, PrpList, prp, prp_list_entries, sgl, sgl_segment_entries};
pub use vfio::{VfioMap, vfio_maps};
pub use vulkan::{SparseBind, sparse_binds};
