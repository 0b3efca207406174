//! `fault-sim replay --service`: a trace through the whole fault path of the library (`fault::serve`, the reader's
//! rounds, eviction), over ports that do nothing. What it counts is the library's own counters; there is no clock.

use std::collections::HashSet;
use std::fmt::Write;

use granule::policy::{Granularity, MigrateOnFault};
use granule::units::{BLOCKS_PER_GRANULE, PAGE_BYTES, PAGES_PER_BLOCK};
use serde_json::json;
use thiserror::Error;

use super::replay::Options;
use crate::output::{Ending, OutputError};
use crate::policy::catalogue;
use crate::progress::Progress;
use crate::replay::LEAST_BYTES;
use crate::result::COMMIT;
use crate::service_sim::{Limits, Played, with_service};
use crate::size::Amount;
use crate::trace::{EventKind, Footprint, TraceError, TraceReader};

/// Why a trace was not played through the service.
#[derive(Debug, Error)]
pub enum ServiceError {
    /// The trace cannot be read.
    #[error(transparent)]
    Trace(#[from] TraceError),
    /// Not the library's.
    #[error(
        "the service decides by the library's own policies: granule, granule-4k, granule-64k or granule-2m, not {0:?}"
    )]
    Policy(String),
    /// A device has two blocks at least.
    #[error("device memory of {0} bytes is too small to replay with; give at least 4MiB")]
    TooSmall(u64),
    /// No fault may be open.
    #[error("at least one fault must be allowed to be outstanding")]
    NoOutstanding,
    /// The result cannot be written.
    #[error(transparent)]
    Output(#[from] OutputError),
}

impl Ending for ServiceError {
    fn refuses(&self) -> bool {
        match self {
            Self::Trace(error) => !matches!(error, TraceError::Parquet { .. } | TraceError::Event { .. }),
            Self::Output(_) => false,
            _ => true,
        }
    }
}

fn policy(name: &str) -> Result<MigrateOnFault, ServiceError> {
    let granularity = match name {
        "granule" | "granule-64k" => Granularity::Kib64,
        "granule-4k" => Granularity::Kib4,
        "granule-2m" => Granularity::Mib2,
        _ => return Err(ServiceError::Policy(name.to_owned())),
    };
    Ok(MigrateOnFault { granularity })
}

/// Plays a trace through the service, once for each policy.
///
/// # Errors
/// [`ServiceError`].
pub fn play(options: &Options) -> Result<(), ServiceError> {
    let is_default = options.policy.join(",") == catalogue::MAIN;
    let names = if is_default { vec!["granule".to_owned()] } else { options.policy.clone() };
    let policies = names.iter().map(|name| policy(name)).collect::<Result<Vec<_>, _>>()?;
    let mut reader = TraceReader::open(&options.trace)?;
    let progress = Progress::of_events();
    let (footprint_pages, blocks, granules) = look_ahead(&mut reader, &progress)?;
    let device_bytes = match options.device_memory {
        Amount::Bytes(size) => size.0,
        share => share.of(footprint_pages * PAGE_BYTES).max(LEAST_BYTES),
    };
    if device_bytes < LEAST_BYTES {
        return Err(ServiceError::TooSmall(device_bytes));
    }
    if options.outstanding == 0 {
        return Err(ServiceError::NoOutstanding);
    }
    let limits = Limits { device_bytes, outstanding: options.outstanding, blocks, granules };
    let mut rows = Vec::new();
    for (name, policy) in names.iter().zip(&policies) {
        reader.rewind();
        progress.begin("service", reader.len());
        let played = with_service(&limits, policy, |player| {
            let mut events = Vec::new();
            while reader.read(&mut events)? {
                player.feed(&events);
                progress.add(events.len() as u64);
            }
            Ok::<_, TraceError>(player.finish())
        });
        progress.clear();
        rows.push((name.as_str(), played?));
    }
    Ok(options.output.write(&text(options, device_bytes, footprint_pages, &rows))?)
}

/// Distinct pages, blocks and granules that are touched.
fn look_ahead(reader: &mut TraceReader, progress: &Progress) -> Result<(u64, usize, usize), TraceError> {
    let (mut footprint, mut blocks) = (Footprint::default(), HashSet::new());
    let mut last = u64::MAX;
    progress.begin("look", reader.len());
    let mut events = Vec::new();
    while reader.read(&mut events)? {
        for event in &events {
            if matches!(event.kind, EventKind::Access | EventKind::DeviceFault | EventKind::CpuFault) {
                footprint.add(event.page);
                let block = event.page / PAGES_PER_BLOCK as u64;
                if block != last {
                    last = block;
                    blocks.insert(block);
                }
            }
        }
        progress.add(events.len() as u64);
    }
    progress.clear();
    let granules: HashSet<_> = blocks.iter().map(|block| block / BLOCKS_PER_GRANULE as u64).collect();
    Ok((footprint.pages(), blocks.len(), granules.len()))
}

fn numbers(played: &Played) -> Vec<(String, u64)> {
    let own = [
        ("events", played.events),
        ("hits", played.hits),
        ("outside", played.outside),
        ("not_played", played.not_played),
    ];
    let counts = played.counts.iter().map(|(count, n)| (format!("{count:?}"), *n));
    own.into_iter().map(|(name, n)| (name.to_owned(), n)).chain(counts).collect()
}

fn text(options: &Options, device_bytes: u64, footprint_pages: u64, rows: &[(&str, Played)]) -> String {
    if options.output.is_json() {
        let rows: Vec<_> = rows
            .iter()
            .map(|(name, played)| {
                let metrics: serde_json::Map<_, _> =
                    numbers(played).into_iter().map(|(name, n)| (name, json!(n))).collect();
                json!({ "policy": name, "metrics": metrics })
            })
            .collect();
        let all = json!({
            "commit": COMMIT,
            "trace": options.trace.display().to_string(),
            "through": "service",
            "device_memory_bytes": device_bytes,
            "footprint_bytes": footprint_pages * PAGE_BYTES,
            "outstanding": options.outstanding,
            "rows": rows,
        });
        return format!("{all}\n");
    }
    let csv = options.output.csv;
    let mut text = String::new();
    let line = |text: &mut String, name: &str, cells: Vec<String>| {
        let _ = match csv {
            true => writeln!(text, "{name},{}", cells.join(",")),
            false => {
                let cells = cells.iter().fold(String::new(), |all, cell| format!("{all} {cell:>14}"));
                writeln!(text, "{name:<28}{cells}")
            }
        };
    };
    line(&mut text, "metric", rows.iter().map(|(name, _)| (*name).to_owned()).collect());
    let columns: Vec<_> = rows.iter().map(|(_, played)| numbers(played)).collect();
    for (at, (name, _)) in columns.first().into_iter().flatten().enumerate() {
        line(&mut text, name, columns.iter().map(|column| column[at].1.to_string()).collect());
    }
    text
}
