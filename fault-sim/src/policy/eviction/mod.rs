//! Who leaves when device memory is full.

mod queue;
mod recency;

pub use recency::{Recency, RecencyRule};
