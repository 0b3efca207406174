//! Devices for granule.
