//! Which pages come beside those that faulted.

mod amd;
mod gpusvm;
mod granule_policy;
mod nvidia_tree;
mod oracle;
mod random;
mod sequential;
mod stride;
mod units;

pub use amd::AmdRanges;
pub use gpusvm::GpusvmChunks;
pub use granule_policy::GranulePolicy;
pub use nvidia_tree::{NvidiaTree, TreeOptions, tree_hint};
pub use oracle::Oracle;
pub use random::Random;
pub use sequential::Sequential;
pub use stride::Stride;
pub use units::WholeUnits;
