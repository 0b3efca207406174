//! `cargo xtask test`: everything that has to hold, in the order in which a failure is cheapest to find.
//!
//! # Rules
//! 1. A step that fails does not stop the ones behind it: one run tells everything.
//! 2. The closing line counts what ran: single tests by the lines of the test harness, every other check as one.
//! 3. Warnings fail up to the Rust that the tree was last cleaned for. A newer one may warn of what was right when it
//!    was written: such warnings are shown and fail nothing.
//! 4. What cannot run here is skipped with its reason. Where `CI` is set, a missing rustfmt or clippy fails.

use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode};

use clap::Args;

use crate::tally::Tally;
use crate::tool::{self, cargo};
use crate::{fences, needs};

/// What to run.
#[derive(Args)]
pub struct Options {
    /// Run only these steps (comma separated); all of them otherwise.
    #[arg(long, value_delimiter = ',', value_name = "STEP", value_parser = step_named)]
    only: Vec<&'static Step>,
}

/// One step.
pub struct Step {
    name: &'static str,
    run: fn(&mut Tally) -> Result<(), String>,
}

const STEPS: &[Step] = &[
    Step { name: "format", run: format },
    Step { name: "clippy", run: clippy },
    Step { name: "pure", run: pure },
    Step { name: "tests", run: tests },
    Step { name: "docs", run: docs },
    Step { name: "examples", run: examples },
    Step { name: "commands", run: commands },
    Step { name: "twins", run: twins },
    Step { name: "loom", run: loom },
];

fn step_named(name: &str) -> Result<&'static Step, String> {
    STEPS.iter().find(|step| step.name == name).ok_or_else(|| {
        let names: Vec<_> = STEPS.iter().map(|step| step.name).collect();
        format!("there is no such step; the steps are {}", names.join(", "))
    })
}

