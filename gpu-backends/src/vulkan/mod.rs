//! Vulkan devices: the CPU's pointers in compute shaders, page faults included (feature `vulkan`). `docs/vulkan.md` is
//! the guide for users and for authors of kernels.
//!
//! # Who calls the driver, and when
//! Only threads of the application do: whoever makes a device or a kernel, and whoever launches. The service's threads
//! never do. A CPU fault may come from inside the driver, whose heap may be on the device and whose locks the faulting
//! thread may hold; the thread that serves it copies out of memory that the library itself mapped, changes a page table
//! in private memory, and waits for window words in private memory. So the way to RAM is driver-free, and the heap may
//! be taken.
//!
//! # What lies where
//! Everything that shaders and the service share is private memory of the library, imported into the device as plain
//! buffers (`VK_EXT_external_memory_host`): device memory itself, the page table, the table of linked pages, the control
//! words, and the records of each launch. None of it is ever on the device or protected, so neither the service nor a
//! shader on a CPU driver can sleep in a page fault there.
//!
//! # Translation
//! Before each access a shader walks the page table (four levels, leaves of 4 KiB and 2 MiB, the same table that the
//! software device has) inside a *window*; what it finds is an offset in device memory, or an IOVA that the second table
//! leads to a view of the library. The windows are how flush and quiesce work without the driver: see `windows`.
//!
//! # Faults
//! An item (an invocation) that misses announces it in its launch's fault buffer and gives up its turn. When the
//! dispatch has ended, the launching thread hands over what was announced, waits until the service has answered all of
//! it, and dispatches again: see `launch` and `faults`.
//!
//! | file | noun |
//! |---|---|
//! | `select` | the loader, and which device is meant |
//! | `info` | what a device can do, and what it lacks |
//! | `builder` | settings |
//! | `driver` | what belongs to the Vulkan driver |
//! | `device` | the device as the library sees it ([`granule::ports::Device`]) |
//! | `control` | the words that all launches share |
//! | `windows` | flush and quiesce |
//! | `views` | linked memory |
//! | `kernel` | shaders |
//! | `launch`, `launch_block` | passes of a kernel; what a launch shares with its shader |
//! | `faults` | misses and their answers |
//! | `shaders` | the SPIR-V that comes with this package |
//! | `error` | sentences |

mod builder;
mod control;
mod device;
mod driver;
mod error;
mod faults;
mod info;
mod kernel;
mod launch;
mod launch_block;
mod select;
pub mod shaders;
mod views;
mod windows;

pub use builder::Builder;
#[doc(hidden)]
pub use device::Broken;
pub use device::{Counters, VulkanDevice};
pub use error::{LaunchError, VulkanError};
pub use info::DeviceInfo;
pub use kernel::Kernel;
pub use launch::SAVED_WORDS;
pub use launch_block::MOST_ARGUMENTS;
pub use select::{Select, devices};
