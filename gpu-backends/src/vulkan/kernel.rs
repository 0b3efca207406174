//! Kernels: compute shaders that include `granule.glsl`.
#![allow(unsafe_code, reason = "calls of the Vulkan driver")]

use std::sync::Arc;

use ash::vk;

use super::driver::Driver;
use super::error::{Named, VulkanError};

/// A compute shader of a device. Handles are clones of one another.
#[derive(Clone)]
pub struct Kernel(pub(super) Arc<Pipeline>);

pub(super) struct Pipeline {
    pub(super) driver: Arc<Driver>,
    pub(super) layout: vk::PipelineLayout,
    pub(super) pipeline: vk::Pipeline,
    /// Items per work group.
    pub(super) group: u32,
}

/// The bytes that the shader is told by push constants: `GranulePush`.
pub(super) const PUSH_BYTES: u32 = 24;

const MAGIC: u32 = 0x0723_0203;
const EXECUTION_MODE: u32 = 16;
const LOCAL_SIZE: u32 = 17;

/// The words of a module, and the x of its `LocalSize`.
fn parse(code: &[u8]) -> Option<(Vec<u32>, u32)> {
    let (words, rest) = code.as_chunks::<4>();
    let words: Vec<u32> = words.iter().map(|bytes| u32::from_le_bytes(*bytes)).collect();
    if !rest.is_empty() || words.first() != Some(&MAGIC) {
        return None;
    }
    let mut at = 5;
    while let Some(&head) = words.get(at) {
        let (length, what) = ((head >> 16) as usize, head & 0xffff);
        let operands = words.get(at + 1..at + length.max(1))?;
        if let (EXECUTION_MODE, [_, LOCAL_SIZE, x, 1, 1]) = (what, operands) {
            let group = *x;
            return Some((words, group));
        }
        at += length.max(1);
    }
    None
}

impl Kernel {
    pub(super) fn new(driver: &Arc<Driver>, code: &[u8]) -> Result<Self, VulkanError> {
        let (words, group) = parse(code).ok_or(VulkanError::NotAShader)?;
        let device = &driver.device;
        let range =
            [vk::PushConstantRange::default().stage_flags(vk::ShaderStageFlags::COMPUTE).size(PUSH_BYTES)];
        let create = vk::PipelineLayoutCreateInfo::default().push_constant_ranges(&range);
        // SAFETY: the device is alive; so in each call below, and structures live until their call returns.
        let layout =
            unsafe { device.create_pipeline_layout(&create, None) }.named("vkCreatePipelineLayout")?;
        let create = vk::ShaderModuleCreateInfo::default().code(&words);
        // SAFETY: as above; that the code is valid is the caller's business, and the validation layer's to find out.
        let made = unsafe { device.create_shader_module(&create, None) }
            .named("vkCreateShaderModule")
            .and_then(|module| {
                let stage = vk::PipelineShaderStageCreateInfo::default()
                    .stage(vk::ShaderStageFlags::COMPUTE)
                    .module(module)
                    .name(c"main");
                let create = vk::ComputePipelineCreateInfo::default().stage(stage).layout(layout);
                // SAFETY: as above; the module is not needed once the pipeline is made.
                unsafe {
                    let made = device.create_compute_pipelines(vk::PipelineCache::null(), &[create], None);
                    device.destroy_shader_module(module, None);
                    made.map_err(|(_, result)| result).named("vkCreateComputePipelines")
                }
            });
        match made {
            Ok(pipelines) => {
                let pipeline = pipelines[0];
                Ok(Self(Arc::new(Pipeline { driver: driver.clone(), layout, pipeline, group })))
            }
            Err(error) => {
                // SAFETY: nothing uses the new layout.
                unsafe { device.destroy_pipeline_layout(layout, None) };
                Err(error)
            }
        }
    }
}

impl Drop for Pipeline {
    fn drop(&mut self) {
        // SAFETY: launches borrow the kernel until their last pass has ended, so nothing uses it any more.
        unsafe {
            self.driver.device.destroy_pipeline(self.pipeline, None);
            self.driver.device.destroy_pipeline_layout(self.layout, None);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::vulkan::shaders;

    #[test]
    fn the_size_of_a_group_is_read_from_the_code() {
        assert_eq!(parse(shaders::SUM).map(|(_, group)| group), Some(64));
        assert_eq!(parse(shaders::ACCESS).map(|(_, group)| group), Some(1));
        assert!(parse(b"void main() {}  ").is_none());
        assert!(parse(&shaders::SUM[..40]).is_none());
        assert!(parse(&[]).is_none());
    }
}
