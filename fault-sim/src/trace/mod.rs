//! Traces: what a device and the CPU did to memory, event by event, in a Parquet file that other tools read too.
//!
//! | file | is |
//! |---|---|
//! | `event` | one event, and what its codes mean |
//! | `metadata` | what a trace says of itself: its kind, where it comes from, under which policy it was recorded |
//! | `schema` | the columns of the file |
//! | `writer` | writes in row groups; memory does not grow with the trace |
//! | `reader` | reads batch by batch; repairs the end that a crash tore |
//! | `footprint` | which pages a trace touches, counted while it is written or read |
//!
//! # Rules
//! 1. A trace is as long as its disk allows: neither writing nor reading holds more than one row group of it.
//! 2. After [`TraceWriter::checkpoint`] the file is a whole Parquet file. What a crash leaves behind the last
//!    checkpoint is cut off by the reader, which says how many bytes that were.
//! 3. A trace written under its final name is whole: it is written as `NAME.part` and renamed at the end.
//! 4. What is not known is absent, never guessed: a trace of faults does not claim to hold accesses.

mod error;
mod event;
mod footprint;
mod metadata;
mod reader;
mod schema;
mod writer;

pub use error::TraceError;
pub use event::{Access, Advice, Event, EventKind, MigrationCause};
pub use footprint::{BlockMap, Footprint};
pub use metadata::{Metadata, TraceKind};
pub use reader::TraceReader;
pub use writer::{Summary, TraceWriter};
