//! The library's fault path over simulated ports, without a system call.
//!
//! | file | is |
//! |---|---|
//! | `memory` | what a space borrows from, on the heap |

mod memory;

pub use memory::{Iovas, Sizes, SpaceMemory};
