//! The SQLite export of Nsight Systems (`nsys export --type sqlite`): unified-memory copies with their causes, and the
//! tables of page faults where they were recorded.
//!
//! # Rules
//! 1. A row of `CUPTI_ACTIVITY_KIND_MEMCPY` with `copyKind` 11 (to a device), 12 (to system memory) or 13 (between
//!    devices) is a migration; the others are copies that the program asked for, and no events.
//! 2. A row of `CUDA_UM_GPU_PAGE_FAULT_EVENTS` is a fault of a device, one of `CUDA_UM_CPU_PAGE_FAULT_EVENTS` of the CPU
//!    (a read: the table does not say). Several faults of a page in one row are one event; the others are counted.
//! 3. These two tables are recorded only if they are asked for. Without one, its faults are rebuilt: NVIDIA's driver
//!    copies what faulted (cause 2) apart from what it prefetched (3), so that each page of a copy of cause 2 is a page
//!    that faulted, when the copy began, as a read. Pages that the device touched first had no contents, were not
//!    copied, and are missing. All of this is said.
//! 4. Rows are sorted by their start, by SQLite, with temporary files and not in memory.
//! 5. The data base is not trusted: it is read without its triggers and views, what it stores is checked by type and
//!    range, and a copy covers whole pages and at most 1 GiB.

use std::fs::File;
use std::io::Read;
use std::path::Path;

use rusqlite::config::DbConfig;
use rusqlite::limits::Limit;
use rusqlite::types::ValueRef;
use rusqlite::{Connection, OpenFlags, Row};

use super::fields::{migration, page_of, pages_of};
use super::format::{Findings, Nothing};
use super::spaces::Spaces;
use super::{BadLine, Format, ImportError, Report, Settings, Sink};
use crate::result::shown_bytes;
use crate::trace::{Access, Event, EventKind, MigrationCause};

pub(super) const NOTHING: Nothing = Nothing {
    what: "copy or fault of unified memory",
    advice: "use cudaMallocManaged, record with `nsys profile --trace=cuda --cuda-um-gpu-page-faults=true --cuda-um-cpu-page-faults=true COMMAND`, and export with `nsys export --type sqlite FILE`",
};

const COPIES: &str = "CUPTI_ACTIVITY_KIND_MEMCPY";
const DEVICE_FAULTS: &str = "CUDA_UM_GPU_PAGE_FAULT_EVENTS";
const CPU_FAULTS: &str = "CUDA_UM_CPU_PAGE_FAULT_EVENTS";
const TABLES: [&str; 3] = [COPIES, DEVICE_FAULTS, CPU_FAULTS];
const GPUS: &str = "TARGET_INFO_GPU";

/// A page of x86-64, and the most that one copy moves.
const PAGE_BYTES: u64 = 1 << 12;
const MOST_BYTES: u64 = 1 << 30;
/// The header of a data base.
const HEADER_BYTES: u64 = 100;
/// The longest value that is read from a row.
const MOST_VALUE_BYTES: i32 = 1 << 20;

const TO_DEVICE: u64 = 11;
const TO_SYSTEM: u64 = 12;

/// The columns of a table: those that must be there, and those that may be missing.
struct Columns {
    start: &'static str,
    place: &'static str,
    size: &'static str,
    kind: &'static str,
    cause: &'static str,
    device: &'static str,
}

impl Columns {
    fn of(table: usize) -> Self {
        let start = "start";
        match table {
            0 => Self {
                start,
                place: "virtualAddress",
                size: "bytes",
                kind: "copyKind",
                cause: "migrationCause",
                device: "deviceId",
            },
            1 => Self {
                start,
                place: "address",
                size: "numberOfPageFaults",
                kind: "faultAccessType",
                cause: "NULL",
                device: "deviceId",
            },
            _ => Self { start, place: "address", size: "NULL", kind: "NULL", cause: "NULL", device: "NULL" },
        }
    }
}

/// What is counted of copies in one direction.
#[derive(Clone, Copy, Default)]
struct Moved {
    copies: u64,
    bytes: u64,
}

struct Reader<'a> {
    path: &'a Path,
    base: Connection,
    spaces: Spaces,
    /// Which tables have rows.
    has: [bool; 3],
    moved: [Moved; 3],
    by_cause: [u64; 6],
    merged: u64,
    rebuilt: u64,
}

