//! The library's fault path over simulated ports, without a system call.
//!
//! | file | is |
//! |---|---|
//! | `memory` | what a space borrows from, on the heap |
//!
//! The ports that keep contents and check them are those of [`crate::swarm`].

mod memory;

pub use memory::{Iovas, Sizes, SpaceMemory};
