//! Page requests of a device, `intel_iommu:prq_report` as ftrace or `perf script` prints it:
//! `... 12.345678: prq_report: dmar0/0000:6a:01.0 seq# 7: rid=0x6a08 addr=0x7f12a rw--l pasid=0x1 index=0x3`.
//!
//! # Rules
//! 1. `addr` is the number of a page, not an address: the tracepoint prints bits 63 to 12. A number that no page of a
//!    process can have is an error, for it would be an address after all.
//! 2. A request that asks for neither reading nor writing ends a group and is no touch.
//! 3. Lines with different PASIDs are of different address spaces. An engine is a device (rid).
//! 4. Gaps in the sequence numbers are events that ftrace lost.

use super::fields::{decimal, prefixed};
use super::format::{Findings, Nothing, Parse, Seen};
use super::ftrace::{Lost, at_event, value};
use super::head::head;
use super::spaces::{Engines, Spaces};
use super::{BadLine, Settings};
use crate::trace::{Access, Event, EventKind};

pub(super) const NOTHING: Nothing = Nothing {
    what: "page request",
    advice: "record with `trace-cmd record -e intel_iommu:prq_report COMMAND` and print with `trace-cmd report`",
};

/// A process of x86-64 has addresses below 2^57.
pub(super) const END_OF_USER_PAGES: u64 = 1 << 45;

/// The parser.
pub(super) struct Prq {
    spaces: Spaces,
    engines: Engines<u64>,
    lost: Lost,
    sequence: Option<u64>,
    gaps: u64,
    ends: u64,
}

impl Prq {
    pub fn new(settings: &Settings) -> Self {
        Self {
            spaces: Spaces::new(&settings.pids, "PASID"),
            engines: Engines::default(),
            lost: Lost::default(),
            sequence: None,
            gaps: 0,
            ends: 0,
        }
    }
}

impl Parse for Prq {
    fn line(&mut self, line: &str, out: &mut Vec<Event>) -> Result<Seen, BadLine> {
        let Some((before, behind)) = at_event(line, "prq_report") else {
            // The header is ftrace's, whatever the events: only an event tells.
            self.lost.look(line);
            return Ok(Seen::Other);
        };
        let head = head(before)?;
        let (_, rest) = behind.split_once("seq# ").ok_or(BadLine::Missing("seq#"))?;
        let (sequence, rest) = rest.split_once(':').ok_or(BadLine::Missing("the number behind seq#"))?;
        let sequence = decimal("seq#", sequence)?;
        let device = prefixed("rid", value(rest, "rid")?)?;
        let page = prefixed("addr", value(rest, "addr")?)?;
        let pasid = prefixed("pasid", value(rest, "pasid")?)?;
        if page >= END_OF_USER_PAGES {
            let why = "it is the number of a page, and no process has so many; is it an address in bytes?";
            return Err(BadLine::Range { field: "addr", found: page, why });
        }
        let flags = rest.split_whitespace().find(|word| !word.contains('='));
        let flags = flags.ok_or(BadLine::Missing("the flags rwxpl"))?;
        let of =
            |at: usize, flag: u8| matches!(flags.as_bytes().get(at), Some(b) if *b == flag || *b == b'-');
        if flags.len() != 5 || !(0..5).all(|at| of(at, b"rwxpl"[at])) {
            return Err(BadLine::field("flags", flags, "rwxpl with dashes for what is not set"));
        }
        if let Some(before) = self.sequence.replace(sequence) {
            self.gaps = self.gaps.saturating_add(sequence.saturating_sub(before).saturating_sub(1));
        }
        let access = match (flags.contains('w'), flags.contains('r') || flags.contains('x')) {
            (true, _) => Access::Write,
            (false, true) => Access::Read,
            (false, false) => {
                self.ends += 1;
                return Ok(Seen::Taken);
            }
        };
        if self.spaces.admit(pasid)? {
            let engine = self.engines.number(device);
            out.push(Event {
                kind: EventKind::DeviceFault,
                ..Event::access(head.time_ns, page, access, engine)
            });
        }
        Ok(Seen::Taken)
    }

    fn findings(&self) -> Findings {
        let ends =
            (self.ends > 0).then(|| format!("{} requests ask for nothing and only end a group", self.ends));
        Findings {
            clock: "ftrace",
            times: "seconds",
            addresses: "pages of 4 KiB",
            policy: Some("Linux, page by page"),
            dropped: self.gaps.max(self.lost.count()),
            elsewhere: self.spaces.elsewhere(),
            notes: ends.into_iter().collect(),
            ..Findings::default()
        }
    }
}
