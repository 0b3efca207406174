//! `perf script` of page faults: `app 46/47 [002] 12.345678: page-faults: 7f12a000 55d0a1b2`.
//!
//! # Rules
//! 1. Behind the event stand the address and the instruction, in hexadecimal. A line with one of them only is refused:
//!    which one it is cannot be told.
//! 2. perf does not say whether a page was read or written: all are reads.
//! 3. An engine is a thread, numbered in the order of appearance.

use super::fields::{hexadecimal, page_of};
use super::format::{Findings, Nothing, Parse, Seen};
use super::head::head;
use super::spaces::{Engines, Spaces};
use super::{BadLine, Settings};
use crate::trace::{Access, Event};

const ADVICE: &str = "record with `perf record -e page-faults -d -c 1 COMMAND` and print with `perf script -F comm,pid,tid,time,event,addr,ip`";

pub(super) const NOTHING: Nothing = Nothing { what: "page fault with its address", advice: ADVICE };

/// perf's names of the event.
const NAMES: [&str; 4] = ["page-faults", "faults", "minor-faults", "major-faults"];
/// An instruction has at least so many digits: a symbol's name may look like a number, too.
const LEAST_DIGITS: usize = 5;

/// The parser.
pub(super) struct PerfScript {
    settings: Settings,
    spaces: Spaces,
    engines: Engines<u64>,
}

impl PerfScript {
    pub fn new(settings: &Settings) -> Self {
        let spaces = Spaces::new(&settings.pids, "process");
        Self { settings: settings.clone(), spaces, engines: Engines::default() }
    }
}

/// Cuts a line at the event: what stands before it, and behind it.
fn at_event(line: &str) -> Option<(&str, &str)> {
    let space = |c: char| c.is_ascii_whitespace();
    let mut from = 0;
    while let Some(at) = line[from..].find("faults").map(|at| at + from) {
        let start = line[..at].rfind(space).map_or(0, |at| at + 1);
        let end = line[at..].find(space).map_or(line.len(), |end| at + end);
        let word = &line[start..end];
        if word.ends_with(':') && word.split(':').next().is_some_and(|name| NAMES.contains(&name)) {
            return Some((&line[..start], &line[end..]));
        }
        from = end;
    }
    None
}

impl Parse for PerfScript {
    fn line(&mut self, line: &str, out: &mut Vec<Event>) -> Result<Seen, BadLine> {
        let Some((before, behind)) = at_event(line) else { return Ok(Seen::Other) };
        // The count of the sample may stand between the time and the event.
        let before = before.trim_end().trim_end_matches(|c: char| c.is_ascii_digit());
        let head = head(before)?;
        let mut words = behind.split_whitespace();
        let address = words.next().ok_or(BadLine::Missing(
            "the address: print it with -F comm,pid,tid,time,event,addr,ip, and record it with -d;",
        ))?;
        let address = hexadecimal("address", address)?;
        let instruction = words.next().filter(|word| word.len() >= LEAST_DIGITS);
        if instruction.is_none_or(|word| hexadecimal("", word).is_err()) {
            return Err(BadLine::Missing(
                "the address or the instruction: print both with -F comm,pid,tid,time,event,addr,ip, and record with -d;",
            ));
        }
        if self.spaces.admit(head.pid.unwrap_or(head.tid))? {
            let engine = self.engines.number(head.tid);
            out.push(self.settings.fault(head.time_ns, page_of(address), Access::Read, engine));
        }
        Ok(Seen::Taken)
    }

    fn findings(&self) -> Findings {
        let note = "perf does not tell reads from writes: all are reads; `perf record -e exceptions:page_fault_user` knows (x86)";
        Findings {
            clock: "perf",
            times: "seconds",
            addresses: "bytes",
            policy: Some("Linux, page by page"),
            elsewhere: self.spaces.elsewhere(),
            notes: [note.to_owned()].into_iter().chain(self.settings.side_note()).collect(),
            ..Findings::default()
        }
    }
}
