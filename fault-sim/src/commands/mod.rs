//! One file per sub-command.

pub mod r#gen;
pub mod replay;
pub mod run;
