use super::{IovaError, IovaRequest, IovaSpace, IovaUse};
use crate::units::Iova;

/// An [`IovaSpace`] that several callers share: whatever lock the caller has, around it.
///
/// May allocate, so it is asked without locks and outside the gate.
pub trait ReserveIova: Sync {
    /// Runs `act` on the space, once, while nobody else has it.
    fn with(&self, act: &mut dyn FnMut(&mut IovaSpace));

    /// Reserves `bytes`, aligned to `align_bytes`.
    ///
    /// # Errors
    /// As [`IovaSpace::reserve`].
    fn reserve(&self, bytes: u64, align_bytes: u64) -> Result<Iova, IovaError> {
        self.reserve_for(&IovaRequest::anywhere(bytes, align_bytes))
    }

    /// Reserves what is asked for.
    ///
    /// # Errors
    /// As [`IovaSpace::reserve_for`].
    fn reserve_for(&self, request: &IovaRequest) -> Result<Iova, IovaError> {
        let mut answer = Err(IovaError::Exhausted(request.bytes));
        self.with(&mut |space| answer = space.reserve_for(request));
        answer
    }

    /// Gives a reservation back. Nothing of it is linked any more.
    ///
    /// # Errors
    /// As [`IovaSpace::free`].
    fn free(&self, base: Iova, bytes: u64) -> Result<(), IovaError> {
        self.free_for(base, bytes, IovaUse::TwoStep)
    }

    /// Gives a reservation for this purpose back.
    ///
    /// # Errors
    /// As [`IovaSpace::free_for`].
    fn free_for(&self, base: Iova, bytes: u64, purpose: IovaUse) -> Result<(), IovaError> {
        let mut answer = Err(IovaError::NotReserved(base));
        self.with(&mut |space| answer = space.free_for(base, bytes, purpose));
        answer
    }
}
