//! Events of AMD's KFD, as its SMI file descriptor gives them: `7 123456789 -4321 @7f12a(6501) W`.
//!
//! # Rules
//! 1. A line is the number of the event in hexadecimal, nanoseconds since boot, a dash and the process in decimal, and
//!    what the event has. Addresses and sizes are hexadecimal and count pages. A number that no page of a process can
//!    have is an error.
//! 2. 7 (a page fault begins) is a fault of a device. 5 (a migration begins) is a migration. 11 (unmapped from the
//!    device) is an unmap if the program unmapped; the driver's own unmaps are none. The ends of these (8, 6), and what
//!    becomes of queues (9, 10), are no events.
//! 3. KFD has no event for a fault of the CPU: it shows as a migration, whose pages are more than those touched.
//! 4. An engine is a GPU, numbered in the order of appearance.

use super::fields::{decimal, hexadecimal, migration};
use super::format::{Findings, Nothing, Parse, Seen};
use super::prq::END_OF_USER_PAGES;
use super::spaces::{Engines, Spaces};
use super::{BadLine, Settings};
use crate::trace::{Access, Event, EventKind, MigrationCause};

pub(super) const NOTHING: Nothing = Nothing {
    what: "page fault, migration or unmap",
    advice: "enable events 5 to 8 and 11 by AMDKFD_IOC_SMI_EVENTS, and run the program with HSA_XNACK=1",
};

/// The parser.
pub(super) struct Kfd {
    spaces: Spaces,
    engines: Engines<u64>,
    cpu_migrations: u64,
    queue_events: u64,
}

impl Kfd {
    pub fn new(settings: &Settings) -> Self {
        let spaces = Spaces::new(&settings.pids, "process");
        Self { spaces, engines: Engines::default(), cpu_migrations: 0, queue_events: 0 }
    }
}

/// The words of a line behind its process.
struct Words<'a>(std::str::SplitWhitespace<'a>);

impl<'a> Words<'a> {
    fn next(&mut self, what: &'static str) -> Result<&'a str, BadLine> {
        self.0.next().ok_or(BadLine::Missing(what))
    }

    /// `@pages(other)`.
    fn place(&mut self) -> Result<(u64, u64), BadLine> {
        let word = self.next("@address(...)")?;
        let wrong = || BadLine::field("address", word, "@address(...)");
        let inner = word.strip_prefix('@').and_then(|word| word.strip_suffix(')')).ok_or_else(wrong)?;
        let (page, other) = inner.split_once('(').ok_or_else(wrong)?;
        let page = hexadecimal("address", page)?;
        if page >= END_OF_USER_PAGES {
            let why = "it is the number of a page, and no process has so many; is it an address in bytes?";
            return Err(BadLine::Range { field: "address", found: page, why });
        }
        Ok((page, hexadecimal("the number in parentheses", other)?))
    }

    fn one_of(&mut self, field: &'static str, known: &str, wanted: &'static str) -> Result<char, BadLine> {
        let word = self.next(field)?;
        let mut letters = word.chars();
        match (letters.next(), letters.next()) {
            (Some(letter), None) if known.contains(letter) => Ok(letter),
            _ => Err(BadLine::field(field, word, wanted)),
        }
    }

    /// `from->to`.
    fn ends(&mut self) -> Result<(u64, u64), BadLine> {
        let word = self.next("from->to")?;
        let (from, to) = word.split_once("->").ok_or_else(|| BadLine::field("nodes", word, "from->to"))?;
        Ok((hexadecimal("from", from)?, hexadecimal("to", to)?))
    }
}

/// A range of pages within the address space of a process.
fn range(page: u64, pages: u64) -> Result<u32, BadLine> {
    let wrong = |why| BadLine::Range { field: "size", found: pages, why };
    if pages == 0 {
        return Err(wrong("it covers no page"));
    }
    let most = u64::from(u32::MAX).min(END_OF_USER_PAGES - page);
    match u32::try_from(pages) {
        Ok(pages) if u64::from(pages) <= most => Ok(pages),
        _ => Err(wrong("it counts pages, and no process has so many; are these bytes?")),
    }
}

impl Parse for Kfd {
    fn line(&mut self, line: &str, out: &mut Vec<Event>) -> Result<Seen, BadLine> {
        let mut words = line.split_whitespace();
        let (Some(event), Some(time), Some(process)) = (words.next(), words.next(), words.next()) else {
            return Ok(Seen::Other);
        };
        let (Ok(event), Some(process)) = (hexadecimal("event", event), process.strip_prefix('-')) else {
            return Ok(Seen::Other);
        };
        if !(5..=0xb).contains(&event) {
            return Ok(Seen::Other);
        }
        let (Ok(time_ns), Ok(process)) = (decimal("time", time), decimal("process", process)) else {
            return Ok(Seen::Other);
        };
        let mut words = Words(words);
        let at = |page| Event::access(time_ns, page, Access::Read, 0);
        let found = match event {
            5 => {
                let (page, pages) = words.place()?;
                let pages = range(page, pages)?;
                let (_, to) = words.ends()?;
                words.next("prefetch:preferred")?;
                let cause = match decimal("trigger", words.next("trigger")?)? {
                    0 => MigrationCause::User,
                    1 => MigrationCause::Fault,
                    2 => {
                        self.cpu_migrations += 1;
                        MigrationCause::Fault
                    }
                    3 => MigrationCause::Eviction,
                    found => {
                        let why = "the triggers are 0 to 3";
                        return Err(BadLine::Range { field: "trigger", found, why });
                    }
                };
                let to = (to != 0).then(|| self.engines.number(to));
                Some(migration(time_ns, page, pages, cause, to))
            }
            6 => {
                let (page, pages) = words.place()?;
                range(page, pages)?;
                words.ends()?;
                decimal("trigger", words.next("trigger")?)?;
                None
            }
            7 => {
                let (page, node) = words.place()?;
                let write = words.one_of("access", "RW", "R or W")? == 'W';
                let access = if write { Access::Write } else { Access::Read };
                let engine = self.engines.number(node);
                Some(Event { access, engine, kind: EventKind::DeviceFault, ..at(page) })
            }
            8 => {
                words.place()?;
                words.one_of("result", "MU", "M or U")?;
                None
            }
            0xb => {
                let (page, pages) = words.place()?;
                let pages = range(page, pages)?;
                hexadecimal("node", words.next("node")?)?;
                let by_program = decimal("trigger", words.next("trigger")?)? == 2;
                by_program.then(|| Event { pages, kind: EventKind::Unmap, ..at(page) })
            }
            _ => {
                hexadecimal("node", words.next("node")?)?;
                self.queue_events += 1;
                None
            }
        };
        if self.spaces.admit(process)? {
            out.extend(found);
        }
        Ok(Seen::Taken)
    }

    fn findings(&self) -> Findings {
        let cpu = (self.cpu_migrations > 0).then(|| {
            format!(
                "{} migrations were caused by faults of the CPU; KFD does not say which page it touched, so these faults are not in the trace",
                self.cpu_migrations
            )
        });
        let queues = (self.queue_events > 0)
            .then(|| format!("queues were stopped or restarted {} times", self.queue_events));
        Findings {
            clock: "boottime",
            times: "nanoseconds",
            addresses: "pages of 4 KiB",
            policy: Some("amd"),
            elsewhere: self.spaces.elsewhere(),
            notes: cpu.into_iter().chain(queues).collect(),
            ..Findings::default()
        }
    }
}
