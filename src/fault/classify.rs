use crate::granule::BlockGuard;
use crate::units::{DeviceId, PageMask};

/// The faulted pages of a block, each in exactly one set.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Classified {
    /// In this device's memory already: somebody else's fault brought them, or their translation was dropped.
    pub resident: PageMask,
    /// In another device's memory.
    pub foreign: PageMask,
    /// Somebody is moving them.
    pub in_transit: PageMask,
    /// Linked for this device, with all the rights that the fault wants.
    pub linked: PageMask,
    /// Linked read-only, and the fault wants to write.
    pub upgrade: PageMask,
    /// In system memory, unknown to this device.
    pub unknown: PageMask,
}

/// Names the state of every faulted page. `written` is a part of `faulted`.
pub fn classify(
    block: &BlockGuard<'_>,
    device: DeviceId,
    faulted: &PageMask,
    written: &PageMask,
) -> Classified {
    let in_transit = block.in_transit() & *faulted;
    let private = (block.device_private() & *faulted) - in_transit;
    let own = !private.is_empty() && block.owner() == device;
    let mapped = (block.dma_mapped(device) & *faulted) - in_transit;
    let upgrade = (mapped & *written) - block.writable(device);
    Classified {
        resident: if own { private } else { PageMask::EMPTY },
        foreign: if own { PageMask::EMPTY } else { private },
        in_transit,
        linked: mapped - upgrade,
        upgrade,
        unknown: *faulted - in_transit - private - mapped,
    }
}
