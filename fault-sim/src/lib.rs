//! `fault-sim`: runs the library's main job and prints what happened, verified; makes traces and replays them under
//! policies.
//!
//! | module | is |
//! |---|---|
//! | [`commands`] | one file per sub-command: its options, its checks, what it does |
//! | [`workload`] | one file per workload of `run`: its data, its kernel, its expected values |
//! | [`accelerator`], [`shaders`] | the device that works: the software device, or a Vulkan device |
//! | [`alloc`] | where a workload's memory comes from |
//! | [`trace`] | events in a Parquet file |
//! | [`import`] | what other tools wrote, as a trace |
//! | [`record`] | page faults of a program into one |
//! | [`pattern`] | traces from a seed |
//! | [`policy`] | what vendors, papers and this library decide, one file each |
//! | [`replay`], [`play`] | a trace through policies, in virtual time; one result for each setting |
//! | [`places`] | what a replay did to each allocation and block |
//! | [`sweep`] | every combination of settings, on all cores, a part of them, or what is left of them |
//! | [`fit`] | what things cost, from measured data |
//! | [`view`], [`picture`], [`html`] | what can be seen of traces and results; pictures; the page |
//! | [`swarm`] | the fault service under deterministic simulation |
//! | [`service_sim`] | the fault service over simulated ports |
//! | [`report`], [`result`] | what `run` and `replay` print: a table, one JSON object, CSV |
//! | [`processor`] | hints on what will be looked at, and instructions that not every processor has |
//! | [`size`], [`memory`], [`output`] | sizes as people write them; how much memory there is; where results go |
//! | [`split`], [`seed`], [`progress`] | sharing work out, values from a seed, a bar on a terminal |
//!
//! # Exit status
//! 0: what was asked for was done, and the result is right. 1: the result is wrong or the run failed. 2: refused
//! before any work was done. Each but 0 comes with one sentence on standard error.

pub mod accelerator;
pub mod alloc;
pub mod commands;
pub mod fit;
pub mod html;
pub mod import;
pub mod memory;
pub mod output;
pub mod part;
pub mod pattern;
pub mod picture;
pub mod places;
pub mod play;
pub mod policy;
pub mod processor;
pub mod progress;
pub mod record;
pub mod replay;
pub mod report;
pub mod result;
pub mod seed;
pub mod service_sim;
#[cfg_attr(not(feature = "vulkan"), path = "no_shaders.rs")]
pub mod shaders;
pub mod size;
pub mod split;
pub mod swarm;
pub mod sweep;
pub mod trace;
pub mod view;
pub mod workload;

use std::ffi::OsString;
use std::process::ExitCode;

use clap::error::ErrorKind;
use clap::{Parser, Subcommand};

use commands::run;

/// Exit status when the result is wrong or the run failed.
pub const FAILED: u8 = 1;
/// Exit status when nothing was done because the request cannot be served.
pub const REFUSED: u8 = 2;

#[derive(Parser)]
#[command(name = "fault-sim", version, about = "A device and the CPU on the same pointers, verified")]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Runs a workload over ordinary memory on a device, has the CPU check it, and prints what happened.
    Run(run::Options),
    /// Every device of every backend: what it can do, and how a run would use it.
    Devices(commands::devices::Options),
    /// Makes a trace from a pattern and a seed.
    Gen(commands::r#gen::Options),
    /// Turns what another tool wrote into a trace.
    Import(commands::import::Options),
    /// Records the page faults of a program.
    Record(commands::record::Options),
    /// Says what is in a trace.
    Inspect(commands::inspect::Options),
    /// Plays a trace under several policies, side by side.
    Replay(commands::replay::Options),
    /// Plays a trace under every combination of policies, capacities and parameters, on all cores.
    Sweep(commands::sweep::Options),
    /// Says what things cost, from measured data.
    Fit(commands::fit::Options),
    /// Draws traces and results: one page, and each picture as SVG and PNG.
    Report(commands::report::Options),
    /// Two results, number by number.
    Compare(commands::compare::Options),
    /// Runs the fault service under simulation: every choice by a seed, everything checked.
    Swarm(commands::swarm::Options),
    /// Policies, profiles, patterns and formats by name.
    List(commands::list::Options),
}

/// Runs the program on its arguments (the first is its name).
pub fn main(arguments: impl IntoIterator<Item = OsString>) -> ExitCode {
    match Cli::try_parse_from(arguments) {
        Ok(Cli { command: Command::Run(options) }) => run::main(&options),
        Ok(Cli { command: Command::Devices(options) }) => commands::devices::main(&options),
        Ok(Cli { command: Command::Gen(options) }) => commands::r#gen::main(&options),
        Ok(Cli { command: Command::Import(options) }) => commands::import::main(&options),
        Ok(Cli { command: Command::Record(options) }) => commands::record::main(&options),
        Ok(Cli { command: Command::Inspect(options) }) => commands::inspect::main(&options),
        Ok(Cli { command: Command::Replay(options) }) => commands::replay::main(&options),
        Ok(Cli { command: Command::Sweep(options) }) => commands::sweep::main(&options),
        Ok(Cli { command: Command::Fit(options) }) => commands::fit::main(&options),
        Ok(Cli { command: Command::Report(options) }) => commands::report::main(&options),
        Ok(Cli { command: Command::Compare(options) }) => commands::compare::main(&options),
        Ok(Cli { command: Command::Swarm(options) }) => commands::swarm::main(&options),
        Ok(Cli { command: Command::List(options) }) => commands::list::main(&options),
        Err(error) if matches!(error.kind(), ErrorKind::DisplayHelp | ErrorKind::DisplayVersion) => {
            print!("{error}");
            ExitCode::SUCCESS
        }
        Err(error) if error.kind() == ErrorKind::DisplayHelpOnMissingArgumentOrSubcommand => {
            eprintln!("a command is missing; `fault-sim --help` lists them");
            ExitCode::from(REFUSED)
        }
        Err(error) => {
            eprintln!("{}", one_line(&error.to_string()));
            ExitCode::from(REFUSED)
        }
    }
}

/// The sentence of a clap error without its usage and hints.
fn one_line(message: &str) -> String {
    let sentence = message.strip_prefix("error: ").unwrap_or(message);
    let first = sentence.split("\n\n").next().unwrap_or(sentence);
    first.split_whitespace().collect::<Vec<_>>().join(" ")
}

/// The example of the README, so that it is compiled and run.
#[cfg(doctest)]
#[doc = include_str!("../../README.md")]
struct Readme;
