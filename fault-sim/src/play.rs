//! Playing one trace under any number of settings, side by side, with one result for each.
//!
//! # Rules
//! 1. The trace is read once for all settings, and once more before that only if one of them must know the future or
//!    the footprint is not written in the file.
//! 2. What the kind of trace cannot answer is refused before any work, or said in a note, never left out.
//! 3. A setting's numbers depend on nothing but the trace and the setting: not on who plays beside it.

use std::path::{Path, PathBuf};

use granule::units::PAGE_BYTES;
use thiserror::Error;

use crate::import::{OpenError, Source};
use crate::policy::catalogue::{NameError, Plan};
use crate::policy::parameters::ParameterError;
use crate::progress::Progress;
use crate::replay::{
    Blocks, CostError, CostModel, Engine, Future, FutureError, LEAST_BYTES, Limits, Metrics, SetupError,
};
use crate::result::{COMMIT, Outcome, Row, metrics};
use crate::size::Amount;
use crate::trace::{EventKind, Footprint, TraceError, TraceKind, TraceReader};

/// One setting: everything but the trace that a result depends on.
#[derive(Clone)]
pub struct Setting {
    /// The policy as it was asked for.
    pub policy: String,
    /// What it stands for.
    pub plan: Plan,
    /// What things cost.
    pub cost: CostModel,
    /// The device.
    pub limits: Limits,
    /// What chance in policies follows from.
    pub seed: u64,
}

/// What must be known of a trace before it is played.
pub struct Known {
    /// Distinct pages.
    pub footprint_pages: u64,
    /// What comes, if a policy must know it.
    pub future: Option<Future>,
    /// What every result must say of where the trace comes from.
    pub notes: Vec<String>,
}

/// What came of one setting.
pub struct Played {
    /// What was counted.
    pub counted: Metrics,
    /// The blocks as they are at the end.
    pub blocks: Blocks,
}

