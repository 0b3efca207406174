use std::collections::BTreeMap;
use std::fs::File;
use std::io::{Read, Seek, SeekFrom};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use parquet::basic::Type as Physical;
use parquet::column::reader::ColumnReader;
use parquet::errors::{ParquetError, Result as ParquetResult};
use parquet::file::reader::{ChunkReader, FileReader, Length, SerializedFileReader};

use super::event::ALL_PAGES;
use super::schema::COLUMNS;
use super::{Access, Event, EventKind, Metadata, Summary, TraceError};

/// The most events of a batch.
const BATCH: usize = 8192;
const MAGIC: &[u8; 4] = b"PAR1";
/// Length and magic at the end of a Parquet file.
const TAIL_BYTES: u64 = 8;

/// Reads a trace, batch by batch. Memory: the pages of one row group that are being decoded.
pub struct TraceReader {
    path: PathBuf,
    file: SerializedFileReader<Head>,
    metadata: Metadata,
    summary: Option<Summary>,
    lost_bytes: u64,
    group: usize,
    columns: Vec<ColumnReader>,
    left_in_group: usize,
    index: u64,
    wide: [Vec<i64>; 2],
    narrow: [Vec<i32>; 5],
}

impl TraceReader {
    /// Opens a trace.
    ///
    /// # Errors
    /// It cannot be opened, or it is no trace; see [`TraceError`].
    pub fn open(path: &Path) -> Result<Self, TraceError> {
        let io = |source| TraceError::Io { what: "opened", path: path.to_owned(), source };
        Self::of_file(File::open(path).map_err(io)?, path)
    }

    /// Reads a trace from a file that is open; messages call it `path`.
    ///
    /// # Errors
    /// As [`TraceReader::open`].
    pub fn of_file(file: File, path: &Path) -> Result<Self, TraceError> {
        let io = |source| TraceError::Io { what: "opened", path: path.to_owned(), source };
        let facts = file.metadata().map_err(io)?;
        if !facts.is_file() {
            return Err(io(std::io::Error::other("it is not a plain file")));
        }
        if facts.len() == 0 {
            return Err(TraceError::Empty(path.to_owned()));
        }
        let (file, lost_bytes) = whole_part(path, file, facts.len())?;
        let mut this = Self {
            path: path.to_owned(),
            metadata: Metadata::of_pairs(path, &pairs(&file))?,
            summary: summary(&pairs(&file)),
            file,
            lost_bytes,
            group: 0,
            columns: Vec::new(),
            left_in_group: 0,
            index: 0,
            wide: Default::default(),
            narrow: Default::default(),
        };
        this.check_columns()?;
        this.rewind();
        Ok(this)
    }

    /// What the trace says of itself.
    pub fn metadata(&self) -> &Metadata {
        &self.metadata
    }

    /// What was counted when it was written; `None` where the writer did not say.
    pub fn summary(&self) -> Option<Summary> {
        self.summary
    }

    /// Bytes behind the last checkpoint that a crash left and that are not read. 0 for a trace that was finished.
    pub fn lost_bytes(&self) -> u64 {
        self.lost_bytes
    }

    /// Events of the whole trace.
    pub fn len(&self) -> u64 {
        self.file.metadata().file_metadata().num_rows().max(0) as u64
    }

    /// Whether it has no events.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Begins again at the first event.
    pub fn rewind(&mut self) {
        (self.group, self.left_in_group, self.index) = (0, 0, 0);
        self.columns.clear();
    }

    fn check_columns(&self) -> Result<(), TraceError> {
        let schema = self.file.metadata().file_metadata().schema_descr();
        for column in &COLUMNS {
            let found = schema.columns().iter().find(|found| found.path().string() == column.name);
            let Some(found) = found else {
                return Err(TraceError::MissingColumn { path: self.path.clone(), column: column.name });
            };
            if found.physical_type() != column.physical
                || found.max_def_level() != 0
                || found.max_rep_level() != 0
            {
                let wanted = if column.physical == Physical::INT64 { "INT64" } else { "INT32" };
                return Err(TraceError::WrongType { path: self.path.clone(), column: column.name, wanted });
            }
        }
        Ok(())
    }

    /// Replaces `events` by the next ones, in the order of the file. `false`, and no event, at the end.
    ///
    /// # Errors
    /// The file is damaged, or an event means nothing.
    pub fn read(&mut self, events: &mut Vec<Event>) -> Result<bool, TraceError> {
        events.clear();
        while self.left_in_group == 0 {
            if self.group == self.file.num_row_groups() {
                return Ok(false);
            }
            self.next_group().map_err(|source| self.damaged(source))?;
        }
        let rows = self.decode().map_err(|source| self.damaged(source))?;
        self.left_in_group -= rows;
        events.reserve(rows);
        let [times, pages] = &self.wide;
        let [lengths, engines, kinds, accesses, details] = &self.narrow;
        let wrong = |at: usize, column, value| TraceError::Event {
            path: self.path.clone(),
            index: self.index + at as u64,
            column,
            value,
        };
        for at in 0..rows {
            let kind = EventKind::of_code(kinds[at]).ok_or_else(|| wrong(at, "kind", kinds[at].into()))?;
            let access =
                Access::of_code(accesses[at]).ok_or_else(|| wrong(at, "access", accesses[at].into()))?;
            let (page, length) = (pages[at] as u64, lengths[at] as u32);
            if page >= ALL_PAGES {
                return Err(wrong(at, "page", pages[at]));
            }
            let single = matches!(kind, EventKind::Access | EventKind::DeviceFault | EventKind::CpuFault);
            if length == 0 || u64::from(length) > ALL_PAGES - page || (single && length != 1) {
                return Err(wrong(at, "pages", lengths[at].into()));
            }
            let engine = u16::try_from(engines[at]).map_err(|_| wrong(at, "engine", engines[at].into()))?;
            let detail = u8::try_from(details[at]).map_err(|_| wrong(at, "detail", details[at].into()))?;
            events.push(Event {
                time_ns: times[at] as u64,
                page,
                pages: length,
                engine,
                kind,
                access,
                detail,
            });
        }
        self.index += rows as u64;
        Ok(true)
    }

