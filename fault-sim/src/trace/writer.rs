use std::fs::File;
use std::path::Path;
use std::sync::Arc;

use parquet::basic::Encoding;
use parquet::data_type::{Int32Type, Int64Type};
use parquet::errors::ParquetError;
use parquet::file::metadata::{FileMetaData, KeyValue, ParquetMetaData, ParquetMetaDataWriter};
use parquet::file::properties::{EnabledStatistics, WriterProperties, WriterVersion};
use parquet::file::writer::{SerializedFileWriter, SerializedRowGroupWriter};
use parquet::schema::types::ColumnPath;

use super::schema::{COLUMNS, schema};
use super::{Event, EventKind, Footprint, Metadata, TraceError};
use crate::part::Part;

/// Events in a row group: what the writer holds in memory, 32 bytes each.
const ROWS: usize = 1 << 19;

/// What a trace holds, counted while it was written and stored in its footer.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default, serde::Serialize)]
pub struct Summary {
    /// Events of every kind.
    pub events: u64,
    /// Distinct pages that accesses and faults touched.
    pub footprint_pages: u64,
    /// The earliest and the latest time, in nanoseconds.
    pub first_ns: u64,
    /// See `first_ns`.
    pub last_ns: u64,
}

/// Writes a trace, row group by row group.
pub struct TraceWriter {
    part: Part,
    file: SerializedFileWriter<File>,
    pairs: Vec<(&'static str, String)>,
    rows: Vec<Event>,
    footprint: Footprint,
    summary: Summary,
    wide: Vec<i64>,
    narrow: Vec<i32>,
}

impl TraceWriter {
    /// Begins a trace at `path`, as `path.part` until [`TraceWriter::finish`].
    ///
    /// # Errors
    /// The file cannot be made.
    pub fn create(path: &Path, metadata: &Metadata) -> Result<Self, TraceError> {
        let created = |path: &Path| {
            let path = path.to_owned();
            move |source| TraceError::Io { what: "created", path, source }
        };
        let part = Part::of(path).map_err(created(path))?;
        let file = File::create(part.at()).map_err(created(part.at()))?;
        Self::begin(part, file, metadata)
    }

    /// Begins a trace in a file that is open for writing and empty, and has no name to be given; messages call it
    /// `name`.
    ///
    /// # Errors
    /// The file cannot be written.
    pub fn in_file(file: File, name: &Path, metadata: &Metadata) -> Result<Self, TraceError> {
        Self::begin(Part::in_place(name), file, metadata)
    }

    fn begin(part: Part, file: File, metadata: &Metadata) -> Result<Self, TraceError> {
        let begin = || -> Result<_, ParquetError> {
            let mut properties = WriterProperties::builder()
                .set_writer_version(WriterVersion::PARQUET_2_0)
                .set_statistics_enabled(EnabledStatistics::Chunk)
                .set_offset_index_disabled(true)
                .set_created_by(concat!("fault-sim ", env!("CARGO_PKG_VERSION")).to_owned());
            // Times and pages are delta-coded; the rest has few values and goes through a dictionary.
            for column in &COLUMNS[..2] {
                properties = properties
                    .set_column_dictionary_enabled(ColumnPath::from(column.name), false)
                    .set_column_encoding(ColumnPath::from(column.name), Encoding::DELTA_BINARY_PACKED);
            }
            SerializedFileWriter::new(file, schema()?, Arc::new(properties.build()))
        };
        let file = begin().map_err(|source| TraceError::Parquet {
            what: "begun",
            path: part.at().to_owned(),
            source,
        })?;
        Ok(Self {
            part,
            file,
            pairs: metadata.pairs(),
            rows: Vec::with_capacity(ROWS),
            footprint: Footprint::default(),
            summary: Summary { first_ns: u64::MAX, ..Summary::default() },
            wide: Vec::new(),
            narrow: Vec::new(),
        })
    }

    /// Says anew what the trace is: for a writer that learns on the way what it writes.
    pub fn describe(&mut self, metadata: &Metadata) {
        self.pairs = metadata.pairs();
    }

    /// Takes back what was written so far.
    pub fn give_up(self) {
        self.part.give_up();
    }

    /// Adds an event.
    ///
    /// # Errors
    /// The disk is full, or the file cannot be written for another reason.
    #[inline]
    pub fn push(&mut self, event: Event) -> Result<(), TraceError> {
        if matches!(event.kind, EventKind::Access | EventKind::DeviceFault | EventKind::CpuFault) {
            self.footprint.add(event.page);
        }
        self.summary.events += 1;
        self.summary.first_ns = self.summary.first_ns.min(event.time_ns);
        self.summary.last_ns = self.summary.last_ns.max(event.time_ns);
        self.rows.push(event);
        if self.rows.len() == ROWS { self.flush() } else { Ok(()) }
    }

