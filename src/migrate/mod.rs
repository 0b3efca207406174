//! Moving sets of pages of one block: to the device, to RAM, and out of the way (eviction).
//!
//! # A move, step by step
//! | step | to device | to RAM | gate | block lock |
//! |---|---|---|---|---|
//! | begin | unlink, slots, in transit, arm | in transit, device unmap + flush | inside | held |
//! | take | application -> staging | - | inside | - |
//! | copy | staging -> device | device -> staging | outside | - |
//! | give | - | staging -> application | inside | - |
//! | commit | device-private, device map | bits, slots, disarm | inside | held |
//! | wake | who waits for the block | who waits for the block | outside | - |
//!
//! # Rules
//! 1. A move returns every page to exactly one place: arrived, back where it was, or gone because its mapping is.
//! 2. Staging and device memory are positional: page *i* of a block lies at `i * 4096` of its staging slot.
//! 3. The data of a page to the device is in staging from the end of `take` to the commit; the data of a page to
//!    RAM is in device memory until the commit. Whoever needs it in between (fork, mremap) finds it there.
//! 4. A failed copy keeps the only copy: to the device, the page goes back; to RAM, it stays device-private. A copy to
//!    RAM is tried a few times, page by page, and then through the host's view of device memory (`read_back`). What
//!    cannot be read even so is never replaced by zeros where the kernel can help it: see [`abandon`].
//!
//! # Lost races
//! * An invalidation between begin and commit takes its pages out of the transit; the commit passes them over.
//! * `Changing` in the middle: the part that was done is committed, the rest is tried again from outside the gate.

mod device_memory;
mod eviction_order;
mod follow;
mod outcome;
mod read_back;
mod space;
mod to_device;
mod to_ram;
mod unlink;

pub use device_memory::{ChunkRecord, DeviceFull, DeviceMemory, Wish};
pub use eviction_order::EvictionOrder;
pub use outcome::{Moved, Retry};
pub use space::{Space, SpaceDevice};
pub use to_device::{ToDevice, to_device};
pub use to_ram::{Evicted, abandon, evict_one, to_ram};
pub use unlink::{drop_userptr_pages, unlink};

pub(crate) use device_memory::{extents, place};
pub(crate) use follow::follow;
pub(crate) use read_back::{copy_words, read_page, read_pages};
pub(crate) use to_device::map_again;
pub(crate) use unlink::{unlink_only, unmap_and_flush};
