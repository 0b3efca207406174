use crate::granule::TransitBusy;
use crate::ports::FaultCause;
use crate::units::PageMask;

/// Why a step has to be tried again. Each is a rung of the ladder in `fault::retry`.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Retry {
    /// The mapping was invalidated since the fault looked at it.
    Sequence,
    /// The mapping is followed only from now on; look it up again.
    LookAgain,
    /// Somebody else moves pages of this block; wait for that.
    InTransit(TransitBusy),
    /// An event waits to be read; pause, then again.
    Changing,
    /// Device memory is full; evict, then again.
    DeviceFull,
    /// The block has pages on another device; bring them to RAM, then again.
    OtherOwner,
    /// All staging slots are in use; pause, then again.
    NoStaging,
    /// The device that has the pages gave none of them back, however often it was asked; do without.
    Unreadable,
}

/// What became of the pages of a move.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
#[must_use = "pages that did not arrive are still owed an answer"]
pub struct Moved {
    /// These are where they were to go, and mapped.
    pub arrived: PageMask,
    /// The kernel refuses to move these: link them.
    pub refused: PageMask,
    /// Why the rest has to be tried again.
    pub retry: Option<Retry>,
    /// Why the rest cannot be served.
    pub failed: Option<FaultCause>,
}

impl Moved {
    pub(crate) fn retry(why: Retry) -> Self {
        Self { retry: Some(why), ..Self::default() }
    }
    pub(crate) fn failed(why: FaultCause) -> Self {
        Self { failed: Some(why), ..Self::default() }
    }
}
