//! One file per sub-command.

pub mod measure;
pub mod test;
