//! What the benches share: rounds in pairs, rows for the report, memory of one's own, floors.
//!
//! # Rules
//! 1. A floor is raw code: no call into the library.
//! 2. Floor and figure take turns (floor, figure, floor, figure...), since the machine is not ours alone. A ratio
//!    is the median over the pairs, not a ratio of medians.
//! 3. A figure without a floor (an absolute bound) is the best round of many: what the machine did besides only
//!    ever adds to it.
#![allow(dead_code, unused_imports, reason = "each bench uses a part")]

#[path = "../../tests/support/memory.rs"]
mod memory;
mod noop;
mod raw_fault;
mod region;
mod rounds;
mod row;

pub use noop::{AtomicProbe, NoopMemory, NoopSpace, REGION, spread_faults};
pub use raw_fault::RawFaults;
pub use region::{DeviceView, Region, copy, pin_to_core, touch, unpin};
pub use rounds::{Pairs, is_quick, median, paired, quantile, rounds};
pub use row::{Bound, Report, Row, Value};
