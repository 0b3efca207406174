use granule::units::{PageIndex, PageMask, SLOTS_64K_PER_BLOCK};

use super::super::{Cause, Decision, FaultView, Residency};
use super::delayed::count_touch;
use super::{Hint, Thrashing, ThrashingOptions};
use crate::replay::{Block, Proc};

/// What NVIDIA's residency is made with.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct NvidiaOptions {
    /// The detection of thrashing, unless it is switched off.
    pub thrashing: Option<ThrashingOptions>,
    /// Touches through the bus after which 64 KiB move, where access counters are on: systems with a common address
    /// translation only.
    pub access_counter: Option<u16>,
}

/// NVIDIA's choice of residency: the first rule that fits, with thrashing before them.
#[derive(Clone, Debug)]
pub struct Nvidia {
    thrashing: Option<Thrashing>,
    access_counter: Option<u16>,
    touches: Vec<[u16; SLOTS_64K_PER_BLOCK]>,
}

impl Nvidia {
    /// With these parameters.
    pub fn new(options: NvidiaOptions) -> Self {
        let thrashing = options.thrashing.map(Thrashing::new);
        Self { thrashing, access_counter: options.access_counter, touches: Vec::new() }
    }

    /// Where the page is now.
    fn place(fault: &FaultView<'_>, index: PageIndex) -> Option<Proc> {
        let state = fault.state;
        match state.resident.contains(index) {
            true => Some(Proc::Device),
            false => (state.all_exist || fault.rare.exists.contains(index)).then_some(Proc::Cpu),
        }
    }
}

fn local(by: Proc) -> Decision {
    match by {
        Proc::Cpu => Decision::Cpu,
        Proc::Device => Decision::Device,
    }
}

impl Residency for Nvidia {
    fn decide(&mut self, fault: &FaultView<'_>) -> Decision {
        let (state, by) = (fault.state, fault.by);
        let index = PageIndex(fault.page as u16);
        let hint = match &mut self.thrashing {
            Some(thrashing) => thrashing.hint(fault.block, fault.page, by, state.preferred, fault.now_ns),
            None => Hint::None,
        };
        if let Hint::Throttle(until_ns) = hint {
            return Decision::Throttle { until_ns };
        }
        let place = Self::place(fault, index);
        if state.read_mostly {
            return if fault.access.writes() { local(by) } else { Decision::Duplicate };
        }
        if state.preferred == Some(by) {
            return local(by);
        }
        if let Hint::Pin(place) = hint {
            return local(place);
        }
        // Of the two, only the device reaches the other's memory.
        let reaches = |place: Proc| by == Proc::Device || place == Proc::Cpu;
        let Some(place) = place else {
            return local(state.preferred.filter(|place| reaches(*place)).unwrap_or(by));
        };
        if by == Proc::Device && state.accessed_by_device && place == Proc::Cpu {
            return Decision::Cpu;
        }
        match state.preferred.filter(|preferred| reaches(*preferred)) {
            Some(preferred) => local(preferred),
            None => local(by),
        }
    }

    fn always_device(&self, block: u32, state: &Block) -> bool {
        !state.read_mostly
            && !state.accessed_by_device
            && state.preferred != Some(Proc::Cpu)
            && self.thrashing.as_ref().is_none_or(|thrashing| thrashing.is_quiet(block))
    }

    fn soon(&self, blocks: &[u32]) {
        if let Some(thrashing) = &self.thrashing {
            blocks.iter().for_each(|block| thrashing.soon(*block));
        }
    }

    fn moved(&mut self, block: u32, state: &Block, pages: &PageMask, to: Proc, cause: Cause, now_ns: u64) {
        if let Some(thrashing) = &mut self.thrashing {
            thrashing.moved(block, pages, to, cause, state.read_mostly, now_ns);
        }
    }

    fn unmapped(&mut self, block: u32, pages: &PageMask) {
        if let Some(thrashing) = &mut self.thrashing {
            thrashing.unmapped(block, pages);
        }
    }

    fn remote_touch(&mut self, fault: &FaultView<'_>) -> PageMask {
        match self.access_counter {
            Some(threshold) if fault.by == Proc::Device => count_touch(&mut self.touches, threshold, fault),
            _ => PageMask::EMPTY,
        }
    }

    fn thrashing(&self, block: u32) -> Option<&PageMask> {
        self.thrashing.as_ref()?.mask(block)
    }

    fn expired(&mut self, now_ns: u64) -> Option<(u32, PageMask)> {
        self.thrashing.as_mut()?.unpinned(now_ns)
    }
}
