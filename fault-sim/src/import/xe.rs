//! Debug lines of Intel's xe driver: `[   12.345678] xe 0000:03:00.0: [drm:...] PAGE FAULT: asid=1, gpusvm=..., vram=0,0,
//! seqno=2, start=0x00007f1200000000, end=0x00007f1200010000, size=65536`.
//!
//! # Rules
//! 1. `PAGE FAULT` is a fault of the device. The line names the chunk that is served, not the address that was
//!    touched: the fault is put on the first page of the chunk. What the driver does with the chunk (`GET PAGES`,
//!    `BIND`...) is no event.
//! 2. The driver does not say whether a page was read or written: all are reads.
//! 3. The time is the kernel's, in brackets or in a record of /dev/kmsg. Lines of different `asid` are of different
//!    address spaces.
//! 4. `size` must be `end` minus `start`.

use super::fields::{decimal, page_of, prefixed};
use super::format::{Findings, Nothing, Parse, Seen};
use super::log::log;
use super::spaces::Spaces;
use super::{BadLine, Settings};
use crate::trace::{Access, Event, EventKind};

pub(super) const NOTHING: Nothing = Nothing {
    what: "line PAGE FAULT",
    advice: "build the driver with CONFIG_DRM_XE_DEBUG_VM, boot with drm.debug=0x1 and print with `dmesg`",
};

/// The parser.
pub(super) struct Xe {
    spaces: Spaces,
    others: u64,
}

impl Xe {
    pub fn new(settings: &Settings) -> Self {
        Self { spaces: Spaces::new(&settings.pids, "asid"), others: 0 }
    }
}

/// The value of `key=value` among what commas and spaces separate.
fn value<'a>(text: &'a str, key: &'static str) -> Result<&'a str, BadLine> {
    let mut fields = text.split([',', ' ']);
    let value = fields.find_map(|field| field.strip_prefix(key)?.strip_prefix('='));
    value.ok_or(BadLine::Missing(key))
}

impl Parse for Xe {
    fn line(&mut self, line: &str, out: &mut Vec<Event>) -> Result<Seen, BadLine> {
        let Some((before, _)) = line.split_once(": asid=") else { return Ok(Seen::Other) };
        let fields = &line[before.len() + 2..];
        if !fields.contains(", gpusvm=") {
            return Ok(Seen::Other);
        }
        let operation = before.rsplit([']', ':']).next().unwrap_or(before).trim();
        if operation != "PAGE FAULT" {
            self.others += 1;
            return Ok(Seen::Mark);
        }
        let (time_ns, _) = log(line).ok_or(BadLine::Missing(
            "the kernel's time: print with `dmesg` or `journalctl -k -o short-monotonic`;",
        ))?;
        let space = decimal("asid", value(fields, "asid")?)?;
        let start = prefixed("start", value(fields, "start")?)?;
        let end = prefixed("end", value(fields, "end")?)?;
        let size = decimal("size", value(fields, "size")?)?;
        if size == 0 || end.checked_sub(start) != Some(size) {
            let why = "it is not what lies between start and end";
            return Err(BadLine::Range { field: "size", found: size, why });
        }
        if self.spaces.admit(space)? {
            let fault = Event::access(time_ns, page_of(start), Access::Read, 0);
            out.push(Event { kind: EventKind::DeviceFault, ..fault });
        }
        Ok(Seen::Taken)
    }

    fn findings(&self) -> Findings {
        let place = "a line names the chunk that is served: the fault is put on its first page, as a read";
        let others = (self.others > 0).then(|| {
            format!("{} lines say what the driver did with a chunk; they are no events", self.others)
        });
        Findings {
            clock: "kernel",
            times: "seconds",
            addresses: "bytes",
            policy: Some("gpusvm"),
            elsewhere: self.spaces.elsewhere(),
            notes: [place.to_owned()].into_iter().chain(others).collect(),
            ..Findings::default()
        }
    }
}