/// Runs the steps and prints the closing line.
pub fn run(options: &Options) -> ExitCode {
    let mut tally = Tally::default();
    if let Err(sentence) = needs::meet() {
        eprintln!("{sentence}");
        tally.fail(sentence);
    } else {
        for step in STEPS {
            if options.only.is_empty() || options.only.iter().any(|only| only.name == step.name) {
                let mut own = Tally::default();
                if let Err(sentence) = (step.run)(&mut own) {
                    own.fail(format!("{}: {sentence}", step.name));
                }
                println!("[{}: {}]", step.name, own.closing_line());
                tally.absorb(own);
            }
        }
    }
    println!();
    tally.skips.iter().for_each(|line| println!("skipped  {line}"));
    tally.failures.iter().for_each(|line| println!("FAILED   {line}"));
    println!("{}", tally.closing_line());
    if tally.failed == 0 { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}

fn on_ci() -> bool {
    std::env::var("CI").is_ok_and(|value| !matches!(value.as_str(), "" | "0" | "false"))
}

/// The newest minor version of Rust 1 for which the tree is free of warnings.
const CLEANED_FOR: u32 = 95;

/// Whether this toolchain is one that the tree was cleaned for (rule 3).
fn warnings_fail() -> bool {
    let version = tool::output("rustc", &["--version"]);
    let minor = version.as_deref().and_then(minor_of);
    let fail = minor.is_none_or(|minor| minor <= CLEANED_FOR);
    if !fail {
        println!("this Rust is newer than 1.{CLEANED_FOR}: its warnings are shown and do not fail");
    }
    fail
}

/// The minor version in `rustc 1.95.0 (...)`.
fn minor_of(version: &str) -> Option<u32> {
    version.split_whitespace().nth(1)?.split('.').nth(1)?.parse().ok()
}

/// Enters a check that passes or fails as a whole.
fn whole(tally: &mut Tally, what: &str, command: &mut Command) -> Result<(), String> {
    if tool::run_reading(command, |_| {})? {
        tally.pass()
    } else {
        tally.fail(what)
    }
    Ok(())
}

/// Runs a component of the toolchain, if it is there.
fn component(tally: &mut Tally, what: &str, name: &str, args: &[&str]) -> Result<(), String> {
    let there = cargo([name, "--version"]).output().is_ok_and(|out| out.status.success());
    if there {
        return whole(tally, what, &mut cargo(args));
    }
    let package = if name == "fmt" { "rustfmt" } else { name };
    let why = format!("this toolchain has no {package}; add it with: rustup component add {package}");
    if on_ci() {
        tally.fail(format!("{what}: {why}"))
    } else {
        tally.skip(what, &why)
    }
    Ok(())
}

fn format(tally: &mut Tally) -> Result<(), String> {
    component(tally, "rustfmt", "fmt", &["fmt", "--all", "--check"])
}

fn clippy(tally: &mut Tally) -> Result<(), String> {
    let mut args = vec!["clippy", "--workspace", "--all-targets"];
    if warnings_fail() {
        args.extend(["--", "-D", "warnings"]);
    }
    component(tally, "clippy", "clippy", &args)
}

/// The pure part alone: no_std + alloc, `unsafe` forbidden.
fn pure(tally: &mut Tally) -> Result<(), String> {
    let args = ["build", "--package", "granule", "--lib", "--no-default-features"];
    whole(tally, "the pure part without default features", &mut cargo(args))
}

/// Runs a cargo test command and counts its single tests. A run that fails without a failed test (it did not
/// compile, or a test binary was killed) is one failure.
fn harness(tally: &mut Tally, what: &str, command: &mut Command) -> Result<(), String> {
    let before = tally.failed;
    let ok = tool::run_reading(command, |line| tally.read_harness_line(line))?;
    if !ok && tally.failed == before {
        tally.fail(format!("{what}: did not compile or ended before its tests did"));
    }
    Ok(())
}

/// Unit, integration and documentation tests of all packages.
fn tests(tally: &mut Tally) -> Result<(), String> {
    harness(tally, "workspace tests", &mut cargo(["test", "--workspace", "--no-fail-fast"]))
}

/// The documentation builds, and no link in it is dead. Links to private items are for readers of the sources.
fn docs(tally: &mut Tally) -> Result<(), String> {
    let deny = if warnings_fail() { "-D warnings " } else { "" };
    let flags = format!("{deny}-A rustdoc::private_intra_doc_links");
    let mut command = cargo(["doc", "--workspace", "--no-deps", "--document-private-items"]);
    whole(tally, "rustdoc", command.env("RUSTDOCFLAGS", with_flags("RUSTDOCFLAGS", &flags)))
}

fn with_flags(name: &str, more: &str) -> String {
    std::env::var(name).map_or(more.to_owned(), |flags| format!("{flags} {more}"))
}

/// The simulation finds each rule that is switched off. A build of its own: nothing else is tested with the switch in it.
fn twins(tally: &mut Tally) -> Result<(), String> {
    let args = ["test", "--package", "fault-sim", "--features", "twins", "--test", "planted"];
    harness(tally, "planted bugs", &mut cargo(args))
}

/// The models: test targets of the root package whose names begin with `loom`.
fn loom(tally: &mut Tally) -> Result<(), String> {
    let mut targets: Vec<String> = entries(&tool::root().join("tests"))?
        .iter()
        .filter_map(|path| path.file_stem()?.to_str().map(str::to_owned))
        .filter(|name| name.starts_with("loom"))
        .collect();
    targets.dedup();
    if targets.is_empty() {
        tally.skip("loom models", "there is no tests/loom*");
        return Ok(());
    }
    let mut command =
        cargo(["test", "--release", "--package", "granule", "--no-default-features", "--no-fail-fast"]);
    // A build with other flags has a directory of its own, so that neither throws away the other's work.
    command
        .args(["--target-dir", "target/loom"])
        .env("CARGO_PROFILE_RELEASE_DEBUG_ASSERTIONS", "true")
        .env("RUSTFLAGS", with_flags("RUSTFLAGS", "--cfg granule_loom"));
    command.args(targets.iter().flat_map(|target| ["--test", target]));
    harness(tally, "loom models", &mut command)
}

/// Every example ends with 0.
fn examples(tally: &mut Tally) -> Result<(), String> {
    for (package, folder) in [
        ("granule", "examples"),
        ("granule-backends", "gpu-backends/examples"),
        ("fault-sim", "fault-sim/examples"),
    ] {
        for path in entries(&tool::root().join(folder))? {
            if path.extension().is_some_and(|extension| extension == "rs") {
                let name = path.file_stem().unwrap_or_default().to_string_lossy().into_owned();
                let mut args = vec!["run", "--quiet", "--package", package, "--example", &name];
                if name.starts_with("vulkan_") {
                    args.extend(["--features", "vulkan"]);
                }
                whole(tally, &format!("example {name}"), &mut cargo(args))?;
            }
        }
    }
    Ok(())
}

/// The commands that README and docs promise: every fence marked `sh run`, each line in a shell of its own.
fn commands(tally: &mut Tally) -> Result<(), String> {
    let root = tool::root();
    let mut files = vec![root.join("README.md")];
    markdown_below(&root.join("docs"), &mut files)?;
    for file in files {
        let shown = file.strip_prefix(&root).unwrap_or(&file).display().to_string();
        let text = std::fs::read_to_string(&file).map_err(|e| format!("{shown} cannot be read: {e}"))?;
        let fenced = fences::to_run(&text);
        if shown == "README.md" && fenced.is_empty() {
            tally.fail("README.md has no command marked `sh run`");
        }
        for fences::Fenced { line, command } in fenced {
            let mut shell = Command::new("bash");
            shell.args(["-euo", "pipefail", "-c", &command]).current_dir(&root);
            whole(tally, &format!("{shown}:{line}: {command}"), &mut shell)?;
        }
    }
    Ok(())
}

fn markdown_below(folder: &Path, files: &mut Vec<PathBuf>) -> Result<(), String> {
    for path in entries(folder)? {
        if path.is_dir() {
            markdown_below(&path, files)?;
        } else if path.extension().is_some_and(|extension| extension == "md") {
            files.push(path);
        }
    }
    Ok(())
}

/// What stands in a folder, by name; nothing if there is no such folder.
fn entries(folder: &Path) -> Result<Vec<PathBuf>, String> {
    if !folder.is_dir() {
        return Ok(Vec::new());
    }
    let read = std::fs::read_dir(folder).map_err(|e| format!("{} cannot be read: {e}", folder.display()))?;
    let mut paths: Vec<PathBuf> = read.filter_map(|entry| entry.ok().map(|entry| entry.path())).collect();
    paths.sort();
    Ok(paths)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_minor_version_is_read() {
        assert_eq!(minor_of("rustc 1.95.0 (59807616e 2026-04-14)\n"), Some(95));
        assert_eq!(minor_of("rustc 1.99.1 (58cf8f9c3 2026-10-13)"), Some(99));
        assert_eq!(minor_of("rustc 1.100.0-nightly"), Some(100));
        assert_eq!(minor_of(""), None);
    }
}
