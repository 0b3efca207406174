//! Entries of the event queue of NVIDIA's UVM tools, as they lie in the queue: 64 bytes each in version 1, 72 in
//! version 2, little-endian, the first byte the type of the event.
//!
//! # Rules
//! 1. 3 (a fault of a device) and 1 (of the CPU) are faults, 2 is a migration. The times of all are the CPU's, in
//!    nanoseconds: of a fault of a device, when the driver began with it, and not when it happened. Of one time, the
//!    order is that of the queue.
//! 2. The other types (replays, evictions, thrashing, throttling, remote mappings...) are what the driver did beside
//!    that; they are counted. An eviction moves pages by migrations of its own.
//! 3. An entry of zeros is a place that was never filled.
//! 4. A fault of a type from 5 on is fatal: the driver does not serve it, and it is left out and counted.
//! 5. An engine is a GPU with its GPC and client, numbered in the order of appearance.

use super::BadLine;
use super::fields::{migration, page_of, pages_of};
use super::format::{Findings, Nothing};
use super::spaces::Engines;
use crate::trace::{Access, Event, EventKind, MigrationCause};

pub(super) const NOTHING: Nothing = Nothing {
    what: "fault or migration",
    advice: "enable the events UvmEventTypeGpuFault, UvmEventTypeCpuFault and UvmEventTypeMigration of the queue",
};

/// What is beside faults and migrations, by type.
const OTHERS: [(u8, &str); 11] = [
    (4, "replays"),
    (5, "overflows of the fault buffer"),
    (6, "fatal faults"),
    (7, "read duplications"),
    (8, "ends of read duplication"),
    (9, "changes of the page size"),
    (10, "detections of thrashing"),
    (11, "throttlings"),
    (12, "ends of throttling"),
    (13, "remote mappings"),
    (14, "evictions"),
];
/// Events for tests of the driver.
const TESTS: [u8; 2] = [62, 63];
/// The first fault type that the driver does not serve.
const FATAL: u8 = 5;
/// So many entries are looked at to tell the version.
const LOOK: usize = 64;

/// How entries are laid out.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Version {
    One,
    Two,
}

impl Version {
    /// Bytes of an entry.
    pub fn bytes(self) -> usize {
        match self {
            Self::One => 64,
            Self::Two => 72,
        }
    }
}

/// Reads entries.
pub(super) struct UvmTools {
    version: Version,
    engines: Engines<(u16, u16, u16)>,
    others: [u64; OTHERS.len()],
    fatal: u64,
}

fn u16_at(entry: &[u8], at: usize) -> u16 {
    entry.get(at..at + 2).map_or(0, |bytes| u16::from_le_bytes([bytes[0], bytes[1]]))
}

fn u64_at(entry: &[u8], at: usize) -> u64 {
    let mut bytes = [0; 8];
    if let Some(found) = entry.get(at..at + 8) {
        bytes.copy_from_slice(found);
    }
    u64::from_le_bytes(bytes)
}

fn access_of(code: u8) -> Result<Access, BadLine> {
    match code {
        1 => Ok(Access::Read),
        2 => Ok(Access::Write),
        3 => Ok(Access::Atomic),
        4 => Ok(Access::Prefetch),
        found => {
            let why = "the types of access are 1 to 4";
            Err(BadLine::Range { field: "access type", found: found.into(), why })
        }
    }
}

impl UvmTools {
    pub fn new(version: Version) -> Self {
        Self { version, engines: Engines::default(), others: [0; OTHERS.len()], fatal: 0 }
    }

    /// Reads an entry, which has [`Version::bytes`]. `None`: it is no event of a trace.
    ///
    /// # Errors
    /// It is not what the driver writes.
    pub fn entry(&mut self, entry: &[u8]) -> Result<Option<Event>, BadLine> {
        let kind = entry.first().copied().unwrap_or(0);
        match kind {
            0 if entry.iter().all(|byte| *byte == 0) => Ok(None),
            1 => {
                let access = access_of(entry[1])?;
                Ok(Some(Event::cpu(u64_at(entry, 16), page_of(u64_at(entry, 8)), access)))
            }
            2 => self.migration(entry).map(Some),
            3 => self.fault(entry),
            _ if TESTS.contains(&kind) => Ok(None),
            _ => match OTHERS.iter().position(|(code, _)| *code == kind) {
                Some(at) => {
                    self.others[at] += 1;
                    Ok(None)
                }
                None => {
                    let why = "the types of events are 1 to 14";
                    Err(BadLine::Range { field: "event type", found: kind.into(), why })
                }
            },
        }
    }

