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
//! buffers (`VK_EXT_external_memory_host`): the page table, the table of linked pages, the control words, the records of
//! each launch, and in translation mode device memory itself. In sparse mode device memory is the driver's, mapped for the
//! host, and no mapping that the library could take for the application's. None of it is ever on the device or protected,
//! so neither the service nor a shader on a CPU driver can sleep in a page fault there.
//!
//! # Translation
//! Before each access a shader walks the page table (four levels, leaves of 4 KiB and 2 MiB, the same table that the
//! software device has) inside a *window*; what it finds is an offset in device memory, or an IOVA that the second table
//! leads to a view of the library. The windows are how flush and quiesce work without the driver: see `windows`.
//!
//! # Sparse mode
//! Beside the table there are bitmaps of the pages that are bound in sparse buffers at their own offset. A shader that
//! finds its bit set goes there directly. `map` and `unmap` change the bitmaps and call no driver; binding is done by
//! threads that launch, between passes: see `residency` and `binder`. A page that is not bound is reached through the
//! table, so no mode and no driver has to bind anything for a result to be right.
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
//! | `pool` | device memory, as the host sees it |
//! | `residency` | sparse mode: which pages are reached directly |
//! | `binder` | sparse mode: what is bound where |
//! | `control` | the words that all launches share |
//! | `windows` | flush and quiesce |
//! | `views` | linked memory |
//! | `kernel` | shaders |
//! | `launch`, `launch_block` | passes of a kernel; what a launch shares with its shader |
//! | `faults` | misses and their answers |
//! | `shaders` | the SPIR-V that comes with this package |
//! | `error` | sentences |

mod binder;
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
mod pool;
mod residency;
mod select;
pub mod shaders;
mod views;
mod windows;

pub use builder::{Builder, Lent};
#[doc(hidden)]
pub use device::Broken;
pub use device::{Counters, VulkanDevice};
pub use driver::SharedQueue;
pub use error::{LaunchError, VulkanError};
pub use info::{DeviceInfo, Mode};
pub use kernel::Kernel;
pub use launch::SAVED_WORDS;
pub use launch_block::MOST_ARGUMENTS;
pub use select::{Select, devices};
