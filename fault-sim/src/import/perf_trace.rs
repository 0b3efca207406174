//! `perf trace -F all`: `0.000 ( 0.000 ms): app/47 minfault [main+0x11] => //anon@0x55995da932a0 (d.)`.
//!
//! # Rules
//! 1. The target is an address only where perf knows no file behind it: bare, or behind `//anon`, `[heap]`, `[stack]`
//!    or `/SYSV`. Otherwise it is an offset in a file; such faults have no address and are left out, and counted.
//! 2. perf does not say whether a page was read or written: all are reads.
//! 3. Times are milliseconds since the start. An engine is a thread, numbered in the order of appearance.

use super::fields::{decimal, page_of, prefixed, time};
use super::format::{Findings, Nothing, Parse, Seen};
use super::spaces::{Engines, Spaces};
use super::{BadLine, Settings};
use crate::trace::{Access, Event};

pub(super) const NOTHING: Nothing = Nothing {
    what: "page fault with an address (offsets in files are none)",
    advice: "record with `perf record -e page-faults -d -c 1 COMMAND` and print with `perf script -F comm,pid,tid,time,event,addr,ip`",
};

/// The parser.
pub(super) struct PerfTrace {
    settings: Settings,
    spaces: Spaces,
    engines: Engines<u64>,
    in_files: u64,
}

impl PerfTrace {
    pub fn new(settings: &Settings) -> Self {
        let spaces = Spaces::new(&settings.pids, "thread");
        Self { settings: settings.clone(), spaces, engines: Engines::default(), in_files: 0 }
    }
}

/// The address of a target; `None` if it lies in a file.
fn address(target: &str) -> Result<Option<u64>, BadLine> {
    if target.starts_with("0x") {
        return prefixed("address", target).map(Some);
    }
    let Some((mapping, offset)) = target.rsplit_once('@') else { return Ok(None) };
    let nothing_behind = ["//anon", "[heap]", "[stack", "/SYSV"];
    if !nothing_behind.iter().any(|name| mapping.starts_with(name)) || !offset.starts_with("0x") {
        return Ok(None);
    }
    prefixed("address", offset).map(Some)
}

impl Parse for PerfTrace {
    fn line(&mut self, line: &str, out: &mut Vec<Event>) -> Result<Seen, BadLine> {
        let fault = [" minfault [", " majfault ["].iter().find_map(|name| line.split_once(name));
        let Some((before, behind)) = fault else { return Ok(Seen::Other) };
        let Some((time_ms, before)) = before.split_once('(') else { return Ok(Seen::Other) };
        let time_ns = time("time", time_ms.trim(), 3)?;
        let (_, thread) = before.split_once("): ").ok_or(BadLine::Missing("the thread"))?;
        let thread = match thread.trim().rsplit_once('/') {
            Some((_, thread)) => decimal("thread", thread)?,
            // A single thread is not named.
            None => 0,
        };
        let (_, target) = behind.split_once("] => ").ok_or(BadLine::Missing("the target behind =>"))?;
        let (target, _) = target.rsplit_once(" (").ok_or(BadLine::Missing("the kind of the mapping"))?;
        let address = address(target)?;
        if !self.spaces.admit(thread)? {
            return Ok(Seen::Taken);
        }
        let engine = self.engines.number(thread);
        match address {
            Some(address) => {
                out.push(self.settings.fault(time_ns, page_of(address), Access::Read, engine));
            }
            None => self.in_files += 1,
        }
        Ok(Seen::Taken)
    }

    fn findings(&self) -> Findings {
        let in_files = (self.in_files > 0).then(|| {
            format!(
                "{} faults have an offset in a file instead of an address and were left out; `perf record -e page-faults -d` and `perf script -F comm,pid,tid,time,event,addr,ip` have all",
                self.in_files
            )
        });
        let kind = "perf does not tell reads from writes: all are reads".to_owned();
        Findings {
            clock: "perf, from the start",
            times: "milliseconds",
            addresses: "bytes",
            policy: Some("Linux, page by page"),
            elsewhere: self.spaces.elsewhere(),
            notes: in_files.into_iter().chain([kind]).chain(self.settings.side_note()).collect(),
            ..Findings::default()
        }
    }
}
