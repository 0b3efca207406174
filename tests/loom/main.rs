//! Models: the library's real state machine under loom, over simulated ports, with threads of the application, a reader
//! (the first thread) and up to two workers. A block has 64 pages, a granule two blocks; one page is used, or two.
//!
//! Each model says what it may do in `Bounds`, prints how many interleavings loom tried, and has twins: the same run
//! with one rule of the real code switched off ([`granule::sync::Rule`]). A twin must fail, by an assertion on data or
//! because a thread waits for ever; a twin that passes fails the test. The simulated kernel keeps its promises in
//! both. All of it takes about a minute on two cores: two or three preemptions per run are what that allows, and
//! every rule is caught within them.
//!
//! | file | models |
//! |---|---|
//! | `primitives` | lock, gate, reservation: the parts alone, exhaustively |
//! | `transit` | CPU faults, device faults and evictions of one page |
//! | `invalidation` | munmap against faults; reuse of the address |
//! | `dma` | reservations, links and unlinks of several threads; bounce pages; users of a PASID |
#![cfg(granule_loom)]

#[path = "../support/mod.rs"]
mod support;

mod dma;
mod explore;
mod invalidation;
mod primitives;
mod transit;
mod world;
