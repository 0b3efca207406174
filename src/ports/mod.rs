//! The traits through which effects happen. Everything above this layer is pure; everything that touches the
//! kernel, a device or a clock stands behind one of these.
//!
//! | port | implemented by |
//! |---|---|
//! | [`Host`] | `os` (Linux), the simulator, the models |
//! | [`Device`], [`Iommu`] | a backend (`granule-backends`), the simulator, the models |
//! | [`CacheSync`], [`BounceMemory`], [`PasidDevice`], [`PeerMemory`] | a backend, for devices that need or have it |
//! | [`PinMemory`] | whoever can hold pages of the process |
//! | [`Clock`] | `os`, the simulator |
//! | [`Probe`] | `service` (statistics, over [`Counts`]), or nothing |
//!
//! Data that a port moves is a slice of [`Word`]s: memory that two parties may look at, so that a safe
//! signature suffices. An implementation may copy it with whatever is fastest; the state machine guarantees
//! that nobody else touches it meanwhile.

mod bounce_memory;
mod cache_sync;
mod clock;
mod counts;
mod device;
mod host;
mod iommu;
mod pasid_port;
mod peer_memory;
mod pin_memory;
mod probe;

pub use bounce_memory::{BounceFault, BounceMemory};
pub use cache_sync::CacheSync;
pub use clock::Clock;
pub use counts::Counts;
pub use device::{Device, DeviceCaps, DeviceError, DeviceFault, FaultCause, MapTarget};
pub use host::{
    FollowCount, Give, Host, HostError, HostEvent, Lookup, Mirrored, StagingId, Take, Vma, VmaKind,
};
pub use iommu::{Iommu, IommuCaps, IommuError, IovaWindow, Mapped};
pub use pasid_port::{AttachError, PasidDevice};
pub use peer_memory::{PeerMemory, PeerWindow};
pub use pin_memory::{PinError, PinMemory};
pub use probe::{Count, NoProbe, Probe, Timing};

/// Eight bytes of page data. Always the real atomic, never loom's: data, not state.
pub type Word = core::sync::atomic::AtomicU64;

/// Words in a page: 512.
pub const WORDS_PER_PAGE: usize = crate::units::PAGE_BYTES as usize / size_of::<Word>();