    fn migration(&self, entry: &[u8]) -> Result<Event, BadLine> {
        let cause = match entry[1] {
            1 => MigrationCause::User,
            2 => MigrationCause::Fault,
            3 => MigrationCause::Prefetch,
            4 => MigrationCause::Eviction,
            5 => MigrationCause::AccessCounter,
            found => {
                let why = "the causes are 1 to 5";
                return Err(BadLine::Range { field: "cause", found: found.into(), why });
            }
        };
        let (to, at) = match self.version {
            Version::One => (u16::from(entry[3]), 8),
            Version::Two => (u16_at(entry, 6), 16),
        };
        let (page, pages) = pages_of(u64_at(entry, at), u64_at(entry, at + 8))?;
        // Processor 0 is the CPU, and the GPUs come behind it.
        Ok(migration(u64_at(entry, at + 16), page, pages, cause, to.checked_sub(1)))
    }

    fn fault(&mut self, entry: &[u8]) -> Result<Option<Event>, BadLine> {
        let (access, gpu) = match self.version {
            Version::One => (entry[2], u16::from(entry[3])),
            Version::Two => (entry[37], u16_at(entry, 2)),
        };
        let access = access_of(access)?;
        if entry[1] >= FATAL {
            self.fatal += 1;
            return Ok(None);
        }
        let engine = self.engines.number((gpu, u16_at(entry, 4), u16_at(entry, 6)));
        let fault = Event::access(u64_at(entry, 16), page_of(u64_at(entry, 8)), access, engine);
        Ok(Some(Event { kind: EventKind::DeviceFault, ..fault }))
    }

    pub fn findings(&self) -> Findings {
        let counted = OTHERS.iter().zip(self.others).filter(|(_, count)| *count > 0);
        let counted: Vec<_> = counted.map(|((_, name), count)| format!("{count} {name}")).collect();
        let beside = (!counted.is_empty()).then(|| format!("beside these: {}", counted.join(", ")));
        let fatal = (self.fatal > 0).then(|| {
            format!("{} faults are fatal: the driver did not serve them, and they are left out", self.fatal)
        });
        let clock = "the times of faults are when the driver began with them; what the queue dropped is counted in its control page, which is not in the file";
        Findings {
            clock: "driver",
            times: "nanoseconds",
            addresses: "bytes",
            policy: Some("nvidia"),
            notes: [Some(clock.to_owned()), beside, fatal].into_iter().flatten().collect(),
            ..Findings::default()
        }
    }
}

/// The version of which the beginning of a file of so many bytes is most, three of four entries at least. Where both
/// read equally well, the one that divides the length.
pub(super) fn version(head: &[u8], length: u64) -> Option<Version> {
    let share = |version: Version| {
        let mut parser = UvmTools::new(version);
        let entries = head.chunks_exact(version.bytes()).take(LOOK);
        let filled: Vec<_> = entries.filter(|entry| entry.iter().any(|byte| *byte != 0)).collect();
        let good = |entry: &&&[u8]| parser.entry(entry).is_ok() && padding_is_empty(version, entry);
        let good = filled.iter().filter(good).count();
        (good > 0 && good * 4 >= filled.len() * 3).then(|| good * 1000 / filled.len())
    };
    let divides = |version: Version| length.is_multiple_of(version.bytes() as u64);
    match (share(Version::One), share(Version::Two)) {
        (Some(one), Some(two)) if one > two || (one == two && divides(Version::One)) => Some(Version::One),
        (_, Some(_)) => Some(Version::Two),
        (Some(_), None) => Some(Version::One),
        (None, None) => None,
    }
}

/// Whether what an entry leaves unused is zero: the driver clears an entry before it fills it. Only asked to tell the
/// version.
fn padding_is_empty(version: Version, entry: &[u8]) -> bool {
    let unused: &[(usize, usize)] = match (entry[0], version) {
        (1, _) => &[(2, 4), (40, 64)],
        (2, Version::One) => &[(4, 8)],
        (2, Version::Two) => &[(2, 4)],
        (3, Version::One) => &[(37, 64)],
        (3, Version::Two) => &[(38, 72)],
        (4, Version::One) => &[(3, 4), (24, 64)],
        (4, Version::Two) => &[(24, 72)],
        (14, Version::One) => &[(3, 8), (40, 64)],
        (14, Version::Two) => &[(1, 4), (40, 72)],
        _ => &[],
    };
    unused.iter().all(|(from, to)| entry[*from..*to].iter().all(|byte| *byte == 0))
}
