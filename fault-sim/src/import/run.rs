//! One file through one format into a sink.

use std::fs::File;
use std::io::{BufReader, Read, Seek};
use std::path::{Path, PathBuf};

use clap::ValueEnum;

use super::format::Seen;
use super::lines::{Lines, MOST_BYTES};
use super::uvm_tools::{UvmTools, Version, version};
use super::{BadLine, Format, ImportError, Pids, Report, Sink, Take, nsys};
use crate::progress::Progress;
use crate::result::COMMIT;
use crate::trace::{Access, Event, EventKind, Metadata, Summary, TraceWriter};

/// So far into a file its format is looked for.
const LOOK_BYTES: u64 = 64 << 20;
/// What is read at once.
const CHUNK_BYTES: usize = 1 << 18;

/// Whose touches a trace of a CPU program holds.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default, ValueEnum)]
pub enum Side {
    /// A device's: what would happen if it ran this program.
    #[default]
    Device,
    /// The CPU's, as they were.
    Cpu,
}

/// How a file is imported.
#[derive(Clone, Debug, Default)]
pub struct Settings {
    /// The format, if it is not to be detected.
    pub format: Option<Format>,
    /// Bad lines are counted and left out.
    pub lenient: bool,
    /// Where the touches of CPU programs go.
    pub side: Side,
    /// Whose lines are meant where a file has those of several processes.
    pub pids: Pids,
}

impl Settings {
    /// A fault of a CPU program.
    pub(super) fn fault(&self, time_ns: u64, page: u64, access: Access, engine: u16) -> Event {
        let kind = if self.side == Side::Device { EventKind::DeviceFault } else { EventKind::CpuFault };
        Event { kind, ..Event::access(time_ns, page, access, engine) }
    }

    /// A touch by a CPU program, whether it faulted or not.
    pub(super) fn access(&self, time_ns: u64, page: u64, access: Access) -> Event {
        match self.side {
            Side::Device => Event::access(time_ns, page, access, 0),
            Side::Cpu => Event::cpu(time_ns, page, access),
        }
    }

    /// What is said where [`Settings::side`] turned touches into another's.
    pub(super) fn side_note(&self) -> Option<String> {
        let note = "these are touches of a CPU, taken for those of a device; `fault-sim import --side cpu` keeps them";
        (self.side == Side::Device).then(|| note.to_owned())
    }
}

/// A file that is about to be imported.
struct Input {
    path: PathBuf,
    file: File,
    bytes: u64,
}

impl Input {
    fn open(path: &Path) -> Result<Self, ImportError> {
        let io = |source| ImportError::Io { what: "opened", path: path.to_owned(), source };
        let file = File::open(path).map_err(io)?;
        let facts = file.metadata().map_err(io)?;
        if !facts.is_file() {
            return Err(io(std::io::Error::other("it is not a plain file")));
        }
        if facts.len() == 0 {
            return Err(ImportError::Empty(path.to_owned()));
        }
        Ok(Self { path: path.to_owned(), file, bytes: facts.len() })
    }

    fn io(&self, source: std::io::Error) -> ImportError {
        ImportError::Io { what: "read", path: self.path.clone(), source }
    }

    /// Its first bytes.
    fn head(&mut self) -> Result<Vec<u8>, ImportError> {
        let mut head = Vec::new();
        let read = self.file.by_ref().take(4096).read_to_end(&mut head).map(drop);
        read.and_then(|()| self.file.rewind()).map_err(|source| self.io(source))?;
        Ok(head)
    }

    /// Its format, by its contents.
    fn detect(&mut self, settings: &Settings) -> Result<Format, ImportError> {
        let head = self.head()?;
        if head.starts_with(b"PAR1") {
            return Err(ImportError::AlreadyTrace(self.path.clone()));
        }
        if let Some((what, command)) = convertible(&head, &self.path) {
            return Err(ImportError::Convert { path: self.path.clone(), what, command });
        }
        if head.starts_with(b"SQLite format 3\0") {
            return Ok(Format::Nsys);
        }
        if head.contains(&0) {
            let version = version(&head, self.bytes);
            let format = version.map(|version| match version {
                Version::One => Format::UvmToolsV1,
                Version::Two => Format::UvmToolsV2,
            });
            return format.ok_or_else(|| self.unknown());
        }
        let found = self.detect_text(settings);
        self.file.rewind().map_err(|source| self.io(source))?;
        found?.ok_or_else(|| self.unknown())
    }

