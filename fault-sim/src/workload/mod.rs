//! What the device computes. A workload allocates its data like any program, fills it from the seed, has a
//! kernel (an ordinary function over [`Engine`]) work on the very same addresses, and checks every byte of it
//! from the CPU.
//!
//! # Rules
//! 1. Expected values are computed from the seed when they are compared, or kept in private memory of the
//!    library, which is never mirrored: nothing that goes wrong with the data can go wrong with them, too.
//! 2. `verify` looks at every byte that [`Workload::spans`] names: a single wrong bit is found, with its address.
//! 3. The last turn is the device's, so that the check is what brings the data back.
//! 4. What a kernel is told lies on the stack of whoever launches it, and its buffers on the engine's: like the
//!    arguments and registers of a real device. On the heap they would share pages with the data, and each look at
//!    them would bring a page back from the device.

mod atomic;
mod bfs;
mod histogram;
mod list;
mod ping_pong;
mod saxpy;
mod sum;

use std::sync::atomic::{AtomicU32, AtomicU64, Ordering};

use granule::os::private::PrivateError;
use granule::units::PAGE_BYTES;
use granule_backends::software::Engine;
use thiserror::Error;

use crate::accelerator::{Accelerator, WorkError};
use crate::alloc::{AllocError, Arena, Node, Source};
use crate::progress::Progress;
use crate::shaders::Shader;

/// Elements of 8 bytes that a kernel moves at a time; twice as many of 4 bytes.
const CHUNK: usize = 2048;

/// The workloads, by the names that the command line gives them.
#[derive(Clone, Copy, PartialEq, Eq, Debug, clap::ValueEnum, serde::Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Kind {
    /// y = a * x + y over two arrays of f32.
    Saxpy,
    /// The sum of an array of u64.
    Sum,
    /// How often each byte value occurs.
    Histogram,
    /// Walks linked lists whose nodes the CPU allocated one by one.
    List,
    /// Breadth-first search over a graph in ordinary vectors.
    Bfs,
    /// CPU and device take turns on the same pages.
    PingPong,
    /// CPU and device count in the same pages at the same time.
    Atomic,
}

impl Kind {
    /// Memory that `size` bytes of data take of a machine: with what the C library spends on each node of a list, and with
    /// what the workload keeps beside the data to know them. Saturates.
    pub fn footprint_bytes(self, source: Source, size: u64) -> u64 {
        let nodes = size / size_of::<Node>() as u64;
        match (self, source) {
            // 16 bytes of the C library for each node, two words to find it again (one in a vector that grows).
            (Kind::List, Source::Malloc) => size.saturating_add(nodes * (16 + 8 + 16)),
            (Kind::List, _) => size.saturating_add(nodes * 8),
            // A distance for each vertex, kept twice.
            (Kind::Bfs, _) => size.saturating_add(size / 10),
            _ => size,
        }
    }
}

/// What a workload is made from.
#[derive(Clone, Copy)]
pub struct Setup<'a> {
    /// Bytes of data, about.
    pub bytes: u64,
    /// Every value follows from it.
    pub seed: u64,
    /// Engines of the device.
    pub engines: usize,
    /// Threads of the CPU side.
    pub threads: usize,
    /// Told about every byte that the device is done with.
    pub progress: &'a Progress,
}

/// Data on which the device works.
pub trait Workload {
    /// Bytes that the device passes over in one `run`: what the progress bar counts.
    fn work_bytes(&self) -> u64;

    /// Has the device do its work.
    ///
    /// # Errors
    /// [`WorkError`] of the first engine or item whose access could not be served.
    fn run(&self, device: &Accelerator) -> Result<(), WorkError>;

    /// The compute shader that does the work on a Vulkan device.
    fn shader(&self) -> Shader;

    /// Has the CPU compare everything with what it should be.
    ///
    /// # Errors
    /// [`Mismatch`] for the first difference that was found.
    fn verify(&self) -> Result<(), Mismatch>;

    /// Calls `found` for every piece of data (address, bytes) until it returns true.
    fn spans(&self, found: &mut dyn FnMut(u64, u64) -> bool);
}

/// Allocates and fills the data of a workload and hands it to `then`.
///
/// # Errors
/// [`PrepareError`] if there is no memory for it.
pub fn with<R>(
    kind: Kind,
    arena: &Arena<'_>,
    setup: Setup<'_>,
    then: impl FnOnce(&dyn Workload) -> R,
) -> Result<R, PrepareError> {
    Ok(match kind {
        Kind::Saxpy => then(&saxpy::Saxpy::new(arena, setup)?),
        Kind::Sum => then(&sum::Sum::new(arena, setup)?),
        Kind::Histogram => then(&histogram::Histogram::new(arena, setup)?),
        Kind::List => then(&list::List::new(arena, setup)?),
        Kind::Bfs => then(&bfs::Bfs::new(arena, setup)?),
        Kind::PingPong => then(&ping_pong::PingPong::new(arena, setup)?),
        Kind::Atomic => then(&atomic::Atomic::new(arena, setup)?),
    })
}

/// Why a workload could not be made.
#[derive(Debug, Error)]
pub enum PrepareError {
    /// Its memory.
    #[error(transparent)]
    Alloc(#[from] AllocError),
    /// The memory for its expected values.
    #[error("the expected values cannot be kept: {0}")]
    Expected(#[from] PrivateError),
}

/// A value that is not what it should be.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Error)]
#[error("wrong result: {what} at {address:#x} is {found:#x} and should be {expected:#x}")]
pub struct Mismatch {
    /// What the value is.
    pub what: &'static str,
    /// Where it is.
    pub address: u64,
    /// What it is.
    pub found: u64,
    /// What it should be.
    pub expected: u64,
}

/// Compares one word with what it should be.
fn check(what: &'static str, word: &AtomicU64, expected: u64) -> Result<(), Mismatch> {
    let found = word.load(Ordering::Relaxed);
    if found == expected {
        return Ok(());
    }
    Err(Mismatch { what, address: word.as_ptr() as u64, found, expected })
}

/// Compares one half word with what it should be.
fn check_half(what: &'static str, half: &AtomicU32, expected: u32) -> Result<(), Mismatch> {
    let found = half.load(Ordering::Relaxed);
    if found == expected {
        return Ok(());
    }
    let address = half.as_ptr() as u64;
    Err(Mismatch { what, address, found: found.into(), expected: expected.into() })
}

/// The address of an element, as the device names it: what its pointer holds.
fn address<T>(of: &T) -> u64 {
    std::ptr::from_ref(of) as u64
}

/// Address and size of a slice.
fn span<T>(of: &[T]) -> (u64, u64) {
    (of.as_ptr() as u64, size_of_val(of) as u64)
}

/// How many pages hold a slice: the items of a shader that takes a page each.
fn pages<T>(of: &[T]) -> usize {
    let (at, bytes) = span(of);
    ((at + bytes).div_ceil(PAGE_BYTES) - at / PAGE_BYTES) as usize
}

/// The part of `0..len` that an engine works on.
fn share(engine: &Engine<'_>, len: usize) -> std::ops::Range<usize> {
    crate::split::part(len, engine.index(), engine.count())
}

/// Cuts a range into pieces of at most `most`, in order.
fn pieces(range: std::ops::Range<usize>, most: usize) -> impl Iterator<Item = std::ops::Range<usize>> {
    let end = range.end;
    range.step_by(most).map(move |start| start..end.min(start + most))
}
