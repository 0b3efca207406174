//! Which pages come beside those that faulted.

mod granule_policy;
mod nvidia_tree;
mod units;

pub use granule_policy::GranulePolicy;
pub use nvidia_tree::{NvidiaTree, TreeOptions, tree_hint};
pub use units::WholeUnits;
