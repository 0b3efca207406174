//! Where the memories of devices stand: in the physical address space of the emulated machine, and on the bus.
//!
//! A window has a number. Byte `i` of a device's memory is at `PHYS + number * 4 TiB + i` in the physical address space
//! (above every address of the process) and at `BUS + number * 4 TiB + i` on the bus (above every IOVA).
//!
//! # Rules
//! 1. A window is used from `open` to `close`. Whoever reaches into it counts itself first and looks at its base after
//!    that; `close` takes the base away and then waits until nobody is counted. So nobody reaches memory that is gone.
//! 2. The table is static data: such memory is never taken, so whoever serves CPU faults may look at it.

use core::num::NonZeroU32;

use granule::os::FutexPark;
use granule::ports::{PeerMemory, PeerWindow};
use granule::sync::{AtomicU32, AtomicU64, Ordering, Park};
use granule::units::{BusAddr, PhysAddr};

use super::device::SoftwareDevice;

/// How many devices there may be at once.
pub(super) const MOST_WINDOWS: usize = 256;
const SHIFT: u32 = 42;
const PHYS: u64 = 1 << 62;
const BUS: u64 = 1 << 48;

/// A switch on the bus: devices below one reach one another's memory at bus addresses. Clones are the same switch.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Hash)]
pub struct Switch(NonZeroU32);

static LAST_SWITCH: AtomicU32 = AtomicU32::new(0);

impl Switch {
    /// A switch with nothing below it.
    #[expect(clippy::new_without_default, reason = "each is another switch, which no default is")]
    pub fn new() -> Self {
        let number = LAST_SWITCH.fetch_add(1, Ordering::Relaxed).wrapping_add(1);
        Self(NonZeroU32::new(number).unwrap_or(NonZeroU32::MAX))
    }
}

struct Window {
    /// 0: free. `CLAIMED`: on its way in or out. Else where the host sees the first byte.
    base: AtomicU64,
    bytes: AtomicU64,
    /// The number of the switch that it is below; 0: none.
    switch: AtomicU32,
    users: AtomicU32,
}

const CLAIMED: u64 = 1;

/// Where the search for a free window begins: as long as there are others, none is used again at once.
static NEXT: AtomicU32 = AtomicU32::new(0);

static WINDOWS: [Window; MOST_WINDOWS] = [const {
    Window {
        base: AtomicU64::new(0),
        bytes: AtomicU64::new(0),
        switch: AtomicU32::new(0),
        users: AtomicU32::new(0),
    }
}; MOST_WINDOWS];

/// A window of this process's devices, closed on drop.
#[derive(Debug)]
pub(crate) struct OpenWindow {
    number: usize,
}

impl OpenWindow {
    /// Opens a window on memory that stays until it is closed; `None` if there are too many.
    pub(super) fn open(base: u64, bytes: u64, switch: Option<Switch>) -> Option<Self> {
        let claim = |window: &Window| {
            window.base.compare_exchange(0, CLAIMED, Ordering::SeqCst, Ordering::Relaxed).is_ok()
        };
        let first = NEXT.fetch_add(1, Ordering::Relaxed) as usize;
        let mut numbers = (first..first + MOST_WINDOWS).map(|number| number % MOST_WINDOWS);
        let number = numbers.find(|number| claim(&WINDOWS[*number]))?;
        let window = &WINDOWS[number];
        window.bytes.store(bytes, Ordering::Relaxed);
        window.switch.store(switch.map_or(0, |switch| switch.0.get()), Ordering::Relaxed);
        // SeqCst pairs with the load in `reach`, which sees what was stored before.
        window.base.store(base, Ordering::SeqCst);
        Some(Self { number })
    }

    pub(super) fn phys(&self) -> PhysAddr {
        PhysAddr(PHYS + ((self.number as u64) << SHIFT))
    }

    pub(super) fn bus(&self) -> BusAddr {
        BusAddr(BUS + ((self.number as u64) << SHIFT))
    }
}

impl Drop for OpenWindow {
    fn drop(&mut self) {
        let window = &WINDOWS[self.number];
        // SeqCst pairs with the count and the load in `reach`.
        window.base.store(CLAIMED, Ordering::SeqCst);
        loop {
            match window.users.load(Ordering::SeqCst) {
                0 => break,
                users => FutexPark.park(&window.users, users),
            }
        }
        window.base.store(0, Ordering::SeqCst);
    }
}

/// Memory of a device that somebody reaches into; it stays until this is dropped.
pub(crate) struct Reached {
    window: &'static Window,
    /// Where the host sees the byte.
    pub(super) host: u64,
    /// How many bytes there are from here on.
    pub(super) bytes: u64,
}

impl Drop for Reached {
    fn drop(&mut self) {
        let before = self.window.users.fetch_sub(1, Ordering::SeqCst);
        if before == 1 && self.window.base.load(Ordering::SeqCst) == CLAIMED {
            FutexPark.unpark_all(&self.window.users);
        }
    }
}

/// Reaches into the window that begins below `offset`, if `admits` accepts the switch that it is below.
fn reach(offset: u64, admits: impl Fn(u32) -> bool) -> Option<Reached> {
    let window = WINDOWS.get((offset >> SHIFT) as usize)?;
    window.users.fetch_add(1, Ordering::SeqCst);
    let base = window.base.load(Ordering::SeqCst);
    let mut reached = Reached { window, host: 0, bytes: 0 };
    let inside = offset & ((1 << SHIFT) - 1);
    let bytes = window.bytes.load(Ordering::Relaxed);
    if base <= CLAIMED || inside >= bytes || !admits(window.switch.load(Ordering::Relaxed)) {
        return None;
    }
    (reached.host, reached.bytes) = (base + inside, bytes - inside);
    Some(reached)
}

/// Whether a physical address lies in the windows of devices, not in memory of the process.
pub(super) const fn is_window(phys: u64) -> bool {
    phys >= PHYS
}

/// Reaches into a device's memory by its physical address.
pub(super) fn reach_phys(phys: u64) -> Option<Reached> {
    reach(phys - PHYS, |_| true)
}

/// Reaches into the memory of a device below the same switch by its bus address.
pub(super) fn reach_bus(at: u64, switch: Switch) -> Option<Reached> {
    reach(at.checked_sub(BUS)?, |below| below == switch.0.get())
}

impl PeerMemory for SoftwareDevice {
    fn peer_window(&self) -> PeerWindow {
        let window = &self.inner.window;
        PeerWindow { phys: window.phys(), bus: window.bus(), bytes: self.inner.memory.bytes() }
    }
}
