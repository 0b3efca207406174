//! `exceptions:page_fault_user` as ftrace or `perf script` prints it:
//! `app-47 (46) [003] d.... 6288.896762: page_fault_user: address=0x55d0 ip=0x7f12 error_code=0x7`.
//!
//! # Rules
//! 1. Bit 1 of the error code is a write.
//! 2. ftrace prints the process (TGID) only if it is asked to; otherwise every thread counts as one of its own.
//! 3. An engine is a thread, numbered in the order of appearance.
//! 4. Events that the ring buffer lost are counted: by its header, and where it says `LOST`.

use super::fields::{decimal, hexadecimal, page_of, prefixed};
use super::format::{Findings, Nothing, Parse, Seen};
use super::head::head;
use super::spaces::{Engines, Spaces};
use super::{BadLine, Settings};
use crate::trace::{Access, Event};

pub(super) const NOTHING: Nothing = Nothing {
    what: "page_fault_user event",
    advice: "record with `trace-cmd record -e exceptions:page_fault_user COMMAND` and print with `trace-cmd report`",
};

/// The bit of the error code that is set for a write.
const WRITE: u64 = 1 << 1;

/// The parser.
pub(super) struct Ftrace {
    settings: Settings,
    spaces: Spaces,
    engines: Engines<u64>,
    lost: Lost,
    /// The first process and its name.
    name: Option<(u64, String)>,
    /// The name that it had later.
    renamed: Option<String>,
}

impl Ftrace {
    pub fn new(settings: &Settings) -> Self {
        Self {
            settings: settings.clone(),
            spaces: Spaces::new(&settings.pids, "process"),
            engines: Engines::default(),
            lost: Lost::default(),
            name: None,
            renamed: None,
        }
    }

    fn watch_name(&mut self, process: u64, tid: u64, name: &str) {
        match &self.name {
            None => self.name = Some((process, name.to_owned())),
            Some((first, before)) if *first == process && tid == process && before != name => {
                self.renamed.get_or_insert_with(|| name.to_owned());
            }
            Some(_) => {}
        }
    }
}

/// What ftrace says of events that it lost.
#[derive(Debug, Default)]
pub(super) struct Lost {
    by_header: u64,
    by_marks: u64,
}

impl Lost {
    /// Looks at a line that is no event. `true` if it is one of ftrace's own.
    pub fn look(&mut self, line: &str) -> bool {
        if let Some(counts) = line.strip_prefix("# entries-in-buffer/entries-written:") {
            let counts = counts.split_whitespace().next().and_then(|counts| counts.split_once('/'));
            if let Some((kept, written)) = counts
                && let (Ok(kept), Ok(written)) = (decimal("", kept), decimal("", written))
            {
                self.by_header = written.saturating_sub(kept);
            }
            return true;
        }
        if let Some(count) = line.split_once("[LOST ").and_then(|(_, rest)| rest.strip_suffix(" EVENTS]"))
            && let Ok(count) = decimal("", count)
        {
            self.by_marks = self.by_marks.saturating_add(count);
            return true;
        }
        line.starts_with("# tracer:")
    }

    pub fn count(&self) -> u64 {
        self.by_header.max(self.by_marks)
    }
}

/// Cuts a line at an event of ftrace, with or without the name of its group: what stands before it, and behind it.
pub(super) fn at_event<'a>(line: &'a str, name: &str) -> Option<(&'a str, &'a str)> {
    let (before, behind) = line.split_once(name)?;
    let behind = behind.strip_prefix(": ")?;
    let before = match before.strip_suffix(':') {
        Some(before) => &before[..=before.rfind(' ')?],
        None => before,
    };
    before.ends_with(' ').then_some((before, behind))
}

/// The value of `key=value` among words.
pub(super) fn value<'a>(words: &'a str, key: &'static str) -> Result<&'a str, BadLine> {
    let value = words.split_whitespace().find_map(|word| word.strip_prefix(key)?.strip_prefix('='));
    value.ok_or(BadLine::Missing(key))
}

impl Parse for Ftrace {
    fn line(&mut self, line: &str, out: &mut Vec<Event>) -> Result<Seen, BadLine> {
        let Some((before, behind)) = at_event(line, "page_fault_user") else {
            return Ok(if self.lost.look(line) { Seen::Mark } else { Seen::Other });
        };
        let head = head(before)?;
        let address = prefixed("address", value(behind, "address")?)?;
        let code = hexadecimal("error_code", value(behind, "error_code")?)?;
        let access = if code & WRITE == 0 { Access::Read } else { Access::Write };
        let process = head.pid.unwrap_or(head.tid);
        if self.spaces.admit(process)? {
            self.watch_name(process, head.tid, head.name);
            let engine = self.engines.number(head.tid);
            out.push(self.settings.fault(head.time_ns, page_of(address), access, engine));
        }
        Ok(Seen::Taken)
    }

    fn findings(&self) -> Findings {
        let renamed = self.name.as_ref().zip(self.renamed.as_ref()).map(|((process, before), after)| {
            format!(
                "process {process} was {before} and became {after}: if it called exec, the first part is of another address space"
            )
        });
        Findings {
            clock: "ftrace",
            times: "seconds",
            addresses: "bytes",
            policy: Some("Linux, page by page"),
            dropped: self.lost.count(),
            elsewhere: self.spaces.elsewhere(),
            notes: renamed.into_iter().chain(self.settings.side_note()).collect(),
            ..Findings::default()
        }
    }
}
