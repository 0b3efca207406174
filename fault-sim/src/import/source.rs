//! A trace or a foreign file, opened for a command that wants to read a trace.
//!
//! A foreign file is imported into a trace without a name, on disk: it goes with the [`Source`], also when the program
//! is killed. It lies in the folder that `TMPDIR` names, otherwise in `/var/tmp`, which unlike `/tmp` is rarely kept
//! in memory. A trace takes three to five bytes for an event.

use std::fs::{File, OpenOptions};
use std::io;
use std::os::fd::AsRawFd;
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

use thiserror::Error;

use super::run::not_yet_known;
use super::{ImportError, Report, Settings, import_file};
use crate::progress::Progress;
use crate::trace::{TraceError, TraceReader, TraceWriter};

/// Why a file cannot be opened as a trace.
#[derive(Debug, Error)]
#[non_exhaustive]
pub enum OpenError {
    /// It is a trace, and a bad one.
    #[error(transparent)]
    Trace(#[from] TraceError),
    /// It is none, and cannot be imported.
    #[error(transparent)]
    Import(#[from] ImportError),
    /// There is no room for what is imported.
    #[error("the trace of a foreign file cannot be kept in {folder}: {source}; name another folder by TMPDIR", folder = .folder.display())]
    Room {
        /// Where it was tried.
        folder: PathBuf,
        /// What the operating system says.
        source: io::Error,
    },
}

impl OpenError {
    /// Whether it is the request that cannot be served, and not the machine that failed.
    pub fn refuses(&self) -> bool {
        match self {
            Self::Trace(error) => !matches!(error, TraceError::Parquet { .. } | TraceError::Event { .. }),
            Self::Import(error) => error.refuses(),
            Self::Room { .. } => false,
        }
    }
}

/// A trace, or a foreign file that was imported into one.
#[derive(Debug)]
pub struct Source {
    path: PathBuf,
    /// The trace without a name, and what was found while it was made.
    imported: Option<(File, Report)>,
}

impl Source {
    /// Opens a trace, or imports a foreign file strictly, its format told by its contents. Blocks for as long as the
    /// import takes.
    ///
    /// # Errors
    /// It is neither, or a line of it is bad.
    pub fn open(path: &Path) -> Result<Self, OpenError> {
        let source = Self { path: path.to_owned(), imported: None };
        match source.reader() {
            Ok(_) => return Ok(source),
            Err(TraceError::NotParquet(_)) => {}
            Err(error) => return Err(error.into()),
        }
        let folder = std::env::var_os("TMPDIR").map_or_else(|| PathBuf::from("/var/tmp"), PathBuf::from);
        let room = |source| OpenError::Room { folder: folder.clone(), source };
        let file = nameless(&folder).map_err(room)?;
        let writer = TraceWriter::in_file(file.try_clone().map_err(room)?, &folder, &not_yet_known())?;
        let (report, _) = import_file(path, &Settings::default(), writer, &Progress::new())?;
        Ok(Self { imported: Some((file, report)), ..source })
    }

    /// A reader that begins at the first event. Each has its own place in the file, so that threads can read side by
    /// side.
    ///
    /// # Errors
    /// As [`TraceReader::open`].
    pub fn reader(&self) -> Result<TraceReader, TraceError> {
        let Some((file, _)) = &self.imported else { return TraceReader::open(&self.path) };
        // Opened anew through its descriptor: a duplicate would share its position with the others.
        let through = format!("/proc/self/fd/{}", file.as_raw_fd());
        let error = |source| TraceError::Io { what: "opened", path: self.path.clone(), source };
        TraceReader::of_file(File::open(through).map_err(error)?, &self.path)
    }

    /// What was found in a foreign file; `None` for a trace.
    pub fn report(&self) -> Option<&Report> {
        self.imported.as_ref().map(|(_, report)| report)
    }

    /// What a result that is made of it must say besides: nothing for a trace.
    pub fn notes(&self) -> Vec<String> {
        let Some(report) = self.report() else { return Vec::new() };
        let first = format!("imported from {}; `fault-sim import` says what is in it", report.format);
        [first].into_iter().chain(report.notes.iter().cloned()).collect()
    }
}

/// A file without a name in a folder.
fn nameless(folder: &Path) -> io::Result<File> {
    let mut how = OpenOptions::new();
    how.read(true).write(true).mode(0o600);
    match how.clone().custom_flags(libc::O_TMPFILE).open(folder) {
        // Some file systems cannot: then the name is taken away at once.
        Err(error) if error.raw_os_error() == Some(libc::EOPNOTSUPP) => {
            let name = folder.join(format!("fault-sim-{}.parquet", std::process::id()));
            let file = how.create_new(true).open(&name)?;
            std::fs::remove_file(&name)?;
            Ok(file)
        }
        other => other,
    }
}
