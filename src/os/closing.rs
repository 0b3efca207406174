//! The end of an address space: nobody is left waiting for a reader that has gone.
//!
//! # Rules
//! 1. Whoever is inside munmap, madvise, mremap or fork of followed memory when the last round was read waits until his
//!    event is read. So events are read here until the kernel says that no change is under way, and what they bring
//!    (mremap: a mapping at a new address) is let go of as well.
//! 2. Then the descriptors stop being userfaultfds: that ends the rest, whatever the tables know of it, however long a
//!    handle keeps the host alive. Their numbers stay taken until the host is dropped: another thread of the program
//!    cannot be given one of them while somebody here may still use it.
//! 3. A child after fork has descriptors of its own, and with them the kernel's object lives on: for its parent's threads
//!    only rule 1 helps.
#![allow(unsafe_code, reason = "replaces descriptors")]

use super::host::LinuxHost;
use crate::ports::{Host, HostEvent};

/// How often others are let run while a change is under way: many times longer than a change takes whose thread gets to
/// run at all.
const PATIENCE: u32 = 10_000;

impl LinuxHost {
    /// As [`LinuxHost::release`], for good: reads what still waits to be read, and closes the userfaultfds. Called when
    /// the reader has ended and nothing is taken any more. Does not wait but for threads that are changing the address
    /// space to run. What the host is asked after it is refused.
    pub fn close(&self) {
        for _ in 0..PATIENCE {
            self.release();
            let mut events = [HostEvent::Fork { child: 0 }; 8];
            let read = self.drain(&mut events);
            for event in &events[..read] {
                if let HostEvent::Fork { child } | HostEvent::ForkShared { child } = event {
                    self.child_done(*child);
                }
            }
            let uffds = [Some(&self.uffd), self.sigbus.as_ref(), self.region_uffd.as_ref()];
            if read == 0 && !uffds.into_iter().flatten().any(|uffd| uffd.is_changing()) {
                break;
            }
            self.pause();
        }
        self.uffd.retire(&self.signal);
        self.staging.retire(&self.signal);
        for uffd in [&self.sigbus, &self.region_uffd].into_iter().flatten() {
            uffd.retire(&self.signal);
        }
    }
}