    /// What is said of a file of no format. A recording of Nsight Systems has no mark in its contents that is
    /// documented, so here, where nothing else is left, its name is looked at.
    fn unknown(&self) -> ImportError {
        let path = self.path.clone();
        let is_recording = path.extension().is_some_and(|name| name == "nsys-rep" || name == "qdrep");
        if !is_recording {
            return ImportError::Unknown(path);
        }
        let command = format!("nsys export --type sqlite {}", path.display());
        ImportError::Convert { path, what: "a recording of Nsight Systems", command }
    }

    /// The format of which the first line is that any format takes for its own; if there is none, of which the first
    /// line is that is a mark of a format, or a bad one.
    fn detect_text(&mut self, settings: &Settings) -> Result<Option<Format>, ImportError> {
        let all = Format::value_variants().iter();
        let mut parsers: Vec<_> =
            all.filter_map(|format| Some((*format, format.parser(settings)?))).collect();
        let mut lines = Lines::new(BufReader::with_capacity(CHUNK_BYTES, &self.file));
        let (mut second_best, mut events) = (None, Vec::new());
        while lines.bytes() < LOOK_BYTES {
            let next = lines.next();
            let Some(line) = next.map_err(|source| self.io(source))? else { break };
            for (format, parser) in &mut parsers {
                events.clear();
                match parser.line(&line.text, &mut events) {
                    Ok(Seen::Taken) => return Ok(Some(*format)),
                    Ok(Seen::Mark) | Err(_) => second_best = second_best.or(Some(*format)),
                    Ok(Seen::Other) => {}
                }
            }
        }
        Ok(second_best)
    }

    /// Entries of one size.
    fn entries(
        &mut self,
        format: Format,
        version: Version,
        settings: &Settings,
        sink: &mut Sink<'_>,
        progress: &Progress,
    ) -> Result<Report, ImportError> {
        let mut report = Report::new(&self.path, format, self.bytes);
        let mut parser = UvmTools::new(version);
        let mut from = BufReader::with_capacity(CHUNK_BYTES, &self.file);
        let (mut entry, mut shown) = (Vec::with_capacity(version.bytes()), 0);
        loop {
            entry.clear();
            let read = from.by_ref().take(version.bytes() as u64).read_to_end(&mut entry);
            let read = read.map_err(|source| self.io(source))?;
            if read == 0 {
                break;
            }
            shown += read as u64;
            if shown >= CHUNK_BYTES as u64 {
                progress.add(std::mem::take(&mut shown));
            }
            let number = report.lines;
            report.lines += 1;
            let found = if read < version.bytes() { Err(BadLine::CutOff) } else { parser.entry(&entry) };
            match found {
                Ok(Some(event)) => sink.push(event)?,
                Ok(None) => report.other += 1,
                Err(source) if settings.lenient => report.skip(number, &source),
                Err(source) => {
                    return Err(ImportError::Entry { path: self.path.clone(), format, number, source });
                }
            }
        }
        sink.finish()?;
        report.close(parser.findings(), sink);
        Ok(report)
    }

    fn text(
        &mut self,
        format: Format,
        settings: &Settings,
        sink: &mut Sink<'_>,
        progress: &Progress,
    ) -> Result<Report, ImportError> {
        let mut report = Report::new(&self.path, format, self.bytes);
        let Some(mut parser) = format.parser(settings) else {
            return Err(ImportError::Unknown(self.path.clone()));
        };
        let mut lines = Lines::new(BufReader::with_capacity(CHUNK_BYTES, &self.file));
        let (mut events, mut shown) = (Vec::<Event>::new(), 0);
        loop {
            if lines.bytes() - shown >= CHUNK_BYTES as u64 {
                progress.add(lines.bytes() - shown);
                shown = lines.bytes();
            }
            let next = lines.next();
            let Some(line) = next.map_err(|source| self.io(source))? else { break };
            report.lines += 1;
            events.clear();
            let seen = if line.too_long {
                Err(BadLine::TooLong(MOST_BYTES))
            } else {
                let seen = parser.line(&line.text, &mut events);
                match seen {
                    // Half a number is a number, too: a line that was cut may read well and be wrong.
                    Ok(Seen::Taken) | Err(_) if !line.ended && format.ends_every_line() => {
                        Err(BadLine::CutOff)
                    }
                    other => other,
                }
            };
            match seen {
                Ok(Seen::Taken) => {
                    for event in events.drain(..) {
                        sink.push(event)?;
                    }
                }
                Ok(Seen::Mark | Seen::Other) => report.other += 1,
                Err(source) if settings.lenient && source.can_be_left_out() => {
                    report.skip(line.number, &source)
                }
                Err(source) => {
                    let (path, number) = (self.path.clone(), line.number);
                    return Err(ImportError::Line { path, format, number, source });
                }
            }
        }
        sink.finish()?;
        report.close(parser.findings(), sink);
        Ok(report)
    }
}

