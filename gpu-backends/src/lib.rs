//! Devices for granule: the software device, and the conformance suite for a device of one's own.

pub mod conformance;
pub mod software;
