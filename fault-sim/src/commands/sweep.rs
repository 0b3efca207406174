//! `fault-sim sweep`: a trace under every combination of policies, capacities and parameters, on all cores.

use std::fmt::Write;
use std::path::PathBuf;
use std::process::ExitCode;
use std::sync::{Mutex, PoisonError};

use clap::Args;
use rayon::ThreadPoolBuilder;
use thiserror::Error;

use crate::import::Source;
use crate::output::{Ending, Output, OutputError, end, to_stdout};
use crate::play::{PlayError, Setting, check_kind, look_ahead};
use crate::policy::catalogue::{self, NameError, Plan};
use crate::progress::Progress;
use crate::replay::{CostModel, Limits};
use crate::result::{COMMIT, Metric, Outcome, csv_header, shown_bytes};
use crate::size::Amount;
use crate::sweep::{Found, Grid, Journal, JournalError, Rows, Shard, run};

/// What `sweep` takes.
#[derive(Args, Clone, Debug)]
pub struct Options {
    /// The trace, or a file that `import` reads.
    pub trace: PathBuf,
    /// Policies, comma separated; `fault-sim list policies` names them.
    #[arg(long, value_delimiter = ',', default_value = catalogue::MAIN)]
    pub policy: Vec<String>,
    /// Device memory, comma separated: 64MiB, a number of bytes, or a share of the trace's distinct pages (4MiB at least).
    #[arg(long, value_delimiter = ',', default_value = "25%,50%,75%,100%")]
    pub device_memory: Vec<Amount>,
    /// What things cost, comma separated: profiles or files [default: the profile nearest to the trace's
    /// origin].
    #[arg(long, value_delimiter = ',')]
    pub cost: Vec<String>,
    /// Faults that the device can have open before it stands still, comma separated.
    #[arg(long, value_delimiter = ',', default_value = "256")]
    pub outstanding: Vec<usize>,
    /// Values of a policy's number, NAME=V1,V2; `fault-sim list parameters` names them. Can be given more than once.
    #[arg(long = "set", value_name = "NAME=V1,V2")]
    pub parameters: Vec<String>,
    /// A page that comes back within so many evictions is a refault.
    #[arg(long, default_value_t = 64)]
    pub refault_window: u64,
    /// Pages have no contents before their first touch; otherwise they begin in system memory.
    #[arg(long)]
    pub untouched: bool,
    /// What chance in policies follows from.
    #[arg(long, default_value_t = 1)]
    pub seed: u64,
    /// Only part I of N. What the parts write, one behind the other, is what the whole writes.
    #[arg(long, value_name = "I/N", default_value_t = Shard::WHOLE)]
    pub shard: Shard,
    /// Threads [default: one for each core].
    #[arg(long)]
    pub threads: Option<usize>,
    /// The form of the result. With --json, one object per line.
    #[command(flatten)]
    pub output: Output,
}

