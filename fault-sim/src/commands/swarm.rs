//! `fault-sim swarm`: the fault service under deterministic simulation, seed after seed.
//!
//! # Rules
//! 1. The result follows from the options: the same on one thread and on many, byte for byte. How long it took goes to
//!    standard error.
//! 2. A seed that fails is shrunk, and printed as one command that shows it again.
//! 3. Over many seeds no kind of step may be left untried.

use std::fmt::Write;
use std::process::ExitCode;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Instant;

use clap::Args;
use serde_json::json;
use thiserror::Error;

use crate::output::{Ending, Output, OutputError, end};
use crate::progress::Progress;
use crate::result::COMMIT;
use crate::swarm::{Checker, Counts, Habit, Op, Plan, Shrunk, Stacks, Violation, run, shrink};

/// What `swarm` takes.
#[derive(Args, Clone, Debug)]
pub struct Options {
    /// How many seeds to run [default: 1000; one if --seed is given].
    #[arg(long)]
    pub seeds: Option<u64>,
    /// The first seed.
    #[arg(long)]
    pub seed: Option<u64>,
    /// Steps after which nothing new is begun.
    #[arg(long, default_value_t = 1000)]
    pub steps: u64,
    /// Threads [default: one per processor].
    #[arg(long)]
    pub threads: Option<usize>,
    /// Which schedule of a seed.
    #[arg(long, default_value_t = 0)]
    pub schedule: u64,
    /// Habits that the world does not have, comma separated.
    #[arg(long, value_delimiter = ',', value_parser = habit, value_name = "HABIT")]
    pub without: Vec<Habit>,
    /// Only these operations, comma separated, each an actor's number and the operation's: 6.3,9.0.
    #[arg(long, value_delimiter = ',', value_name = "OPERATION")]
    pub only: Option<Vec<Op>>,
    /// Prints every step of one seed.
    #[arg(long)]
    pub log: bool,
    /// Switches a rule of the state machine off.
    #[cfg(feature = "twins")]
    #[arg(long, value_parser = crate::swarm::rule_named, value_name = "RULE")]
    pub twin: Option<granule::sync::Rule>,
    /// The form of the result.
    #[command(flatten)]
    pub output: Output,
}

fn habit(name: &str) -> Result<Habit, String> {
    let names = || Habit::ALL.map(Habit::name).join(", ");
    let found = Habit::ALL.into_iter().find(|habit| habit.name() == name);
    found.ok_or_else(|| format!("there is no habit {name:?}; the habits are {}", names()))
}

#[derive(Debug, Error)]
enum SwarmError {
    #[error("--log prints one seed; give --seed and leave --seeds out")]
    LogOfMany,
    #[error("{count} of {seeds} seeds failed; the smallest is shown again by: {command}", command = .again)]
    Failed { count: usize, seeds: u64, again: String },
    #[error("in {0} seeds nobody tried: {1}")]
    Untried(u64, String),
    #[error(transparent)]
    Output(#[from] OutputError),
}

impl Ending for SwarmError {
    fn refuses(&self) -> bool {
        matches!(self, Self::LogOfMany)
    }
}

/// Runs seeds and says what happened.
pub fn main(options: &Options) -> ExitCode {
    end(swarm(options))
}

/// From so many seeds of at least a thousand steps on, every kind of step has to have been tried.
const ENOUGH_SEEDS: u64 = 5_000;
/// Every so manyeth seed is run twice, and must do the same.
const REPEATED: u64 = 16;

/// What many seeds did.
struct Found {
    counts: Counts,
    steps: u64,
    failing: Vec<(u64, Violation)>,
}

fn plan(options: &Options, seed: u64) -> Plan {
    Plan {
        schedule: options.schedule,
        without: options.without.clone(),
        only: options.only.clone(),
        log: options.log,
        ..Plan::new(seed, options.steps)
    }
}

fn swarm(options: &Options) -> Result<(), SwarmError> {
    if options.log && options.seeds.is_some_and(|seeds| seeds > 1) {
        return Err(SwarmError::LogOfMany);
    }
    #[cfg(feature = "twins")]
    granule::sync::switch_off(options.twin);
    let first = options.seed.unwrap_or(0);
    let seeds = options.seeds.unwrap_or(if options.seed.is_some() || options.log { 1 } else { 1000 });
    if options.log {
        let report = run(&plan(options, first), &mut Stacks::default());
        report.log.iter().for_each(|line| println!("{line}"));
    }
    let start = Instant::now();
    let found = among_threads(options, first, seeds);
    let took = start.elapsed().as_secs_f64();
    eprintln!("{seeds} seeds in {took:.1} s: {:.0} a minute", seeds as f64 / took * 60.0);
    let smallest = found
        .failing
        .first()
        .map(|(seed, violation)| smaller(&Plan { log: false, ..plan(options, *seed) }, violation));
    options.output.write(&text(options, first, seeds, &found, smallest.as_ref()))?;
    if let Some(shrunk) = smallest {
        let again = command(options, &shrunk.plan);
        return Err(SwarmError::Failed { count: found.failing.len(), seeds, again });
    }
    let never = found.counts.never();
    if seeds >= ENOUGH_SEEDS && options.steps >= 1000 && options.without.is_empty() && !never.is_empty() {
        return Err(SwarmError::Untried(seeds, never.join("; ")));
    }
    Ok(())
}

/// The smallest plan that fails; what fails only in comparison stays as it is.
fn smaller(plan: &Plan, violation: &Violation) -> Shrunk {
    let whole = || Shrunk { plan: plan.clone(), violation: violation.clone(), steps: plan.steps, runs: 1 };
    shrink(plan, &mut Stacks::default()).unwrap_or_else(whole)
}

fn among_threads(options: &Options, first: u64, seeds: u64) -> Found {
    const CHUNK: u64 = 64;
    let threads = options
        .threads
        .unwrap_or_else(|| std::thread::available_parallelism().map_or(1, std::num::NonZero::get));
    let next = AtomicU64::new(0);
    let progress = Progress::of_seeds();
    progress.begin("swarm", seeds);
    let work = || {
        let mut stacks = Stacks::default();
        let mut found = Found { counts: Counts::default(), steps: 0, failing: Vec::new() };
        loop {
            let from = next.fetch_add(CHUNK, Ordering::Relaxed);
            if from >= seeds {
                return found;
            }
            let to = (from + CHUNK).min(seeds);
            for seed in first + from..first + to {
                one(&plan(options, seed), &mut stacks, &mut found);
            }
            progress.add(to - from);
        }
    };
    let mut all = Found { counts: Counts::default(), steps: 0, failing: Vec::new() };
    std::thread::scope(|scope| {
        let threads: Vec<_> = (0..threads.max(1)).map(|_| scope.spawn(work)).collect();
        for thread in threads {
            let found = thread.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic));
            all.counts.add(&found.counts);
            all.steps += found.steps;
            all.failing.extend(found.failing);
        }
    });
    progress.clear();
    all.failing.sort_by_key(|(seed, _)| *seed);
    all
}