/// Reads a data base.
pub(super) fn read(
    path: &Path,
    bytes: u64,
    settings: &Settings,
    sink: &mut Sink<'_>,
) -> Result<Report, ImportError> {
    check_length(path, bytes)?;
    let flags = OpenFlags::SQLITE_OPEN_READ_ONLY | OpenFlags::SQLITE_OPEN_NO_MUTEX;
    let failed = |source| ImportError::Base { path: path.to_owned(), source };
    let base = Connection::open_with_flags(path, flags).map_err(failed)?;
    base.set_db_config(DbConfig::SQLITE_DBCONFIG_DEFENSIVE, true).map_err(failed)?;
    base.set_db_config(DbConfig::SQLITE_DBCONFIG_TRUSTED_SCHEMA, false).map_err(failed)?;
    base.set_limit(Limit::SQLITE_LIMIT_LENGTH, MOST_VALUE_BYTES).map_err(failed)?;
    let mut reader = Reader {
        path,
        base,
        spaces: Spaces::new(&settings.pids, "process"),
        has: [false; 3],
        moved: [Moved::default(); 3],
        by_cause: [0; 6],
        merged: 0,
        rebuilt: 0,
    };
    let mut report = Report::new(path, Format::Nsys, bytes);
    if let Some(names) = reader.gpus()? {
        report.origin = format!("nsys, {names}");
    }
    reader.rows(settings, sink, &mut report)?;
    sink.finish()?;
    report.close(reader.findings(), sink);
    Ok(report)
}

/// Compares the length of a file with what its header says. SQLite takes the missing end of a page for zeros.
fn check_length(path: &Path, bytes: u64) -> Result<(), ImportError> {
    let io = |source| ImportError::Io { what: "read", path: path.to_owned(), source };
    let mut header = Vec::new();
    File::open(path).and_then(|file| file.take(HEADER_BYTES).read_to_end(&mut header)).map_err(io)?;
    let number = |at: std::ops::Range<usize>| {
        let bytes = header.get(at).unwrap_or_default();
        bytes.iter().fold(0u64, |number, byte| number << 8 | u64::from(*byte))
    };
    let page_bytes = match number(16..18) {
        1 => 1 << 16,
        bytes => bytes,
    };
    // The count of pages holds only if it was written with the last change.
    let pages = if number(24..28) == number(92..96) { number(28..32) } else { 0 };
    let wanted = (pages * page_bytes).max(HEADER_BYTES);
    let whole = page_bytes == 0 || bytes.is_multiple_of(page_bytes);
    if bytes < wanted || !whole {
        return Err(ImportError::CutOff { path: path.to_owned(), bytes, wanted });
    }
    Ok(())
}

