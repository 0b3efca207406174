//! Runs a model and its twins, each in a process of its own. A run that is caught ends its process inside the panic
//! hook: unwinding would run destructors that switch threads of a model that is over, and never come back.

use std::fmt;
use std::io::Write;
use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::time::Instant;

use granule::sync::{Rule, switch_off};

/// What a model is limited to. Everything within is tried.
#[derive(Clone, Copy, Debug)]
pub struct Bounds {
    /// How often a thread that could go on is stopped so that another runs; `None`: any number.
    pub preemptions: Option<usize>,
    /// Threads, the first one included.
    pub threads: usize,
    /// Pages that are touched.
    pub pages: usize,
}

impl fmt::Display for Bounds {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.preemptions {
            Some(at_most) => write!(f, "at most {at_most} preemptions, ")?,
            None => write!(f, "any number of preemptions, ")?,
        }
        write!(f, "{} threads, {} pages", self.threads, self.pages)
    }
}

/// Says to the process which run is its: 0 for the model, *n* for its n-th twin.
const RUN: &str = "GRANULE_LOOM_RUN";
const CAUGHT: i32 = 41;

/// A test: the model passes, and each twin is caught.
macro_rules! model {
    ($(#[$doc:meta])* $name:ident, $bounds:expr, $model:expr, twins: [$($rule:ident),* $(,)?]) => {
        $(#[$doc])*
        #[test]
        fn $name() {
            let test = concat!(module_path!(), "::", stringify!($name));
            crate::explore::prove(test, $bounds, $model, &[$(granule::sync::Rule::$rule),*]);
        }
    };
}
pub(crate) use model;

pub fn prove(test: &str, bounds: Bounds, model: fn(), twins: &[Rule]) {
    if let Some(run) = std::env::var_os(RUN) {
        let run: usize = run.to_str().and_then(|run| run.parse().ok()).expect("a run's number");
        switch_off(run.checked_sub(1).map(|twin| twins[twin]));
        explore(bounds, model);
        return;
    }
    let (_, test) = test.split_once("::").expect("a test lies in a module");
    let runs: Vec<_> = (0..=twins.len()).map(|run| start(test, run)).collect();
    let mut wrong = Vec::new();
    for (run, child) in runs.into_iter().enumerate() {
        let output = child.wait_with_output().expect("a run can be waited for");
        let text = String::from_utf8_lossy(&output.stderr);
        let said = text.lines().find_map(|line| line.strip_prefix("loom: ")).unwrap_or(&text);
        let (name, is_right) = match run.checked_sub(1) {
            None => ("the model".to_owned(), output.status.success()),
            Some(twin) => {
                let by_data = said.contains("DATA:") || said.contains("a thread waits");
                let is_caught = output.status.code() == Some(CAUGHT) && by_data;
                (format!("its twin without {:?}", twins[twin]), is_caught)
            }
        };
        println!("{test}: {name} ({bounds}): {said}");
        if !is_right {
            wrong.push(format!("{name}: {said}"));
        }
    }
    assert!(
        wrong.is_empty(),
        "a model passes, and a twin is caught by its data or because a thread waits:\n{}",
        wrong.join("\n")
    );
}

fn start(test: &str, run: usize) -> Child {
    Command::new(std::env::current_exe().expect("this program has a name"))
        .args([test, "--exact", "--nocapture", "--test-threads=1"])
        .env(RUN, run.to_string())
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::piped())
        .spawn()
        .expect("a run can be started")
}

fn explore(bounds: Bounds, model: fn()) {
    static TRIED: AtomicU64 = AtomicU64::new(0);
    let begin = Instant::now();
    let say = move |what: &str| {
        let tried = TRIED.load(Relaxed);
        let _ = writeln!(
            std::io::stderr(),
            "loom: {tried} interleavings, {:.1} s: {what}",
            begin.elapsed().as_secs_f32()
        );
    };
    std::panic::set_hook(Box::new(move |info| {
        let payload = info.payload();
        let why = payload.downcast_ref::<String>().map(String::as_str);
        let why = why.or(payload.downcast_ref::<&str>().copied()).unwrap_or("a panic without words");
        let at = info.location().map(|at| format!(" ({}:{})", at.file(), at.line())).unwrap_or_default();
        let stuck =
            if why.starts_with("deadlock;") { "a thread waits, and nobody is left to wake it; " } else { "" };
        say(&format!("{stuck}{}{at}", why.replace('\n', " ")));
        std::process::exit(CAUGHT);
    }));
    let mut builder = loom::model::Builder::new();
    builder.preemption_bound = bounds.preemptions;
    builder.max_threads = bounds.threads;
    builder.max_branches = 5_000;
    builder.check(move || {
        TRIED.fetch_add(1, Relaxed);
        model();
    });
    say("nothing is lost");
}
