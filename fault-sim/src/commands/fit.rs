//! `fault-sim fit`: a cost vector from measured data.

use std::fmt::Write;
use std::path::PathBuf;
use std::process::ExitCode;

use clap::Args;
use thiserror::Error;

use crate::fit::Measured;
use crate::import::Source;
use crate::output::{Ending, OutputError, end, to_stdout, write_whole};
use crate::play::PlayError;
use crate::progress::Progress;
use crate::replay::{COST_FORMAT, CostFile, CostModel, CostSource};
use crate::result::COMMIT;

/// What `fit` takes.
#[derive(Args, Clone, Debug)]
pub struct Options {
    /// The trace, or a file that `import` reads: with migrations, and with faults if it has them.
    pub trace: PathBuf,
    /// Figures that the trace does not show: a profile, or a file [default: the profile nearest to the trace's origin].
    #[arg(long)]
    pub base: Option<String>,
    /// What it is called in results [default: the trace's file name].
    #[arg(long)]
    pub name: Option<String>,
    /// Write it to this file, for `--cost`.
    #[arg(short, long, value_name = "FILE")]
    pub output: Option<PathBuf>,
    /// Print the file instead of a table.
    #[arg(long)]
    pub json: bool,
}

#[derive(Debug, Error)]
enum FitError {
    #[error(transparent)]
    Play(#[from] PlayError),
    #[error(
        "{path} shows nothing of what things cost: {migrations} migrations, of which at least two sizes must come five \
         times each; an export of Nsight Systems with unified memory has them",
        path = .path.display()
    )]
    Nothing { path: PathBuf, migrations: u64 },
    #[error(transparent)]
    Output(#[from] OutputError),
    #[error("the costs are not JSON: {0}")]
    Json(#[from] serde_json::Error),
}

impl Ending for FitError {
    fn refuses(&self) -> bool {
        match self {
            Self::Play(error) => error.refuses(),
            Self::Nothing { .. } => true,
            Self::Output(_) | Self::Json(_) => false,
        }
    }
}

/// Fits and prints.
pub fn main(options: &Options) -> ExitCode {
    end(fit(options))
}

fn fit(options: &Options) -> Result<(), FitError> {
    let source = Source::open(&options.trace).map_err(PlayError::Open)?;
    let mut reader = source.reader().map_err(PlayError::Trace)?;
    let base = match &options.base {
        Some(wish) => CostModel::named(wish).map_err(PlayError::Cost)?,
        None => CostModel::nearest(&reader.metadata().origin),
    };
    let progress = Progress::of_events();
    progress.begin("fit", reader.len());
    let (mut measured, mut events) = (Measured::default(), Vec::new());
    while reader.read(&mut events).map_err(PlayError::Trace)? {
        measured.feed(&events);
        progress.add(events.len() as u64);
    }
    progress.clear();
    let (cost, figures) = measured.fitted(&base.cost);
    if figures.is_empty() {
        return Err(FitError::Nothing { path: options.trace.clone(), migrations: measured.migrations });
    }
    let stem = options.trace.file_stem().map_or("fitted".into(), |name| name.to_string_lossy());
    let mut figures: Vec<_> = figures.into_iter().map(|(name, source)| CostSource { name, source }).collect();
    figures.push(CostSource {
        name: "all others".to_owned(),
        source: format!("as {}: the trace does not show them", base.name),
    });
    let file = CostFile {
        format: COST_FORMAT.to_owned(),
        name: options.name.clone().unwrap_or_else(|| stem.into_owned()),
        about: format!(
            "fitted by fault-sim {COMMIT} to {}: {} migrations, {} faults",
            options.trace.display(),
            measured.migrations,
            measured.faults
        ),
        cost,
        figures,
    };
    let text = serde_json::to_string_pretty(&file)? + "\n";
    if let Some(path) = &options.output {
        write_whole(path, text.as_bytes())?;
    }
    Ok(to_stdout(&if options.json { text } else { table(&file, &base)? })?)
}

/// Every figure beside the base's, and where the fitted ones come from.
fn table(file: &CostFile, base: &CostModel) -> Result<String, serde_json::Error> {
    let (found, before) = (serde_json::to_value(file.cost)?, serde_json::to_value(base.cost)?);
    let mut out = format!("{}: {}\n\n{:<26}{:>12}{:>14}\n", file.name, file.about, "", "fitted", base.name);
    for (name, value) in found.as_object().into_iter().flatten() {
        let _ = writeln!(out, "{name:<26}{:>12}{:>14}", value.to_string(), before[name].to_string());
    }
    for figure in &file.figures {
        let _ = write!(out, "\n{}: {}", figure.name, figure.source);
    }
    out.push('\n');
    Ok(out)
}
