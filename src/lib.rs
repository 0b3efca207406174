//! GPU shared virtual memory in user space: a device and the CPU use the same pointers, and a page fault on
//! either side is served by moving the page or by mapping it for DMA.
//!
//! Layers, each importing only what stands to its left:
//! `units` <- `sync` <- `ports` <- `dma` <- `granule` <- `policy` <- `migrate` <- `fault` <- `os` <- `service`.
//! Everything before `os` is pure: no system call, no thread, no clock, no randomness, no `unsafe`.

#![cfg_attr(not(any(feature = "os", test)), no_std)]
#![cfg_attr(not(feature = "os"), forbid(unsafe_code))]

extern crate alloc;

pub mod dma;
pub mod fault;
pub mod granule;
pub mod migrate;
pub mod policy;
pub mod ports;
pub mod sync;
pub mod units;

#[cfg(all(feature = "os", not(granule_loom)))]
pub mod os;
#[cfg(all(feature = "os", not(granule_loom)))]
pub mod service;

#[cfg(all(feature = "os", not(granule_loom)))]
pub use service::{FaultMode, Granularity, Svm, SvmBuilder};
