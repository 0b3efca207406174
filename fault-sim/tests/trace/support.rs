use std::path::{Path, PathBuf};
use std::process::{Command, Output};
use std::sync::atomic::{AtomicU32, Ordering};

use fault_sim::pattern::{Events, Pattern, Shape};
use fault_sim::policy::catalogue;
use fault_sim::replay::{Cost, Engine, Future, Limits, Metrics};
use fault_sim::trace::{Access, Event, EventKind, Metadata, TraceKind, TraceReader, TraceWriter};

/// The first page of the small traces: the beginning of a block.
pub const BASE: u64 = 1 << 20;
/// Pages of a block.
pub const BLOCK: u64 = 512;

/// A folder that goes when this does.
pub struct Folder(PathBuf);

impl Folder {
    pub fn new() -> Self {
        static NEXT: AtomicU32 = AtomicU32::new(0);
        let name = format!("trace-{}-{}", std::process::id(), NEXT.fetch_add(1, Ordering::Relaxed));
        let path = Path::new(env!("CARGO_TARGET_TMPDIR")).join(name);
        std::fs::create_dir_all(&path).expect("a folder for this test");
        Self(path)
    }

    pub fn file(&self, name: &str) -> PathBuf {
        self.0.join(name)
    }
}

impl Drop for Folder {
    fn drop(&mut self) {
        // What stays behind is in the build folder and harms nobody.
        let _ = std::fs::remove_dir_all(&self.0);
    }
}

pub fn metadata(kind: TraceKind) -> Metadata {
    Metadata {
        kind,
        origin: "test".to_owned(),
        clock: "virtual".to_owned(),
        policy: None,
        commit: "none".to_owned(),
        seed: None,
    }
}

pub fn write(path: &Path, kind: TraceKind, events: &[Event]) {
    let mut writer = TraceWriter::create(path, &metadata(kind)).expect("the folder can be written");
    events.iter().for_each(|event| writer.push(*event).expect("an event can be written"));
    writer.finish().expect("the trace can be finished");
}

pub fn read(path: &Path) -> Vec<Event> {
    let mut reader = TraceReader::open(path).expect("a trace");
    let (mut all, mut events) = (Vec::new(), Vec::new());
    while reader.read(&mut events).expect("good events") {
        all.extend_from_slice(&events);
    }
    all
}

/// Reads of the device, a page (from the base) per microsecond.
pub fn reads(pages: &[u64]) -> Vec<Event> {
    let event = |(at, page): (u64, &u64)| Event::access(at * 1000, BASE + page, Access::Read, 0);
    (0..).zip(pages).map(event).collect()
}

/// Plays events under a policy with nothing costing anything.
pub fn play(policy: &str, device_pages: u64, events: &[Event]) -> Metrics {
    play_with(policy, Limits::new(device_pages * 4096), Cost::FREE, events)
}

pub fn play_with(policy: &str, limits: Limits, cost: Cost, events: &[Event]) -> Metrics {
    let plan = catalogue::parse(policy).unwrap_or_else(|error| panic!("{error}"));
    let mut future = Future::default();
    future.feed(events).expect("a short trace");
    let mut engine = Engine::new(plan.build(1, Some(&future)), cost, limits).expect("enough device memory");
    engine.expect(&future);
    engine.feed(events);
    engine.finish().0
}

/// Generated events.
pub fn generated(pattern: Pattern, pages: u64, events: u64, seed: u64) -> Vec<Event> {
    let shape =
        Shape { pages, events, seed, engines: 4, gap_ns: 100, cpu_per_myriad: 0, unmap_per_myriad: 0 };
    Events::new(pattern, shape).expect("a good shape").collect()
}

pub fn unmap(time_ns: u64, page: u64, pages: u32) -> Event {
    Event::range(time_ns, BASE + page, pages, EventKind::Unmap)
}

pub fn map(time_ns: u64, page: u64, pages: u32) -> Event {
    Event::range(time_ns, BASE + page, pages, EventKind::Map)
}

/// Runs the built program in a folder.
pub fn fault_sim(folder: &Folder, words: &[&str]) -> Output {
    let mut command = Command::new(env!("CARGO_BIN_EXE_fault-sim"));
    command.args(words).current_dir(&folder.0).output().expect("the built program starts")
}

/// Its standard output; the exit status must be 0.
pub fn said(folder: &Folder, words: &[&str]) -> String {
    let out = fault_sim(folder, words);
    assert_eq!(out.status.code(), Some(0), "{words:?}: {}", String::from_utf8_lossy(&out.stderr));
    String::from_utf8(out.stdout).expect("output is UTF-8")
}

/// One JSON object on one line.
pub fn object(folder: &Folder, words: &[&str]) -> serde_json::Value {
    let text = said(folder, words);
    assert_eq!(text.lines().count(), 1, "{words:?}: {text}");
    serde_json::from_str(&text).unwrap_or_else(|error| panic!("{words:?}: {error}: {text}"))
}

/// It ends with this status, one sentence that says `why`, and nothing on standard output.
pub fn fails(folder: &Folder, status: i32, words: &[&str], why: &str) {
    let out = fault_sim(folder, words);
    let sentence = String::from_utf8_lossy(&out.stderr);
    assert_eq!(out.status.code(), Some(status), "{words:?}: {sentence}");
    assert!(out.stdout.is_empty(), "{words:?} printed to standard output");
    assert_eq!(sentence.lines().count(), 1, "{words:?}: one sentence: {sentence}");
    assert!(sentence.contains(why), "{words:?}: {sentence:?} does not say {why:?}");
}
