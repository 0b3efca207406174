//! Where results go: standard output, or a file that is whole or not there.

use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use thiserror::Error;

use crate::part::Part;
use crate::{FAILED, REFUSED};

/// The form of a result.
#[derive(clap::Args, Clone, Debug, Default)]
pub struct Output {
    /// Print one JSON object.
    #[arg(long, conflicts_with = "csv")]
    pub json: bool,
    /// Print rows of CSV.
    #[arg(long)]
    pub csv: bool,
    /// Write to this file instead of standard output [as JSON unless --csv is given].
    #[arg(short, long, value_name = "FILE")]
    pub output: Option<PathBuf>,
}

/// Why a result cannot be written.
#[derive(Debug, Error)]
#[error("the result cannot be written to {path}: {source}", path = .path.display())]
pub struct OutputError {
    path: PathBuf,
    source: std::io::Error,
}

impl Output {
    /// Writes a text where it was asked for.
    ///
    /// # Errors
    /// The file cannot be written.
    pub fn write(&self, text: &str) -> Result<(), OutputError> {
        match &self.output {
            None => to_stdout(text),
            Some(path) => write_whole(path, text.as_bytes()),
        }
    }

    /// Whether the result is JSON: asked for, or written to a file without another wish.
    pub fn is_json(&self) -> bool {
        self.json || (self.output.is_some() && !self.csv)
    }
}

/// Writes a text to standard output. A reader that has closed it has seen enough: no error.
///
/// # Errors
/// It cannot be written (a disk is full).
pub fn to_stdout(text: &str) -> Result<(), OutputError> {
    let mut out = std::io::stdout().lock();
    match out.write_all(text.as_bytes()).and_then(|()| out.flush()) {
        Err(source) if source.kind() != std::io::ErrorKind::BrokenPipe => {
            Err(OutputError { path: "standard output".into(), source })
        }
        _ => Ok(()),
    }
}

/// Writes a file that is whole or not there.
///
/// # Errors
/// The file cannot be written.
pub fn write_whole(path: &Path, bytes: &[u8]) -> Result<(), OutputError> {
    let error = |source| OutputError { path: path.to_owned(), source };
    let part = Part::of(path).map_err(error)?;
    let written = std::fs::write(part.at(), bytes).and_then(|()| part.finish());
    written.inspect_err(|_| part.give_up()).map_err(error)
}

/// What a command ends with: an error that refuses it before any work, or one on the way.
pub trait Ending: std::fmt::Display {
    /// Whether nothing was done.
    fn refuses(&self) -> bool;
}

/// Prints the sentence of an error, if there is one, and gives the exit status.
pub fn end<E: Ending>(result: Result<(), E>) -> ExitCode {
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("{error}");
            ExitCode::from(if error.refuses() { REFUSED } else { FAILED })
        }
    }
}
