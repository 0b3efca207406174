//! `fault-sim report`: one page with pictures, from traces and from results.
//!
//! # Rules
//! 1. A trace is read once for what is in it, and once more for each policy, on all cores. Memory and the page do not
//!    grow with it.
//! 2. A result is shown as it is: nothing is played again.

use std::io::Read;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use clap::Args;
use granule::units::PAGE_BYTES;
use rayon::prelude::*;
use thiserror::Error;

use crate::html::{Piece, page};
use crate::import::Source;
use crate::output::{Ending, Output, OutputError, end, to_stdout, write_whole};
use crate::picture::{Map, Picture, PictureError};
use crate::play::{Known, PlayError, Setting, check_kind, device_bytes, look_ahead, outcome, play_watched};
use crate::policy::catalogue::{self, NameError, Plan};
use crate::progress::Progress;
use crate::replay::{CostModel, Limits};
use crate::result::{COMMIT, Metric, Outcome, shown_bytes, shown_ns};
use crate::size::Amount;
use crate::trace::{EventKind, TraceKind, TraceReader};
use crate::view::{Results, Reuse, Series, Timeline, over_time};

/// What `report` takes.
#[derive(Args, Clone, Debug)]
pub struct Options {
    /// Traces or files that `import` reads, and results of `replay` or `sweep` (JSON).
    #[arg(required = true)]
    pub inputs: Vec<PathBuf>,
    /// The page to write; pictures go beside it as SVG and PNG.
    #[arg(short, long, value_name = "FILE", default_value = "report.html")]
    pub output: PathBuf,
    /// Policies under which a trace is played, comma separated; `fault-sim list policies` names them.
    #[arg(long, value_delimiter = ',', default_value = "nvidia,gpusvm,amd,granule")]
    pub policy: Vec<String>,
    /// Device memory: 64MiB, a number of bytes, or a share of the trace's distinct pages (4MiB at least).
    #[arg(long, default_value = "50%")]
    pub device_memory: Amount,
    /// What things cost: a profile, or a file [default: the profile nearest to the trace's origin].
    #[arg(long)]
    pub cost: Option<String>,
    /// What chance in policies follows from.
    #[arg(long, default_value_t = 1)]
    pub seed: u64,
}

