#![allow(unsafe_code, reason = "registers fork handlers, and holds a lock across the fork")]
//! fork: before it, everything on devices comes to RAM, so that parent and child share it by the kernel's exact
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

/// Every running space, by a number of its own.
static SPACES: Mutex<Vec<(u64, Asker)>> = Mutex::new(Vec::new());
/// Held across a fork, and by whoever changes `SPACES`.
static FORKING: RawMutex = RawMutex::INIT;
static HANDLERS: Once = Once::new();

/// Makes a space known to the fork handlers. Returns its number.
pub(super) fn enter(asker: &Asker) -> u64 {
    HANDLERS.call_once(|| {
        // SAFETY: three functions that live as long as the program. A failure (no memory) leaves forks to the event.
        unsafe { libc::pthread_atfork(Some(before), Some(in_parent), Some(in_child)) };
    });
    locked(|spaces| {
        let number = spaces.last().map_or(0, |(last, _)| last + 1);
        spaces.push((number, asker.clone()));
        number
    })
}

/// The space is about to end.
pub(super) fn leave(number: u64) {
    // Dropped outside of the lock: what it holds may be the last of its kind.
    let gone = locked(|spaces| {
        let at = spaces.iter().position(|(known, _)| *known == number)?;
        Some(spaces.remove(at))
    });
    drop(gone);
}

fn locked<T>(body: impl FnOnce(&mut Vec<(u64, Asker)>) -> T) -> T {
    FORKING.lock();
    let result = body(&mut SPACES.lock());
    // SAFETY: locked above, by this thread.
    unsafe { FORKING.unlock() };
    result
}

fn each_device(what: Ask) {
    for (_, asker) in SPACES.lock().iter() {
        for device in asker.devices() {
            // A space that has ended holds nothing back.
            let _ = asker.ask(device, what);
        }
    }
}

extern "C" fn before() {
    FORKING.lock();
    each_device(Ask::Hold);
}

extern "C" fn in_parent() {
    each_device(Ask::Resume);
    // SAFETY: locked by `before`, on this thread.
    unsafe { FORKING.unlock() };
}

extern "C" fn in_child() {
    // Nobody else lives in the child, so whoever held `SPACES` (nobody: they hold `FORKING`) does not.
    std::mem::take(&mut *SPACES.lock()).into_iter().for_each(std::mem::forget);
    // SAFETY: locked by `before`, on the thread that the child consists of.
    unsafe { FORKING.unlock() };
}
