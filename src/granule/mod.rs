//! granule
