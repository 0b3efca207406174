//! Where a faulting page shall be.

mod delayed;
mod first_touch;
mod lapse;
mod nvidia;
mod read_duplication;
mod remote_only;
mod thrashing;

pub use delayed::Delayed;
pub use first_touch::FirstTouch;
pub use lapse::{Lapse, LapseRule};
pub use nvidia::{Nvidia, NvidiaOptions};
pub use read_duplication::ReadDuplication;
pub use remote_only::RemoteOnly;
pub use thrashing::{Hint, Thrashing, ThrashingOptions};