/// Why a trace cannot be played.
#[derive(Debug, Error)]
pub enum PlayError {
    /// The trace.
    #[error(transparent)]
    Trace(#[from] TraceError),
    /// The file is no trace and cannot be made one.
    #[error(transparent)]
    Open(#[from] OpenError),
    /// A policy's name.
    #[error(transparent)]
    Name(#[from] NameError),
    /// A parameter.
    #[error(transparent)]
    Parameter(#[from] ParameterError),
    /// The device.
    #[error(transparent)]
    Setup(#[from] SetupError),
    /// Something must know all touches, and the trace does not hold them.
    #[error(
        "{0} must know all touches, but {path} holds only {kind}; record accesses, or leave it out",
        path = .1.display(), kind = .2.name()
    )]
    Kind(&'static str, PathBuf, TraceKind),
    /// The costs.
    #[error(transparent)]
    Cost(#[from] CostError),
    /// What comes is too much.
    #[error(transparent)]
    Future(#[from] FutureError),
}

impl PlayError {
    /// Whether it is known before any work.
    pub fn refuses(&self) -> bool {
        match self {
            Self::Open(error) => error.refuses(),
            Self::Trace(error) => !matches!(error, TraceError::Parquet { .. } | TraceError::Event { .. }),
            _ => true,
        }
    }
}

/// Refuses plans that a trace of this kind cannot answer.
///
/// # Errors
/// One of the plans must know all touches, and the trace holds only some.
pub fn check_kind<'a>(
    plans: impl IntoIterator<Item = &'a Plan>,
    path: &Path,
    kind: TraceKind,
) -> Result<(), PlayError> {
    match plans.into_iter().find_map(|plan| plan.refusal(kind)) {
        Some(part) => Err(PlayError::Kind(part, path.to_owned(), kind)),
        None => Ok(()),
    }
}

/// Reads the trace once for what must be known before it is played, if that is not written in it.
///
/// # Errors
/// The trace is damaged, or too long for who must know the future.
pub fn look_ahead(
    source: &Source,
    reader: &mut TraceReader,
    wants_future: bool,
    progress: &Progress,
) -> Result<Known, PlayError> {
    if let (Some(summary), false) = (reader.summary(), wants_future) {
        return Ok(Known { footprint_pages: summary.footprint_pages, future: None, notes: source.notes() });
    }
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
    Ok(Known { footprint_pages: footprint.pages(), future, notes: source.notes() })
}

/// Bytes of device memory for an amount: a share of a small trace may be less than any device has.
pub fn device_bytes(amount: Amount, footprint_pages: u64) -> u64 {
    match amount {
        Amount::Bytes(size) => size.0,
        share => share.of(footprint_pages * PAGE_BYTES).max(LEAST_BYTES),
    }
}

/// Plays the trace from its beginning under these settings. `done` is told of every number of events that all of them
/// have played.
///
/// # Errors
/// The trace is damaged, or a device has too little memory.
pub fn play(
    settings: &[Setting],
    reader: &mut TraceReader,
    known: &Known,
    mut done: impl FnMut(u64),
) -> Result<Vec<Played>, PlayError> {
    play_watched(settings, reader, known, usize::MAX, |_, _| (), &mut done)
}

/// The same, with a look at each setting's replay after every `step` events; the settings are counted from 0.
///
/// # Errors
/// As [`play`].
pub fn play_watched(
    settings: &[Setting],
    reader: &mut TraceReader,
    known: &Known,
    step: usize,
    mut watch: impl FnMut(usize, &Engine),
    mut done: impl FnMut(u64),
) -> Result<Vec<Played>, PlayError> {
    reader.rewind();
    let mut engines = settings
        .iter()
        .map(|setting| {
            let set = setting.plan.build(setting.seed, known.future.as_ref());
            let mut engine = Engine::new(set, setting.cost.cost, setting.limits)?;
            // Others number blocks as they come, whoever plays beside them.
            if let Some(future) = known.future.as_ref().filter(|_| setting.plan.knows_the_future()) {
                engine.expect(future);
            }
            Ok(engine)
        })
        .collect::<Result<Vec<_>, SetupError>>()?;
    let mut events = Vec::new();
    while reader.read(&mut events)? {
        for events in events.chunks(step) {
            for (at, engine) in engines.iter_mut().enumerate() {
                engine.feed(events);
                watch(at, engine);
            }
        }
        done(events.len() as u64);
    }
    let played = |engine: Engine| {
        let (counted, blocks) = engine.finish();
        Played { counted, blocks }
    };
    Ok(engines.into_iter().map(played).collect())
}

/// The result of one setting, with everything that is needed to make it again.
pub fn outcome(path: &Path, reader: &TraceReader, known: &Known, of: &Setting, counted: &Metrics) -> Outcome {
    let metadata = reader.metadata();
    Outcome {
        commit: COMMIT.to_owned(),
        trace: path.display().to_string(),
        trace_kind: metadata.kind.name().to_owned(),
        trace_origin: metadata.origin.clone(),
        trace_commit: metadata.commit.clone(),
        trace_seed: metadata.seed,
        seed: of.seed,
        profile: of.cost.name.clone(),
        cost: of.cost.cost,
        device_memory_bytes: of.limits.device_bytes,
        footprint_bytes: known.footprint_pages * PAGE_BYTES,
        outstanding: of.limits.outstanding,
        refault_window: of.limits.refault_window,
        untouched: !of.limits.data_on_cpu,
        rows: vec![row(reader, known, of, counted)],
    }
}

/// One setting's row.
pub fn row(reader: &TraceReader, known: &Known, of: &Setting, counted: &Metrics) -> Row {
    let mut notes = known.notes.clone();
    notes.extend(of.plan.notes(reader.metadata()));
    if counted.time_backwards > 0 {
        notes.push(format!(
            "{} events lie before earlier ones; they were played at the latest time seen",
            counted.time_backwards
        ));
    }
    if reader.lost_bytes() > 0 {
        notes.push(format!("the trace was cut off: its last {} bytes are lost", reader.lost_bytes()));
    }
    Row {
        policy: of.policy.clone(),
        parts: of.plan.to_string(),
        parameters: of.plan.parameters().named(),
        notes,
        metrics: metrics(counted),
        allocations: Vec::new(),
        blocks: Vec::new(),
    }
}
