//! Vulkan devices, and the compute shaders of the workloads. `no_shaders.rs` is the same without the feature `vulkan`.

use std::sync::Mutex;

use granule::service::SvmBuilder;
use granule::units::{DevAddr, DevMemAddr};
use granule_backends::vulkan::{
    DeviceInfo, Kernel, Mode as ShaderMode, SAVED_WORDS, Select, VulkanDevice, shaders,
};

use crate::accelerator::Tables;
use crate::commands::devices::Listed;
use crate::commands::run::Mode;

pub use granule_backends::vulkan::{LaunchError, VulkanError as OpenError};

/// A compute shader of a workload.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Shader {
    /// y = a * x + y.
    Saxpy,
    /// A sum.
    Sum,
    /// Counts of bytes.
    Histogram,
    /// Linked lists.
    List,
    /// One level of a search.
    Bfs,
    /// A turn.
    PingPong,
    /// Counters.
    Count,
}

impl Shader {
    fn code(self) -> &'static [u8] {
        match self {
            Shader::Saxpy => shaders::SAXPY,
            Shader::Sum => shaders::SUM,
            Shader::Histogram => shaders::HISTOGRAM,
            Shader::List => shaders::LIST,
            Shader::Bfs => shaders::BFS,
            Shader::PingPong => shaders::PING_PONG,
            Shader::Count => shaders::COUNT,
        }
    }

    /// Words that an item saves.
    fn saved(self) -> usize {
        if self == Shader::Histogram { 258 } else { SAVED_WORDS }
    }

    fn needs_atomic64(self) -> bool {
        matches!(self, Shader::Sum | Shader::Histogram | Shader::Bfs | Shader::Count)
    }
}

/// Every Vulkan device, usable or not.
///
/// # Errors
/// [`OpenError`] if there is no loader or no driver.
pub fn devices() -> Result<Vec<Listed>, OpenError> {
    Ok(granule_backends::vulkan::devices()?.into_iter().map(listed).collect())
}

fn listed(info: DeviceInfo) -> Listed {
    let (mode, why) = match info.lacks {
        None => {
            let (mode, why) = info.mode();
            (Some(mode.name()), why.to_owned())
        }
        Some(lacks) => (None, format!("it lacks {lacks}")),
    };
    let listed = Listed {
        backend: "vulkan",
        index: Some(info.index),
        driver: format!("{}, Vulkan {}.{}", info.driver, info.version.0, info.version.1),
        name: info.name,
        kind: info.kind,
        usable: info.lacks.is_none(),
        mode,
        why,
        memory_bytes: Some(info.memory_bytes),
        can: Vec::new(),
        cannot: Vec::new(),
    };
    listed.abilities(&[
        ("driver-free", info.maps_memory),
        ("import-host-memory", info.imports),
        ("atomic64", info.has_atomic64),
        ("sparse-buffers", info.has_sparse),
        ("memory-budget", info.has_budget),
        ("transfer-queue", info.has_transfer_queue),
    ])
}

/// A Vulkan device.
pub struct ShaderDevice {
    device: VulkanDevice,
    kernels: Mutex<Vec<(Shader, Kernel)>>,
}

impl ShaderDevice {
    /// Opens the device that is meant (a number, or a part of a name; none: the first that can be used).
    ///
    /// # Errors
    /// [`OpenError`].
    pub fn open(meant: Option<&str>, memory_bytes: u64, mode: Option<Mode>) -> Result<Self, OpenError> {
        let select = meant.map_or(Select::Any, Select::parse);
        let builder = VulkanDevice::builder().select(select).memory_bytes(memory_bytes);
        let builder = match mode {
            None => builder,
            Some(Mode::Translation) => builder.mode(ShaderMode::Translation),
            Some(Mode::Sparse) => builder.mode(ShaderMode::Sparse),
        };
        let device = builder.build()?;
        Ok(Self { device, kernels: Mutex::default() })
    }

    /// Adds it to a space.
    pub fn add_to(&self, builder: SvmBuilder) -> SvmBuilder {
        builder.device(self.device.clone())
    }

    /// Makes a kernel, so that no launch has to.
    ///
    /// # Errors
    /// [`OpenError`]; in particular if the device lacks what the kernel needs.
    pub fn prepare(&self, shader: Shader) -> Result<(), OpenError> {
        self.kernel(shader).map(drop)
    }

    fn kernel(&self, shader: Shader) -> Result<Kernel, OpenError> {
        let mut kernels = self.kernels.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
        if let Some((_, kernel)) = kernels.iter().find(|(which, _)| *which == shader) {
            return Ok(kernel.clone());
        }
        let info = self.device.info();
        if shader.needs_atomic64() && !info.has_atomic64 {
            return Err(OpenError::Lacks {
                device: info.name.clone(),
                lacks: "64-bit atomics (shaderBufferInt64Atomics), which this workload needs",
            });
        }
        let kernel = self.device.kernel(shader.code())?;
        kernels.push((shader, kernel.clone()));
        Ok(kernel)
    }

    /// Runs `items` items of a shader until all have finished.
    ///
    /// # Errors
    /// [`LaunchError`].
    pub fn launch(&self, shader: Shader, items: usize, arguments: &[u64]) -> Result<(), LaunchError> {
        let items = u32::try_from(items).unwrap_or(u32::MAX);
        self.device.launch_saving(&self.kernel(shader)?, items, shader.saved(), arguments).map(drop)
    }

    /// Where in device memory an address leads at this moment.
    pub fn place(&self, at: DevAddr) -> Option<DevMemAddr> {
        self.device.place(at)
    }

    /// Turns one bit of a byte of device memory over.
    pub fn flip_byte(&self, at: DevMemAddr) {
        self.device.flip_byte(at);
    }

    /// What its tables hold. An access that is not linked ends its launch, so none is counted.
    pub fn tables(&self) -> Tables {
        let counters = self.device.counters();
        Tables {
            iommu_errors: 0,
            table_bytes: counters.table_bytes,
            iommu_table_bytes: counters.iommu_table_bytes,
        }
    }
}
