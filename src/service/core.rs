#![allow(unsafe_code, reason = "a space borrows from slabs, host and devices that lie beside it")]
//! Everything of one [`Svm`](super::Svm) that its threads touch, in one private mapping.

use crate::dma::{IovaSpace, ReserveIova};
use crate::granule::{Gate, Homecomings, MAX_DEVICES, Tables, Userptrs};
use crate::migrate::{DeviceMemory, EvictionOrder, Space, SpaceDevice};
use crate::os::fault_stacks::{FAULT_STACKS, FaultStacks};
use crate::os::private::{PrivateArc, PrivateError};
use crate::os::{FutexPark, LinuxHost, MonotonicClock};
use crate::policy::Policy;
use crate::ports::Device;
use crate::sync::AtomicU32;

use super::crew::Crew;
use super::memory::{Lent, Memory};
use super::statistics::Statistics;
use super::userptr::Registrations;

/// State and ports of one space. Fields are dropped from top to bottom: the space before what it borrows from.
pub(crate) struct Core {
    pub(super) space: Space<'static, LinuxHost>,
    pub(super) registrations: Registrations,
    pub(super) stopping: AtomicU32,
    /// How often each device's thread was asked for something: it looks into its channel, which is on the heap, only if
    /// that grew.
    pub(super) asked: [AtomicU32; MAX_DEVICES],
    /// Begins and ends of the reader's rounds: odd while it is in one.
    pub(super) rounds: AtomicU32,
    /// How many threads wait for the end of a round.
    pub(super) stats_wait: AtomicU32,
    /// On which threads serve their own faults, each with a seat from `first_fault_seat` on.
    pub(super) fault_stacks: FaultStacks,
    pub(super) first_fault_seat: u16,
    pub(super) clock: MonotonicClock,
    pub(super) crew: Crew,
    _devices: PrivateArc<[SpaceDevice<'static>]>,
    pub(super) memory: Memory,
    pub(super) host: PrivateArc<LinuxHost>,
    pub(super) statistics: PrivateArc<Statistics>,
    _policy: PrivateArc<dyn Policy + Send>,
    _ports: Vec<PrivateArc<dyn Device + Send>>,
    pub(super) iova: Vec<PrivateArc<DeviceIova>>,
}

/// The IOVA space of one device. Asked without gate and locks only (never by the reader), so it may lie on the
/// heap.
pub(super) struct DeviceIova(parking_lot::Mutex<IovaSpace>);

impl DeviceIova {
    pub(super) fn reserved_bytes(&self) -> u64 {
        self.0.lock().reserved_bytes()
    }
}

impl ReserveIova for DeviceIova {
    fn with(&self, act: &mut dyn FnMut(&mut IovaSpace)) {
        act(&mut self.0.lock());
    }
}

/// How long an invalidation waits for submissions that use a userptr. The application's thread that changes its
/// mappings waits as long.
const FENCE_LIMIT_NS: u64 = 1_000_000_000;

static PARK: FutexPark = FutexPark;

/// Makes a reference live as long as the caller says.
///
/// # Safety
/// `value` must stay in place, and alive, as long as the result is used.
unsafe fn lend<T: ?Sized>(value: &T) -> &'static T {
    // SAFETY: the caller's promise.
    unsafe { &*std::ptr::from_ref(value) }
}

/// Devices in private memory, one after the other. Asserts that there are one to four.
fn private_slice(
    devices: Vec<SpaceDevice<'static>>,
) -> Result<PrivateArc<[SpaceDevice<'static>]>, PrivateError> {
    fn of<const N: usize>(
        devices: Vec<SpaceDevice<'static>>,
    ) -> Result<PrivateArc<[SpaceDevice<'static>]>, PrivateError> {
        let Ok(array) = <[_; N]>::try_from(devices) else { panic!("the length was matched") };
        Ok(PrivateArc::map(PrivateArc::new(array)?, |array| &array[..]))
    }
    match devices.len() {
        1 => of::<1>(devices),
        2 => of::<2>(devices),
        3 => of::<3>(devices),
        4 => of::<4>(devices),
        n => panic!("the builder lets {n} devices pass"),
    }
}

impl Core {
    /// `workers` seats for the pool, one per device thread besides, and one per stack for faults.
    pub(super) fn new(
        host: PrivateArc<LinuxHost>,
        ports: Vec<PrivateArc<dyn Device + Send>>,
        budgets_bytes: &[u64],
        policy: PrivateArc<dyn Policy + Send>,
        workers: usize,
    ) -> Result<Self, PrivateError> {
        let statistics = PrivateArc::new(Statistics::new())?;
        let first_fault_seat = workers + ports.len();
        let seats = first_fault_seat + FAULT_STACKS;
        let memory = Memory::new(budgets_bytes, seats)?;
        let iova = ports
            .iter()
            .map(|port| {
                let space = IovaSpace::new(port.iommu().aperture(), port.iommu().reserved_windows());
                PrivateArc::new(DeviceIova(parking_lot::Mutex::new(space)))
            })
            .collect::<Result<Vec<_>, _>>()?;
        // SAFETY: `memory` is a field of the result below `space`, its slabs do not move, and `space` is dropped
        // first; threads that use it are joined before (`Svm::drop`).
        let Lent { tables, seats, transits, homecomings, userptrs, userptr_words, chunks } =
            unsafe { memory.lend_all() };
        let devices: Vec<SpaceDevice<'static>> = ports
            .iter()
            .zip(chunks)
            .zip(&iova)
            .map(|((port, chunks), iova)| SpaceDevice {
                // SAFETY: `_ports` keeps the device in its private mapping until `space` is gone.
                port: unsafe { lend::<dyn Device>(&**port) },
                memory: DeviceMemory::new(chunks),
                order: EvictionOrder::default(),
                // SAFETY: `iova` keeps it likewise.
                iova: unsafe { lend::<DeviceIova>(iova) },
            })
            .collect();
        let devices = private_slice(devices)?;
        // SAFETY: each is kept in a private mapping by a field below `space`.
        let (host_ref, policy_ref, probe_ref, device_ref) = unsafe {
            (lend::<LinuxHost>(&host), lend::<dyn Policy>(&*policy), lend(&*statistics), lend(&*devices))
        };
        let device_count = ports.len();
        let space = Space {
            host: host_ref,
            tables: Tables::new(tables, ports.len()),
            gate: Gate::new(seats),
            transits,
            park: &PARK,
            policy: policy_ref,
            probe: probe_ref,
            devices: device_ref,
            userptrs: Userptrs::new(userptrs, userptr_words),
            fence_limit_ns: FENCE_LIMIT_NS,
            homecomings: Homecomings::new(homecomings),
        };
        Ok(Self {
            space,
            registrations: Registrations::new(),
            stopping: AtomicU32::new(0),
            asked: std::array::from_fn(|_| AtomicU32::new(0)),
            rounds: AtomicU32::new(0),
            stats_wait: AtomicU32::new(0),
            fault_stacks: FaultStacks::new()?,
            first_fault_seat: first_fault_seat as u16,
            clock: MonotonicClock,
            crew: Crew::new(device_count, workers)?,
            _devices: devices,
            memory,
            host,
            statistics,
            _policy: policy,
            _ports: ports,
            iova,
        })
    }
}
