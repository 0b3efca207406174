//! `fault-sim gen`: makes a trace from a pattern and a seed.

use std::path::PathBuf;
use std::process::ExitCode;

use clap::Args;
use granule::units::PAGE_BYTES;
use thiserror::Error;

use crate::output::{Ending, end};
use crate::pattern::{Events, Pattern, Shape, ShapeError};
use crate::progress::Progress;
use crate::result::{COMMIT, shown_bytes};
use crate::size::{AmountError, Size, share};
use crate::trace::{Metadata, TraceError, TraceKind, TraceWriter};

/// What `gen` takes.
#[derive(Args, Clone, Debug)]
pub struct Options {
    /// How memory is touched; `fault-sim list patterns` says what each is.
    #[arg(value_enum, default_value_t = Pattern::Stream)]
    pub pattern: Pattern,
    /// Bytes of all allocations together.
    #[arg(long, default_value = "256MiB")]
    pub size: Size,
    /// Touches to make [default: four for each page].
    #[arg(long)]
    pub faults: Option<u64>,
    /// Everything follows from it.
    #[arg(long, default_value_t = 1)]
    pub seed: u64,
    /// Engines of the device that take turns.
    #[arg(long, default_value_t = 16)]
    pub engines: u16,
    /// Nanoseconds from one touch to the next.
    #[arg(long, default_value_t = 100)]
    pub gap_ns: u64,
    /// Share of the touches that are the CPU's.
    #[arg(long, default_value = "0%", value_parser = share_of)]
    pub cpu: u32,
    /// Share of the touches that are followed by an unmap of the 64 KiB around them.
    #[arg(long, default_value = "0%", value_parser = share_of)]
    pub unmap: u32,
    /// The trace to write [default: the pattern's name with .parquet].
    #[arg(short, long, value_name = "FILE")]
    pub output: Option<PathBuf>,
    /// Print one JSON object.
    #[arg(long)]
    pub json: bool,
}

fn share_of(text: &str) -> Result<u32, AmountError> {
    share(text)
}

#[derive(Debug, Error)]
enum GenError {
    #[error(transparent)]
    Shape(#[from] ShapeError),
    #[error(transparent)]
    Trace(#[from] TraceError),
}

impl Ending for GenError {
    fn refuses(&self) -> bool {
        matches!(self, Self::Shape(_))
    }
}

/// Generates and says what was written.
pub fn main(options: &Options) -> ExitCode {
    end(generate(options))
}

fn generate(options: &Options) -> Result<(), GenError> {
    let pages = options.size.0 / PAGE_BYTES;
    let shape = Shape {
        pages,
        events: options.faults.unwrap_or(pages * 4),
        seed: options.seed,
        engines: options.engines,
        gap_ns: options.gap_ns,
        cpu_per_myriad: options.cpu,
        unmap_per_myriad: options.unmap,
    };
    let events = Events::new(options.pattern, shape)?;
    let name = options.pattern.name();
    let path = options.output.clone().unwrap_or_else(|| PathBuf::from(format!("{name}.parquet")));
    let metadata = Metadata {
        kind: TraceKind::Accesses,
        origin: format!("gen {name}"),
        clock: "virtual".to_owned(),
        policy: None,
        commit: COMMIT.to_owned(),
        seed: Some(options.seed),
    };
    let mut writer = TraceWriter::create(&path, &metadata)?;
    let progress = Progress::of_events();
    progress.begin("gen", shape.events);
    let mut since = 0;
    for event in events {
        writer.push(event)?;
        since += 1;
        if since == 1 << 16 {
            progress.add(since);
            since = 0;
        }
    }
    progress.clear();
    let summary = writer.finish()?;
    if options.json {
        let said = serde_json::json!({ "trace": path, "metadata": metadata, "summary": summary });
        println!("{said}");
    } else {
        println!(
            "{}: {} events over {}, seed {}",
            path.display(),
            summary.events,
            shown_bytes(summary.footprint_pages * PAGE_BYTES),
            options.seed
        );
    }
    Ok(())
}
