//! `fault-sim compare`: two results, number by number.

use std::fmt::Write;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use clap::Args;
use serde::Serialize;
use thiserror::Error;

use crate::output::{Ending, Output, OutputError, end};
use crate::result::{Metric, Number, Outcome, Row, csv_field};

/// What `compare` takes.
#[derive(Args, Clone, Debug)]
pub struct Options {
    /// A result of `replay` (JSON).
    pub before: PathBuf,
    /// Another one.
    pub after: PathBuf,
    /// Numbers that are the same, too.
    #[arg(long)]
    pub all: bool,
    /// The form of the answer.
    #[command(flatten)]
    pub output: Output,
}

#[derive(Debug, Error)]
enum CompareError {
    #[error("{path} cannot be read: {source}", path = .path.display())]
    Read { path: PathBuf, source: std::io::Error },
    #[error("{path} is no result of `fault-sim replay --json`: {source}", path = .path.display())]
    NotAResult { path: PathBuf, source: serde_json::Error },
    #[error(
        "the two results have no policy in common; replay both with the same --policy, or with one policy each"
    )]
    NothingInCommon,
    #[error(transparent)]
    Output(#[from] OutputError),
    #[error("the answer is not JSON: {0}")]
    Json(#[from] serde_json::Error),
}

impl Ending for CompareError {
    fn refuses(&self) -> bool {
        !matches!(self, Self::Output(_) | Self::Json(_))
    }
}

/// Compares and prints.
pub fn main(options: &Options) -> ExitCode {
    end(compare(options))
}

/// One number of two results.
#[derive(Clone, Debug, Serialize)]
struct Difference {
    policy: String,
    metric: String,
    before: Number,
    after: Number,
    difference: Option<f64>,
    percent: Option<f64>,
}

#[derive(Clone, Debug, Serialize)]
struct Comparison {
    before: String,
    after: String,
    /// What else differs between the two: profile, device memory, trace, seed, commit.
    circumstances: Vec<String>,
    differences: Vec<Difference>,
}

fn read(path: &Path) -> Result<Outcome, CompareError> {
    let text = std::fs::read_to_string(path)
        .map_err(|source| CompareError::Read { path: path.to_owned(), source })?;
    serde_json::from_str(&text).map_err(|source| CompareError::NotAResult { path: path.to_owned(), source })
}

fn compare(options: &Options) -> Result<(), CompareError> {
    let (before, after) = (read(&options.before)?, read(&options.after)?);
    let mut pairs: Vec<(String, &Row, &Row)> = Vec::new();
    for row in &before.rows {
        if let Some(other) = after.rows.iter().find(|other| other.policy == row.policy) {
            pairs.push((row.policy.clone(), row, other));
        }
    }
    if let ([one], [other], true) = (&before.rows[..], &after.rows[..], pairs.is_empty()) {
        pairs.push((format!("{} -> {}", one.policy, other.policy), one, other));
    }
    if pairs.is_empty() {
        return Err(CompareError::NothingInCommon);
    }
    let mut differences = Vec::new();
    for (policy, row, other) in pairs {
        for Metric(metric, number) in &row.metrics {
            let Some(Metric(_, then)) = other.metrics.iter().find(|other| other.0 == *metric) else {
                continue;
            };
            if options.all || number != then {
                differences.push(difference(&policy, metric, *number, *then));
            }
        }
    }
    let comparison = Comparison {
        before: options.before.display().to_string(),
        after: options.after.display().to_string(),
        circumstances: circumstances(&before, &after),
        differences,
    };
    let text = if options.output.is_json() {
        serde_json::to_string(&comparison)? + "\n"
    } else if options.output.csv {
        comparison.csv()
    } else {
        comparison.table()
    };
    Ok(options.output.write(&text)?)
}

fn difference(policy: &str, metric: &str, before: Number, after: Number) -> Difference {
    let both = before.value().zip(after.value());
    Difference {
        policy: policy.to_owned(),
        metric: metric.to_owned(),
        before,
        after,
        difference: both.map(|(before, after)| after - before),
        percent: both
            .filter(|(before, _)| *before != 0.0)
            .map(|(before, after)| 100.0 * (after - before) / before),
    }
}

fn circumstances(before: &Outcome, after: &Outcome) -> Vec<String> {
    let facts = |of: &Outcome| {
        [
            ("trace", of.trace.clone()),
            ("trace's commit", of.trace_commit.clone()),
            ("trace's seed", of.trace_seed.map_or("-".to_owned(), |seed| seed.to_string())),
            ("profile", of.profile.clone()),
            ("device memory", of.device_memory_bytes.to_string()),
            ("outstanding", of.outstanding.to_string()),
            ("seed", of.seed.to_string()),
            ("commit", of.commit.clone()),
        ]
    };
    let pairs = facts(before).into_iter().zip(facts(after));
    let differ = pairs.filter(|((_, before), (_, after))| before != after);
    differ.map(|((name, before), (_, after))| format!("{name}: {before} -> {after}")).collect()
}

impl Comparison {
    fn table(&self) -> String {
        let mut out = format!("{} -> {}\n", self.before, self.after);
        self.circumstances.iter().for_each(|fact| {
            let _ = writeln!(out, "  {fact}");
        });
        let mut policy = "";
        for difference in &self.differences {
            if difference.policy != policy {
                policy = &difference.policy;
                let _ = writeln!(out, "\n{policy}");
            }
            let name = &difference.metric;
            let percent = difference.percent.map_or(String::new(), |percent| format!("{percent:+.1}%"));
            let (before, after) = (difference.before.shown(name), difference.after.shown(name));
            let _ = writeln!(out, "  {name:<24} {before:>14} {after:>14} {percent:>10}");
        }
        if self.differences.is_empty() {
            out.push_str("every number is the same\n");
        }
        out
    }

    fn csv(&self) -> String {
        let mut out = "policy,metric,before,after,difference,percent\n".to_owned();
        let shown = |value: Option<f64>| value.map_or(String::new(), |value| value.to_string());
        for row in &self.differences {
            let (before, after) = (shown(row.before.value()), shown(row.after.value()));
            let (difference, percent) = (shown(row.difference), shown(row.percent));
            let _ = writeln!(
                out,
                "{},{},{before},{after},{difference},{percent}",
                csv_field(&row.policy),
                row.metric
            );
        }
        out
    }
}