impl Reader<'_> {
    fn failed(&self, source: rusqlite::Error) -> ImportError {
        ImportError::Base { path: self.path.to_owned(), source }
    }

    /// The columns of a table; `None` if it is not there, or no table.
    fn columns(&self, table: &str) -> Result<Option<Vec<String>>, ImportError> {
        let columns = || {
            let there = "SELECT count(*) FROM sqlite_master WHERE type = 'table' AND name = ?1";
            let there: i64 = self.base.query_row(there, [table], |row| row.get(0))?;
            if there == 0 {
                return Ok(None);
            }
            // Names that are no text are none of those that are looked for.
            let mut names = self.base.prepare("SELECT CAST(name AS BLOB) FROM pragma_table_info(?1)")?;
            let names = names.query_map([table], |row| row.get::<_, Vec<u8>>(0))?;
            let names = names.map(|name| Ok(String::from_utf8(name?).unwrap_or_default()));
            Ok(Some(names.collect::<rusqlite::Result<_>>()?))
        };
        columns().map_err(|source| self.failed(source))
    }

    fn count(&self, query: &str) -> Result<u64, ImportError> {
        let count: Result<i64, _> = self.base.query_row(query, [], |row| row.get(0));
        count.map(|count| count.max(0) as u64).map_err(|source| self.failed(source))
    }

    /// The names of the GPUs, each once.
    fn gpus(&self) -> Result<Option<String>, ImportError> {
        if self.columns(GPUS)?.is_none_or(|columns| !columns.iter().any(|column| column == "name")) {
            return Ok(None);
        }
        let names = || -> rusqlite::Result<Vec<String>> {
            let query = format!("SELECT DISTINCT name FROM {GPUS} WHERE typeof(name) = 'text' LIMIT 8");
            self.base.prepare(&query)?.query_map([], |row| row.get(0))?.collect()
        };
        let names = names().map_err(|source| self.failed(source))?;
        Ok((!names.is_empty()).then(|| names.join(", ")))
    }

    /// The query for a table, all in the same columns; `None` if the table has nothing to say.
    fn query(&mut self, at: usize, report: &mut Report) -> Result<Option<String>, ImportError> {
        let table = TABLES[at];
        let Some(columns) = self.columns(table)? else { return Ok(None) };
        let has = |column: &str| columns.iter().any(|found| found == column);
        let rows = self.count(&format!("SELECT count(*) FROM {table}"))?;
        let mut wanted = rows;
        let condition = if at == 0 {
            if !has("copyKind") {
                return Err(self.missing(table, "copyKind"));
            }
            let condition = "WHERE copyKind IN (11, 12, 13)";
            wanted = self.count(&format!("SELECT count(*) FROM {table} {condition}"))?;
            condition
        } else {
            ""
        };
        report.lines += rows;
        report.other += rows - wanted.min(rows);
        if wanted == 0 {
            return Ok(None);
        }
        self.has[at] = true;
        let Columns { start, place, size, kind, cause, device } = Columns::of(at);
        for column in [start, place, size, kind, cause] {
            if column != "NULL" && !has(column) {
                return Err(self.missing(table, column));
            }
        }
        let device = if has(device) { device } else { "NULL" };
        let process = if has("globalPid") { "globalPid" } else { "NULL" };
        Ok(Some(format!(
            "SELECT {start} AS at, {at} AS source, rowid AS id, {place}, {size}, {kind}, {cause}, {device}, {process} FROM {table} {condition}"
        )))
    }

    fn missing(&self, table: &'static str, column: &'static str) -> ImportError {
        ImportError::Column { path: self.path.to_owned(), table, column }
    }

    fn rows(
        &mut self,
        settings: &Settings,
        sink: &mut Sink<'_>,
        report: &mut Report,
    ) -> Result<(), ImportError> {
        let mut queries = Vec::new();
        for at in 0..TABLES.len() {
            queries.extend(self.query(at, report)?);
        }
        if queries.is_empty() {
            return Ok(());
        }
        // What faulted comes before the copy that it caused.
        let query = format!("{} ORDER BY at, source DESC, id", queries.join(" UNION ALL "));
        let failed = |source| ImportError::Base { path: self.path.to_owned(), source };
        // A connection of its own for the rows: they borrow it, and what is counted is not theirs.
        let base = std::mem::replace(&mut self.base, Connection::open_in_memory().map_err(failed)?);
        let mut statement = base.prepare(&query).map_err(failed)?;
        let mut rows = statement.query([]).map_err(failed)?;
        let mut events = Vec::new();
        while let Some(row) = rows.next().map_err(failed)? {
            events.clear();
            let source = self.row(row, &mut events);
            match source {
                Ok(()) => {
                    for event in events.drain(..) {
                        sink.push(event)?;
                    }
                }
                Err(source) => {
                    let number = integer(row, 2, "rowid").ok().flatten().unwrap_or(0).max(0) as u64;
                    if settings.lenient && source.can_be_left_out() {
                        report.skip(number, &source);
                    } else {
                        let table = integer(row, 1, "source").ok().flatten().unwrap_or(0) as usize;
                        let (path, table) = (self.path.to_owned(), TABLES[table.min(2)]);
                        return Err(ImportError::Row { path, table, number, source });
                    }
                }
            }
        }
        Ok(())
    }

    fn row(&mut self, row: &Row<'_>, out: &mut Vec<Event>) -> Result<(), BadLine> {
        let time_ns = natural(row, 0, "start")?;
        let source = natural(row, 1, "source")?;
        let address = integer(row, 3, "the address")?.ok_or(BadLine::Missing("the address"))? as u64;
        let device = integer(row, 7, "deviceId")?.unwrap_or(0);
        let device = u16::try_from(device)
            .map_err(|_| BadLine::field("deviceId", &device.to_string(), "the number of a device"))?;
        if let Some(process) = integer(row, 8, "globalPid")?
            && !self.spaces.admit(process as u64 >> 24 & 0xff_ffff)?
        {
            return Ok(());
        }
        match source {
            0 => self.copy(row, time_ns, address, device, out),
            1 => {
                let access = match natural(row, 5, "faultAccessType")? {
                    1 => Access::Read,
                    2 => Access::Write,
                    3 => Access::Atomic,
                    4 => Access::Prefetch,
                    found => {
                        let why = "the types of access are 1 to 4";
                        return Err(BadLine::Range { field: "faultAccessType", found, why });
                    }
                };
                let faults = natural(row, 4, "numberOfPageFaults")?;
                self.merged = self.merged.saturating_add(faults.saturating_sub(1));
                let fault = Event::access(time_ns, page_of(address), access, device);
                out.push(Event { kind: EventKind::DeviceFault, ..fault });
                Ok(())
            }
            _ => {
                out.push(Event::cpu(time_ns, page_of(address), Access::Read));
                Ok(())
            }
        }
    }

    fn copy(
        &mut self,
        row: &Row<'_>,
        time_ns: u64,
        address: u64,
        device: u16,
        out: &mut Vec<Event>,
    ) -> Result<(), BadLine> {
        let bytes = natural(row, 4, "bytes")?;
        if !address.is_multiple_of(PAGE_BYTES) || !bytes.is_multiple_of(PAGE_BYTES) || bytes > MOST_BYTES {
            let why = "unified memory is copied in whole pages of 4 KiB, at most 1 GiB at once";
            return Err(BadLine::Range { field: "bytes", found: bytes, why });
        }
        let (page, pages) = pages_of(address, bytes)?;
        let direction = natural(row, 5, "copyKind")?;
        let cause = match natural(row, 6, "migrationCause")? {
            1 => MigrationCause::User,
            2 => MigrationCause::Fault,
            3 => MigrationCause::Prefetch,
            4 => MigrationCause::Eviction,
            5 => MigrationCause::AccessCounter,
            found => {
                let why = "the causes are 1 to 5";
                return Err(BadLine::Range { field: "migrationCause", found, why });
            }
        };
        let moved = &mut self.moved[(direction.saturating_sub(TO_DEVICE) as usize).min(2)];
        moved.copies += 1;
        moved.bytes = moved.bytes.saturating_add(bytes);
        self.by_cause[cause as usize] += 1;
        let to_system = direction == TO_SYSTEM;
        let rebuild = cause == MigrationCause::Fault && !self.has[if to_system { 2 } else { 1 }];
        if rebuild {
            self.rebuilt += u64::from(pages);
            let kind = if to_system { EventKind::CpuFault } else { EventKind::DeviceFault };
            let engine = if to_system { 0 } else { device };
            let fault = |page| Event { kind, ..Event::access(time_ns, page, Access::Read, engine) };
            out.extend((page..page + u64::from(pages)).map(fault));
        }
        out.push(migration(time_ns, page, pages, cause, (!to_system).then_some(device)));
        Ok(())
    }

    fn findings(&self) -> Findings {
        let [to_device, to_system, between] = self.moved;
        let shown = |what, moved: Moved| format!("{} {what} ({})", moved.copies, shown_bytes(moved.bytes));
        let copies = self.has[0].then(|| {
            let [_, user, fault, prefetch, eviction, counter] = self.by_cause;
            format!(
                "copies: {}, {}, {}; because of the program {user}, faults {fault}, prefetches {prefetch}, evictions {eviction}, access counters {counter}",
                shown("to a device", to_device),
                shown("to system memory", to_system),
                shown("between devices", between),
            )
        });
        let absent = [(1, "devices", "gpu"), (2, "the CPU", "cpu")];
        let absent = absent.iter().filter(|(at, ..)| !self.has[*at]).map(|(_, whose, flag)| {
            format!(
                "faults of {whose} were not recorded; `nsys profile --cuda-um-{flag}-page-faults=true` does"
            )
        });
        let rebuilt = (self.rebuilt > 0).then(|| {
            format!(
                "{} faults are rebuilt from copies that faults caused, one for each page, as reads; pages that had no contents before were not copied and are missing",
                self.rebuilt
            )
        });
        Findings {
            clock: "profiler",
            times: "nanoseconds",
            addresses: "bytes",
            policy: Some("nvidia"),
            merged: self.merged,
            elsewhere: self.spaces.elsewhere(),
            notes: copies.into_iter().chain(absent).chain(rebuilt).collect(),
            ..Findings::default()
        }
    }
}

/// An integer of a row; `None` if it is null.
fn integer(row: &Row<'_>, at: usize, field: &'static str) -> Result<Option<i64>, BadLine> {
    match row.get_ref(at) {
        Ok(ValueRef::Integer(value)) => Ok(Some(value)),
        Ok(ValueRef::Null) => Ok(None),
        Ok(other) => Err(BadLine::field(field, &other.data_type().to_string(), "an integer")),
        Err(_) => Err(BadLine::Missing(field)),
    }
}

/// An integer that must be there, and not negative.
fn natural(row: &Row<'_>, at: usize, field: &'static str) -> Result<u64, BadLine> {
    let value = integer(row, at, field)?.ok_or(BadLine::Missing(field))?;
    u64::try_from(value).map_err(|_| BadLine::field(field, &value.to_string(), "zero or more"))
}