#[derive(Debug, Error)]
enum SweepError {
    #[error(transparent)]
    Play(#[from] PlayError),
    #[error(transparent)]
    Journal(#[from] JournalError),
    #[error("the threads cannot be started: {0}; give fewer with --threads")]
    Threads(#[from] rayon::ThreadPoolBuildError),
    #[error("{path} cannot be read: {source}", path = .path.display())]
    Read { path: PathBuf, source: std::io::Error },
    #[error(transparent)]
    Output(#[from] OutputError),
    #[error("the result is not JSON: {0}")]
    Json(#[from] serde_json::Error),
}

impl Ending for SweepError {
    fn refuses(&self) -> bool {
        match self {
            Self::Play(error) => error.refuses(),
            Self::Journal(_) | Self::Threads(_) | Self::Read { .. } => true,
            Self::Output(_) | Self::Json(_) => false,
        }
    }
}

/// The form of a row.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Form {
    Table,
    Json,
    Csv,
}

/// Sweeps and prints.
pub fn main(options: &Options) -> ExitCode {
    end(sweep(options))
}

fn sweep(options: &Options) -> Result<(), SweepError> {
    let plans =
        options.policy.iter().map(|name| catalogue::parse(name)).collect::<Result<Vec<_>, NameError>>();
    let plans = plans.map_err(PlayError::Name)?;
    let source = Source::open(&options.trace).map_err(PlayError::Open)?;
    let mut reader = source.reader().map_err(PlayError::Trace)?;
    check_kind(&plans, &options.trace, reader.metadata().kind)?;
    let costs = match &options.cost[..] {
        [] => vec![CostModel::nearest(&reader.metadata().origin)],
        wishes => wishes
            .iter()
            .map(|wish| CostModel::named(wish))
            .collect::<Result<_, _>>()
            .map_err(PlayError::Cost)?,
    };
    let pool = ThreadPoolBuilder::new().num_threads(options.threads.unwrap_or(0)).build()?;
    let known =
        look_ahead(&source, &mut reader, plans.iter().any(Plan::knows_the_future), &Progress::of_events())?;
    let grid = Grid {
        policies: options.policy.clone(),
        device_memory: options.device_memory.clone(),
        costs,
        outstanding: options.outstanding.clone(),
        parameters: options.parameters.clone(),
        limits: Limits {
            data_on_cpu: !options.untouched,
            refault_window: options.refault_window,
            ..Limits::new(0)
        },
        seed: options.seed,
    };
    let all = grid.settings(known.footprint_pages)?;
    let settings = &all[options.shard.range(all.len())];
    let form = match (options.output.is_json(), options.output.csv) {
        (_, true) => Form::Csv,
        (true, _) => Form::Json,
        _ => Form::Table,
    };
    let journal = journal(options, form)?;
    // On standard output rows come as soon as they are ready; a file is written when it is whole.
    let live = options.output.output.is_none() && form != Form::Table;
    let header = if form == Form::Csv && options.shard.is_first() { csv_header() } else { String::new() };
    if live {
        to_stdout(&header)?;
    }
    let unsaid = Mutex::new(None);
    let rows = Rows::new(settings.len(), |found: &Found| {
        if live && let Err(error) = to_stdout(&found.line) {
            *unsaid.lock().unwrap_or_else(PoisonError::into_inner) = Some(error);
        }
    });
    let line = |outcome: &Outcome| -> Result<String, SweepError> {
        Ok(match form {
            Form::Json => outcome.json()?,
            Form::Csv => outcome.csv_rows(),
            Form::Table => String::new(),
        })
    };
    pool.install(|| run((&options.trace, &source), settings, &known, journal.as_ref(), line, &rows))?;
    let rows = rows.into_rows();
    if let Some(error) = unsaid.into_inner().unwrap_or_else(PoisonError::into_inner) {
        return Err(error.into());
    }
    if form == Form::Table {
        options.output.write(&table(&rows, settings))?;
    } else if !live {
        let lines = rows.iter().map(|found| found.line.as_str());
        options.output.write(&std::iter::once(header.as_str()).chain(lines).collect::<String>())?;
    }
    if let Some(journal) = journal {
        journal.finish();
    }
    Ok(())
}

/// The journal beside a result that is a plain file or will be one.
fn journal(options: &Options, form: Form) -> Result<Option<Journal>, SweepError> {
    let Some(path) = &options.output.output else { return Ok(None) };
    if std::fs::metadata(path).is_ok_and(|there| !there.is_file()) {
        return Ok(None);
    }
    let form = if form == Form::Csv { "csv" } else { "json" };
    let identity = crate::sweep::identity(COMMIT, &options.trace, form)
        .map_err(|source| SweepError::Read { path: options.trace.clone(), source })?;
    Ok(Some(Journal::open(path, identity)?))
}

/// One line per setting, with the numbers that people look at first.
fn table(rows: &[Found], settings: &[Setting]) -> String {
    const SHOWN: [&str; 6] =
        ["faults_unique", "demand_bytes", "prefetch_bytes", "evicted_bytes", "refaults", "total_ns"];
    let lines = rows.iter().zip(settings).filter_map(|(found, setting)| {
        let row = found.outcome.as_ref()?.rows.first()?;
        let parameters = row.parameters.iter().map(|(name, value)| format!("{name}={value}"));
        let mut cells = vec![
            setting.policy.clone(),
            shown_bytes(setting.limits.device_bytes),
            setting.cost.name.clone(),
            setting.limits.outstanding.to_string(),
            parameters.collect::<Vec<_>>().join(" "),
        ];
        cells.extend(SHOWN.iter().map(|name| {
            let number = row.metrics.iter().find(|Metric(other, _)| other == name);
            number.map_or(String::new(), |Metric(name, number)| number.shown(name))
        }));
        Some(cells)
    });
    let head = ["policy", "device memory", "profile", "outstanding", "parameters"].into_iter().chain(SHOWN);
    let lines: Vec<Vec<String>> = std::iter::once(head.map(str::to_owned).collect()).chain(lines).collect();
    let columns = lines[0].len();
    let widths: Vec<_> =
        (0..columns).map(|at| lines.iter().map(|cells| cells[at].len()).max().unwrap_or(0)).collect();
    let mut out = String::new();
    for cells in &lines {
        for (at, (cell, width)) in cells.iter().zip(&widths).enumerate() {
            let is_word = at == 0 || at == 4;
            let _ = if is_word { write!(out, "{cell:<width$}  ") } else { write!(out, "{cell:>width$}  ") };
        }
        out.truncate(out.trim_end().len());
        out.push('\n');
    }
    out
}
