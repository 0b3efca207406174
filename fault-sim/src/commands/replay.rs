//! `fault-sim replay`: a trace under several policies, side by side.

use std::path::PathBuf;
use std::process::ExitCode;

use clap::Args;
use thiserror::Error;

use crate::import::Source;
use crate::output::{Ending, Output, OutputError, end};
use crate::places::{Maps, allocations, blocks, hottest};
use crate::play::{PlayError, Played, Setting, check_kind, device_bytes, look_ahead, outcome, play, row};
use crate::policy::catalogue::{self, Plan};
use crate::policy::parameters::{Parameters, values};
use crate::progress::Progress;
use crate::replay::{CostModel, Limits};
use crate::size::Amount;
use crate::trace::TraceReader;

/// What `replay` takes.
#[derive(Args, Clone, Debug)]
pub struct Options {
    /// The trace, or a file that `import` reads.
    pub trace: PathBuf,
    /// Policies, comma separated; `fault-sim list policies` names them.
    #[arg(long, value_delimiter = ',', default_value = catalogue::MAIN)]
    pub policy: Vec<String>,
    /// Device memory: 64MiB, a number of bytes, or a share of the trace's distinct pages (4MiB at least).
    #[arg(long, default_value = "50%")]
    pub device_memory: Amount,
    /// What things cost: a profile (`fault-sim list profiles` names them), or a file [default: the profile
    /// nearest to the trace's origin].
    #[arg(long)]
    pub cost: Option<String>,
    /// Faults that the device can have open before it stands still.
    #[arg(long, default_value_t = 256)]
    pub outstanding: usize,
    /// A page that comes back within so many evictions is a refault.
    #[arg(long, default_value_t = 64)]
    pub refault_window: u64,
    /// Pages have no contents before their first touch; otherwise they begin in system memory.
    #[arg(long)]
    pub untouched: bool,
    /// A number of a policy, NAME=VALUE; `fault-sim list parameters` names them. Can be given more than once.
    #[arg(long = "set", value_name = "NAME=VALUE")]
    pub parameters: Vec<String>,
    /// Plays through the library's whole fault path, with its own policies and counters and without a clock.
    #[arg(long, conflicts_with_all = ["cost", "untouched", "refault_window"])]
    pub service: bool,
    /// What chance in policies follows from.
    #[arg(long, default_value_t = 1)]
    pub seed: u64,
    /// The so many allocations with the most faults, for each policy (not in CSV).
    #[arg(long, default_value_t = 0, value_name = "COUNT")]
    pub allocations: usize,
    /// The so many blocks of 2 MiB with the most faults, for each policy (not in CSV).
    #[arg(long, default_value_t = 0, value_name = "COUNT")]
    pub blocks: usize,
    /// The form of the result.
    #[command(flatten)]
    pub output: Output,
}

#[derive(Debug, Error)]
enum ReplayError {
    #[error(transparent)]
    Play(#[from] PlayError),
    #[error("--set takes one value for {0}; `fault-sim sweep` takes several")]
    OneValue(String),
    #[error("no policy of these looks at {0}; `fault-sim list parameters` says which do")]
    NotLookedAt(String),
    #[error(transparent)]
    Output(#[from] OutputError),
    #[error("the result is not JSON: {0}")]
    Json(#[from] serde_json::Error),
}

impl Ending for ReplayError {
    fn refuses(&self) -> bool {
        match self {
            Self::Play(error) => error.refuses(),
            Self::OneValue(_) | Self::NotLookedAt(_) => true,
            Self::Output(_) | Self::Json(_) => false,
        }
    }
}

/// Replays and prints.
pub fn main(options: &Options) -> ExitCode {
    if options.service {
        return end(super::replay_service::play(options));
    }
    end(replay(options))
}

/// The plans that were asked for, with their parameters.
fn plans(options: &Options) -> Result<Vec<Plan>, ReplayError> {
    let mut parameters = Parameters::default();
    for text in &options.parameters {
        let (at, values) = values(text).map_err(PlayError::Parameter)?;
        let [value] = values[..] else { return Err(ReplayError::OneValue(text.clone())) };
        parameters.set(at, value);
    }
    let names = options.policy.iter();
    let plan = |name: &String| Ok(catalogue::parse(name).map_err(PlayError::Name)?.with(parameters));
    let plans = names.map(plan).collect::<Result<Vec<_>, ReplayError>>()?;
    for name in parameters.named().into_keys() {
        if !plans.iter().any(|plan| plan.parameters().named().contains_key(&name)) {
            return Err(ReplayError::NotLookedAt(name));
        }
    }
    Ok(plans)
}

/// What the trace maps.
fn maps(reader: &mut TraceReader) -> Result<Maps, PlayError> {
    reader.rewind();
    let (mut maps, mut events) = (Maps::default(), Vec::new());
    while reader.read(&mut events)? {
        maps.feed(&events);
    }
    Ok(maps)
}

fn replay(options: &Options) -> Result<(), ReplayError> {
    let plans = plans(options)?;
    let source = Source::open(&options.trace).map_err(PlayError::Open)?;
    let mut reader = source.reader().map_err(PlayError::Trace)?;
    check_kind(&plans, &options.trace, reader.metadata().kind)?;
    let cost = match &options.cost {
        Some(wish) => CostModel::named(wish).map_err(PlayError::Cost)?,
        None => CostModel::nearest(&reader.metadata().origin),
    };
    let progress = Progress::of_events();
    let known = look_ahead(&source, &mut reader, plans.iter().any(Plan::knows_the_future), &progress)?;
    let limits = Limits {
        outstanding: options.outstanding,
        data_on_cpu: !options.untouched,
        refault_window: options.refault_window,
        ..Limits::new(device_bytes(options.device_memory, known.footprint_pages))
    };
    let setting = |(policy, plan): (&String, &Plan)| Setting {
        policy: policy.clone(),
        plan: *plan,
        cost: cost.clone(),
        limits,
        seed: options.seed,
    };
    let settings: Vec<_> = options.policy.iter().zip(&plans).map(setting).collect();
    progress.begin("replay", reader.len());
    let played = play(&settings, &mut reader, &known, |events| progress.add(events))?;
    progress.clear();
    let maps = if options.allocations > 0 { maps(&mut reader)? } else { Maps::default() };
    let row = |(setting, played): (&Setting, &Played)| {
        let mut row = row(&reader, &known, setting, &played.counted);
        if options.allocations > 0 {
            row.allocations = hottest(allocations(&maps, &played.blocks), options.allocations);
        }
        row.blocks = hottest(blocks(&played.blocks), options.blocks);
        row
    };
    let mut result = outcome(&options.trace, &reader, &known, &settings[0], &played[0].counted);
    result.rows = settings.iter().zip(&played).map(row).collect();
    let text = if options.output.is_json() {
        result.json()?
    } else if options.output.csv {
        result.csv()
    } else {
        result.table()
    };
    Ok(options.output.write(&text)?)
}
