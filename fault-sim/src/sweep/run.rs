use std::hash::{DefaultHasher, Hash, Hasher};
use std::path::Path;
use std::sync::{Mutex, PoisonError};

use rayon::prelude::*;

use super::{Journal, JournalError};
use crate::import::Source;
use crate::play::{Known, PlayError, Setting, outcome, play};
use crate::progress::Progress;
use crate::result::Outcome;

/// Settings that one thread plays side by side at most, so that they share the reading of the trace. What is lost by an
/// interrupt is at most this for each thread.
const TOGETHER: usize = 4;

/// One setting's result, and the bytes of its row.
#[derive(Clone, Debug)]
pub struct Found {
    /// The row as it is written, with its line break.
    pub line: String,
    /// What it was made from; `None` if an earlier call played it.
    pub outcome: Option<Outcome>,
}

/// Rows in the order of the settings, handed on as soon as none before them is missing.
pub struct Rows<F> {
    state: Mutex<State>,
    ready: F,
}

struct State {
    rows: Vec<Option<Found>>,
    handed_on: usize,
}

impl<F: Fn(&Found) + Sync> Rows<F> {
    /// Room for so many rows. `ready` is called with each of them in their order, by one thread at a time.
    pub fn new(count: usize, ready: F) -> Self {
        Self { state: Mutex::new(State { rows: vec![None; count], handed_on: 0 }), ready }
    }

    fn enter(&self, at: usize, found: Found) {
        let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        state.rows[at] = Some(found);
        while let Some(Some(found)) = state.rows.get(state.handed_on) {
            (self.ready)(found);
            state.handed_on += 1;
        }
    }

    /// All rows, if the sweep ended well.
    pub fn into_rows(self) -> Vec<Found> {
        let state = self.state.into_inner().unwrap_or_else(PoisonError::into_inner);
        state.rows.into_iter().flatten().collect()
    }
}

impl Setting {
    /// A number that tells it from the other settings of a trace.
    pub fn key(&self) -> u64 {
        let mut hasher = DefaultHasher::new();
        (&self.policy, self.plan.to_string(), self.plan.parameters().named()).hash(&mut hasher);
        format!("{:?} {:?} {}", self.cost, self.limits, self.seed).hash(&mut hasher);
        hasher.finish()
    }
}

/// Plays the settings on the threads of the current pool, and makes a row of each by `line`. Those in the journal are
/// taken from there; the others are written into it.
///
/// # Errors
/// The first thing that went wrong. What was played is in the journal.
pub fn run<E, F>(
    (path, source): (&Path, &Source),
    settings: &[Setting],
    known: &Known,
    journal: Option<&Journal>,
    line: impl Fn(&Outcome) -> Result<String, E> + Sync,
    rows: &Rows<F>,
) -> Result<(), E>
where
    E: From<PlayError> + From<JournalError> + Send,
    F: Fn(&Found) + Sync,
{
    let mut open = Vec::new();
    for (at, setting) in settings.iter().enumerate() {
        match journal.and_then(|journal| journal.row(setting.key())) {
            Some(line) => rows.enter(at, Found { line: line.to_owned(), outcome: None }),
            None => open.push(at),
        }
    }
    let events = source.reader().map_err(PlayError::Trace)?.len();
    let progress = Progress::of_events();
    progress.begin("sweep", events * open.len() as u64);
    let together = (open.len() / (4 * rayon::current_num_threads())).clamp(1, TOGETHER);
    let groups: Vec<&[usize]> = open.chunks(together).collect();
    // One group after the other is handed out, so that no thread is left with the long ones at the end.
    let done = groups.par_iter().with_max_len(1).try_for_each(|group| {
        let mut reader = source.reader().map_err(PlayError::Trace)?;
        let mine: Vec<_> = group.iter().map(|at| settings[*at].clone()).collect();
        let played = play(&mine, &mut reader, known, |events| progress.add(events * mine.len() as u64))?;
        for ((at, setting), played) in group.iter().zip(&mine).zip(&played) {
            let outcome = outcome(path, &reader, known, setting, &played.counted);
            let line = line(&outcome)?;
            if let Some(journal) = journal {
                journal.keep(setting.key(), &line)?;
            }
            rows.enter(*at, Found { line, outcome: Some(outcome) });
        }
        Ok(())
    });
    progress.clear();
    done
}
