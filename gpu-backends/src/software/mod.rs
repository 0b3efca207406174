//! The software device: engines (threads) that execute kernels over device addresses, with TLBs, a device page
//! table, device memory in a memfd, a bounded replayable fault buffer, and an emulated IOMMU.
//!
//! | file | noun |
//! |---|---|
//! | `builder` | settings |
//! | `device` | the device's state and its handles |
//! | `space` | address spaces, and the device as the library sees it ([`granule::ports::Device`]) |
//! | `engine` | threads, and how a kernel gets on them |
//! | `access` | one access of a kernel |
//! | `scalar` | what an access moves, and its errors |
//! | `entry` | who is inside an access, and how to get them out |
//! | `tlb` | the translations that an engine remembers |
//! | `page_entry` | the entries of a page table |
//! | `page_table`, `page_table_runs` | leaves of 4 KiB, 64 KiB and 2 MiB, of the device and of the IOMMU |
//! | `domain` | an emulated IOMMU domain, of one or several devices |
//! | `iotlb` | what an IOMMU and a device remember of IOVAs |
//! | `dma` | DMA by IOVA |
//! | `pasid` | which PASIDs a device has attached |
//! | `line_cache` | the cache of a device that is not coherent |
//! | `bounce` | bounce pages |
//! | `pins` | memory of the process that stays |
//! | `windows` | where devices' memories stand, for one another |
//! | `fault_buffer` | faults and their answers |
//! | `memory` | the device's own memory |
//! | `inject` | latency and failures by seed |
//! | `counters` | what it did |

mod access;
mod bounce;
mod builder;
mod counters;
mod device;
mod dma;
mod domain;
mod engine;
mod entry;
mod fault_buffer;
mod inject;
mod iotlb;
mod line_cache;
mod memory;
mod page_entry;
pub(crate) mod page_table;
mod pasid;
mod pins;
mod scalar;
mod space;
mod tlb;
mod windows;

pub use access::Engine;
pub use bounce::BouncePages;
pub use builder::{BuildError, Builder};
pub use counters::{Counters, FIRST_ERRORS};
pub use device::{Broken, SoftwareDevice};
pub use dma::DmaRefused;
pub use domain::{IommuCounters, IommuDomain, IommuDomainBuilder, MOST_DEVICES};
pub use inject::{Inject, Latency};
pub use page_table::LeafCounts;
pub use pasid::MOST_PASIDS;
pub use pins::ProcessPins;
pub use scalar::{AccessError, Scalar};
pub use space::{AddressSpace, SpaceCounters, SpaceError};
pub use windows::Switch;
