use std::path::{Path, PathBuf};
use std::process::{Command, Output};
use std::sync::atomic::{AtomicU32, Ordering};

use fault_sim::import::{ImportError, Report, Settings, import};
use fault_sim::progress::Progress;
use fault_sim::trace::{Access, Event, EventKind, TraceReader};

/// A folder that goes when this does.
pub struct Folder(PathBuf);

impl Folder {
    pub fn new() -> Self {
        static NEXT: AtomicU32 = AtomicU32::new(0);
        let name = format!("import-{}-{}", std::process::id(), NEXT.fetch_add(1, Ordering::Relaxed));
        let path = Path::new(env!("CARGO_TARGET_TMPDIR")).join(name);
        std::fs::create_dir_all(&path).expect("a folder for this test");
        Self(path)
    }

    /// A file with these contents.
    pub fn with(&self, name: &str, contents: impl AsRef<[u8]>) -> PathBuf {
        let path = self.file(name);
        std::fs::write(&path, contents).expect("the folder can be written");
        path
    }

    pub fn file(&self, name: &str) -> PathBuf {
        self.0.join(name)
    }

    pub fn names(&self) -> Vec<String> {
        let entries = std::fs::read_dir(&self.0).expect("the folder can be read");
        let name = |entry: std::io::Result<std::fs::DirEntry>| {
            entry.expect("an entry").file_name().to_string_lossy().into_owned()
        };
        let mut names: Vec<_> = entries.map(name).collect();
        names.sort();
        names
    }
}

impl Drop for Folder {
    fn drop(&mut self) {
        // What stays behind is in the build folder and harms nobody.
        let _ = std::fs::remove_dir_all(&self.0);
    }
}

/// The contents of a fixture.
pub fn fixture(name: &str) -> Vec<u8> {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/import/fixtures").join(name);
    std::fs::read(&path).unwrap_or_else(|error| panic!("{}: {error}", path.display()))
}

/// What a file holds.
pub fn imported(path: &Path, settings: &Settings) -> Result<(Report, Vec<Event>), ImportError> {
    let mut events = Vec::new();
    let report = import(path, settings, &mut events, &Progress::new())?;
    Ok((report, events))
}

/// What a text holds; it must be good.
pub fn text(folder: &Folder, contents: impl AsRef<[u8]>) -> (Report, Vec<Event>) {
    let path = folder.with("text", contents);
    imported(&path, &Settings::default()).unwrap_or_else(|error| panic!("{error}"))
}

/// The sentence with which a text is refused.
pub fn refused(folder: &Folder, contents: impl AsRef<[u8]>) -> String {
    let path = folder.with("text", contents);
    match imported(&path, &Settings::default()) {
        Ok((report, _)) => panic!("it is taken: {report:?}"),
        Err(error) => error.to_string(),
    }
}

/// What a bad text holds under `--lenient`.
pub fn lenient(folder: &Folder, contents: impl AsRef<[u8]>) -> (Report, Vec<Event>) {
    let path = folder.with("text", contents);
    let settings = Settings { lenient: true, ..Settings::default() };
    imported(&path, &settings).unwrap_or_else(|error| panic!("{error}"))
}

/// A fault of a device.
pub fn fault(time_ns: u64, page: u64, access: Access, engine: u16) -> Event {
    Event { kind: EventKind::DeviceFault, ..Event::access(time_ns, page, access, engine) }
}

/// Each bad line behind a good file is an error with its number, and is left out under `--lenient`.
pub fn each_is_bad(good: &[u8], bad: &[(&str, &str)]) {
    let folder = Folder::new();
    let number = good.iter().filter(|byte| **byte == b'\n').count() + 1;
    let events = text(&folder, good).1.len();
    for (line, why) in bad {
        let lines = [good, line.as_bytes(), b"\n"].concat();
        let sentence = refused(&folder, &lines);
        assert!(
            sentence.contains(&format!("line {number} of")) && sentence.contains(why),
            "{line}: {sentence}"
        );
        let (report, left) = lenient(&folder, &lines);
        assert_eq!((report.skipped, left.len()), (1, events), "{line}");
    }
}

pub fn read(path: &Path) -> Vec<Event> {
    let mut reader = TraceReader::open(path).expect("a trace");
    let (mut all, mut events) = (Vec::new(), Vec::new());
    while reader.read(&mut events).expect("good events") {
        all.extend_from_slice(&events);
    }
    all
}

/// Runs the built program in a folder.
pub fn fault_sim(folder: &Folder, words: &[&str]) -> Output {
    let mut command = Command::new(env!("CARGO_BIN_EXE_fault-sim"));
    command.args(words).current_dir(folder.file("")).output().expect("the built program starts")
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
