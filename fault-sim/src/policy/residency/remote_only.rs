use super::super::{Decision, FaultView, Residency};

/// Nothing moves: the device maps every page in system memory.
#[derive(Clone, Copy, Debug, Default)]
pub struct RemoteOnly;

impl Residency for RemoteOnly {
    fn decide(&mut self, _: &FaultView<'_>) -> Decision {
        Decision::Cpu
    }
}
