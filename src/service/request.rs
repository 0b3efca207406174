//! What a program asks of a device thread. Carried by channels, whose memory is the heap: the device thread touches it
//! when it holds nothing.

use std::sync::mpsc::{Sender, SyncSender, sync_channel};

use thiserror::Error;

use super::core::Core;
use crate::dma::DmaRange;
use crate::fault::UserptrFault;
use crate::granule::{Sequence, UserptrNo, UserptrSpec};
use crate::os::private::PrivateArc;
use crate::os::regions::RegionNo;
use crate::os::{FaultMode, FaultModeRefused};
use crate::ports::HostError;
use crate::sync::Ordering;
use crate::units::{DeviceId, VirtAddr, VirtRange, WrapError};

/// One question with the way back for its answer.
pub(super) struct Request {
    pub(super) what: Ask,
    pub(super) reply: SyncSender<Answered>,
}

/// The question.
#[derive(Clone, Copy, Debug)]
pub(super) enum Ask {
    /// Move (or link) a range for this device now; answers the pages served.
    Prefetch(VirtRange),
    /// Bring a range to RAM; answers the pages that came home.
    ToRam(VirtRange),
    /// Make a userptr known.
    Register(UserptrNo, UserptrSpec),
    /// Link a part of a userptr anew; answers with its sequence.
    Validate(UserptrNo, VirtRange),
    /// The linked ranges of a userptr.
    DmaRanges(UserptrNo),
    /// Let a range be taken in the user-mode-only fault mode.
    Name(VirtRange),
    /// Let the pages of a region move, whose other view begins at this address.
    EnterRegion(VirtRange, VirtAddr),
    /// Choose who serves touches of a range.
    FaultMode(VirtRange, FaultMode),
    /// End a userptr.
    Release(UserptrNo),
    /// Bring everything to RAM, and serve nothing until `Resume`: the process is about to fork.
    Hold,
    /// The fork is done.
    Resume,
    /// Bring everything of this device to RAM, unlink everything, and end; answers the pages that could not be read.
    Stop,
}

/// The answer.
#[derive(Clone, Debug)]
pub(super) enum Answered {
    Done,
    Pages(u64),
    Named(Result<(), HostError>),
    Region(Option<RegionNo>),
    FaultMode(Result<(), FaultModeRefused>),
    Validated(Result<Sequence, UserptrFault>),
    Ranges(Vec<DmaRange>),
}

/// Why a request was not done. Nothing is changed then.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Error)]
#[non_exhaustive]
pub enum RequestError {
    /// No such device.
    #[error("there is no {0} in this address space; ids count from dev0 in the order of the builder")]
    NoDevice(DeviceId),
    /// The range wraps.
    #[error(transparent)]
    Wrap(#[from] WrapError),
    /// The range leaves the window.
    #[error("{0} leaves the window of this address space; ask for a range inside of it")]
    OutsideWindow(VirtRange),
    /// This is a child after fork.
    #[error("this process is a child after fork: the address space stayed with its parent")]
    NotThisProcess,
    /// The service has ended.
    #[error("the service of this address space has ended; build a new one")]
    Ended,
}

/// Whoever may ask: a space and its handles.
#[derive(Clone)]
pub(super) struct Asker {
    core: PrivateArc<Core>,
    senders: Vec<Sender<Request>>,
    process: u32,
}

impl Asker {
    /// For the process that calls this.
    pub(super) fn new(core: PrivateArc<Core>, senders: Vec<Sender<Request>>) -> Self {
        Self { core, senders, process: std::process::id() }
    }

    /// Whether this is the process that made the space, and not a child of it.
    pub(super) fn is_this_process(&self) -> bool {
        std::process::id() == self.process
    }

    /// How many devices can be asked.
    pub(super) fn devices(&self) -> impl Iterator<Item = DeviceId> + use<> {
        (0..self.senders.len() as u8).map(DeviceId)
    }

    /// The process is about to fork: regions of the library stay in RAM from now on.
    pub(super) fn share_regions(&self) {
        self.core.host.regions().share_all();
    }

    /// Whether the device can be asked.
    pub(super) fn check(&self, device: DeviceId) -> Result<(), RequestError> {
        if !self.is_this_process() {
            return Err(RequestError::NotThisProcess);
        }
        self.senders.get(device.0 as usize).map(drop).ok_or(RequestError::NoDevice(device))
    }

    /// Asks and waits. Holds no lock of the state machine meanwhile: the caller's stack may be away.
    pub(super) fn ask(&self, device: DeviceId, what: Ask) -> Result<Answered, RequestError> {
        self.check(device)?;
        let (reply, answer) = sync_channel(1);
        self.senders[device.0 as usize].send(Request { what, reply }).map_err(|_| RequestError::Ended)?;
        self.core.asked[device.0 as usize].fetch_add(1, Ordering::Release);
        self.core.space.device(device).port.interrupt();
        answer.recv().map_err(|_| RequestError::Ended)
    }

    /// Asks a question that is answered by a number of pages.
    pub(super) fn ask_pages(&self, device: DeviceId, what: Ask) -> Result<u64, RequestError> {
        match self.ask(device, what)? {
            Answered::Pages(pages) => Ok(pages),
            other => panic!("a question about pages is answered by pages, not {other:?}"),
        }
    }
}
