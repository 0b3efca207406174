use std::path::PathBuf;

use thiserror::Error;

use super::Format;
use crate::trace::TraceError;

/// Why a line (or an entry of a binary file, or a row) cannot be read.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
#[non_exhaustive]
pub enum BadLine {
    /// A field is not there.
    #[error("{0} is missing")]
    Missing(&'static str),
    /// A field is there and cannot be read.
    #[error("{field} is {found:?}, which is not {wanted}")]
    Field {
        /// Which.
        field: &'static str,
        /// What stands there, shortened.
        found: String,
        /// What should.
        wanted: &'static str,
    },
    /// A field is a number that cannot be true.
    #[error("{field} = {found} cannot be: {why}")]
    Range {
        /// Which.
        field: &'static str,
        /// Its value.
        found: u64,
        /// Why not.
        why: &'static str,
    },
    /// Another number of fields than the format has.
    #[error("it has {found} fields instead of {wanted}")]
    Count {
        /// How many.
        found: usize,
        /// How many there should be.
        wanted: &'static str,
    },
    /// Longer than any line of any format.
    #[error("it is longer than {0} bytes")]
    TooLong(usize),
    /// It is of another process than the lines before it.
    #[error(
        "it is of {what} {other} after {what} {first}: their addresses have nothing to do with one another; name the one that is meant with --pid {other}, those that share an address space with --pid {first},{other}, or --pid all"
    )]
    Space {
        /// What the numbers are.
        what: &'static str,
        /// The one before.
        first: u64,
        /// This one.
        other: u64,
    },
    /// The file ends inside it.
    #[error("the file ends in the middle of it; copy or make the file again")]
    CutOff,
    /// It is of none of the kinds that the format has.
    #[error("{found:?} is not {wanted}")]
    Other {
        /// What stands there, shortened.
        found: String,
        /// What should.
        wanted: &'static str,
    },
}

impl BadLine {
    /// A field that cannot be read.
    pub(super) fn field(field: &'static str, found: &str, wanted: &'static str) -> Self {
        Self::Field { field, found: short(found), wanted }
    }
}

impl BadLine {
    /// Whether it may be left out under `--lenient`.
    pub fn can_be_left_out(&self) -> bool {
        !matches!(self, Self::Space { .. })
    }

    /// How a person gets on.
    fn way_out(&self) -> &'static str {
        if self.can_be_left_out() { "; `fault-sim import --lenient` leaves such lines out" } else { "" }
    }
}

/// The beginning of a text, for a sentence.
fn short(text: &str) -> String {
    beginning(text, 40)
}

/// What SQLite says, which may quote much of the data base.
fn one_line(source: &rusqlite::Error) -> String {
    let text = source.to_string();
    beginning(&text.split_whitespace().collect::<Vec<_>>().join(" "), 160)
}

fn beginning(text: &str, most: usize) -> String {
    let mut shown: String = text.chars().take(most).collect();
    if shown.len() < text.len() {
        shown.push_str("...");
    }
    shown
}

/// Why a file cannot be imported.
#[derive(Debug, Error)]
#[non_exhaustive]
pub enum ImportError {
    /// The operating system refuses.
    #[error("{path} cannot be {what}: {source}", path = .path.display())]
    Io {
        /// What was tried.
        what: &'static str,
        /// Which file.
        path: PathBuf,
        /// What the operating system says.
        source: std::io::Error,
    },
    /// No bytes at all.
    #[error("{path} is empty: there is nothing to import; make it again", path = .0.display())]
    Empty(PathBuf),
    /// Of no format that is known.
    #[error(
        "{path} is no trace and of no format that can be imported; `fault-sim list formats` names them, and --format of `fault-sim import` says which it is",
        path = .0.display()
    )]
    Unknown(PathBuf),
    /// A file of a tool that must turn it into a readable one first.
    #[error("{path} is {what}; turn it into what can be imported with `{command}`", path = .path.display())]
    Convert {
        /// Which file.
        path: PathBuf,
        /// What it is.
        what: &'static str,
        /// The command.
        command: String,
    },
    /// It is a trace already.
    #[error("{path} is a trace already; there is nothing to import", path = .0.display())]
    AlreadyTrace(PathBuf),
    /// A bad line of a text.
    #[error("line {number} of {path} is no line of {format}: {source}{way}", path = .path.display(), format = .format.name(), way = .source.way_out())]
    Line {
        /// Which file.
        path: PathBuf,
        /// Of which format.
        format: Format,
        /// Counted from 1.
        number: u64,
        /// What is wrong.
        source: BadLine,
    },
    /// A bad entry of a binary file.
    #[error("entry {number} of {path}, {format}, means nothing: {source}{way}", path = .path.display(), format = .format.name(), way = .source.way_out())]
    Entry {
        /// Which file.
        path: PathBuf,
        /// Of which format.
        format: Format,
        /// Counted from 0.
        number: u64,
        /// What is wrong.
        source: BadLine,
    },
    /// A bad row of a data base.
    #[error("row {number} of {table} in {path} means nothing: {source}{way}", path = .path.display(), way = .source.way_out())]
    Row {
        /// Which file.
        path: PathBuf,
        /// Which table.
        table: &'static str,
        /// Its rowid.
        number: u64,
        /// What is wrong.
        source: BadLine,
    },
    /// A data base of another making.
    #[error("{table} in {path} has no column {column}; export it again with `nsys export --type sqlite` of Nsight Systems 2021 or later", path = .path.display())]
    Column {
        /// Which file.
        path: PathBuf,
        /// Which table.
        table: &'static str,
        /// Which column.
        column: &'static str,
    },
    /// A data base whose end is missing.
    #[error("{path} is cut off: it has {bytes} bytes, and its header speaks of {wanted} in whole pages; copy or export it again", path = .path.display())]
    CutOff {
        /// Which file.
        path: PathBuf,
        /// What it has.
        bytes: u64,
        /// What its header says.
        wanted: u64,
    },
    /// SQLite refuses.
    #[error("{path} cannot be read as the SQLite data base that it begins like: {why}; export it again with `nsys export --type sqlite`", path = .path.display(), why = one_line(.source))]
    Base {
        /// Which file.
        path: PathBuf,
        /// What SQLite says.
        source: rusqlite::Error,
    },
    /// Not one event.
    #[error("{path} is {format} and holds no {what}; {advice}", path = .path.display(), format = .format.name())]
    Nothing {
        /// Which file.
        path: PathBuf,
        /// Of which format.
        format: Format,
        /// What is not there.
        what: &'static str,
        /// What would record it.
        advice: &'static str,
    },
    /// The trace cannot be written.
    #[error(transparent)]
    Trace(#[from] TraceError),
}

impl ImportError {
    /// Whether it is the request that cannot be served (nothing was done), and not the machine that failed.
    pub fn refuses(&self) -> bool {
        !matches!(self, Self::Trace(_) | Self::Io { .. })
    }
}
