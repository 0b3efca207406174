//! Deterministic simulation of the fault service: the library's real code over simulated ports, on one thread, with
//! every choice taken by a seed.
//!
//! | file | is |
//! |---|---|
//! | `fibers` | stacks that are stopped in the middle and gone on with |
//! | `scheduler` | who goes on next |
//! | `plan` | what a seed stands for; a plan can be cut down |
//! | `world`, `calls` | the address space, and what programs do to it |
//! | `host`, `device`, `ports` | the ports |
//! | `actors` | who runs |
//! | `oracle`, `audit` | the checkers |
//! | `counts` | what happened, by kind |
//! | `run` | one plan, from start to end |
//! | `shrink` | a failing plan made smaller |
//! | `twins` | rules that can be switched off, in builds with the feature of that name |
//!
//! # Rules
//! 1. The library is what runs: `serve`, `round`, `serve_in_place`, `to_ram` and the rest, none of it written again.
//! 2. Others run at every call of a port, of the probe and of a wait, and nowhere else. What happens between two loads
//!    of a lock is the business of the models (loom).
//! 3. The same plan gives the same run: same steps, same counts, same digest.
//! 4. A checker looks at each access as it happens; the accounts are looked over under block locks now and then, and all
//!    of them at the end, when every page is brought home.

mod actors;
mod audit;
mod calls;
mod counts;
mod device;
mod fibers;
mod host;
mod oracle;
mod plan;
mod ports;
mod random;
mod run;
mod scheduler;
mod shrink;
#[cfg(feature = "twins")]
mod twins;
mod world;

pub use counts::{Counts, Did};
pub use fibers::Stacks;
pub use oracle::{Checker, Violation};
pub use plan::{Habit, Habits, Op, Plan};
pub use run::{Report, run};
pub use shrink::{Shrunk, shrink};
#[cfg(feature = "twins")]
pub use twins::{TWINS, rule_named};
