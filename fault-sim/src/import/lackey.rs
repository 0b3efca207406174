//! Every access of a program, by valgrind's lackey: `I  04001234,3`, ` L 1ffeff7f8,8`, ` S ...`, ` M ...`.
//!
//! # Rules
//! 1. There is no clock: an instruction (`I`) counts as one nanosecond. Fetches of instructions are no touches.
//! 2. `L` reads; `S` and `M` (a load and a store in one) write. An access over the edge of a page touches both.
//! 3. A touch of the page of the touch before, asking for no more, is merged with it: it can miss under no policy.

use super::fields::{decimal, hexadecimal, pages_of};
use super::format::{Findings, Nothing, Parse, Seen};
use super::{BadLine, Settings};
use crate::trace::{Access, Event};

pub(super) const NOTHING: Nothing = Nothing {
    what: "load or store",
    advice: "record with `valgrind --tool=lackey --trace-mem=yes --log-file=FILE COMMAND`",
};

/// No instruction reaches more memory.
const MOST_BYTES: u64 = 1 << 16;

/// The parser.
pub(super) struct Lackey {
    settings: Settings,
    instructions: u64,
    last: Option<(u64, Access)>,
    merged: u64,
}

impl Lackey {
    pub fn new(settings: &Settings) -> Self {
        Self { settings: settings.clone(), instructions: 0, last: None, merged: 0 }
    }
}

impl Parse for Lackey {
    fn line(&mut self, line: &str, out: &mut Vec<Event>) -> Result<Seen, BadLine> {
        if line.starts_with("==") {
            // valgrind's own words, before and behind the trace.
            return Ok(if line.contains("Lackey") { Seen::Mark } else { Seen::Other });
        }
        let (access, rest) = match line.as_bytes() {
            [b'I', b' ', b' ', ..] => (None, &line[3..]),
            [b' ', b'L', b' ', ..] => (Some(Access::Read), &line[3..]),
            [b' ', b'S' | b'M', b' ', ..] => (Some(Access::Write), &line[3..]),
            _ => return Ok(Seen::Other),
        };
        let Some((address, bytes)) = rest.split_once(',') else {
            return Err(BadLine::Missing("the size"));
        };
        let (address, bytes) = (hexadecimal("address", address)?, decimal("size", bytes)?);
        if bytes > MOST_BYTES {
            let why = "no instruction reaches so much";
            return Err(BadLine::Range { field: "size", found: bytes, why });
        }
        let (first, pages) = pages_of(address, bytes)?;
        let Some(access) = access else {
            self.instructions += 1;
            return Ok(Seen::Taken);
        };
        for page in first..first + u64::from(pages) {
            match self.last {
                Some((last, before)) if last == page && access <= before => self.merged += 1,
                _ => {
                    self.last = Some((page, access));
                    out.push(self.settings.access(self.instructions, page, access));
                }
            }
        }
        Ok(Seen::Taken)
    }

    fn findings(&self) -> Findings {
        Findings {
            clock: "instructions",
            times: "instructions, each one nanosecond",
            addresses: "bytes",
            merged: self.merged,
            notes: self.settings.side_note().into_iter().collect(),
            ..Findings::default()
        }
    }
}