    /// Writes what is held, and a footer behind it: from now on a crash loses only what comes later.
    ///
    /// # Errors
    /// As [`TraceWriter::push`].
    pub fn checkpoint(&mut self) -> Result<(), TraceError> {
        self.flush()?;
        let footer = self.footer();
        let written = footer.and_then(|footer| {
            self.file.write_all(&footer)?;
            self.file.flush()?;
            Ok(())
        });
        written.map_err(|source| self.failed(source))
    }

    /// A footer for the row groups that are in the file.
    fn footer(&self) -> Result<Vec<u8>, ParquetError> {
        let rows = self.file.flushed_row_groups().iter().map(|group| group.num_rows()).sum();
        let pairs = self.all_pairs().into_iter().map(|(key, value)| KeyValue::new(key.to_owned(), value));
        let descr = Arc::new(self.file.schema_descr().clone());
        let created_by = Some(self.file.properties().created_by().to_owned());
        let version = self.file.properties().writer_version().as_num();
        let facts = FileMetaData::new(version, rows, created_by, Some(pairs.collect()), descr, None);
        let whole = ParquetMetaData::new(facts, self.file.flushed_row_groups().to_vec());
        let mut footer = Vec::new();
        ParquetMetaDataWriter::new(&mut footer, &whole).finish()?;
        Ok(footer)
    }

    /// The metadata with what was counted so far.
    fn all_pairs(&self) -> Vec<(&'static str, String)> {
        let summary = self.summary();
        let mut pairs = self.pairs.clone();
        pairs.extend([
            ("granule.events", summary.events.to_string()),
            ("granule.footprint_pages", summary.footprint_pages.to_string()),
            ("granule.first_ns", summary.first_ns.to_string()),
            ("granule.last_ns", summary.last_ns.to_string()),
        ]);
        pairs
    }

    /// What was written so far.
    pub fn summary(&self) -> Summary {
        let first_ns = if self.summary.events == 0 { 0 } else { self.summary.first_ns };
        Summary { footprint_pages: self.footprint.pages(), first_ns, ..self.summary }
    }

    /// Ends the trace and gives it its name.
    ///
    /// # Errors
    /// As [`TraceWriter::push`]; what is on disk then stays there as `path.part`.
    pub fn finish(mut self) -> Result<Summary, TraceError> {
        self.flush()?;
        for (key, value) in self.all_pairs() {
            self.file.append_key_value_metadata(KeyValue::new(key.to_owned(), value));
        }
        self.file.finish().map_err(|source| self.failed(source))?;
        self.part.finish().map_err(|source| TraceError::Io {
            what: "renamed",
            path: self.part.at().to_owned(),
            source,
        })?;
        Ok(self.summary())
    }

    fn failed(&self, source: ParquetError) -> TraceError {
        TraceError::Parquet { what: "written", path: self.part.at().to_owned(), source }
    }

    fn flush(&mut self) -> Result<(), TraceError> {
        if self.rows.is_empty() {
            return Ok(());
        }
        let done = write_group(&mut self.file, &self.rows, &mut self.wide, &mut self.narrow);
        self.rows.clear();
        done.map_err(|source| self.failed(source))
    }
}

fn write_group(
    file: &mut SerializedFileWriter<File>,
    rows: &[Event],
    wide: &mut Vec<i64>,
    narrow: &mut Vec<i32>,
) -> Result<(), ParquetError> {
    let mut group = file.next_row_group()?;
    for of in [|event: &Event| event.time_ns as i64, |event: &Event| event.page as i64] {
        wide.clear();
        wide.extend(rows.iter().map(of));
        with_column(&mut group, |column| {
            column.typed::<Int64Type>().write_batch(wide, None, None).map(drop)
        })?;
    }
    let columns: [fn(&Event) -> i32; 5] = [
        |event| event.pages as i32,
        |event| i32::from(event.engine),
        |event| event.kind as i32,
        |event| event.access as i32,
        |event| i32::from(event.detail),
    ];
    for of in columns {
        narrow.clear();
        narrow.extend(rows.iter().map(of));
        with_column(&mut group, |column| {
            column.typed::<Int32Type>().write_batch(narrow, None, None).map(drop)
        })?;
    }
    group.close()?;
    Ok(())
}

/// Writes the next column of a row group.
fn with_column(
    group: &mut SerializedRowGroupWriter<'_, File>,
    write: impl FnOnce(&mut parquet::file::writer::SerializedColumnWriter<'_>) -> Result<(), ParquetError>,
) -> Result<(), ParquetError> {
    let Some(mut column) = group.next_column()? else {
        return Err(ParquetError::General("the schema has too few columns".to_owned()));
    };
    write(&mut column)?;
    column.close()
}
