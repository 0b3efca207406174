//! Why there is no Vulkan device, or why it cannot go on: one sentence each.

use ash::vk;
use granule::os::private::PrivateError;
use granule::ports::FaultCause;
use granule::units::Access;
use thiserror::Error;

/// Why a device cannot be had.
#[derive(Clone, PartialEq, Eq, Debug, Error)]
#[non_exhaustive]
pub enum VulkanError {
    /// libvulkan is not installed.
    #[error(
        "there is no Vulkan loader here ({0}); install libvulkan1, or the package that brings libvulkan.so.1"
    )]
    NoLoader(String),
    /// The loader found no driver.
    #[error(
        "there is no Vulkan driver here; install one (mesa-vulkan-drivers has a CPU driver), or point \
         VK_DRIVER_FILES at its file"
    )]
    NoDriver,
    /// No device has this number or name.
    #[error("no Vulkan device is {asked:?}; there are: {there}")]
    NoSuchDevice {
        /// What was asked for.
        asked: String,
        /// The devices, by number and name.
        there: String,
    },
    /// The device lacks something.
    #[error("the Vulkan device {device} lacks {lacks}; choose another one")]
    Lacks {
        /// Its name.
        device: String,
        /// What it lacks.
        lacks: &'static str,
    },
    /// The layer that checks calls is not installed.
    #[error("the validation layer is not installed; install vulkan-validationlayers")]
    NoValidation,
    /// Device memory of no size, or not in whole blocks.
    #[error("device memory of {0} bytes is not a positive multiple of 2 MiB; round it up")]
    MemorySize(u64),
    /// A unit of binding that is none.
    #[error("a unit of binding of {0} bytes is not a power of two up to 2 MiB; give one that is, or 0")]
    SparseUnit(u64),
    /// More than one allocation of the driver may have.
    #[error("the Vulkan device {device} gives at most {most} bytes in one piece, not {asked}; ask for less")]
    TooLarge {
        /// Its name.
        device: String,
        /// What was asked for.
        asked: u64,
        /// The most that it gives.
        most: u64,
    },
    /// The host cannot back the memory.
    #[error("the host cannot fill {bytes} bytes of device memory ({errno}); ask for less")]
    Populate {
        /// What was asked for.
        bytes: u64,
        /// What the kernel said.
        errno: String,
    },
    /// No place for another import.
    #[error(
        "the device has imported as many pieces of memory as it keeps track of; allocate fewer, larger regions"
    )]
    TooManyViews,
    /// Shader code that is none.
    #[error(
        "this is not a compute shader in SPIR-V with a literal LocalSize; compile it with glslangValidator -V"
    )]
    NotAShader,
    /// A call failed.
    #[error("the Vulkan driver refused {call}: {result}")]
    Call {
        /// Which call.
        call: &'static str,
        /// What it said.
        result: vk::Result,
    },
    /// Private memory.
    #[error(transparent)]
    Private(#[from] PrivateError),
}

/// Names a call in its error.
pub(super) trait Named<T> {
    fn named(self, call: &'static str) -> Result<T, VulkanError>;
}

impl<T> Named<T> for Result<T, vk::Result> {
    fn named(self, call: &'static str) -> Result<T, VulkanError> {
        self.map_err(|result| match result {
            vk::Result::ERROR_INCOMPATIBLE_DRIVER => VulkanError::NoDriver,
            vk::Result::ERROR_LAYER_NOT_PRESENT => VulkanError::NoValidation,
            result => VulkanError::Call { call, result },
        })
    }
}

/// Why a launch did not do its work.
#[derive(Clone, PartialEq, Eq, Debug, Error)]
#[non_exhaustive]
pub enum LaunchError {
    /// The fault of an item was not served.
    #[error("item {item} cannot {} {at:#x}: {cause}", if *.access == Access::Write { "write" } else { "read" })]
    Fault {
        /// The item with the lowest number that failed.
        item: u32,
        /// The byte.
        at: u64,
        /// What was tried.
        access: Access,
        /// Why not.
        cause: FaultCause,
    },
    /// A translation led to an address that is not linked.
    #[error("item {item} was led to memory that is not linked, at {at:#x}: this is an error of the service")]
    NotLinked {
        /// The item.
        item: u32,
        /// The byte.
        at: u64,
    },
    /// Items return without a miss and without having finished.
    #[error(
        "{unfinished} items of the kernel return without granule_finish, without a miss and without granule_save; \
         every turn must get on or miss"
    )]
    Stuck {
        /// How many.
        unfinished: u32,
    },
    /// Misses are served, and no item gets on.
    #[error(
        "{passes} passes served every miss and no item got on; give the device more memory, or save more often in \
         the kernel"
    )]
    NoProgress {
        /// How many passes.
        passes: u32,
    },
    /// More items than a dispatch has.
    #[error("{asked} items are more than a launch has ({most}); launch several times")]
    TooManyItems {
        /// What was asked for.
        asked: u32,
        /// The most.
        most: u32,
    },
    /// More argument words than there is room for.
    #[error("{0} argument words are more than a launch takes ({most}); pass a pointer", most = super::MOST_ARGUMENTS)]
    TooManyArguments(usize),
    /// The device is gone. Data in its memory goes back to RAM as far as it can be read.
    #[error("the Vulkan device was lost; its memory is still read back")]
    Lost,
    /// The driver refused.
    #[error(transparent)]
    Driver(#[from] VulkanError),
}
