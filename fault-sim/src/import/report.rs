use std::fmt::Write;
use std::path::Path;

use serde::Serialize;

use super::format::Findings;
use super::{BadLine, Format, Sink};
use crate::result::{shown_bytes, shown_ns};
use crate::trace::{EventKind, Metadata, TraceKind};

/// What was found in a foreign file.
#[derive(Clone, Debug, Serialize)]
pub struct Report {
    /// The file.
    pub input: String,
    /// The name of its format.
    pub format: &'static str,
    /// Who made it, for the trace: the format, and what more is known.
    pub origin: String,
    /// Its length.
    pub bytes: u64,
    /// What its events are together.
    pub kind: TraceKind,
    /// What its clock is.
    pub clock: &'static str,
    /// In which unit it has times; a trace has nanoseconds.
    pub times: &'static str,
    /// In which unit it has addresses; a trace has pages of 4 KiB.
    pub addresses: &'static str,
    /// The policy at work while it was recorded, if that is known.
    pub policy: Option<&'static str>,
    /// Lines of a text, entries of a binary file, rows of a data base.
    pub lines: u64,
    /// Of these, such as are of something else.
    pub other: u64,
    /// Of these, bad ones that were left out.
    pub skipped: u64,
    /// Of these, such as are of processes that were not asked for.
    pub elsewhere: u64,
    /// Events that came out.
    pub events: u64,
    /// By kind, those that there are.
    pub kinds: Vec<(&'static str, u64)>,
    /// Repetitions of the touch before, merged with it.
    pub merged: u64,
    /// Events that the tool says it lost.
    pub dropped: u64,
    /// Events that lie before earlier ones, further than the window reaches: left where they are.
    pub late: u64,
    /// The earliest time in nanoseconds.
    pub first_ns: u64,
    /// The latest.
    pub last_ns: u64,
    /// What a reader of the numbers has to know.
    pub notes: Vec<String>,
}

impl Report {
    pub(super) fn new(path: &Path, format: Format, bytes: u64) -> Self {
        Self {
            input: path.display().to_string(),
            format: format.name(),
            origin: format.name().to_owned(),
            bytes,
            kind: TraceKind::Faults,
            clock: "unknown",
            times: "",
            addresses: "",
            policy: None,
            lines: 0,
            other: 0,
            skipped: 0,
            elsewhere: 0,
            events: 0,
            kinds: Vec::new(),
            merged: 0,
            dropped: 0,
            late: 0,
            first_ns: 0,
            last_ns: 0,
            notes: Vec::new(),
        }
    }

    /// Counts a bad line; the first one is named.
    pub(super) fn skip(&mut self, number: u64, why: &BadLine) {
        if self.skipped == 0 {
            self.notes.push(format!("the first line that was left out is line {number}: {why}"));
        }
        self.skipped += 1;
    }

    /// What is known at the end.
    pub(super) fn close(&mut self, findings: Findings, sink: &Sink<'_>) {
        (self.clock, self.times, self.addresses) = (findings.clock, findings.times, findings.addresses);
        (self.policy, self.dropped, self.merged) = (findings.policy, findings.dropped, findings.merged);
        self.elsewhere = findings.elsewhere;
        self.notes.extend(findings.notes);
        self.kind = sink.kind();
        self.events = sink.events();
        let kinds = EventKind::ALL.iter().map(|kind| (kind.name(), sink.count(*kind)));
        self.kinds = kinds.filter(|(_, count)| *count > 0).collect();
        self.late = sink.late();
        (self.first_ns, self.last_ns) = sink.span_ns();
        if self.late > 0 {
            self.notes.push(format!(
                "{} events lie before earlier ones, further than {} events reach; they stay where they were",
                self.late,
                super::order::WINDOW
            ));
        }
        if self.dropped > 0 {
            self.notes.push(format!("the tool lost {} events: make its buffer larger", self.dropped));
        }
    }

    /// What the trace says of itself.
    pub fn metadata(&self, commit: &str) -> Metadata {
        Metadata {
            kind: self.kind,
            origin: self.origin.clone(),
            clock: self.clock.to_owned(),
            policy: self.policy.map(str::to_owned),
            commit: commit.to_owned(),
            seed: None,
        }
    }

    /// As a person reads it.
    pub fn table(&self) -> String {
        let mut out = String::new();
        let _ = writeln!(out, "{}: {}, {}", self.input, self.format, shown_bytes(self.bytes));
        let mut row = |name: &str, value: String| {
            let _ = writeln!(out, "  {name:<24} {value:>40}");
        };
        row("holds", self.kind.name().to_owned());
        row("recorded under", self.policy.unwrap_or("-").to_owned());
        row("clock", self.clock.to_owned());
        row("times in", self.times.to_owned());
        row("addresses in", self.addresses.to_owned());
        row("time", shown_ns(self.last_ns.saturating_sub(self.first_ns)));
        row("lines", self.lines.to_string());
        row("of something else", self.other.to_string());
        row("bad and left out", self.skipped.to_string());
        row("of other processes", self.elsewhere.to_string());
        row("lost by the tool", self.dropped.to_string());
        if self.merged > 0 {
            row("repetitions, merged", self.merged.to_string());
        }
        row("events", self.events.to_string());
        self.kinds.iter().for_each(|(name, count)| row(name, count.to_string()));
        for note in &self.notes {
            let _ = writeln!(out, "  {note}");
        }
        out
    }
}