#[derive(Debug, Error)]
enum ReportError {
    #[error(transparent)]
    Play(#[from] PlayError),
    #[error("{path} cannot be read: {source}", path = .path.display())]
    Read { path: PathBuf, source: std::io::Error },
    #[error("{path} is neither a trace nor a result of `fault-sim replay --json` or `sweep --json`: {source}", path = .path.display())]
    NotAResult { path: PathBuf, source: serde_json::Error },
    #[error("{path} holds no result", path = .0.display())]
    NoResult(PathBuf),
    #[error(transparent)]
    Picture(#[from] PictureError),
    #[error(transparent)]
    Output(#[from] OutputError),
}

impl Ending for ReportError {
    fn refuses(&self) -> bool {
        match self {
            Self::Play(error) => error.refuses(),
            Self::Read { .. } | Self::NotAResult { .. } | Self::NoResult(_) => true,
            Self::Picture(_) | Self::Output(_) => false,
        }
    }
}

/// Writes the page and says what is beside it.
pub fn main(options: &Options) -> ExitCode {
    end(report(options))
}

/// The page as it grows, and the pictures on it.
#[derive(Default)]
struct Page {
    pieces: Vec<Piece>,
    pictures: Vec<(String, Picture)>,
}

impl Page {
    fn picture(&mut self, picture: Picture) -> Result<(), PictureError> {
        let svg = picture.svg()?;
        self.pieces.push(Piece::Picture { svg: svg.clone(), caption: picture.caption().to_owned() });
        self.pictures.push((svg, picture));
        Ok(())
    }
}

fn report(options: &Options) -> Result<(), ReportError> {
    let plans =
        options.policy.iter().map(|name| catalogue::parse(name)).collect::<Result<Vec<_>, NameError>>();
    let plans = plans.map_err(PlayError::Name)?;
    let mut page_ = Page::default();
    for (at, input) in options.inputs.iter().enumerate() {
        // Names of pictures, where there are several inputs.
        let prefix = if options.inputs.len() > 1 { format!("{}-", at + 1) } else { String::new() };
        if begins_like_a_result(input)? {
            of_results(&mut page_, input, &prefix)?;
        } else {
            of_trace(&mut page_, options, &plans, input, &prefix)?;
        }
    }
    let mut made = Vec::new();
    let stem = options.output.with_extension("");
    for (svg, picture) in &page_.pictures {
        let place = |extension: &str| {
            let mut name = stem.clone().into_os_string();
            name.push(format!("-{}.{extension}", picture.name()));
            PathBuf::from(name)
        };
        write_whole(&place("svg"), svg.as_bytes())?;
        write_whole(&place("png"), &picture.png()?)?;
        made.push(place("svg").display().to_string());
    }
    page_.pieces.push(Piece::Sentence(format!("Made by fault-sim, commit {COMMIT}.")));
    let names: Vec<_> = options.inputs.iter().map(|path| path.display().to_string()).collect();
    let text = page(&names.join(", "), &page_.pieces);
    Output { output: Some(options.output.clone()), ..Output::default() }.write(&text)?;
    let mut said = format!("{}: {} pictures\n", options.output.display(), made.len());
    made.iter().for_each(|name| said.push_str(&format!("  {name} and .png\n")));
    Ok(to_stdout(&said)?)
}

fn begins_like_a_result(path: &Path) -> Result<bool, ReportError> {
    let wrong = |source| ReportError::Read { path: path.to_owned(), source };
    let mut first = [0];
    let mut file = std::fs::File::open(path).map_err(wrong)?;
    Ok(file.read(&mut first).map_err(wrong)? == 1 && first[0] == b'{')
}

/// Pictures of results that are there already.
fn of_results(page: &mut Page, path: &Path, prefix: &str) -> Result<(), ReportError> {
    let text = std::fs::read_to_string(path)
        .map_err(|source| ReportError::Read { path: path.to_owned(), source })?;
    let outcomes = serde_json::Deserializer::from_str(&text).into_iter::<Outcome>();
    let outcomes: Vec<Outcome> = outcomes
        .collect::<Result<_, _>>()
        .map_err(|source| ReportError::NotAResult { path: path.to_owned(), source })?;
    let Some(first) = outcomes.first() else { return Err(ReportError::NoResult(path.to_owned())) };
    page.pieces.push(Piece::Heading(path.display().to_string()));
    page.pieces.push(Piece::Facts(facts(first)));
    of_outcomes(page, &Results { name: prefix, outcomes: &outcomes }, &[], 1.0)
}

/// What a result says of itself, as far as all rows share it.
fn facts(of: &Outcome) -> Vec<(String, String)> {
    let facts = [
        ("trace", format!("{} ({} of {})", of.trace, of.trace_kind, of.trace_origin)),
        ("footprint", shown_bytes(of.footprint_bytes)),
        ("profile", of.profile.clone()),
        ("seed", of.seed.to_string()),
        ("commit", of.commit.clone()),
    ];
    facts.map(|(name, said)| (name.to_owned(), said)).into()
}

/// Pictures and a table of results.
fn of_outcomes(
    page: &mut Page,
    results: &Results<'_>,
    lru: &[(f64, f64)],
    sampled: f64,
) -> Result<(), ReportError> {
    if let Some(picture) = results.over_capacity(lru, sampled) {
        page.picture(picture)?;
    }
    let Some(bytes) = results.middle() else { return Ok(()) };
    page.picture(results.side_by_side(bytes))?;
    page.picture(results.breakdown(bytes))?;
    let rows = results.rows(bytes);
    let mut notes: Vec<String> = Vec::new();
    for (name, row) in &rows {
        notes.extend(row.notes.iter().map(|note| format!("{name}: {note}.")));
    }
    page.pieces.extend(notes.into_iter().map(Piece::Sentence));
    let head = std::iter::once(format!("with {}", shown_bytes(bytes)));
    let head = head.chain(rows.iter().map(|(name, _)| name.clone())).collect();
    let Some((_, first)) = rows.first() else { return Ok(()) };
    let lines = first.metrics.iter().map(|Metric(name, _)| {
        let number = |row: &&crate::result::Row| {
            let found = row.metrics.iter().find(|Metric(other, _)| other == name);
            found.map_or("-".to_owned(), |Metric(_, number)| number.shown(name))
        };
        let numbers = rows.iter().map(|(_, row)| number(row));
        std::iter::once(name.clone()).chain(numbers).collect::<Vec<_>>()
    });
    page.pieces.push(Piece::Table(head, lines.collect()));
    Ok(())
}

/// Pictures of a trace, and of what policies make of it.
fn of_trace(
    page: &mut Page,
    options: &Options,
    plans: &[Plan],
    path: &Path,
    prefix: &str,
) -> Result<(), ReportError> {
    let source = Source::open(path).map_err(PlayError::Open)?;
    let mut reader = source.reader().map_err(PlayError::Trace)?;
    let metadata = reader.metadata().clone();
    check_kind(plans, path, metadata.kind)?;
    let progress = Progress::of_events();
    let known = look_ahead(&source, &mut reader, plans.iter().any(Plan::knows_the_future), &progress)?;
    let (timeline, reuse, kinds) = looked_at(&mut reader, &progress)?;
    page.pieces.push(Piece::Heading(path.display().to_string()));
    let kinds = EventKind::ALL.iter().map(|kind| (kind.name(), kinds[*kind as usize]));
    let kinds = kinds.filter(|(_, count)| *count > 0).map(|(name, count)| format!("{count} {name}"));
    let facts = [
        ("holds", format!("{} of {}", metadata.kind.name(), metadata.origin)),
        ("events", kinds.collect::<Vec<_>>().join(", ")),
        ("footprint", shown_bytes(known.footprint_pages * PAGE_BYTES)),
        ("recorded under", metadata.policy.clone().unwrap_or_else(|| "-".to_owned())),
        ("made by commit", metadata.commit.clone()),
    ];
    page.pieces.push(Piece::Facts(facts.map(|(name, said)| (name.to_owned(), said)).into()));
    let map = Map::new(
        format!("{prefix}timeline"),
        "Which addresses were touched when".to_owned(),
        format!("Every mark is {} of the trace's own time.", shown_ns(timeline.times().1)),
        timeline,
    );
    page.picture(Picture::Map(map))?;
    if metadata.kind == TraceKind::Migrations {
        let said = "The trace holds only what a policy moved, so there is nothing to play under others.";
        page.pieces.push(Piece::Sentence(said.to_owned()));
        return Ok(());
    }
    let cost = match &options.cost {
        Some(wish) => CostModel::named(wish).map_err(PlayError::Cost)?,
        None => CostModel::nearest(&metadata.origin),
    };
    let limits = Limits::new(device_bytes(options.device_memory, known.footprint_pages));
    let setting = |(policy, plan): (&String, &Plan)| Setting {
        policy: policy.clone(),
        plan: *plan,
        cost: cost.clone(),
        limits,
        seed: options.seed,
    };
    let settings: Vec<_> = options.policy.iter().zip(plans).map(setting).collect();
    let played = played((path, &source), &settings, &known, &progress)?;
    let (outcomes, series): (Vec<_>, Vec<_>) = played.into_iter().unzip();
    let series: Vec<_> = options.policy.iter().cloned().zip(series).collect();
    for picture in over_time(prefix, &series) {
        page.picture(picture)?;
    }
    let results = Results { name: prefix, outcomes: &outcomes };
    of_outcomes(page, &results, &reuse.curve(), reuse.sampled())
}

/// One reading of a trace for what is in it.
fn looked_at(
    reader: &mut TraceReader,
    progress: &Progress,
) -> Result<(Timeline, Reuse, [u64; EventKind::ALL.len()]), PlayError> {
    let mut timeline = match reader.summary() {
        Some(summary) => Timeline::between(summary.first_ns, summary.last_ns),
        None => Timeline::default(),
    };
    let (mut reuse, mut kinds, mut events) = (Reuse::default(), [0; EventKind::ALL.len()], Vec::new());
    progress.begin("look", reader.len());
    while reader.read(&mut events)? {
        events.iter().for_each(|event| kinds[event.kind as usize] += 1);
        progress.add(events.len() as u64);
        if reader.metadata().kind != TraceKind::Migrations {
            // What was moved because of a touch is no touch.
            events.retain(|event| event.kind != EventKind::Migration);
        }
        timeline.feed(&events);
        reuse.feed(&events);
    }
    progress.clear();
    Ok((timeline, reuse, kinds))
}

/// Moments of a replay that are kept.
const MOMENTS: u64 = 400;

/// Each setting's result and what it had done by when, in their order.
fn played(
    (path, source): (&Path, &Source),
    settings: &[Setting],
    known: &Known,
    progress: &Progress,
) -> Result<Vec<(Outcome, Series)>, PlayError> {
    let events = source.reader()?.len();
    progress.begin("replay", events * settings.len() as u64);
    let step = (events / MOMENTS).max(1) as usize;
    let play_one = |setting: &Setting| {
        let mut reader = source.reader()?;
        let mut series = Series::default();
        let watch = |_: usize, engine: &crate::replay::Engine| series.add(engine);
        let one = std::slice::from_ref(setting);
        let played = play_watched(one, &mut reader, known, step, watch, |events| progress.add(events))?;
        Ok((outcome(path, &reader, known, setting, &played[0].counted), series))
    };
    let played = settings.par_iter().with_max_len(1).map(play_one).collect();
    progress.clear();
    played
}
