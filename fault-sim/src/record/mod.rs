//! Recording the page faults of a program that knows nothing of it.

mod perf_event;

use std::io;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};
use std::process::{Child, Command, ExitStatus};
use std::time::{Duration, Instant};

pub use perf_event::{Sample, Samples, Way};

use crate::trace::{Access, Event, TraceError, TraceWriter};

/// How often what was recorded is made safe against a crash.
const CHECKPOINT_EVERY: Duration = Duration::from_secs(5);

/// Why a recording ended before its program did.
#[derive(Debug, thiserror::Error)]
pub enum RecordError {
    /// The program cannot be started.
    #[error("{0} cannot be started: {1}")]
    Start(String, io::Error),
    /// The trace cannot be written.
    #[error("the recording stopped, and the program went on without it: {0}")]
    Trace(#[from] TraceError),
    /// The kernel does not let us wait.
    #[error("waiting for the program failed: {0}")]
    Wait(io::Error),
}

/// Starts a program and records its page faults until it ends. The trace's clock is CLOCK_BOOTTIME; whether a fault read or
/// wrote, the kernel does not say.
///
/// # Errors
/// [`RecordError`]. The program is always waited for.
pub fn record(
    samples: &mut Samples,
    command: &[String],
    writer: &mut TraceWriter,
) -> Result<ExitStatus, RecordError> {
    let (program, arguments) = command.split_first().expect("a command has a name");
    let started = Command::new(program).args(arguments).spawn();
    let mut child = started.map_err(|error| RecordError::Start(program.clone(), error))?;
    let recorded = until_end(samples, &child, writer);
    let status = child.wait().map_err(RecordError::Wait)?;
    recorded?;
    write(samples, writer)?;
    Ok(status)
}

fn until_end(samples: &mut Samples, child: &Child, writer: &mut TraceWriter) -> Result<(), RecordError> {
    let ended = end_of(child).map_err(RecordError::Wait)?;
    let mut checkpoint = Instant::now();
    loop {
        let wait = |fd| libc::pollfd { fd, events: libc::POLLIN, revents: 0 };
        let mut fds: Vec<_> = std::iter::once(ended.as_raw_fd()).chain(samples.fds()).map(wait).collect();
        let limit = CHECKPOINT_EVERY.as_millis() as i32;
        poll(&mut fds, limit).map_err(RecordError::Wait)?;
        write(samples, writer)?;
        if checkpoint.elapsed() >= CHECKPOINT_EVERY {
            writer.checkpoint()?;
            checkpoint = Instant::now();
        }
        if fds[0].revents != 0 {
            return Ok(());
        }
    }
}

fn write(samples: &mut Samples, writer: &mut TraceWriter) -> Result<(), TraceError> {
    let mut found = Vec::new();
    samples.drain(&mut found);
    found.iter().try_for_each(|sample| {
        let page = sample.address / granule::units::PAGE_BYTES;
        let event = Event::cpu(sample.time_ns, page, Access::Read);
        writer.push(Event { engine: sample.cpu as u16, ..event })
    })
}

/// A descriptor that is readable once the child has ended.
#[allow(unsafe_code, reason = "the standard library has no stable way to poll for a child")]
fn end_of(child: &Child) -> io::Result<OwnedFd> {
    // SAFETY: the child was not waited for, so its number is its own.
    let fd = unsafe { libc::syscall(libc::SYS_pidfd_open, child.id() as libc::pid_t, 0) };
    if fd < 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: the kernel has just made this descriptor, and nobody else has it.
    Ok(unsafe { OwnedFd::from_raw_fd(fd as i32) })
}

#[allow(unsafe_code, reason = "poll has no safe wrapper in libc")]
fn poll(fds: &mut [libc::pollfd], limit_ms: i32) -> io::Result<()> {
    // SAFETY: as many entries as the slice has.
    let rc = unsafe { libc::poll(fds.as_mut_ptr(), fds.len() as libc::nfds_t, limit_ms) };
    let error = io::Error::last_os_error();
    if rc < 0 && error.kind() != io::ErrorKind::Interrupted { Err(error) } else { Ok(()) }
}
