//! Where a faulting page shall be.

mod first_touch;

pub use first_touch::FirstTouch;
