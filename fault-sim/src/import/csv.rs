//! Rows of `time,address,access[,engine]`.
//!
//! # Rules
//! 1. The first row may name the columns, in this order: `time_ns`, `time_us`, `time_ms` or `time_s` (`time` alone is
//!    nanoseconds), `address`, `access`, and if there is a fourth column `engine`. Without such a row times are
//!    nanoseconds, and a file is told for this format only if its first row is a touch with a hexadecimal address.
//! 2. An address is `0x` and hexadecimal digits, or decimal. An access is `r`, `w`, `a` or `p`, or `read`, `write`,
//!    `atomic` or `prefetch`, in small letters or capitals, or its code in a trace (0 prefetch, 1 read, 2 write, 3
//!    atomic). An engine is a number below 65,536.
//! 3. Every row has as many fields as the first. Empty rows and those that begin with `#` are passed over.

use super::BadLine;
use super::fields::{decimal, engine, page_of, prefixed, time};
use super::format::{Findings, Nothing, Parse, Seen};
use crate::trace::{Access, Event};

pub(super) const NOTHING: Nothing = Nothing {
    what: "row below its header",
    advice: "write one row of time,address,access[,engine] for each touch",
};

/// The columns of a file.
#[derive(Clone, Copy, Debug)]
struct Columns {
    /// Times are in units of `10^-places` seconds.
    places: u32,
    engine: bool,
}

/// The parser.
#[derive(Debug, Default)]
pub(super) struct Csv {
    columns: Option<Columns>,
    /// The person says that it is this format: a first row that is none is an error.
    asked_for: bool,
    /// The first row is neither a header nor a touch.
    is_none: bool,
}

impl Csv {
    pub fn new(asked_for: bool) -> Self {
        Self { asked_for, ..Self::default() }
    }
}

impl Parse for Csv {
    fn line(&mut self, line: &str, out: &mut Vec<Event>) -> Result<Seen, BadLine> {
        let line = line.trim_start_matches('\u{feff}').trim();
        if line.is_empty() || line.starts_with('#') {
            return Ok(Seen::Other);
        }
        let fields: Vec<&str> = line.split(',').take(5).map(str::trim).collect();
        let columns = match self.columns {
            Some(columns) => columns,
            None => {
                if let Some(columns) = header(&fields) {
                    self.columns = Some(columns);
                    return Ok(Seen::Mark);
                }
                let columns = Columns { places: 9, engine: fields.len() == 4 };
                let event = row(&fields, columns);
                let sure = fields.get(1).is_some_and(|address| address.starts_with("0x"));
                if !self.asked_for && (self.is_none || !sure || event.is_err()) {
                    self.is_none = true;
                    return Ok(Seen::Other);
                }
                let event = event?;
                self.columns = Some(columns);
                out.push(event);
                return Ok(Seen::Taken);
            }
        };
        out.push(row(&fields, columns)?);
        Ok(Seen::Taken)
    }

    fn findings(&self) -> Findings {
        let times = match self.columns.map_or(9, |columns| columns.places) {
            0 => "seconds",
            3 => "milliseconds",
            6 => "microseconds",
            _ => "nanoseconds",
        };
        Findings { clock: "unknown", times, addresses: "bytes", ..Findings::default() }
    }
}

fn header(fields: &[&str]) -> Option<Columns> {
    let names: Vec<String> = fields.iter().map(|field| field.to_ascii_lowercase()).collect();
    let places = match names.first()?.as_str() {
        "time" | "time_ns" => 9,
        "time_us" => 6,
        "time_ms" => 3,
        "time_s" => 0,
        _ => return None,
    };
    match names[1..].iter().map(String::as_str).collect::<Vec<_>>()[..] {
        ["address", "access"] => Some(Columns { places, engine: false }),
        ["address", "access", "engine"] => Some(Columns { places, engine: true }),
        _ => None,
    }
}

fn row(fields: &[&str], columns: Columns) -> Result<Event, BadLine> {
    let wanted = if columns.engine { 4 } else { 3 };
    if fields.len() != wanted {
        let wanted = if columns.engine { "time,address,access,engine" } else { "time,address,access" };
        return Err(BadLine::Count { found: fields.len(), wanted });
    }
    let time_ns = time("time", fields[0], columns.places)?;
    let address = match fields[1].as_bytes() {
        [b'0', b'x' | b'X', ..] => prefixed("address", fields[1])?,
        _ => decimal("address", fields[1])?,
    };
    let access = match fields[2].to_ascii_lowercase().as_str() {
        "p" | "prefetch" | "0" => Access::Prefetch,
        "r" | "read" | "1" => Access::Read,
        "w" | "write" | "2" => Access::Write,
        "a" | "atomic" | "3" => Access::Atomic,
        _ => return Err(BadLine::field("access", fields[2], "read, write, atomic or prefetch")),
    };
    let engine = match fields.get(3) {
        Some(field) => engine("engine", decimal("engine", field)?)?,
        None => 0,
    };
    Ok(Event::access(time_ns, page_of(address), access, engine))
}
