//! `fault-sim replay`: a trace under several policies, side by side.
//!
//! # Rules
//! 1. The trace is read once for all policies, and once more before that only if one of them must know the future or
//!    the footprint is not written in the file.
//! 2. What the kind of trace cannot answer is refused or said in a note, never left out.

use std::path::PathBuf;
use std::process::ExitCode;

use clap::Args;
use granule::units::PAGE_BYTES;
use thiserror::Error;

use crate::import::{OpenError, Source};
use crate::output::{Ending, Output, OutputError, end};
use crate::policy::catalogue::{self, NameError};
use crate::progress::Progress;
use crate::replay::{
    Engine, Future, FutureError, LEAST_BYTES, Limits, PROFILES, Profile, SetupError, profile_named,
    profile_nearest,
};
use crate::result::{COMMIT, Outcome, Row, metrics};
use crate::size::Amount;
use crate::trace::{EventKind, Footprint, TraceError, TraceKind, TraceReader};

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
    /// What things cost; `fault-sim list profiles` names the profiles [default: the one nearest to the trace's origin].
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
    /// What chance in policies follows from.
    #[arg(long, default_value_t = 1)]
    pub seed: u64,
    /// The form of the result.
    #[command(flatten)]
    pub output: Output,
}

#[derive(Debug, Error)]
enum ReplayError {
    #[error(transparent)]
    Trace(#[from] TraceError),
    #[error(transparent)]
    Open(#[from] OpenError),
    #[error(transparent)]
    Name(#[from] NameError),
    #[error(transparent)]
    Setup(#[from] SetupError),
    #[error(
        "{0} must know all touches, but {path} holds only {kind}; record accesses, or leave it out",
        path = .1.display(), kind = .2.name()
    )]
    Kind(&'static str, PathBuf, TraceKind),
    #[error("there is no profile {0:?}; the profiles are {names}", names = profile_names())]
    Profile(String),
    #[error(transparent)]
    Future(#[from] FutureError),
    #[error(transparent)]
    Output(#[from] OutputError),
    #[error("the result is not JSON: {0}")]
    Json(#[from] serde_json::Error),
}

fn profile_names() -> String {
    PROFILES.iter().map(|profile| profile.name).collect::<Vec<_>>().join(", ")
}

impl Ending for ReplayError {
    fn refuses(&self) -> bool {
        if let Self::Open(error) = self {
            return error.refuses();
        }
        !matches!(
            self,
            Self::Output(_)
                | Self::Json(_)
                | Self::Trace(TraceError::Parquet { .. } | TraceError::Event { .. })
        )
    }
}

/// Replays and prints.
pub fn main(options: &Options) -> ExitCode {
    end(replay(options))
}

fn profile(options: &Options, reader: &TraceReader) -> Result<&'static Profile, ReplayError> {
    match &options.cost {
        Some(name) => profile_named(name).ok_or_else(|| ReplayError::Profile(name.clone())),
        None => Ok(profile_nearest(&reader.metadata().origin)),
    }
}

fn replay(options: &Options) -> Result<(), ReplayError> {
    let sets =
        options.policy.iter().map(|name| catalogue::parse(name)).collect::<Result<Vec<_>, NameError>>()?;
    let source = Source::open(&options.trace)?;
    let mut reader = source.reader()?;
    let kind = reader.metadata().kind;
    if let Some(part) = sets.iter().find_map(|plan| plan.refusal(kind)) {
        return Err(ReplayError::Kind(part, options.trace.clone(), kind));
    }
    let profile = profile(options, &reader)?;
    let progress = Progress::of_events();
    let wants_future = sets.iter().any(catalogue::Plan::knows_the_future);
    let (footprint_pages, future) = match reader.summary() {
        Some(summary) if !wants_future => (summary.footprint_pages, None),
        _ => look_ahead(&mut reader, wants_future, &progress)?,
    };
    let device_bytes = match options.device_memory {
        Amount::Bytes(size) => size.0,
        // A share of a small trace may be less than any device has.
        share => share.of(footprint_pages * PAGE_BYTES).max(LEAST_BYTES),
    };
    let limits = Limits {
        outstanding: options.outstanding,
        data_on_cpu: !options.untouched,
        refault_window: options.refault_window,
        ..Limits::new(device_bytes)
    };
    let mut engines = Vec::new();
    for plan in &sets {
        let set = plan.build(options.seed, future.as_ref());
        let mut engine = Engine::new(set, profile.cost, limits)?;
        if let Some(future) = &future {
            engine.expect(future);
        }
        engines.push(engine);
    }
    progress.begin("replay", reader.len());
    let mut events = Vec::new();
    while reader.read(&mut events)? {
        engines.iter_mut().for_each(|engine| engine.feed(&events));
        progress.add(events.len() as u64);
    }
    progress.clear();
    let rows = engines.into_iter().zip(&sets).zip(&options.policy).map(|((engine, plan), policy)| {
        let (counted, _) = engine.finish();
        let mut notes = source.notes();
        notes.extend(plan.notes(reader.metadata()));
        if counted.time_backwards > 0 {
            notes.push(format!(
                "{} events lie before earlier ones; they were played at the latest time seen",
                counted.time_backwards
            ));
        }
        if reader.lost_bytes() > 0 {
            notes.push(format!("the trace was cut off: its last {} bytes are lost", reader.lost_bytes()));
        }
        Row { policy: policy.clone(), parts: plan.to_string(), notes, metrics: metrics(&counted) }
    });
    let metadata = reader.metadata();
    let outcome = Outcome {
        commit: COMMIT.to_owned(),
        trace: options.trace.display().to_string(),
        trace_kind: metadata.kind.name().to_owned(),
        trace_origin: metadata.origin.clone(),
        trace_commit: metadata.commit.clone(),
        trace_seed: metadata.seed,
        seed: options.seed,
        profile: profile.name.to_owned(),
        device_memory_bytes: device_bytes,
        footprint_bytes: footprint_pages * PAGE_BYTES,
        outstanding: options.outstanding,
        rows: rows.collect(),
    };
    let text = if options.output.is_json() {
        outcome.json()?
    } else if options.output.csv {
        outcome.csv()
    } else {
        outcome.table()
    };
    Ok(options.output.write(&text)?)
}

/// Reads the trace once for what must be known before the replay.
fn look_ahead(
    reader: &mut TraceReader,
    wants_future: bool,
    progress: &Progress,
) -> Result<(u64, Option<Future>), ReplayError> {
    let (mut footprint, mut future) = (Footprint::default(), wants_future.then(Future::default));
    progress.begin("look", reader.len());
    let mut events = Vec::new();
    while reader.read(&mut events)? {
        for event in &events {
            if matches!(event.kind, EventKind::Access | EventKind::DeviceFault | EventKind::CpuFault) {
                footprint.add(event.page);
            }
        }
        if let Some(future) = &mut future {
            future.feed(&events)?;
        }
        progress.add(events.len() as u64);
    }
    progress.clear();
    reader.rewind();
    Ok((footprint.pages(), future))
}
