use std::path::PathBuf;

use parquet::errors::ParquetError;
use thiserror::Error;

/// Why a trace cannot be written or read.
#[derive(Debug, Error)]
#[non_exhaustive]
pub enum TraceError {
    /// The operating system refuses.
    #[error("{path} cannot be {what}: {source}", path = .path.display())]
    Io {
        /// What was tried: `opened`, `written`, `renamed`.
        what: &'static str,
        /// Which file.
        path: PathBuf,
        /// What the operating system says.
        source: std::io::Error,
    },
    /// No bytes at all.
    #[error("{path} is empty: a trace has at least a header; make it again", path = .0.display())]
    Empty(PathBuf),
    /// Another kind of file.
    #[error("{path} is no Parquet file, so it is no trace; `fault-sim gen` makes one", path = .0.display())]
    NotParquet(PathBuf),
    /// The end is missing, and no checkpoint is in what is left.
    #[error(
        "{path} is cut off: its footer is missing and it holds no checkpoint to fall back to; copy or make it again",
        path = .0.display()
    )]
    CutOff(PathBuf),
    /// A Parquet file of something else.
    #[error("{path} is a Parquet file without the column {column}, so it is no trace", path = .path.display())]
    MissingColumn {
        /// Which file.
        path: PathBuf,
        /// Which column of docs/trace-format.md.
        column: &'static str,
    },
    /// A column of another type.
    #[error("the column {column} of {path} is not of type {wanted} and required; see docs/trace-format.md", path = .path.display())]
    WrongType {
        /// Which file.
        path: PathBuf,
        /// Which column.
        column: &'static str,
        /// Its type in the format.
        wanted: &'static str,
    },
    /// Metadata that cannot be true.
    #[error("{path} says {key} = {value:?}, which no trace has; see docs/trace-format.md", path = .path.display())]
    Metadata {
        /// Which file.
        path: PathBuf,
        /// Which key.
        key: &'static str,
        /// Its value.
        value: String,
    },
    /// An event that cannot be true.
    #[error("event {index} of {path} has {column} = {value}, which means nothing; see docs/trace-format.md", path = .path.display())]
    Event {
        /// Which file.
        path: PathBuf,
        /// Its position, counted from 0.
        index: u64,
        /// Which column.
        column: &'static str,
        /// Its value.
        value: i64,
    },
    /// The Parquet library refuses.
    #[error("{path} cannot be {what}: {source}", path = .path.display())]
    Parquet {
        /// What was tried.
        what: &'static str,
        /// Which file.
        path: PathBuf,
        /// What the library says.
        source: ParquetError,
    },
}
