//! How the fault buffer is read.

mod nvidia;
mod plain;

pub use nvidia::{Nvidia, NvidiaOptions};
pub use plain::Plain;
