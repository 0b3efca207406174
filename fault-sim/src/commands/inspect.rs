//! `fault-sim inspect`: what is in a trace.
//!
//! Memory: 4 bytes for each touched page, 64 for each touched block, and the histograms.

use std::fmt::Write;
use std::path::PathBuf;
use std::process::ExitCode;

use clap::Args;
use granule::units::{BLOCK_BYTES, PAGE_BYTES, PAGES_PER_BLOCK};
use serde::Serialize;
use thiserror::Error;

use crate::import::{OpenError, Source};
use crate::output::{Ending, Output, OutputError, end};
use crate::progress::Progress;
use crate::result::{shown_bytes, shown_ns};
use crate::trace::{BlockMap, Event, EventKind, Metadata, TraceError};

/// What `inspect` takes.
#[derive(Args, Clone, Debug)]
pub struct Options {
    /// The trace, or a file that `import` reads.
    pub trace: PathBuf,
    /// How many of the hottest blocks to name.
    #[arg(long, default_value_t = 5)]
    pub hot: usize,
    /// The form of the answer.
    #[command(flatten)]
    pub output: Output,
}

#[derive(Debug, Error)]
enum InspectError {
    #[error(transparent)]
    Trace(#[from] TraceError),
    #[error(transparent)]
    Open(#[from] OpenError),
    #[error(transparent)]
    Output(#[from] OutputError),
    #[error("the answer is not JSON: {0}")]
    Json(#[from] serde_json::Error),
}

impl Ending for InspectError {
    fn refuses(&self) -> bool {
        match self {
            Self::Open(error) => error.refuses(),
            Self::Trace(_) => true,
            Self::Output(_) | Self::Json(_) => false,
        }
    }
}

/// A block that was touched often.
#[derive(Clone, Debug, Serialize)]
struct Hot {
    address: u64,
    touches: u64,
}

/// How many touches came back to their page after about so many other touches.
#[derive(Clone, Debug, Serialize)]
struct Reuse {
    /// At most so many touches of other pages or the same one lie between.
    at_most: u64,
    touches: u64,
}

/// What is in a trace.
#[derive(Clone, Debug, Serialize)]
struct Inspection {
    trace: String,
    metadata: Metadata,
    events: u64,
    lost_bytes: u64,
    kinds: Vec<(&'static str, u64)>,
    writes: u64,
    engines: usize,
    first_ns: u64,
    last_ns: u64,
    time_backwards: u64,
    touches_per_second: Option<f64>,
    footprint_bytes: u64,
    blocks: u64,
    span_first: u64,
    span_end: u64,
    first_touches: u64,
    reuse: Vec<Reuse>,
    hot: Vec<Hot>,
    notes: Vec<String>,
}

/// Inspects and prints.
pub fn main(options: &Options) -> ExitCode {
    end(inspect(options))
}

#[derive(Default)]
struct Counting {
    kinds: [u64; EventKind::ALL.len()],
    writes: u64,
    engines: Vec<bool>,
    first_ns: Option<u64>,
    last_ns: u64,
    time_backwards: u64,
    pages: (u64, u64),
    touches: u64,
    first_touches: u64,
    map: BlockMap,
    /// For each block its touches, and for each of its pages the number of its last touch, shortened to 32 bits.
    blocks: Vec<u64>,
    last_touch: Vec<[u32; PAGES_PER_BLOCK]>,
    seen: Vec<granule::units::PageMask>,
    reuse: Vec<u64>,
}

impl Counting {
    fn add(&mut self, event: &Event) {
        self.kinds[event.kind as usize] += 1;
        self.first_ns.get_or_insert(event.time_ns);
        self.time_backwards += u64::from(event.time_ns < self.last_ns);
        self.last_ns = self.last_ns.max(event.time_ns);
        if !matches!(event.kind, EventKind::Access | EventKind::DeviceFault | EventKind::CpuFault) {
            return;
        }
        self.writes += u64::from(event.access.writes());
        if event.kind != EventKind::CpuFault {
            let engine = usize::from(event.engine);
            if engine >= self.engines.len() {
                self.engines.resize(engine + 1, false);
            }
            self.engines[engine] = true;
        }
        self.pages = match self.touches {
            0 => (event.page, event.page),
            _ => (self.pages.0.min(event.page), self.pages.1.max(event.page)),
        };
        self.touches += 1;
        let block = self.map.get_or_add(event.page / PAGES_PER_BLOCK as u64) as usize;
        if block == self.blocks.len() {
            self.blocks.push(0);
            self.last_touch.push([0; PAGES_PER_BLOCK]);
            self.seen.push(granule::units::PageMask::EMPTY);
        }
        self.blocks[block] += 1;
        let page = event.page as usize % PAGES_PER_BLOCK;
        let index = granule::units::PageIndex(page as u16);
        let now = self.touches as u32;
        let last = std::mem::replace(&mut self.last_touch[block][page], now);
        if self.seen[block].contains(index) {
            // The bucket is the number of bits of the distance; distances are exact below 2^32 touches.
            let between = now.wrapping_sub(last) - 1;
            self.reuse.resize(u32::BITS as usize + 1, 0);
            self.reuse[(u32::BITS - between.leading_zeros()) as usize] += 1;
        } else {
            self.seen[block].insert(index);
            self.first_touches += 1;
        }
    }

    fn hottest(&self, count: usize) -> Vec<Hot> {
        let mut blocks: Vec<_> = (0..self.blocks.len()).collect();
        let key = |block: &usize| (std::cmp::Reverse(self.blocks[*block]), self.map.block(*block as u32));
        blocks.sort_unstable_by_key(key);
        let hot = |block: usize| Hot {
            address: self.map.block(block as u32) * BLOCK_BYTES,
            touches: self.blocks[block],
        };
        blocks.into_iter().take(count).map(hot).collect()
    }
}

fn inspect(options: &Options) -> Result<(), InspectError> {
    let source = Source::open(&options.trace)?;
    let mut reader = source.reader()?;
    let progress = Progress::of_events();
    progress.begin("inspect", reader.len());
    let (mut counting, mut events) = (Counting::default(), Vec::new());
    while reader.read(&mut events)? {
        events.iter().for_each(|event| counting.add(event));
        progress.add(events.len() as u64);
    }
    progress.clear();
    let first_ns = counting.first_ns.unwrap_or(0);
    let seconds = counting.last_ns.saturating_sub(first_ns) as f64 / 1e9;
    let reuse = (0u32..).zip(counting.reuse.iter().copied()).filter(|(_, touches)| *touches > 0);
    let kinds = EventKind::ALL.iter().map(|kind| (kind.name(), counting.kinds[*kind as usize]));
    let pages: u64 = counting.seen.iter().map(|mask| mask.count() as u64).sum();
    let found = Inspection {
        trace: options.trace.display().to_string(),
        metadata: reader.metadata().clone(),
        events: counting.kinds.iter().sum(),
        lost_bytes: reader.lost_bytes(),
        kinds: kinds.filter(|(_, count)| *count > 0).collect(),
        writes: counting.writes,
        engines: counting.engines.iter().filter(|seen| **seen).count(),
        first_ns,
        last_ns: counting.last_ns,
        time_backwards: counting.time_backwards,
        touches_per_second: (seconds > 0.0).then(|| counting.touches as f64 / seconds),
        footprint_bytes: pages * PAGE_BYTES,
        blocks: counting.blocks.len() as u64,
        span_first: counting.pages.0 * PAGE_BYTES,
        span_end: (counting.pages.1 * PAGE_BYTES).saturating_add(PAGE_BYTES - 1),
        first_touches: counting.first_touches,
        reuse: reuse.map(|(bits, touches)| Reuse { at_most: (1u64 << bits) - 1, touches }).collect(),
        hot: counting.hottest(options.hot),
        notes: source.notes(),
    };
    let text = if options.output.is_json() {
        serde_json::to_string(&found)? + "\n"
    } else if options.output.csv {
        found.csv()
    } else {
        found.table()
    };
    Ok(options.output.write(&text)?)
}

impl Inspection {
    fn table(&self) -> String {
        let mut out = String::new();
        let metadata = &self.metadata;
        let _ = writeln!(out, "{}: {} of {}", self.trace, metadata.kind.name(), metadata.origin);
        let mut row = |name: &str, value: String| {
            let _ = writeln!(out, "  {name:<24} {value:>24}");
        };
        row("clock", metadata.clock.clone());
        row("recorded under", metadata.policy.clone().unwrap_or_else(|| "-".to_owned()));
        row("made by commit", metadata.commit.clone());
        row("seed", metadata.seed.map_or("-".to_owned(), |seed| seed.to_string()));
        row("events", self.events.to_string());
        self.kinds.iter().for_each(|(name, count)| row(name, count.to_string()));
        row("of touches, writes", self.writes.to_string());
        row("engines", self.engines.to_string());
        row("time", shown_ns(self.last_ns.saturating_sub(self.first_ns)));
        row(
            "touches per second",
            self.touches_per_second.map_or("-".to_owned(), |rate| format!("{rate:.0}")),
        );
        row("footprint", shown_bytes(self.footprint_bytes));
        row("blocks", self.blocks.to_string());
        row("first address", format!("{:#x}", self.span_first));
        row("last address", format!("{:#x}", self.span_end));
        row("first touches of a page", self.first_touches.to_string());
        if self.time_backwards > 0 {
            row("time goes backwards", self.time_backwards.to_string());
        }
        if self.lost_bytes > 0 {
            row("cut off: lost bytes", self.lost_bytes.to_string());
        }
        for note in &self.notes {
            let _ = writeln!(out, "  {note}");
        }
        let _ = writeln!(out, "\ntouches between two of the same page");
        for reuse in &self.reuse {
            let _ = writeln!(out, "  at most {:<16} {:>24}", reuse.at_most, reuse.touches);
        }
        let _ = writeln!(out, "\nhottest blocks");
        for hot in &self.hot {
            let _ = writeln!(out, "  {:<24} {:>24}", format!("{:#x}", hot.address), hot.touches);
        }
        out
    }

    fn csv(&self) -> String {
        let mut out = "what,key,value\n".to_owned();
        let mut row = |what: &str, key: &str, value: u64| {
            let _ = writeln!(out, "{what},{key},{value}");
        };
        row("trace", "events", self.events);
        self.kinds.iter().for_each(|(name, count)| row("kind", name, *count));
        row("trace", "footprint_bytes", self.footprint_bytes);
        row("trace", "blocks", self.blocks);
        row("trace", "first_ns", self.first_ns);
        row("trace", "last_ns", self.last_ns);
        self.reuse.iter().for_each(|reuse| row("reuse", &reuse.at_most.to_string(), reuse.touches));
        self.hot.iter().for_each(|hot| row("hot", &format!("{:#x}", hot.address), hot.touches));
        out
    }
}
