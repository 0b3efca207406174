#![allow(unsafe_code, reason = "opens the host, whose contract the service keeps")]
use std::sync::mpsc::channel;

use thiserror::Error;

use super::core::Core;
use super::device_thread::DeviceThread;
use super::request::Asker;
use super::spaces::{self, Place};
use super::{reader_thread, svm::Svm};
use crate::granule::MAX_DEVICES;
use crate::os::fault_stacks::FAULT_STACKS;
use crate::os::private::{PrivateArc, PrivateError};
use crate::os::thread::{self, ThreadError};
use crate::os::{HostOptions, LinuxHost, OpenError, TakeWay};
use crate::policy::{Granularity, MigrateOnFault, Policy};
use crate::ports::Device;
use crate::units::{BLOCK_BYTES, DeviceId, Seat, VirtRange};

/// Builds an [`Svm`].
pub struct SvmBuilder {
    devices: Vec<Result<PrivateArc<dyn Device + Send>, PrivateError>>,
    policy: Option<Result<PrivateArc<dyn Policy + Send>, PrivateError>>,
    granularity: Granularity,
    window: Option<VirtRange>,
    budget_bytes: Option<u64>,
    workers: Option<usize>,
    take_way: Option<TakeWay>,
    user_mode_only: bool,
}

/// Why no space was built. Nothing is left behind.
#[derive(Debug, Error)]
#[non_exhaustive]
pub enum BuildError {
    /// No device, or too many.
    #[error("an address space has one to {MAX_DEVICES} devices, not {0}; add them with SvmBuilder::device")]
    DeviceCount(usize),
    /// The budget of device memory is below one block.
    #[error("a device-memory budget of {0} bytes is less than one block; give at least 2 MiB")]
    Budget(u64),
    /// No worker threads.
    #[error("a space needs at least one worker thread")]
    Workers,
    /// The window is empty or not made of whole blocks.
    #[error("the window {0} is not a non-empty range of whole 2 MiB blocks")]
    Window(VirtRange),
    /// Another space of this process has a part of the window.
    #[error(
        "another space of this process serves {0}; give each a window of its own, or drop that one first"
    )]
    WindowTaken(VirtRange),
    /// Private memory.
    #[error(transparent)]
    Memory(#[from] PrivateError),
    /// The kernel's side.
    #[error(transparent)]
    Host(#[from] OpenError),
    /// A thread.
    #[error(transparent)]
    Thread(#[from] ThreadError),
    /// The pool of workers.
    #[error("the worker threads could not be started: {0}")]
    Pool(#[from] rayon::ThreadPoolBuildError),
}

impl SvmBuilder {
    pub(super) fn new() -> Self {
        Self {
            devices: Vec::new(),
            policy: None,
            granularity: Granularity::default(),
            window: None,
            budget_bytes: None,
            workers: None,
            take_way: None,
            user_mode_only: false,
        }
    }

    /// Adds a device. It is moved to private memory; hand in a handle if the program keeps one, too.
    #[must_use]
    pub fn device<D: Device + Send + 'static>(mut self, device: D) -> Self {
        self.devices.push(
            PrivateArc::new(device)
                .map(|device| PrivateArc::map(device, |device| device as &(dyn Device + Send))),
        );
        self
    }

    /// How much moves per fault under the default policy. Default: 64 KiB.
    #[must_use]
    pub fn granularity(mut self, granularity: Granularity) -> Self {
        self.granularity = granularity;
        self
    }

    /// Another policy than [`MigrateOnFault`]. It is moved to private memory, and must not keep state behind
    /// pointers to the heap.
    #[must_use]
    pub fn policy<P: Policy + Send + 'static>(mut self, policy: P) -> Self {
        self.policy = Some(
            PrivateArc::new(policy)
                .map(|policy| PrivateArc::map(policy, |policy| policy as &(dyn Policy + Send))),
        );
        self
    }

    /// Serves a part of the address space only: whole blocks of 2 MiB. Windows of several spaces in one process do
    /// not overlap. Default: everything.
    #[must_use]
    pub fn window(mut self, window: VirtRange) -> Self {
        self.window = Some(window);
        self
    }

    /// Uses at most so many bytes of each device's memory (rounded down to 2 MiB). Default: all of it.
    #[must_use]
    pub fn device_memory_budget_bytes(mut self, bytes: u64) -> Self {
        self.budget_bytes = Some(bytes);
        self
    }

    /// Threads that serve blocks in parallel. Default: one per processor, at most 8.
    #[must_use]
    pub fn workers(mut self, workers: usize) -> Self {
        self.workers = Some(workers);
        self
    }

    /// Forces the way in which pages are taken from the application. Default: the best that the kernel has.
    #[must_use]
    pub fn take_way(mut self, way: TakeWay) -> Self {
        self.take_way = Some(way);
        self
    }

    /// Asks for the user-mode-only fault mode even where the process has rights to more: the mode that a process without
    /// rights gets. Then only memory moves that the program named (userptrs that allow moving, regions of the library),
    /// the rest is linked; a system call into a page that is away fails with EFAULT; and children of a raw `clone` read
    /// zeros for such pages, since there is no fork event (`fork` brings everything home first, as in any mode).
    /// Default: no.
    #[must_use]
    pub fn user_mode_only(mut self, only: bool) -> Self {
        self.user_mode_only = only;
        self
    }

    /// Starts the service.
    ///
    /// # Errors
    /// [`BuildError`]; for a missing permission it says which, and which command grants it.
    pub fn build(self) -> Result<Svm, BuildError> {
        if self.devices.is_empty() || self.devices.len() > MAX_DEVICES {
            return Err(BuildError::DeviceCount(self.devices.len()));
        }
        if let Some(window) = self.window
            && (window.is_empty() || window.start().0 % BLOCK_BYTES != 0 || window.bytes() % BLOCK_BYTES != 0)
        {
            return Err(BuildError::Window(window));
        }
        let workers = self
            .workers
            .unwrap_or_else(|| std::thread::available_parallelism().map_or(1, std::num::NonZero::get).min(8));
        if workers == 0 {
            return Err(BuildError::Workers);
        }
        let ports = self.devices.into_iter().collect::<Result<Vec<_>, _>>()?;
        let mut budgets = Vec::new();
        for port in &ports {
            let bytes = port.caps().memory_bytes.min(self.budget_bytes.unwrap_or(u64::MAX));
            if bytes < BLOCK_BYTES {
                return Err(BuildError::Budget(bytes));
            }
            budgets.push(bytes / BLOCK_BYTES * BLOCK_BYTES);
        }
        let policy = match self.policy {
            Some(policy) => policy?,
            None => PrivateArc::map(
                PrivateArc::new(MigrateOnFault { granularity: self.granularity })?,
                |policy| policy as &(dyn Policy + Send),
            ),
        };
        let device_blocks: u64 = budgets.iter().map(|bytes| bytes / BLOCK_BYTES).sum();
        let defaults = HostOptions::default();
        let options = HostOptions {
            window: self.window.unwrap_or(defaults.window),
            take_way: self.take_way,
            user_mode_only: self.user_mode_only,
            // One per thread that moves, and enough for everything on devices to come home at once.
            staging_slots: 2 * (workers + ports.len()) + FAULT_STACKS + 2 + device_blocks as usize,
            ..defaults
        };
        let place = spaces::claim(options.window).map_err(BuildError::WindowTaken)?;
        // SAFETY: the reader started below is the one thread that reads events and serves CPU faults; `Svm::drop` has
        // every page brought to RAM before it ends the reader and releases the host.
        let host = unsafe { LinuxHost::open(options) }?;
        let device_count = ports.len();
        let core = PrivateArc::new(Core::new(host, ports, &budgets, policy, workers)?)?;
        start(core, device_count, workers, place)
    }
}

/// Starts the threads: the reader first, since everything else may fault.
fn start(
    core: PrivateArc<Core>,
    device_count: usize,
    workers: usize,
    place: Place,
) -> Result<Svm, BuildError> {
    let mut svm = Svm {
        core: core.clone(),
        asker: Asker::new(core.clone(), Vec::new()),
        device_threads: Vec::new(),
        reader: None,
        pool: None,
        workers: Vec::new(),
        ended: false,
        place,
    };
    let reader = core.clone();
    svm.reader = Some(thread::spawn("granule-reader", move || reader_thread::run(&reader))?);
    let mut handles = Vec::new();
    let pool = rayon::ThreadPoolBuilder::new().num_threads(workers).spawn_handler(|worker| {
        let thread = thread::spawn("granule-worker", move || worker.run()).map_err(std::io::Error::other)?;
        handles.push(thread);
        Ok(())
    });
    // A policy that panics ends the worker that asked it; its block is left to the device thread.
    let pool = pool.panic_handler(|_| {}).build()?;
    svm.workers = handles;
    let helped = core.clone();
    pool.spawn_broadcast(move |worker| helped.crew.work(&helped, worker.index()));
    svm.pool = Some(pool);
    let mut senders = Vec::new();
    for device in 0..device_count {
        let (sender, requests) = channel();
        let core = core.clone();
        let body = move || {
            let seat = Seat((workers + device) as u16);
            DeviceThread { core: &core, device: DeviceId(device as u8), seat }.run(&requests);
        };
        svm.device_threads.push(thread::spawn_with_stack("granule-device", 1 << 20, body)?);
        // Before the space is handed out: a kernel that starts at once finds its faults served.
        svm.core.space.device(DeviceId(device as u8)).port.attach();
        senders.push(sender);
        svm.asker = Asker::new(svm.core.clone(), senders.clone());
    }
    svm.place.hold_at_fork(&svm.asker);
    Ok(svm)
}
