//! Devices for granule: the software device, Vulkan devices (feature `vulkan`), and the conformance suite for a device
//! of one's own.

pub mod conformance;
pub mod software;
#[cfg(feature = "vulkan")]
pub mod vulkan;
