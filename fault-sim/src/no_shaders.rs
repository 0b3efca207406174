//! What `shaders.rs` is without the feature `vulkan`: no device can be opened, so nothing else is ever called.

use std::convert::Infallible;

use granule::service::SvmBuilder;
use granule::units::{DevAddr, DevMemAddr};
use thiserror::Error;

use crate::accelerator::Tables;
use crate::commands::devices::Listed;
use crate::commands::run::Mode;

/// Why no device was opened.
#[derive(Clone, PartialEq, Eq, Debug, Error)]
#[error("this fault-sim was built without Vulkan; build it with the feature `vulkan`")]
pub struct OpenError;

/// Never made.
#[derive(Clone, PartialEq, Eq, Debug, Error)]
#[error("no launch without Vulkan")]
pub struct LaunchError(Infallible);

/// A compute shader of a workload.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[allow(missing_docs, reason = "as in shaders.rs")]
pub enum Shader {
    Saxpy,
    Sum,
    Histogram,
    List,
    Bfs,
    PingPong,
    Count,
}

/// No device.
///
/// # Errors
/// Always.
pub fn devices() -> Result<Vec<Listed>, OpenError> {
    Err(OpenError)
}

/// Never made.
pub struct ShaderDevice(Infallible);

#[allow(missing_docs, clippy::missing_errors_doc, reason = "as in shaders.rs")]
impl ShaderDevice {
    pub fn open(_: Option<&str>, _: u64, _: Option<Mode>) -> Result<Self, OpenError> {
        Err(OpenError)
    }
    pub fn add_to(&self, _: SvmBuilder) -> SvmBuilder {
        match self.0 {}
    }
    pub fn prepare(&self, _: Shader) -> Result<(), OpenError> {
        match self.0 {}
    }
    pub fn launch(&self, _: Shader, _: usize, _: &[u64]) -> Result<(), LaunchError> {
        match self.0 {}
    }
    pub fn place(&self, _: DevAddr) -> Option<DevMemAddr> {
        match self.0 {}
    }
    pub fn flip_byte(&self, _: DevMemAddr) {
        match self.0 {}
    }
    pub fn tables(&self) -> Tables {
        match self.0 {}
    }
}
