//! One file per sub-command.

pub mod compare;
pub mod devices;
pub mod fit;
pub mod r#gen;
pub mod import;
pub mod inspect;
pub mod list;
pub mod record;
pub mod replay;
pub mod report;
pub mod replay_service;
pub mod run;
pub mod sweep;
pub mod swarm;
