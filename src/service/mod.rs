//! [`Svm`]: the threads, the life cycle, and what a program calls.
//!
//! # Threads
//! | thread | does | may wait for |
//! |---|---|---|
//! | reader, one | events and CPU faults: `fault::round` | the kernel, workers inside the gate |
//! | device, one per device | fetches faults, groups them, has them served, replays; requests of the program | faults of the device, workers |
//! | workers, a pool | `fault::serve`, one block each | gate, block locks, transits |
//!
//! A thread of the application serves its own faults in ranges that ask for it ([`Svm::fault_mode`], `sigbus`).
//!
//! All have stacks in private memory. A program's thread never takes a lock of the state machine: what it asks for
//! is done by a device thread while it waits, since its own stack may lie in memory that is away.
//!
//! # End
//! Dropping an [`Svm`] refuses new faults, brings every device-private page to RAM, unlinks, unregisters, and ends the
//! threads, in this order: device threads drain and end, then the reader (which served the faults of the drain). Pages
//! that cannot be read back from their device are poisoned, not left to read as zeros; [`Svm::close`] says how many.

mod builder;
mod core;
mod crew;
mod device_thread;
mod memory;
mod reader_thread;
mod region;
mod request;
mod sigbus;
mod spaces;
mod statistics;
mod svm;
mod userptr;

pub use builder::{BuildError, SvmBuilder};
pub use region::{Region, RegionError};
pub use request::RequestError;
pub use sigbus::FaultModeError;
pub use statistics::{Distribution, MemoryUse, Stats};
pub use svm::{PagesLeft, Svm};
pub use userptr::{Submission, Userptr, UserptrError, UserptrOptions, Valid};

pub use crate::os::FaultMode;
pub use crate::policy::Granularity;
