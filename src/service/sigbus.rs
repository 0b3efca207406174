#![allow(unsafe_code, reason = "a signal handler reaches spaces by address")]
//! Faults that the thread which made them serves itself, in its handler of SIGBUS.
//!
//! # What happens
//! The kernel raises SIGBUS for a touch of an absent page of a range in [`FaultMode::Sigbus`]. The process's handler
//! (`os::guarded`, which looks first whether the touch was an engine's) asks [`serve`]: the space that has the address
//! serves it on a private stack with a seat of its own (`fault::serve_in_place`), and the touch is made again.
//!
//! # Rules
//! 1. All signals are blocked meanwhile: a handler of the application that ran inside could fault on the very block
//!    whose lock this thread holds.
//! 2. What is touched: static data, the space's private memory, and the frame of the handler before and after, when
//!    nothing is held.
//! 3. A space is used from when it was found until its `users` is counted down; [`leave`] waits for that.
//!
//! # Lost races
//! * The touch was trapped, and then an event moved the range, or ended its mapping, or the space ended: no space knows
//!   the address (yet). Then a whole round of every reader is waited for, and after that the touch is simply made
//!   again. If that repeats in short time, the SIGBUS is none of ours and goes to who handled it before.
//! * A child after `fork` has no spaces: its registry is emptied. A child of a raw `clone` is not registered with the
//!   kernel either, and sees zeros for pages that were on a device.

use core::ptr::null_mut;
use core::sync::atomic::{AtomicPtr, AtomicU32 as Atomic32, AtomicU64 as Atomic64};

use std::time::Duration;

use thiserror::Error;

use super::core::Core;
use super::request::RequestError;
use crate::fault::{CpuFault, serve_in_place};
use crate::os::guarded::{self, InstallError};
use crate::os::{FaultMode, FaultModeRefused, FutexPark, MonotonicClock};
use crate::ports::{Clock, Count, Host, HostEvent, Timing};
use crate::sync::{Ordering, Park};
use crate::units::{Access, PAGE_SHIFT, Seat, VirtAddr};