/// What a file is that its own tool must turn into a text first, and the command that does.
fn convertible(head: &[u8], path: &Path) -> Option<(&'static str, String)> {
    let path = path.display();
    let known: [(&[u8], &str, String); 5] = [
        (
            b"PERFILE2",
            "a recording of perf",
            format!("perf script -F comm,pid,tid,time,event,addr,ip -i {path}"),
        ),
        (b"\x17\x08\x44tracing", "a recording of trace-cmd", format!("trace-cmd report -i {path}")),
        (b"\x1f\x8b", "compressed", format!("gunzip --keep {path}")),
        (b"\xfd7zXZ\0", "compressed", format!("unxz --keep {path}")),
        (b"\x28\xb5\x2f\xfd", "compressed", format!("unzstd {path}")),
    ];
    let found = known.into_iter().find(|(magic, ..)| head.starts_with(magic));
    found.map(|(_, what, command)| (what, command))
}

/// The format of a file, by its contents.
///
/// # Errors
/// It cannot be read, or is of none.
pub fn detect(path: &Path) -> Result<Format, ImportError> {
    Input::open(path)?.detect(&Settings::default())
}

/// Reads a file and gives its events to `into`, in the order of time as far as a window reaches.
///
/// # Errors
/// It cannot be read, is of no format, holds no event, or a line is bad; see [`ImportError`].
pub fn import(
    path: &Path,
    settings: &Settings,
    into: &mut dyn Take,
    progress: &Progress,
) -> Result<Report, ImportError> {
    let mut input = Input::open(path)?;
    let format = match settings.format {
        Some(format) => format,
        None => input.detect(settings)?,
    };
    progress.begin("import", input.bytes);
    let mut sink = Sink::new(into);
    let report = match format.entries() {
        Some(version) => input.entries(format, version, settings, &mut sink, progress)?,
        None if format == Format::Nsys => nsys::read(path, input.bytes, settings, &mut sink)?,
        None => input.text(format, settings, &mut sink, progress)?,
    };
    progress.clear();
    if report.events == 0 {
        let nothing = format.nothing();
        let (what, advice) = (nothing.what, nothing.advice);
        return Err(ImportError::Nothing { path: path.to_owned(), format, what, advice });
    }
    Ok(report)
}

/// Reads a file into a trace. On an error nothing is left of the trace.
///
/// # Errors
/// As [`import`]; or the trace cannot be written.
pub fn import_file(
    path: &Path,
    settings: &Settings,
    mut writer: TraceWriter,
    progress: &Progress,
) -> Result<(Report, Summary), ImportError> {
    match import(path, settings, &mut writer, progress) {
        Ok(report) => {
            writer.describe(&report.metadata(COMMIT));
            let summary = writer.finish()?;
            Ok((report, summary))
        }
        Err(error) => {
            writer.give_up();
            Err(error)
        }
    }
}

/// As [`import_file`], into a trace at `output`. Nothing is written if the file is of no format.
///
/// # Errors
/// As [`import_file`].
pub fn import_to(
    path: &Path,
    settings: &Settings,
    output: &Path,
    progress: &Progress,
) -> Result<(Report, Summary), ImportError> {
    let format = settings.format.map_or_else(|| detect(path), Ok)?;
    let writer = TraceWriter::create(output, &not_yet_known())?;
    import_file(path, &Settings { format: Some(format), ..settings.clone() }, writer, progress)
}

/// What a trace says of itself until its source was read.
pub(super) fn not_yet_known() -> Metadata {
    Metadata {
        kind: crate::trace::TraceKind::Faults,
        origin: "import".to_owned(),
        clock: "unknown".to_owned(),
        policy: None,
        commit: COMMIT.to_owned(),
        seed: None,
    }
}
