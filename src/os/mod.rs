//! os

pub mod guarded;
