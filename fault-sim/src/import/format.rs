use clap::ValueEnum;

use super::uvm_tools::Version;
use super::{
    BadLine, Settings, csv, ftrace, kfd, lackey, nsys, perf_script, perf_trace, prq, uvm_eval, uvm_tools, xe,
};
use crate::trace::Event;

/// What other tools write. Its name is what `--format` takes and what a trace says of its origin.
#[derive(Clone, Copy, PartialEq, Eq, Debug, ValueEnum)]
#[non_exhaustive]
pub enum Format {
    /// The SQLite export of Nsight Systems: copies of unified memory with their causes, and page faults.
    Nsys,
    /// Entries of the event queue of NVIDIA's UVM tools, version 1 (64 bytes each).
    UvmToolsV1,
    /// The same, version 2 (72 bytes each).
    UvmToolsV2,
    /// Logs of NVIDIA's driver as uvm-eval patches it, 14 or 15 fields to a fault.
    UvmEval,
    /// Events of AMD's KFD (page faults, migrations, unmaps), as text.
    Kfd,
    /// Debug lines of Intel's xe driver in the kernel's log.
    Xe,
    /// `intel_iommu:prq_report` of ftrace: page requests of a device.
    #[value(name = "prq_report")]
    Prq,
    /// `exceptions:page_fault_user` of ftrace or trace-cmd: a CPU program's faults.
    Ftrace,
    /// `perf script` of page faults with addresses: a CPU program's faults.
    PerfScript,
    /// `perf trace -F all`: a CPU program's faults on memory without a file behind it.
    PerfTrace,
    /// valgrind's lackey with --trace-mem=yes: every access of a CPU program.
    Lackey,
    /// Rows of `time,address,access[,engine]`, with a header that names the unit of time.
    Csv,
}

/// What a line is to a parser.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Seen {
    /// It was read; its events, if it has any, are out.
    Taken,
    /// It has no event, but only files of this format hold it.
    Mark,
    /// It is of something else.
    Other,
}

/// Reads one text format, line by line.
pub(super) trait Parse {
    /// Reads a line; its events go to `out`, which is empty before and is not looked at after an error.
    ///
    /// # Errors
    /// It is of this format and cannot be read.
    fn line(&mut self, line: &str, out: &mut Vec<Event>) -> Result<Seen, BadLine>;

    /// What the parser learned beside the events.
    fn findings(&self) -> Findings;
}

/// What a source says beside its events.
#[derive(Clone, Debug, Default)]
pub(super) struct Findings {
    /// What the clock is: goes into the trace.
    pub clock: &'static str,
    /// In which unit the file has times.
    pub times: &'static str,
    /// In which unit the file has addresses.
    pub addresses: &'static str,
    /// The policy at work while it was recorded.
    pub policy: Option<&'static str>,
    /// Events that the tool itself lost.
    pub dropped: u64,
    /// Repetitions that were merged.
    pub merged: u64,
    /// Lines of processes that were not asked for.
    pub elsewhere: u64,
    /// What a reader of the numbers has to know.
    pub notes: Vec<String>,
}

/// What a file without events lacks, and what records it.
pub(super) struct Nothing {
    pub what: &'static str,
    pub advice: &'static str,
}

impl Format {
    /// Its name.
    pub fn name(self) -> &'static str {
        match self {
            Self::Nsys => "nsys",
            Self::UvmToolsV1 => "uvm-tools-v1",
            Self::UvmToolsV2 => "uvm-tools-v2",
            Self::UvmEval => "uvm-eval",
            Self::Kfd => "kfd",
            Self::Xe => "xe",
            Self::Prq => "prq_report",
            Self::Ftrace => "ftrace",
            Self::PerfScript => "perf-script",
            Self::PerfTrace => "perf-trace",
            Self::Lackey => "lackey",
            Self::Csv => "csv",
        }
    }

    /// What it is, in one line.
    pub fn about(self) -> String {
        let value = self.to_possible_value();
        value.and_then(|value| value.get_help().map(ToString::to_string)).unwrap_or_default()
    }

    /// A parser, if it is a text format.
    pub(super) fn parser(self, settings: &Settings) -> Option<Box<dyn Parse>> {
        Some(match self {
            Self::Nsys | Self::UvmToolsV1 | Self::UvmToolsV2 => return None,
            Self::UvmEval => Box::new(uvm_eval::UvmEval::default()),
            Self::Kfd => Box::new(kfd::Kfd::new(settings)),
            Self::Xe => Box::new(xe::Xe::new(settings)),
            Self::Prq => Box::new(prq::Prq::new(settings)),
            Self::Ftrace => Box::new(ftrace::Ftrace::new(settings)),
            Self::PerfScript => Box::new(perf_script::PerfScript::new(settings)),
            Self::PerfTrace => Box::new(perf_trace::PerfTrace::new(settings)),
            Self::Lackey => Box::new(lackey::Lackey::new(settings)),
            Self::Csv => Box::new(csv::Csv::new(settings.format == Some(self))),
        })
    }

    /// How its entries are laid out, if it is a binary format.
    pub(super) fn entries(self) -> Option<Version> {
        match self {
            Self::UvmToolsV1 => Some(Version::One),
            Self::UvmToolsV2 => Some(Version::Two),
            _ => None,
        }
    }

    /// Whether the tool ends every line, so that a file whose last line has no end was cut off.
    pub(super) fn ends_every_line(self) -> bool {
        self != Self::Csv
    }

    pub(super) fn nothing(self) -> Nothing {
        match self {
            Self::Nsys => nsys::NOTHING,
            Self::UvmToolsV1 | Self::UvmToolsV2 => uvm_tools::NOTHING,
            Self::UvmEval => uvm_eval::NOTHING,
            Self::Kfd => kfd::NOTHING,
            Self::Xe => xe::NOTHING,
            Self::Prq => prq::NOTHING,
            Self::Ftrace => ftrace::NOTHING,
            Self::PerfScript => perf_script::NOTHING,
            Self::PerfTrace => perf_trace::NOTHING,
            Self::Lackey => lackey::NOTHING,
            Self::Csv => csv::NOTHING,
        }
    }
}
