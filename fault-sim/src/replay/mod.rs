//! Replay: a trace through a set of policies, in virtual time, over the library's page masks.
//!
//! | file | is |
//! |---|---|
//! | `blocks` | what is known of each 2 MiB block: what every fault needs, and what few blocks have |
//! | `cost`, `profile`, `model` | what things cost, as one explicit vector; the vectors that are shipped; those of a file |
//! | `metrics`, `histogram` | what is counted |
//! | `engine` | the device's clock, the fault buffer, batches |
//! | `service`, `words` | one block of one batch: decide, make room, move, map; the moves word by word |
//! | `cpu` | the other side: CPU faults, unmaps, maps, advice |
//! | `future` | what comes, for policies that may know it |
//!
//! # The clock
//! 1. An event happens at its own time plus what the device has lost so far (`shift`).
//! 2. A fault goes into the fault buffer. The driver starts `interrupt_ns` after the first one, or when it is done with
//!    what it was doing. Events that happen until then join the batch.
//! 3. The device goes on meanwhile, until `outstanding` faults are open; then it stands still until the replay.
//! 4. Pages are the device's from the start of the batch that brings them; who touches a prefetched page before that
//!    batch's end is counted as late.
//! 5. What the CPU does to a block waits until the faults before it there have been served, and the trace waits with it.
//! 6. Time that goes backwards in a trace is held at the latest time seen, and counted.
//!
//! # Rules
//! 1. The same trace, policies, profile and seed give the same result, byte for byte.
//! 2. Nothing is allocated for a fault; a block is three cache lines, found by two loads and fetched before they are needed.
//! 3. A policy decides; only the engine changes a block.

mod blocks;
mod cost;
mod cpu;
mod engine;
mod future;
mod histogram;
mod metrics;
mod model;
mod profile;
mod service;
mod words;

pub use blocks::{Block, Blocks, Proc, Rare};
pub use cost::{Cost, PHASE_NAMES, Phase};
pub use engine::{Engine, LEAST_BYTES, Limits, SetupError};
pub use future::{Future, FutureError, NEVER, Schedule};
pub use histogram::Histogram;
pub use metrics::Metrics;
pub use model::{CostError, CostFile, CostModel, FORMAT as COST_FORMAT, Source as CostSource};
pub use profile::{Figure, PROFILES, Profile, profile_named, profile_nearest};
