//! A suite that checks a device against every promise in the documentation of [`Device`] and
//! [`Iommu`](granule::ports::Iommu), without the library: the suite itself plays the service that fetches, maps
//! and replays.
//!
//! # For authors of backends
//! Implement [`TestDevice`] (the device, and a way to make accesses from its engines) and call [`run`] with a
//! function that makes a fresh one. [`Report`] names each check and what it found:
//!
//! ```no_run
//! use std::sync::Arc;
//! use granule_backends::conformance::{self, software::SoftwareUnderTest};
//!
//! let report = conformance::run(&|| Arc::new(SoftwareUnderTest::new()));
//! assert!(report.all_passed(), "{report}");
//! ```
//!
//! # Rules
//! 1. Each check has a fresh device with at least 2 engines and 8 MiB of memory, and a thread of its own. A check
//!    that has not ended after [`DEADLINE`] has failed: something was lost. Its thread and device are left behind.
//! 2. System memory in the checks is private memory of the library that stays mapped.
//! 3. A check fails with one sentence that says what was promised and what was seen.

mod check;
mod closing;
mod faulting;
mod iommu;
mod mapping;
mod memory;
mod service;
mod sleeper;
mod sleeping;
pub mod software;
#[cfg(feature = "vulkan")]
pub mod vulkan;

use std::fmt;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::{Arc, mpsc};
use std::time::Duration;

use granule::ports::{Device, FaultCause};
use granule::units::VirtRange;

/// How long a check may take.
pub const DEADLINE: Duration = Duration::from_secs(20);

/// A device with a way to make accesses.
pub trait TestDevice: Send + Sync {
    /// The device itself.
    fn device(&self) -> &dyn Device;
    /// How many engines [`TestDevice::run`] uses: 2 or more, of which none waits for another one's fault.
    fn engines(&self) -> usize;
    /// Runs `kernel` once on every engine, all at the same time, and returns when all have ended.
    fn run(&self, kernel: &(dyn Fn(&mut dyn TestEngine) + Sync));
    /// Told before a check links system memory, which stays mapped until the check's last access has ended: private
    /// memory of the library, or a page of the application whose first touch sleeps in a page fault. `false` if the
    /// device cannot link memory of this kind: checks about the latter are passed over then, the others fail.
    fn admit(&self, memory: VirtRange) -> bool {
        let _ = memory;
        true
    }
}

/// An engine in the hands of a check. Addresses are multiples of 8.
pub trait TestEngine {
    /// Its number, from 0.
    fn index(&self) -> usize;
    /// Reads 8 bytes.
    ///
    /// # Errors
    /// [`Refused`].
    fn load(&mut self, at: u64) -> Result<u64, Refused>;
    /// Writes 8 bytes.
    ///
    /// # Errors
    /// [`Refused`]; nothing was written then.
    fn store(&mut self, at: u64, value: u64) -> Result<(), Refused>;
    /// Adds to 8 bytes atomically and returns what was there before. `None` if the device has no atomics.
    ///
    /// # Errors
    /// [`Refused`]; nothing was written then.
    fn fetch_add(&mut self, at: u64, value: u64) -> Option<Result<u64, Refused>>;
}

/// Why an access was not made.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Refused {
    /// The service cancelled its fault.
    Cancelled(FaultCause),
    /// The IOMMU refused it.
    Iommu,
    /// Anything else.
    Other,
}

/// What became of one check.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Outcome {
    /// The check's name: stable.
    pub check: &'static str,
    /// What was promised and what was seen, if it failed.
    pub failure: Option<String>,
}

/// What became of all of them.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Report {
    /// In the order in which they ran.
    pub outcomes: Vec<Outcome>,
}

impl Report {
    /// Whether every check passed, and there was one.
    pub fn all_passed(&self) -> bool {
        !self.outcomes.is_empty() && self.outcomes.iter().all(|outcome| outcome.failure.is_none())
    }
    /// The names of the checks that failed.
    pub fn failed(&self) -> Vec<&'static str> {
        self.outcomes
            .iter()
            .filter(|outcome| outcome.failure.is_some())
            .map(|outcome| outcome.check)
            .collect()
    }
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for outcome in &self.outcomes {
            match &outcome.failure {
                None => writeln!(f, "ok      {}", outcome.check)?,
                Some(why) => writeln!(f, "FAILED  {}: {why}", outcome.check)?,
            }
        }
        Ok(())
    }
}

