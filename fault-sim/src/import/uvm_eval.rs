//! Logs of the NVIDIA driver that uvm-eval patches: `f,addr,time,type,access,mask,instances,client,engine,client id,
//! engine id,utlb,gpc,channel,ve[,batch]`, bare or behind what the kernel's log puts before a line.
//!
//! # Rules
//! 1. `f` is a fault: 14 fields behind it, or 15 with the number of the batch. Times are the device's, in nanoseconds;
//!    addresses are hexadecimal. Access is 0 prefetch, 1 read, 2 write, 3 and 4 atomic.
//! 2. One entry that stands for many faults of a page (`instances`) is one event; the others are counted as merged, and
//!    so are `d` lines, the duplicates that the driver threw out.
//! 3. A fault of a type from 5 on is fatal: the driver does not serve it, and it is left out and counted.
//! 4. `p` (a prefetched page) and `e` (an eviction) have no time; they are left out and counted. `s` and `b` begin and
//!    end a batch.
//! 5. An engine is a pair of GPC and uTLB, numbered in the order of appearance.

use super::BadLine;
use super::fields::{decimal, hexadecimal, page_of};
use super::format::{Findings, Nothing, Parse, Seen};
use super::log::log;
use super::spaces::Engines;
use crate::trace::{Access, Event, EventKind};

pub(super) const NOTHING: Nothing = Nothing {
    what: "fault line (f,...)",
    advice: "load the driver that logs faults, and keep the kernel's log of the run",
};

/// The first fault type that the driver does not serve.
const FATAL: u64 = 5;
const NAMES: [&str; 15] = [
    "address",
    "time",
    "fault type",
    "access type",
    "access mask",
    "instances",
    "client type",
    "engine type",
    "client id",
    "engine id",
    "utlb",
    "gpc",
    "channel",
    "ve",
    "batch",
];

/// The parser.
#[derive(Default)]
pub(super) struct UvmEval {
    engines: Engines<(u64, u64)>,
    merged: u64,
    fatal: u64,
    prefetched: u64,
    evicted: u64,
}

impl Parse for UvmEval {
    fn line(&mut self, line: &str, out: &mut Vec<Event>) -> Result<Seen, BadLine> {
        let text = log(line).map_or(line, |(_, text)| text).trim();
        let Some((letter, rest)) = text.split_once(',') else { return Ok(Seen::Other) };
        match letter {
            "f" => {}
            "s" | "b" | "d" | "p" | "e" if rest.starts_with(|c: char| c.is_ascii_hexdigit()) => {
                self.merged += u64::from(letter == "d");
                self.prefetched += u64::from(letter == "p");
                self.evicted += u64::from(letter == "e");
                return Ok(Seen::Mark);
            }
            _ => return Ok(Seen::Other),
        }
        let fields: Vec<&str> = rest.split(',').take(NAMES.len() + 1).map(str::trim).collect();
        if !(14..=15).contains(&fields.len()) {
            return Err(BadLine::Count { found: fields.len() + 1, wanted: "f and 14, or 15 behind it" });
        }
        let mut numbers = [0; NAMES.len()];
        for ((number, field), name) in numbers.iter_mut().zip(&fields).zip(NAMES) {
            *number = if name == "address" { hexadecimal(name, field)? } else { decimal(name, field)? };
        }
        let [address, time_ns, fault, access, _, instances, _, _, _, _, utlb, gpc, ..] = numbers;
        let access = match access {
            0 => Access::Prefetch,
            1 => Access::Read,
            2 => Access::Write,
            3 | 4 => Access::Atomic,
            found => {
                let why = "the types of access are 0 to 4";
                return Err(BadLine::Range { field: "access type", found, why });
            }
        };
        if fault >= FATAL {
            self.fatal += 1;
            return Ok(Seen::Taken);
        }
        self.merged = self.merged.saturating_add(instances.saturating_sub(1));
        let engine = self.engines.number((gpc, utlb));
        let fault = Event::access(time_ns, page_of(address), access, engine);
        out.push(Event { kind: EventKind::DeviceFault, ..fault });
        Ok(Seen::Taken)
    }

    fn findings(&self) -> Findings {
        let left_out = [
            (self.fatal, "faults are fatal: the driver did not serve them, and they are left out"),
            (self.prefetched, "prefetched pages (p) have no time and are left out"),
            (self.evicted, "evictions (e) have no time and are left out"),
        ];
        let notes = left_out.iter().filter(|(count, _)| *count > 0);
        Findings {
            clock: "device",
            times: "nanoseconds",
            addresses: "bytes",
            policy: Some("nvidia"),
            merged: self.merged,
            notes: notes.map(|(count, what)| format!("{count} {what}")).collect(),
            ..Findings::default()
        }
    }
}