    fn damaged(&self, source: ParquetError) -> TraceError {
        TraceError::Parquet { what: "read", path: self.path.clone(), source }
    }

    fn next_group(&mut self) -> ParquetResult<()> {
        let group = self.file.get_row_group(self.group)?;
        self.left_in_group = usize::try_from(group.metadata().num_rows())?;
        self.group += 1;
        self.columns.clear();
        for column in &COLUMNS {
            let schema = group.metadata().schema_descr();
            let found = schema.columns().iter().position(|found| found.path().string() == column.name);
            let at = found.ok_or_else(|| ParquetError::General(format!("no column {}", column.name)))?;
            self.columns.push(group.get_column_reader(at)?);
        }
        Ok(())
    }

    /// Decodes the same number of values of every column and says how many.
    fn decode(&mut self) -> ParquetResult<usize> {
        let rows = self.left_in_group.min(BATCH);
        let short =
            || ParquetError::General("a column has fewer values than its row group has rows".to_owned());
        let (mut wide, mut narrow) = (self.wide.iter_mut(), self.narrow.iter_mut());
        for column in &mut self.columns {
            let mut read = 0;
            while read < rows {
                let (_, values, _) = match column {
                    ColumnReader::Int64ColumnReader(column) => {
                        let into = wide.next().ok_or_else(short)?;
                        into.clear();
                        column.read_records(rows, None, None, into)?
                    }
                    ColumnReader::Int32ColumnReader(column) => {
                        let into = narrow.next().ok_or_else(short)?;
                        into.clear();
                        column.read_records(rows, None, None, into)?
                    }
                    _ => return Err(short()),
                };
                read += values;
                if values < rows {
                    return Err(short());
                }
            }
        }
        Ok(rows)
    }
}

/// The key-value pairs of a file.
fn pairs(file: &SerializedFileReader<Head>) -> BTreeMap<String, String> {
    let pairs = file.metadata().file_metadata().key_value_metadata();
    let pairs = pairs.into_iter().flatten();
    pairs.filter_map(|pair| Some((pair.key.clone(), pair.value.clone()?))).collect()
}

fn summary(pairs: &BTreeMap<String, String>) -> Option<Summary> {
    let number = |key: &str| pairs.get(key)?.parse().ok();
    Some(Summary {
        events: number("granule.events")?,
        footprint_pages: number("granule.footprint_pages")?,
        first_ns: number("granule.first_ns")?,
        last_ns: number("granule.last_ns")?,
    })
}

/// The beginning of a file, up to the end of its last whole footer.
#[derive(Debug)]
struct Head {
    file: File,
    bytes: u64,
}

impl Length for Head {
    fn len(&self) -> u64 {
        self.bytes
    }
}

impl ChunkReader for Head {
    type T = <File as ChunkReader>::T;

    fn get_read(&self, start: u64) -> ParquetResult<Self::T> {
        self.file.get_read(start)
    }

    fn get_bytes(&self, start: u64, length: usize) -> ParquetResult<bytes::Bytes> {
        if start.checked_add(length as u64).is_none_or(|end| end > self.bytes) {
            return Err(ParquetError::EOF("the footer points behind the end of the file".to_owned()));
        }
        self.file.get_bytes(start, length)
    }
}

/// A reader of what of a file is whole, and how many bytes behind that are not.
fn whole_part(
    path: &Path,
    mut file: File,
    bytes: u64,
) -> Result<(SerializedFileReader<Head>, u64), TraceError> {
    let io = |source| TraceError::Io { what: "read", path: path.to_owned(), source };
    let mut magic = [0; 4];
    let is_parquet = bytes >= 4 && {
        file.read_exact(&mut magic).map_err(io)?;
        &magic == MAGIC
    };
    if !is_parquet {
        return Err(TraceError::NotParquet(path.to_owned()));
    }
    let file = Arc::new(file);
    let open = |end: u64| {
        let head = Head { file: file.try_clone().map_err(io)?, bytes: end };
        SerializedFileReader::new(head).map_err(|source| TraceError::Parquet {
            what: "read",
            path: path.to_owned(),
            source,
        })
    };
    let mut end = bytes;
    while let Some(at) = last_magic(&file, end).map_err(io)? {
        // The magic at the very beginning opens the file, it ends nothing.
        if at < 4 + TAIL_BYTES {
            break;
        }
        if let Ok(reader) = open(at + 4) {
            return Ok((reader, bytes - (at + 4)));
        }
        end = at;
    }
    Err(TraceError::CutOff(path.to_owned()))
}

/// Where the last magic that ends at or before `end` begins.
fn last_magic(mut file: &File, end: u64) -> std::io::Result<Option<u64>> {
    const WINDOW: u64 = 1 << 16;
    let mut end = end;
    let mut window = Vec::new();
    while end >= 4 {
        let start = end.saturating_sub(WINDOW);
        window.resize((end - start) as usize, 0);
        file.seek(SeekFrom::Start(start))?;
        file.read_exact(&mut window)?;
        if let Some(at) = window.windows(4).rposition(|four| four == MAGIC) {
            return Ok(Some(start + at as u64));
        }
        if start == 0 {
            break;
        }
        // A magic may lie across the edge.
        end = start + 3;
    }
    Ok(None)
}
