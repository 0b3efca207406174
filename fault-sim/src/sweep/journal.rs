use std::collections::HashMap;
use std::fs::{File, OpenOptions};
use std::hash::{DefaultHasher, Hash, Hasher};
use std::io::{self, Read, Seek, SeekFrom, Write};
use std::path::{Path, PathBuf};
use std::sync::{Mutex, PoisonError};

use thiserror::Error;

/// The rows of a sweep that are done, in the file `RESULT.rows`, for the call that goes on after an interrupt.
///
/// The file is lines. The first names the format and what the rows are of: the program, the trace, the form of a row.
/// Each other line is one row behind its key and its checksum, appended by one write when its setting was played. What an
/// interrupt tore, at the end or in the middle, fails its checksum and is played again.
#[derive(Debug)]
pub struct Journal {
    path: PathBuf,
    file: Mutex<File>,
    done: HashMap<u64, String>,
}

/// Why rows cannot be kept.
#[derive(Debug, Error)]
#[error("the rows that are done cannot be kept in {path}: {source}; give another -o", path = .path.display())]
pub struct JournalError {
    path: PathBuf,
    source: io::Error,
}

fn hash_of(what: &[u8]) -> u64 {
    let mut hasher = DefaultHasher::new();
    what.hash(&mut hasher);
    hasher.finish()
}

/// What a program and a trace are told from others by.
///
/// # Errors
/// The trace cannot be read.
pub fn identity(commit: &str, trace: &Path, form: &str) -> io::Result<u64> {
    let mut hasher = DefaultHasher::new();
    (commit, trace, form).hash(&mut hasher);
    hash_file(trace, &mut hasher)?;
    // A commit does not say what a changed program is.
    if commit.ends_with("-changed") || commit == "unknown" {
        hash_file(&std::env::current_exe()?, &mut hasher)?;
    }
    Ok(hasher.finish())
}

fn hash_file(path: &Path, hasher: &mut DefaultHasher) -> io::Result<()> {
    let mut file = File::open(path)?;
    let mut bytes = vec![0; 1 << 20];
    loop {
        match file.read(&mut bytes)? {
            0 => return Ok(()),
            count => hasher.write(&bytes[..count]),
        }
    }
}

impl Journal {
    /// Where the journal of a result stands.
    pub fn place(result: &Path) -> PathBuf {
        let mut path = result.as_os_str().to_owned();
        path.push(".rows");
        path.into()
    }

    /// Opens the journal of a result, with the rows that an interrupted sweep of the same identity left. What is of
    /// another identity is thrown away.
    ///
    /// # Errors
    /// The file cannot be read or written.
    pub fn open(result: &Path, identity: u64) -> Result<Self, JournalError> {
        let path = Self::place(result);
        let (file, done) =
            Self::read(&path, identity).map_err(|source| JournalError { path: path.clone(), source })?;
        Ok(Self { path, file: Mutex::new(file), done })
    }

    fn read(path: &Path, identity: u64) -> io::Result<(File, HashMap<u64, String>)> {
        let mut file = OpenOptions::new().read(true).write(true).create(true).truncate(false).open(path)?;
        let mut bytes = Vec::new();
        file.read_to_end(&mut bytes)?;
        let header = format!("granule-sweep-1 {identity:016x}\n");
        if !bytes.starts_with(header.as_bytes()) {
            file.set_len(0)?;
            file.seek(SeekFrom::Start(0))?;
            file.write_all(header.as_bytes())?;
            return Ok((file, HashMap::new()));
        }
        let whole = bytes.iter().rposition(|byte| *byte == b'\n').map_or(0, |at| at + 1);
        let lines = bytes[header.len()..whole].split(|byte| *byte == b'\n');
        let done = lines.filter_map(|line| entry(std::str::from_utf8(line).ok()?)).collect();
        // The next row must not stand behind half of one.
        file.set_len(whole as u64)?;
        file.seek(SeekFrom::Start(whole as u64))?;
        Ok((file, done))
    }

    /// The row of a setting, if it was played.
    pub fn row(&self, key: u64) -> Option<&str> {
        self.done.get(&key).map(String::as_str)
    }

    /// Keeps the row of a setting, which ends with a line break. Any thread may call.
    ///
    /// # Errors
    /// It cannot be written.
    pub fn keep(&self, key: u64, row: &str) -> Result<(), JournalError> {
        let line = format!("{key:016x} {:016x} {row}", hash_of(row.as_bytes()));
        let mut file = self.file.lock().unwrap_or_else(PoisonError::into_inner);
        file.write_all(line.as_bytes()).map_err(|source| JournalError { path: self.path.clone(), source })
    }

    /// The result is written: nobody needs the rows any more.
    pub fn finish(self) {
        // One that stays is of no harm: it holds the same rows.
        let _ = std::fs::remove_file(&self.path);
    }
}

/// Key and row of a line, if the line is whole.
fn entry(line: &str) -> Option<(u64, String)> {
    let mut parts = line.splitn(3, ' ');
    let mut number = || u64::from_str_radix(parts.next()?, 16).ok();
    let (key, sum) = (number()?, number()?);
    let row = format!("{}\n", parts.next()?);
    (hash_of(row.as_bytes()) == sum).then_some((key, row))
}
