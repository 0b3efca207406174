//! The Linux side: private memory, threads, parking, clock, and the CPU side of an address space
//! (userfaultfd, mappings, staging).
//!
//! May import everything to its left in the order of the crate's header. System calls are made here and nowhere
//! else, and an errno becomes a domain error here, once.
//!
//! | file | noun |
//! |---|---|
//! | `private` | memory of the service that is never mirrored and never taken |
//! | `park` | sleeping on a word |
//! | `thread` | threads whose stacks are private |
//! | `clock` | time |
//! | `guarded` | access to memory that may vanish |

pub mod clock;
pub mod guarded;
pub mod park;
pub mod private;
pub mod thread;

pub use clock::MonotonicClock;
pub use park::FutexPark;

/// What the last failed system call of this thread said.
fn errno() -> i32 {
    std::io::Error::last_os_error().raw_os_error().unwrap_or(0)
}
