//! `cargo xtask measure`: runs every bench, gathers the rows that they wrote, writes `docs/measurements.md`, and fails
//! where a figure lies beyond its bound.
//!
//! # Rules
//! 1. What is measured and how is the business of `benches/`; here it is only gathered and judged.
//! 2. A bench that fails, or that writes no row, is a failure: a bound that was not measured was not kept.
//! 3. Judging happens here and not in a bench, so that one bad figure does not hide the others.

use std::path::Path;
use std::process::ExitCode;

use clap::Args;

use crate::measured::{self, Measured};
use crate::tool::{self, cargo};

/// How thoroughly.
#[derive(Args)]
pub struct Options {
    /// A fast pass: fewer rounds and smaller sizes. Its page says so.
    #[arg(long)]
    quick: bool,
    /// Run only these benches (comma separated); the page is left alone then.
    #[arg(long, value_delimiter = ',', value_name = "BENCH")]
    only: Vec<String>,
}

/// The benches, in the order of the page.
const BENCHES: &[&str] = &[
    "cpu_fault",
    "migrate",
    "sum",
    "own_cost",
    "mirrored",
    "state",
    "scaling",
    "dma",
    "dma_users",
    "replay",
    "sweep",
    "service",
    "vulkan",
];

/// The package that a bench belongs to.
fn package(bench: &str) -> &'static str {
    match bench {
        "replay" | "sweep" | "service" => "fault-sim",
        "vulkan" => "granule-backends",
        _ => "granule",
    }
}

/// Measures and prints what lies beyond its bound.
pub fn run(options: &Options) -> ExitCode {
    match measure(options) {
        Ok(beyond) if beyond.is_empty() => {
            println!("every bound is kept");
            ExitCode::SUCCESS
        }
        Ok(beyond) => {
            beyond.iter().for_each(|line| println!("BEYOND   {line}"));
            ExitCode::FAILURE
        }
        Err(sentence) => {
            eprintln!("{sentence}");
            ExitCode::FAILURE
        }
    }
}

fn measure(options: &Options) -> Result<Vec<String>, String> {
    if let Some(name) = options.only.iter().find(|name| !BENCHES.contains(&name.as_str())) {
        return Err(format!("there is no bench {name}; the benches are {}", BENCHES.join(", ")));
    }
    let root = tool::root();
    let folder = root.join("target/measure");
    let (mut all, mut beyond) = (Vec::new(), Vec::new());
    for bench in BENCHES {
        if !options.only.is_empty() && !options.only.iter().any(|only| only == bench) {
            continue;
        }
        match rows_of(bench, &folder, options.quick) {
            Ok(rows) => {
                beyond.extend(rows.iter().filter(|row| !row.is_kept()).map(Measured::sentence));
                all.extend(rows);
            }
            Err(sentence) => beyond.push(sentence),
        }
    }
    println!();
    all.iter().for_each(|row| println!("{}", row.sentence()));
    if options.only.is_empty() {
        let page = measured::page(&all, &circumstances(options.quick));
        let path = root.join("docs/measurements.md");
        std::fs::write(&path, page).map_err(|e| format!("{} cannot be written: {e}", path.display()))?;
    }
    Ok(beyond)
}

fn rows_of(bench: &str, folder: &Path, quick: bool) -> Result<Vec<Measured>, String> {
    let path = folder.join(format!("{bench}.json"));
    // Rows of an earlier run must not pass for rows of this one.
    match std::fs::remove_file(&path) {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
            return Err(format!("{} cannot be replaced: {error}", path.display()));
        }
        _ => {}
    }
    let mut command = cargo(["bench", "--quiet", "--package", package(bench), "--bench", bench]);
    if bench == "vulkan" {
        command.args(["--features", "vulkan"]);
    }
    command.env("GRANULE_MEASURE_DIR", folder);
    if quick {
        command.env("GRANULE_MEASURE_QUICK", "1");
    } else {
        command.env_remove("GRANULE_MEASURE_QUICK");
    }
    if !tool::run_reading(&mut command, |_| {})? {
        return Err(format!(
            "the bench {bench} failed; run it alone with: cargo bench --package {} --bench {bench}",
            package(bench)
        ));
    }
    let text = std::fs::read_to_string(&path)
        .map_err(|e| format!("the bench {bench} wrote no rows to {}: {e}", path.display()))?;
    serde_json::from_str(&text).map_err(|e| format!("the rows of {bench} cannot be read: {e}"))
}

/// What the page says of the run: commit, machine, date, thoroughness.
fn circumstances(quick: bool) -> Vec<(&'static str, String)> {
    let said = |program: &str, args: &[&str]| tool::output(program, args).map(|text| text.trim().to_owned());
    let unknown = || "unknown".to_owned();
    let mut commit = said("git", &["rev-parse", "--short", "HEAD"]).unwrap_or_else(unknown);
    let changes = [":/src", ":/gpu-backends", ":/benches", ":/fault-sim", ":/Cargo.toml"];
    let dirty = said("git", &[&["status", "--porcelain", "--"], &changes[..]].concat());
    if dirty.is_none_or(|lines| !lines.is_empty()) {
        commit.push_str(" with changes");
    }
    let cpu = std::fs::read_to_string("/proc/cpuinfo").ok().and_then(|text| {
        let line = text.lines().find(|line| line.starts_with("model name"))?;
        Some(line.split_once(':')?.1.trim().to_owned())
    });
    let cores = std::thread::available_parallelism().map_or(0, std::num::NonZero::get);
    let kernel = said("uname", &["-sr"]).unwrap_or_else(unknown);
    vec![
        ("commit", commit),
        ("machine", format!("{cores} cores, {}, {kernel}", cpu.unwrap_or_else(unknown))),
        ("date", said("date", &["-u", "+%Y-%m-%d"]).unwrap_or_else(unknown)),
        ("rounds", if quick { "few (--quick)".to_owned() } else { "all".to_owned() }),
    ]
}
