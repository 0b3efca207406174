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
//! | `abi`, `userfaultfd` | the kernel's words; one userfaultfd with its calls typed |
//! | `walk` | a call over many pages that may stop anywhere |
//! | `range_set`, `tables` | what is mirrored, armed, being removed |
//! | `robust_lists` | where threads have their stacks |
//! | `vma`, `maps_text`, `pagemap` | which mapping holds an address; which pages the CPU has |
//! | `fault_mode`, `fault_stacks` | which of two userfaultfds has a range; stacks for threads that serve themselves |
//! | `staging`, `take`, `drops` | slots, pages on their way through them, discards of our own |
//! | `regions`, `region_pages` | memory that is mapped twice, and how its pages leave and come back |
//! | `named` | which memory may be taken |
//! | `whole` | blocks that left as huge pages |
//! | `events` | what the kernel tells, and children after fork |
//! | `shared_iova` | for drivers without the service: IOVAs under a lock |
//! | `closing` | the end of all that |
//! | `host` | [`LinuxHost`], which is all of these behind [`Host`](crate::ports::Host) |

mod abi;
pub mod clock;
mod closing;
mod drops;
mod events;
mod fault_mode;
pub mod fault_stacks;
pub mod guarded;
mod host;
mod maps_text;
mod named;
pub mod pagemap;
pub mod park;
pub mod private;
mod range_set;
mod region_pages;
pub(crate) mod regions;
mod robust_lists;
mod shared_iova;
mod staging;
mod tables;
mod take;
pub mod thread;
mod userfaultfd;
mod vma;
mod walk;
mod whole;

pub use clock::MonotonicClock;
pub use events::Readiness;
pub use fault_mode::{FaultMode, FaultModeRefused};
pub use host::{HostOptions, LinuxHost, OpenError};
pub use pagemap::Pagemap;
pub use park::FutexPark;
pub use shared_iova::SharedIova;
pub use take::TakeWay;
pub use userfaultfd::{Features, UserfaultfdError};
pub use vma::Vmas;

/// What the last failed system call of this thread said.
fn errno() -> i32 {
    std::io::Error::last_os_error().raw_os_error().unwrap_or(0)
}
