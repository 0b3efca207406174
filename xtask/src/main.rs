//! The chores of this workspace, one sub-command each: `cargo xtask test`.

mod apt;
mod commands;
mod fences;
mod measured;
mod needs;
mod tally;
mod tool;

use std::process::ExitCode;

use clap::{Parser, Subcommand};

#[derive(Parser)]
#[command(name = "cargo xtask", about = "Chores of the granule workspace")]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Installs what the tests need and runs all of them.
    Test(commands::test::Options),
    /// Runs every bench, writes docs/measurements.md, and fails beyond a bound.
    Measure(commands::measure::Options),
}

fn main() -> ExitCode {
    match Cli::parse().command {
        Command::Test(options) => commands::test::run(&options),
        Command::Measure(options) => commands::measure::run(&options),
    }
}
