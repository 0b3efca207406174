use thiserror::Error;

use crate::units::Iova;

/// Why the IOVA space refused. Nothing is changed then.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Error)]
#[non_exhaustive]
pub enum IovaError {
    /// A size of zero, or one that is no multiple of a page.
    #[error("{0} bytes are not a whole number of pages (at least one)")]
    BadSize(u64),
    /// An alignment that is no power of two or below a page.
    #[error("an alignment of {0} bytes is not a power of two of at least 4096")]
    BadAlignment(u64),
    /// No free range is large enough.
    #[error("no free IOVA range of {0} bytes is left; free a reservation first")]
    Exhausted(u64),
    /// No free range below the limit is large enough.
    #[error(
        "no free IOVA range of {bytes} bytes is left up to {last}; free a reservation or raise the limit"
    )]
    ExhaustedBelow {
        /// What was asked for.
        bytes: u64,
        /// The last address that the device reaches.
        last: Iova,
    },
    /// What is to be freed was not reserved so.
    #[error("no reservation of that size and purpose begins at {0}; free what was reserved, once and whole")]
    NotReserved(Iova),
}
