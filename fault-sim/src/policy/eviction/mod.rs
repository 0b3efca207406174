//! Who leaves when device memory is full.

mod belady;
mod clock;
mod hpe;
mod lfu;
mod queue;
mod random;
mod recency;
mod srrip;
mod tree;

pub use belady::Belady;
pub use clock::Clock;
pub use hpe::Hpe;
pub use lfu::Lfu;
pub use random::Random;
pub use recency::{Recency, RecencyRule};
pub use srrip::Srrip;
pub use tree::TreeEviction;
