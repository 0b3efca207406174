use super::super::{Decision, FaultView, Residency};
use crate::replay::{Block, Proc};

/// Who touches a page gets it, always.
#[derive(Clone, Copy, Debug, Default)]
pub struct FirstTouch;

impl Residency for FirstTouch {
    fn decide(&mut self, fault: &FaultView<'_>) -> Decision {
        match fault.by {
            Proc::Device => Decision::Device,
            Proc::Cpu => Decision::Cpu,
        }
    }

    fn always_device(&self, _: u32, _: &Block) -> bool {
        true
    }
}
