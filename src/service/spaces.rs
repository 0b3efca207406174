#![allow(unsafe_code, reason = "registers fork handlers, and holds a lock across the fork")]
//! Which spaces this process has: their windows, which do not overlap, and what a fork does to them. Before a fork, everything on devices comes to RAM, so that parent and child share it by the kernel's exact
//! copy-on-write; until it is done, no device fault is served. (A raw `clone` runs no handlers: the fork event serves
//! it, `fault::fork`.)
//!
//! # Rules
//! 1. The registry is locked from before the fork until after it, on both sides: one fork at a time.
//! 2. The child has none of the service's memory or threads: it forgets the registry without dropping it.

use std::sync::Once;

use parking_lot::lock_api::RawMutex as _;
use parking_lot::{Mutex, RawMutex};

use super::request::{Ask, Asker};
use super::sigbus;
use crate::units::VirtRange;

/// One space.
struct Known {
    number: u64,
    window: VirtRange,
    /// Once it runs.
    asker: Option<Asker>,
}

static SPACES: Mutex<Vec<Known>> = Mutex::new(Vec::new());
/// Held across a fork, and by whoever changes `SPACES`.
static FORKING: RawMutex = RawMutex::INIT;
static HANDLERS: Once = Once::new();

/// A space's place among those of this process. Dropping it frees the window.
pub(super) struct Place(u64);

/// Claims a window for a space that is about to be built.
///
/// # Errors
/// The window of another space of this process that overlaps it.
pub(super) fn claim(window: VirtRange) -> Result<Place, VirtRange> {
    HANDLERS.call_once(|| {
        // SAFETY: three functions that live as long as the program. A failure (no memory) leaves forks to the event.
        unsafe { libc::pthread_atfork(Some(before), Some(in_parent), Some(in_child)) };
    });
    locked(|spaces| {
        let taken = spaces.iter().find(|known| !known.window.intersection(window).is_empty());
        if let Some(known) = taken {
            return Err(known.window);
        }
        let number = spaces.last().map_or(0, |last| last.number + 1);
        spaces.push(Known { number, window, asker: None });
        Ok(Place(number))
    })
}

impl Place {
    /// The space runs: forks hold it from now on.
    pub(super) fn hold_at_fork(&self, asker: &Asker) {
        self.set(Some(asker.clone()));
    }

    /// The space is about to end: forks do not ask it any more.
    pub(super) fn let_go(&self) {
        self.set(None);
    }

    fn set(&self, asker: Option<Asker>) {
        // The old one is dropped outside of the lock: what it holds may be the last of its kind.
        let old = locked(|spaces| {
            let known = spaces.iter_mut().find(|known| known.number == self.0)?;
            std::mem::replace(&mut known.asker, asker)
        });
        drop(old);
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        let gone = locked(|spaces| {
            let at = spaces.iter().position(|known| known.number == self.0)?;
            Some(spaces.remove(at))
        });
        drop(gone);
    }
}

fn locked<T>(body: impl FnOnce(&mut Vec<Known>) -> T) -> T {
    FORKING.lock();
    let result = body(&mut SPACES.lock());
    // SAFETY: locked above, by this thread.
    unsafe { FORKING.unlock() };
    result
}

fn each_device(what: Ask) {
    for asker in SPACES.lock().iter().filter_map(|known| known.asker.as_ref()) {
        for device in asker.devices() {
            // A space that has ended holds nothing back.
            let _ = asker.ask(device, what);
        }
    }
}

extern "C" fn before() {
    FORKING.lock();
    each_device(Ask::Hold);
    // Everything is in RAM, and nothing is served: what the child is going to share stays there.
    SPACES.lock().iter().filter_map(|known| known.asker.as_ref()).for_each(Asker::share_regions);
}

extern "C" fn in_parent() {
    each_device(Ask::Resume);
    // SAFETY: locked by `before`, on this thread.
    unsafe { FORKING.unlock() };
}

extern "C" fn in_child() {
    // Nobody else lives in the child, so whoever held `SPACES` (nobody: they hold `FORKING`) does not.
    std::mem::take(&mut *SPACES.lock()).into_iter().for_each(std::mem::forget);
    sigbus::forget_all();
    // SAFETY: locked by `before`, on the thread that the child consists of.
    unsafe { FORKING.unlock() };
}
