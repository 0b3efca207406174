//! Import: what other tools wrote, as a trace.
//!
//! | file | is |
//! |---|---|
//! | `format` | the formats by name, and how each is told from its contents |
//! | `lines` | a file line by line, with bounded memory |
//! | `fields` | numbers, times and addresses as tools print them |
//! | `head`, `log` | what stands before an event in a line of ftrace, of perf and of the kernel's log |
//! | `spaces` | which lines share an address space; engines by number |
//! | `order` | events into the order of time, within a window |
//! | `sink` | where events go: counted, ordered, written |
//! | `run` | one file through one format into a sink |
//! | `report` | what was found, as it is printed |
//! | `source` | a trace or a foreign file, opened for a command that wants to read a trace |
//! | `error` | why a file, and why a line, cannot be imported |
//! | `csv`, ... | one file per format |
//!
//! # Rules
//! 1. A format is told by what is in the file, never by its name. `--format` overrides that.
//! 2. A line that is of the format and cannot be read is an error with its number; under `--lenient` it is counted
//!    and left out. A line of something else (a log holds many) is counted apart.
//! 3. What a source does not hold is said, with the command that would have recorded it. A file without a single
//!    event is an error, not an empty trace.
//! 4. Memory does not grow with the file: a line has at most [`lines::MOST_BYTES`], and events wait in a window of
//!    [`order::WINDOW`] to be put into the order of time. What comes later than that stays where it is and is counted:
//!    `time_ns` of a trace need not ascend.
//! 5. A parser is pure: a line in, events out. It never panics, whatever the line.

mod csv;
mod error;
mod fields;
mod format;
mod ftrace;
mod head;
mod kfd;
mod lackey;
mod lines;
mod log;
mod nsys;
mod order;
mod perf_script;
mod perf_trace;
mod prq;
mod report;
mod run;
mod sink;
mod source;
mod spaces;
mod uvm_eval;
mod uvm_tools;
mod xe;

pub use error::{BadLine, ImportError};
pub use format::Format;
pub use report::Report;
pub use run::{Settings, Side, detect, import, import_file, import_to};
pub use sink::{Sink, Take};
pub use source::{OpenError, Source};
pub use spaces::{Pids, PidsError};
