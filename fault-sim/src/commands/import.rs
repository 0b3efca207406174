//! `fault-sim import`: what another tool wrote, as a trace.

use std::path::{Path, PathBuf};
use std::process::ExitCode;

use clap::Args;
use granule::units::PAGE_BYTES;
use thiserror::Error;

use crate::import::{Format, ImportError, Pids, Settings, Side, import_to};
use crate::output::{Ending, Output, OutputError, end};
use crate::progress::Progress;
use crate::result::shown_bytes;

/// What `import` takes.
#[derive(Args, Clone, Debug)]
pub struct Options {
    /// The file; its format is told by what is in it.
    pub file: PathBuf,
    /// The trace to write [default: the file's name with .parquet behind it, in this folder].
    #[arg(short, long, value_name = "FILE")]
    pub output: Option<PathBuf>,
    /// The format, if it is not to be detected; `fault-sim list formats` says what each is.
    #[arg(long, value_enum)]
    pub format: Option<Format>,
    /// Count bad lines and leave them out, instead of stopping at the first.
    #[arg(long)]
    pub lenient: bool,
    /// Whose touches those of a CPU program (perf, ftrace, lackey) become.
    #[arg(long, value_enum, default_value_t)]
    pub side: Side,
    /// Whose lines are meant if the file has several processes (or threads, PASIDs, asids): 47, or 47,48, or all.
    #[arg(long)]
    pub pid: Option<Pids>,
    /// Print one JSON object.
    #[arg(long)]
    pub json: bool,
}

#[derive(Debug, Error)]
enum CommandError {
    #[error(transparent)]
    Import(#[from] ImportError),
    #[error(transparent)]
    Output(#[from] OutputError),
    #[error("{path} would be written over itself; name another file with -o", path = .0.display())]
    Itself(PathBuf),
    #[error("{path} has no name to make one for the trace from; name one with -o", path = .0.display())]
    NoName(PathBuf),
}

impl Ending for CommandError {
    fn refuses(&self) -> bool {
        match self {
            Self::Import(ImportError::Io { what, .. }) => *what == "opened",
            Self::Import(error) => error.refuses(),
            Self::Output(_) => false,
            Self::Itself(_) | Self::NoName(_) => true,
        }
    }
}

/// Imports and says what was found.
pub fn main(options: &Options) -> ExitCode {
    end(run(options))
}

fn run(options: &Options) -> Result<(), CommandError> {
    let output = match &options.output {
        Some(path) => path.clone(),
        None => {
            let name = options.file.file_name().ok_or_else(|| CommandError::NoName(options.file.clone()))?;
            let mut name = name.to_owned();
            name.push(".parquet");
            name.into()
        }
    };
    let same = |a: &Path, b: &Path| Some(a.canonicalize().ok()? == b.canonicalize().ok()?);
    if same(&options.file, &output) == Some(true) {
        return Err(CommandError::Itself(output));
    }
    let pids = options.pid.clone().unwrap_or_default();
    let settings = Settings { format: options.format, lenient: options.lenient, side: options.side, pids };
    let (report, summary) = import_to(&options.file, &settings, &output, &Progress::new())?;
    let text = if options.json {
        format!("{}\n", serde_json::json!({ "trace": output, "report": report, "summary": summary }))
    } else {
        let footprint = shown_bytes(summary.footprint_pages * PAGE_BYTES);
        let last = format!("{}: {} events over {footprint}\n", output.display(), summary.events);
        report.table() + &last
    };
    Ok(Output::default().write(&text)?)
}