/// One check: its name and what it does.
type Check = (&'static str, fn(&dyn TestDevice) -> Result<(), String>);

/// Every check, in the order in which they run.
const CHECKS: &[Check] = &[
    ("caps_are_whole", memory::caps_are_whole),
    ("copies_come_back", memory::copies_come_back),
    ("the_window_shows_device_memory", memory::the_window_shows_device_memory),
    ("engines_reach_device_memory", mapping::engines_reach_device_memory),
    ("every_leaf_size_leads_to_the_right_page", mapping::every_leaf_size_leads_to_the_right_page),
    ("a_partial_unmap_leaves_the_neighbours", mapping::a_partial_unmap_leaves_the_neighbours),
    ("mapping_over_replaces", mapping::mapping_over_replaces),
    ("a_read_only_page_faults_on_write_only", mapping::a_read_only_page_faults_on_write_only),
    ("a_fault_says_where_and_what", faulting::a_fault_says_where_and_what),
    ("a_replayed_access_happens_once", faulting::a_replayed_access_happens_once),
    ("a_replay_without_a_mapping_faults_again", faulting::a_replay_without_a_mapping_faults_again),
    ("no_fault_is_lost", faulting::no_fault_is_lost),
    ("a_cancelled_fault_ends_with_its_cause", faulting::a_cancelled_fault_ends_with_its_cause),
    ("a_late_answer_does_nothing", faulting::a_late_answer_does_nothing),
    ("interrupt_ends_one_wait", faulting::interrupt_ends_one_wait),
    ("without_a_service_faults_end", faulting::without_a_service_faults_end),
    ("engines_reach_system_memory", iommu::engines_reach_system_memory),
    ("an_unlinked_iova_is_never_read", iommu::an_unlinked_iova_is_never_read),
    ("the_iommu_refuses_what_it_must", iommu::the_iommu_refuses_what_it_must),
    ("the_iommu_flush_ends_accesses", iommu::the_iommu_flush_ends_accesses),
    ("flush_ends_the_use_of_a_translation", closing::flush_ends_the_use_of_a_translation),
    ("after_flush_every_write_can_be_copied_out", closing::after_flush_every_write_can_be_copied_out),
    ("flush_does_not_wait_for_a_cpu_fault", sleeping::flush_does_not_wait_for_a_cpu_fault),
    ("quiesce_does_not_wait_for_a_cpu_fault", sleeping::quiesce_does_not_wait_for_a_cpu_fault),
    ("quiesce_stops_every_access", closing::quiesce_stops_every_access),
    ("atomics_lose_nothing", closing::atomics_lose_nothing),
];

/// The names of all checks.
pub fn names() -> impl Iterator<Item = &'static str> {
    CHECKS.iter().map(|(name, _)| *name)
}

/// Runs every check on a fresh device made by `make`.
pub fn run(make: &dyn Fn() -> Arc<dyn TestDevice>) -> Report {
    run_some(make, DEADLINE, |_| true)
}

/// Runs the checks whose name `chosen` accepts, each on a fresh device made by `make` and for `deadline` at most.
pub fn run_some(
    make: &dyn Fn() -> Arc<dyn TestDevice>,
    deadline: Duration,
    chosen: impl Fn(&str) -> bool,
) -> Report {
    let checks = CHECKS.iter().filter(|(name, _)| chosen(name));
    Report { outcomes: checks.map(|&check| run_one(make(), check, deadline)).collect() }
}

fn run_one(device: Arc<dyn TestDevice>, (name, check): Check, deadline: Duration) -> Outcome {
    let (tell, hear) = mpsc::channel();
    let thread = std::thread::Builder::new().name(name.into()).spawn(move || {
        let result = catch_unwind(AssertUnwindSafe(|| check(&*device)));
        drop(device);
        // Nobody listens any more if the deadline has passed.
        let _ = tell.send(result);
    });
    let failure = match (thread, hear.recv_timeout(deadline)) {
        (Err(error), _) => Some(format!("no thread for the check: {error}")),
        (_, Ok(Ok(result))) => result.err(),
        (_, Ok(Err(_))) => Some("it panicked; standard error has the message".into()),
        (_, Err(_)) => Some(format!("it did not end within {} s: something was lost", deadline.as_secs())),
    };
    Outcome { check: name, failure }
}
