use std::sync::mpsc::SyncSender;

use super::svm::RequestError;
use crate::units::VirtRange;

/// What a program asks of a device thread. Carried by a channel: its memory is the heap, which the device thread may
/// touch when it holds nothing.
pub(super) struct Request {
    pub(super) what: Ask,
    pub(super) reply: SyncSender<Result<u64, RequestError>>,
}

/// The question.
#[derive(Clone, Copy, Debug)]
pub(super) enum Ask {
    /// Move (or link) a range for this device now; answers the pages served.
    Prefetch(VirtRange),
    /// Bring a range to RAM; answers the pages that came home.
    ToRam(VirtRange),
    /// Bring everything of this device to RAM, unlink everything, and end.
    Stop,
}