fn one(plan: &Plan, stacks: &mut Stacks, found: &mut Found) {
    let report = run(plan, stacks);
    if plan.seed.is_multiple_of(REPEATED) && report.violation.is_none() && run(plan, stacks) != report {
        let what = "the same seed does something else when it is run again".to_owned();
        found.failing.push((plan.seed, Violation { checker: Checker::Repeat, what }));
    }
    found.steps += report.steps;
    found.counts.add(&report.counts);
    found.failing.extend(report.violation.map(|violation| (plan.seed, violation)));
}

/// The command that shows a plan again.
fn command(options: &Options, plan: &Plan) -> String {
    let mut text = format!("fault-sim swarm --seed {} --steps {}", plan.seed, plan.steps);
    if plan.schedule != 0 {
        let _ = write!(text, " --schedule {}", plan.schedule);
    }
    if !plan.without.is_empty() {
        let names: Vec<_> = plan.without.iter().map(|habit| habit.name()).collect();
        let _ = write!(text, " --without {}", names.join(","));
    }
    if let Some(only) = &plan.only {
        let names: Vec<_> = only.iter().map(Op::to_string).collect();
        let _ = write!(text, " --only {}", names.join(","));
    }
    #[cfg(feature = "twins")]
    if let Some(rule) = options.twin {
        let _ = write!(text, " --twin {rule:?}");
    }
    let _ = options;
    text
}

/// Most failing seeds that are shown.
const SHOWN: usize = 10;

fn text(options: &Options, first: u64, seeds: u64, found: &Found, smallest: Option<&Shrunk>) -> String {
    if options.output.is_json() {
        let counts: serde_json::Map<_, _> =
            found.counts.rows().map(|(name, count)| (name, json!(count))).collect();
        let failing: Vec<_> = found
            .failing
            .iter()
            .map(|(seed, violation)| {
                json!({ "seed": seed, "checker": violation.checker.name(), "what": violation.what })
            })
            .collect();
        let smallest = smallest.map(|shrunk| {
            json!({
                "command": command(options, &shrunk.plan),
                "operations": shrunk.plan.only.as_ref().map(Vec::len),
                "steps": shrunk.steps,
                "checker": shrunk.violation.checker.name(),
                "what": shrunk.violation.what,
            })
        });
        let all = json!({
            "commit": COMMIT,
            "first_seed": first,
            "seeds": seeds,
            "steps_each": options.steps,
            "schedule": options.schedule,
            "steps": found.steps,
            "counts": counts,
            "failing": failing,
            "smallest": smallest,
        });
        return format!("{all}\n");
    }
    if options.output.csv {
        return found.counts.rows().fold("what,count\n".to_owned(), |mut text, (name, count)| {
            let _ = writeln!(text, "{},{count}", crate::result::csv_field(&name));
            text
        });
    }
    let mut text = found.counts.table();
    let _ = writeln!(
        text,
        "\n{seeds} seeds from {first} on, {} steps, {} failed, commit {COMMIT}",
        found.steps,
        found.failing.len()
    );
    for (seed, violation) in found.failing.iter().take(SHOWN) {
        let _ = writeln!(text, "  seed {seed}: {violation}");
    }
    if found.failing.len() > SHOWN {
        let _ = writeln!(text, "  and {} others", found.failing.len() - SHOWN);
    }
    if let Some(shrunk) = smallest {
        let operations = shrunk.plan.only.as_ref().map_or(0, Vec::len);
        let (steps, runs, violation) = (shrunk.steps, shrunk.runs, &shrunk.violation);
        let _ = writeln!(
            text,
            "\nshrunk to {operations} operations and {steps} steps in {runs} runs: {violation}"
        );
        let _ = writeln!(text, "  {}", command(options, &shrunk.plan));
    }
    text
}
