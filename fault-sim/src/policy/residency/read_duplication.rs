use super::super::{Decision, FaultView, Residency};
use crate::replay::Proc;

/// A page that is read is duplicated; whoever writes gets the only copy.
#[derive(Clone, Copy, Debug, Default)]
pub struct ReadDuplication;

impl Residency for ReadDuplication {
    fn decide(&mut self, fault: &FaultView<'_>) -> Decision {
        match fault.by {
            _ if !fault.access.writes() => Decision::Duplicate,
            Proc::Device => Decision::Device,
            Proc::Cpu => Decision::Cpu,
        }
    }
}
