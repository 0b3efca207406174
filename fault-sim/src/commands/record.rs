//! `fault-sim record`: page faults of any program, through the kernel's perf events.

use std::path::PathBuf;
use std::process::ExitCode;

use clap::Args;
use serde_json::json;
use thiserror::Error;

use crate::output::{Ending, end};
use crate::record::{RecordError, Samples, Way, record};
use crate::result::COMMIT;
use crate::trace::{Metadata, TraceError, TraceKind, TraceWriter};

/// What `record` takes.
#[derive(Args, Clone, Debug)]
pub struct Options {
    /// The trace to write.
    #[arg(short, long, value_name = "FILE", default_value = "faults.parquet")]
    pub output: PathBuf,
    /// Print one JSON object.
    #[arg(long)]
    pub json: bool,
    /// The program and its arguments, behind `--`.
    #[arg(last = true, required = true, value_name = "COMMAND")]
    pub command: Vec<String>,
}

#[derive(Debug, Error)]
enum Refused {
    #[error("{0}")]
    Kernel(String),
    #[error(transparent)]
    Trace(#[from] TraceError),
    #[error(transparent)]
    Record(#[from] RecordError),
}

impl Ending for Refused {
    fn refuses(&self) -> bool {
        match self {
            Self::Kernel(_) | Self::Record(RecordError::Start(..)) => true,
            Self::Trace(error) => matches!(error, TraceError::Io { what: "created", .. }),
            Self::Record(_) => false,
        }
    }
}

const SETTING: &str = "/proc/sys/kernel/perf_event_paranoid";

/// The sentence for a refusal, with the setting that would allow it.
fn refusal(error: &std::io::Error) -> String {
    let level = std::fs::read_to_string(SETTING).ok().and_then(|text| text.trim().parse::<i32>().ok());
    match level {
        None => format!(
            "this kernel has no perf events ({error}); boot one that is built with CONFIG_PERF_EVENTS"
        ),
        Some(level) if level > 2 => format!(
            "kernel.perf_event_paranoid is {level} and keeps page faults from this user ({error}); \
             allow it with: sysctl kernel.perf_event_paranoid=2"
        ),
        Some(level) => format!(
            "perf_event_open is refused though kernel.perf_event_paranoid is {level} ({error}); a container allows it \
             with --cap-add PERFMON and a seccomp profile that has perf_event_open"
        ),
    }
}

/// Records and says what was written.
pub fn main(options: &Options) -> ExitCode {
    end(run(options))
}

fn run(options: &Options) -> Result<(), Refused> {
    let mut samples = Samples::open().map_err(|error| Refused::Kernel(refusal(&error)))?;
    let way = match samples.way {
        Way::Everything => "perf page-faults, those in system calls included",
        Way::UserOnly => {
            "perf page-faults of user mode only (kernel.perf_event_paranoid=1 shows those in system calls)"
        }
    };
    let metadata = Metadata {
        kind: TraceKind::Faults,
        origin: format!("perf {}", options.command.join(" ")),
        clock: "boottime".to_owned(),
        policy: Some("linux".to_owned()),
        commit: COMMIT.to_owned(),
        seed: None,
    };
    let mut writer = TraceWriter::create(&options.output, &metadata)?;
    let status = match record(&mut samples, &options.command, &mut writer) {
        Err(error @ RecordError::Start(..)) => {
            writer.give_up();
            return Err(error.into());
        }
        recorded => recorded?,
    };
    let summary = writer.finish()?;
    let lost = samples.lost;
    if options.json {
        let said = json!({
            "trace": options.output,
            "metadata": metadata,
            "summary": summary,
            "way": way,
            "lost": lost,
            "status": status.code(),
        });
        println!("{said}");
    } else {
        println!(
            "{}: {} page faults on {} pages, by {way}; {lost} lost; the program ended with {status}",
            options.output.display(),
            summary.events,
            summary.footprint_pages,
        );
    }
    Ok(())
}
