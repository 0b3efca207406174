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
pub mod replay_service;
pub mod report;
pub mod run;
pub mod swarm;
pub mod sweep;
