//! The path of a fault: intake, lookup, classify, decide, migrate or link, map, wake. [`serve()`] is the one executor:
//! the service's threads, the simulator and the models call it; there is no second copy of this logic.
//!
//! | file | step |
//! |---|---|
//! | `intake` | faults of a batch, sorted, coalesced, grouped by block |
//! | `board` | the blocks of a batch, laid out for helpers |
//! | `serve` | one block's faults from lookup to map, with retries |
//! | `classify` | every mixture that a block can show, by name |
//! | `link` | pages stay in RAM and are linked at their position |
//! | `retry` | the ladder |
//! | `cpu` | a thread waits for a page: bring it home, or fill it |
//! | `invalidate` | munmap, madvise: device first, then IOMMU, then bits, then memory |
//! | `remap` | mremap: pages go to RAM at their new address |
//! | `userptr` | ranges registered in advance: link, invalidate, release |
//! | `fork` | a child gets what its parent has on devices |
//! | `round` | one round of the reader: gate, events, faults |
//!
//! # Who runs what
//! Workers run `serve`, each with a seat of its own; any number at once, blocks are independent. The reader runs
//! `cpu`, `invalidate`, `remap` and `fork`; it never enters the gate, it closes it. A thread of the application that
//! serves its own fault (in a handler of SIGBUS) runs `cpu` with a seat of its own, inside the gate ([`serve_in_place`]).
//!
//! # Rules
//! 1. The reader reads and applies events with the gate closed and the devices quiesced, in the order read, and
//!    only then serves the faults that came with them: a fault may be read before an older event.
//! 2. An invalidation takes device translations first, over everything that was hit, and flushes; then it unlinks;
//!    then it clears bits; then it gives device memory back.
//! 3. A fault on a page in transit is queued on the transit, and never filled with zeros.
//! 4. Every fault that was taken from a queue is answered: served, cancelled with a cause, or queued.

mod board;
mod classify;
mod cpu;
mod fork;
mod intake;
mod invalidate;
mod link;
mod remap;
mod retry;
mod round;
mod serve;
mod userptr;

pub use board::{BOARD_BLOCKS, Board, Helping};
pub use classify::{Classified, classify};
pub use cpu::{CpuFault, CpuServed, serve_cpu, serve_in_place};
pub use fork::{fill_child, share_with_child};
pub use intake::{BlockFault, group};
pub use invalidate::{forget_contents, invalidate};
pub use remap::{bring_home, remap};
pub use retry::{Climb, Ladder};
pub use round::{Reader, RoundEnd, round};
pub use serve::{Answer, is_served, serve};
pub use userptr::{UserptrFault, register, release, revalidate, serve_alias};