/// Why a range cannot have a fault mode. Nothing is changed then.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Error)]
#[non_exhaustive]
pub enum FaultModeError {
    /// The range cannot be served.
    #[error(transparent)]
    Request(#[from] RequestError),
    /// The mode cannot be had.
    #[error(transparent)]
    Refused(#[from] FaultModeRefused),
    /// The handler cannot be installed.
    #[error(transparent)]
    Handler(#[from] InstallError),
    /// Too many spaces.
    #[error("{SPACES} address spaces of this process serve faults as SIGBUS already; drop one")]
    Spaces,
}

const SPACES: usize = 16;

/// A space, and how many threads are in it.
struct Entry {
    core: AtomicPtr<Core>,
    users: Atomic32,
}

static REGISTRY: [Entry; SPACES] =
    [const { Entry { core: AtomicPtr::new(null_mut()), users: Atomic32::new(0) } }; SPACES];
/// Whether there ever was a space here.
static EVER: Atomic32 = Atomic32::new(0);

/// Lets the process's handler find a space. Idempotent.
pub(super) fn enter(core: &Core) -> Result<(), FaultModeError> {
    guarded::install()?;
    let this = core::ptr::from_ref(core).cast_mut();
    if REGISTRY.iter().any(|entry| entry.core.load(Ordering::Acquire) == this) {
        return Ok(());
    }
    // Release: whoever finds the space finds it complete.
    let enter = |entry: &Entry| {
        entry.core.compare_exchange(null_mut(), this, Ordering::Release, Ordering::Relaxed).is_ok()
    };
    if !REGISTRY.iter().any(enter) {
        return Err(FaultModeError::Spaces);
    }
    EVER.store(1, Ordering::Release);
    guarded::set_bus_server(serve);
    Ok(())
}

/// The space is about to end: no thread finds it any more, and none is in it. Its reader has ended and every page is in
/// RAM. Events that came since are read here: while one waits, the kernel refuses to fill a page.
pub(super) fn leave(core: &Core) {
    let this = core::ptr::from_ref(core).cast_mut();
    for entry in &REGISTRY {
        // Sequentially consistent with `with_space`: either it does not find the space, or its use is seen here.
        if entry.core.compare_exchange(this, null_mut(), Ordering::SeqCst, Ordering::Relaxed).is_ok() {
            loop {
                let users = entry.users.load(Ordering::SeqCst);
                if users == 0 {
                    break;
                }
                let mut events = [HostEvent::Fork { child: 0 }; 8];
                let read = core.host.drain(&mut events);
                for event in &events[..read] {
                    if let HostEvent::Fork { child } | HostEvent::ForkShared { child } = event {
                        core.host.child_done(*child);
                    }
                }
                FutexPark.park_for(&entry.users, users, EVENTS_EVERY);
            }
        }
    }
}

/// How often events are looked for while the last users of a space leave it.
const EVENTS_EVERY: Duration = Duration::from_millis(1);

/// This process is a child after fork: it has no spaces.
pub(super) fn forget_all() {
    for entry in &REGISTRY {
        entry.core.store(null_mut(), Ordering::Relaxed);
        entry.users.store(0, Ordering::Relaxed);
    }
}

/// Shows `look` one space after the other, until it says that it is done.
fn any_space(mut look: impl FnMut(&Core) -> bool) -> bool {
    REGISTRY.iter().any(|entry| {
        if entry.core.load(Ordering::Relaxed).is_null() {
            return false;
        }
        entry.users.fetch_add(1, Ordering::SeqCst);
        let core = entry.core.load(Ordering::SeqCst);
        // SAFETY: `leave` takes the address out and then waits for `users`, which counts us, before the space ends.
        let done = unsafe { core.as_ref() }.is_some_and(&mut look);
        // Release: all that was done there is done before it ends.
        entry.users.fetch_sub(1, Ordering::SeqCst);
        if entry.core.load(Ordering::SeqCst).is_null() {
            FutexPark.unpark_all(&entry.users);
        }
        done
    })
}

/// Serves a touch of `at` that was trapped. `true`: make it again.
fn serve(at: u64, write: bool) -> bool {
    if EVER.load(Ordering::Acquire) == 0 {
        return false;
    }
    // Whether the touch is to be made again: not if the page's only copy cannot be read from the device, which is what
    // SIGBUS means to the application's own handler.
    let mut again = true;
    let mut serve = |core: &Core| {
        let ours = core.host.fault_mode(VirtAddr(at)) == FaultMode::Sigbus;
        if ours {
            again = core.fault_stacks.run(serve_on_stack, core::ptr::from_ref(core) as usize, at, write);
        }
        ours
    };
    if any_space(&mut serve) {
        return again;
    }
    any_space(|core| {
        wait_for_a_round(core);
        false
    });
    if any_space(serve) { again } else { is_late(at) }
}

extern "C" fn serve_on_stack(core: usize, number: usize, at: u64, write: bool) -> bool {
    // SAFETY: `serve` passes the address of a space that it uses.
    let core = unsafe { &*(core as *const Core) };
    let since_ns = core.clock.now_ns();
    core.space.probe.add(Count::CpuFaults, 1);
    let access = if write { Access::Write } else { Access::Read };
    let fault = CpuFault { at: VirtAddr(at), access, write_protected: false, since_ns, failed_copies: 0 };
    let served = serve_in_place(&core.space, Seat(core.first_fault_seat + number as u16), &fault);
    core.space.probe.time(Timing::CpuFault, core.clock.now_ns().saturating_sub(since_ns));
    served
}

/// Waits until the reader has read and applied everything that waits to be read now.
fn wait_for_a_round(core: &Core) {
    let seen = core.rounds.load(Ordering::SeqCst);
    // Odd: it is in a round that may have read already; then the one after it.
    let ends = 2 + seen % 2;
    core.stats_wait.fetch_add(1, Ordering::SeqCst);
    core.host.interrupt();
    loop {
        let now = core.rounds.load(Ordering::SeqCst);
        if now.wrapping_sub(seen) >= ends {
            break;
        }
        FutexPark.park(&core.rounds, now);
    }
    core.stats_wait.fetch_sub(1, Ordering::SeqCst);
}

/// Times that the same page may be found late, each within [`LATE_WITHIN_NS`] of the time before.
const LATE: u64 = 16;
const LATE_WITHIN_NS: u64 = 1_000_000_000;
const LATE_PAGES: usize = 64;
/// By page: the page's number and, in the low 8 bits, how often; and when.
static LATE_TIMES: [(Atomic64, Atomic64); LATE_PAGES] =
    [const { (Atomic64::new(0), Atomic64::new(0)) }; LATE_PAGES];

/// Whether a touch that no space knows shall be made again: its range was perhaps ours when it was trapped.
fn is_late(at: u64) -> bool {
    let (page, now_ns) = (at >> PAGE_SHIFT, MonotonicClock.now_ns());
    let (times, when) = &LATE_TIMES[page as usize % LATE_PAGES];
    let before = times.load(Ordering::Relaxed);
    let recent = now_ns.saturating_sub(when.swap(now_ns, Ordering::Relaxed)) < LATE_WITHIN_NS;
    let count = if before >> 8 == page && recent { (before & 0xff) + 1 } else { 1 };
    let again = count < LATE;
    times.store(page << 8 | if again { count } else { 0 }, Ordering::Relaxed);
    again
}
