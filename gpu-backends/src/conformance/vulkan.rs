//! A Vulkan device, as the suite drives it: each access of an engine is a launch of one item.
#![allow(unsafe_code, reason = "memory of the checks is imported")]

use granule::os::private;
use granule::ports::Device;
use granule::units::VirtRange;

use super::{Refused, TestDevice, TestEngine};
use crate::vulkan::{Builder, Kernel, LaunchError, VulkanDevice, VulkanError, shaders};

/// Threads that launch.
const ENGINES: usize = 3;

/// A Vulkan device under test.
pub struct VulkanUnderTest {
    /// The device.
    pub device: VulkanDevice,
    access: Kernel,
}

impl VulkanUnderTest {
    /// A small device with the other settings of a builder.
    ///
    /// # Errors
    /// [`VulkanError`] if there is none.
    pub fn new(builder: Builder) -> Result<Self, VulkanError> {
        let device = builder.memory_bytes(8 << 20).table_bytes(16 << 20).build()?;
        let access = device.kernel(shaders::ACCESS)?;
        Ok(Self { device, access })
    }
}

struct Item<'a> {
    test: &'a VulkanUnderTest,
    index: usize,
}

impl Item<'_> {
    fn access(&self, what: u64, at: u64, value: u64) -> Result<u64, Refused> {
        match self.test.device.launch(&self.test.access, 1, &[what, at, value]) {
            Ok(left) => Ok(left[2]),
            Err(LaunchError::Fault { cause, .. }) => Err(Refused::Cancelled(cause)),
            Err(LaunchError::NotLinked { .. }) => Err(Refused::Iommu),
            Err(_) => Err(Refused::Other),
        }
    }
}

impl TestEngine for Item<'_> {
    fn index(&self) -> usize {
        self.index
    }
    fn load(&mut self, at: u64) -> Result<u64, Refused> {
        self.access(0, at, 0)
    }
    fn store(&mut self, at: u64, value: u64) -> Result<(), Refused> {
        self.access(1, at, value).map(drop)
    }
    fn fetch_add(&mut self, at: u64, value: u64) -> Option<Result<u64, Refused>> {
        self.test.device.info().has_atomic64.then(|| self.access(2, at, value))
    }
}

impl TestDevice for VulkanUnderTest {
    fn device(&self) -> &dyn Device {
        &self.device
    }
    fn engines(&self) -> usize {
        ENGINES
    }
    fn run(&self, kernel: &(dyn Fn(&mut dyn TestEngine) + Sync)) {
        std::thread::scope(|scope| {
            for index in 0..self.engines() {
                scope.spawn(move || kernel(&mut Item { test: self, index }));
            }
        });
    }
    fn admit(&self, memory: VirtRange) -> bool {
        // SAFETY: the suite keeps what it names mapped until the last access of the check has ended.
        private::contains(memory) && unsafe { self.device.import(memory) }.is_ok()
    }
}
