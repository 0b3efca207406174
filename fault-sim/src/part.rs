//! A file that is whole or not there: it is written beside its place and renamed at the end. What is no plain file (a
//! pipe, a terminal, a device) is written where it stands, for a rename would put a file in its place.

use std::io;
use std::path::{Path, PathBuf};

/// Where a file is written until it is whole.
#[derive(Debug)]
pub struct Part {
    at: PathBuf,
    /// Its name once it is whole, if that is another.
    place: Option<PathBuf>,
}

impl Part {
    /// For a file that is to stand at `path`; behind a link, where the link leads.
    ///
    /// # Errors
    /// A folder stands there.
    pub fn of(path: &Path) -> io::Result<Self> {
        match std::fs::metadata(path) {
            Ok(there) if there.is_dir() => Err(io::ErrorKind::IsADirectory.into()),
            Ok(there) if !there.is_file() => Ok(Self { at: path.to_owned(), place: None }),
            _ => {
                let place = std::fs::canonicalize(path).unwrap_or_else(|_| path.to_owned());
                let mut at = place.as_os_str().to_owned();
                at.push(".part");
                Ok(Self { at: at.into(), place: Some(place) })
            }
        }
    }

    /// For a file that is open already and stays where it is.
    pub fn in_place(path: &Path) -> Self {
        Self { at: path.to_owned(), place: None }
    }

    /// Where it is written.
    pub fn at(&self) -> &Path {
        &self.at
    }

    /// It is whole: gives it its name.
    ///
    /// # Errors
    /// It cannot be renamed; it stays where it was written.
    pub fn finish(&self) -> io::Result<()> {
        self.place.as_ref().map_or(Ok(()), |place| std::fs::rename(&self.at, place))
    }

    /// It will not be whole: removes what was written.
    pub fn give_up(&self) {
        if self.place.is_some() {
            // What cannot be removed stays under a name that says what it is.
            let _ = std::fs::remove_file(&self.at);
        }
    }
}
