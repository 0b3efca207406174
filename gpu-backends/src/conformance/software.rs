//! The software device, as the suite drives it.

use granule::ports::Device;

use super::{Refused, TestDevice, TestEngine};
use crate::software::{AccessError, Engine, SoftwareDevice};

/// A software device under test.
pub struct SoftwareUnderTest(pub SoftwareDevice);

impl SoftwareUnderTest {
    /// A small device whose fault buffer overflows often: more engines than entries.
    ///
    /// Panics if it cannot be built: a suite without a device has nothing to say.
    pub fn new() -> Self {
        let builder = SoftwareDevice::builder().memory_bytes(8 << 20).engines(3).fault_buffer_entries(2);
        Self(builder.build().expect("a small software device can be built"))
    }
}

impl Default for SoftwareUnderTest {
    fn default() -> Self {
        Self::new()
    }
}

impl TestDevice for SoftwareUnderTest {
    fn device(&self) -> &dyn Device {
        &self.0
    }
    fn engines(&self) -> usize {
        self.0.engine_count()
    }
    fn run(&self, kernel: &(dyn Fn(&mut dyn TestEngine) + Sync)) {
        let ended = self.0.run(|engine| {
            kernel(engine);
            Ok(())
        });
        assert_eq!(ended, Ok(()), "a kernel of the suite returns no error and does not panic");
    }
}

impl TestEngine for Engine<'_> {
    fn index(&self) -> usize {
        Engine::index(self)
    }
    fn load(&mut self, at: u64) -> Result<u64, Refused> {
        Engine::load(self, at).map_err(Refused::from)
    }
    fn store(&mut self, at: u64, value: u64) -> Result<(), Refused> {
        Engine::store(self, at, value).map_err(Refused::from)
    }
    fn fetch_add(&mut self, at: u64, value: u64) -> Option<Result<u64, Refused>> {
        Some(self.fetch_add_u64(at, value).map_err(Refused::from))
    }
}

impl From<AccessError> for Refused {
    fn from(error: AccessError) -> Self {
        match error {
            AccessError::Fault { cause, .. } => Refused::Cancelled(cause),
            AccessError::Iommu { .. } => Refused::Iommu,
            _ => Refused::Other,
        }
    }
}
