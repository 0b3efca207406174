//! The library's fault path over simulated ports, without a system call.
//!
//! | file | is |
//! |---|---|
//! | `memory` | what a space borrows from, on the heap |
//! | `flat` | ports without contents, for speed |
//! | `player` | a trace through the whole service over flat ports |
//!
//! The ports that keep contents and check them are those of [`crate::swarm`].

mod flat;
mod memory;
mod player;

pub use memory::{Iovas, Sizes, SpaceMemory};
pub use player::{Limits, Played, Player, with_service};
