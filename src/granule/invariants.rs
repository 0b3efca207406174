use core::fmt;

use super::BlockGuard;
use crate::units::{BlockNo, DeviceId, PageMask};

/// A rule of the module header that a block breaks.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Broken {
    /// Which block.
    pub block: BlockNo,
    /// For which device.
    pub device: DeviceId,
    /// The pages.
    pub pages: PageMask,
    /// The rule, as one sentence.
    pub rule: &'static str,
}

impl fmt::Display for Broken {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} {} pages {:?}: {}", self.block, self.device, self.pages, self.rule)
    }
}

/// Checks one block against the table of the module header. The checkers of models, simulation and stress call
/// it after each step.
///
/// # Errors
/// The first rule that is broken.
pub fn check_block(block: &BlockGuard<'_>) -> Result<(), Broken> {
    let private = block.device_private();
    let transit = block.in_transit();
    for device in block.devices() {
        let mapped = block.dma_mapped(device);
        let broken = |pages: PageMask, rule| {
            if pages.is_empty() { Ok(()) } else { Err(Broken { block: block.number(), device, pages, rule }) }
        };
        broken(mapped & private, "a page is dma-mapped and device-private at once")?;
        broken(mapped & transit, "a page in transit is still dma-mapped")?;
        broken(block.writable(device) - mapped, "a page is writable that is not linked")?;
    }
    if block.slot_kind().is_none() && !private.is_empty() {
        return Err(Broken {
            block: block.number(),
            device: block.owner(),
            pages: private,
            rule: "device-private pages without device memory",
        });
    }
    Ok(())
}
