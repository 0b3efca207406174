//! Sweeps: one trace under every combination of policies, capacities and parameters, on all cores.
//!
//! | file | is |
//! |---|---|
//! | `grid` | the combinations in their order, and the part of them that is one shard's |
//! | `journal` | the rows that are done, in a file beside the result, for whoever is interrupted |
//! | `run` | who plays what, on how many threads |
//!
//! # Rules
//! 1. A row depends on the trace and its setting alone. So the number of threads, the shard and an interrupt in the
//!    middle change no byte of it.
//! 2. Rows come in the order of the grid. A shard is a contiguous part of it: what shards write, one behind the other,
//!    are the bytes of the whole.
//! 3. A row that was written is not played again by the next call, unless the program or the trace changed.

mod grid;
mod journal;
mod run;

pub use grid::{Grid, Shard, ShardError};
pub use journal::{Journal, JournalError, identity};
pub use run::{Found, Rows, run};
