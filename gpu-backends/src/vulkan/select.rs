//! The loader, and which of its devices is meant.
#![allow(unsafe_code, reason = "calls of the Vulkan loader")]

use std::ffi::CStr;

use ash::{Entry, Instance, vk};

use super::error::{Named, VulkanError};
use super::info::{DeviceInfo, look};

/// Which device is meant.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub enum Select {
    /// The first one that has everything.
    #[default]
    Any,
    /// By its number in the loader's list, from 0.
    Index(usize),
    /// By a part of its name, whatever the case.
    Name(String),
}

impl Select {
    /// A number is a number, everything else a name.
    pub fn parse(text: &str) -> Self {
        text.parse().map_or_else(|_| Select::Name(text.to_owned()), Select::Index)
    }
}

pub(super) struct Found {
    pub(super) info: DeviceInfo,
    pub(super) physical: vk::PhysicalDevice,
    pub(super) family: u32,
    pub(super) most_allocation: u64,
    pub(super) import_align: u64,
    pub(super) most_groups: u32,
    /// How many bytes of sparse buffers there may be.
    pub(super) sparse_bytes: u64,
}

const VALIDATION: &CStr = c"VK_LAYER_KHRONOS_validation";

/// The loader with an instance; destroyed when dropped, after everything that was made from it.
pub(super) struct Loaded {
    pub(super) instance: Instance,
    pub(super) entry: Entry,
    /// An application's: it destroys it.
    pub(super) is_lent: bool,
}

impl Drop for Loaded {
    fn drop(&mut self) {
        if !self.is_lent {
            // SAFETY: whoever makes something from the instance destroys it before.
            unsafe { self.instance.destroy_instance(None) };
        }
    }
}

/// Opens the loader and makes an instance.
pub(super) fn load(validate: bool) -> Result<Loaded, VulkanError> {
    // SAFETY: loads libvulkan, whose initialisers are sound; the entry is kept with everything made from it.
    let entry = unsafe { Entry::load() }.map_err(|error| VulkanError::NoLoader(error.to_string()))?;
    let application = vk::ApplicationInfo::default()
        .application_name(c"granule")
        .engine_name(c"granule")
        .api_version(vk::API_VERSION_1_2);
    let layers = [VALIDATION.as_ptr()];
    let extensions = [ash::ext::debug_utils::NAME.as_ptr(), ash::ext::validation_features::NAME.as_ptr()];
    let checks = [vk::ValidationFeatureEnableEXT::SYNCHRONIZATION_VALIDATION];
    let mut features = vk::ValidationFeaturesEXT::default().enabled_validation_features(&checks);
    let mut create = vk::InstanceCreateInfo::default().application_info(&application);
    if validate {
        create =
            create.enabled_layer_names(&layers).enabled_extension_names(&extensions).push_next(&mut features);
    }
    // SAFETY: everything that `create` names lives until the call returns.
    let instance = unsafe { entry.create_instance(&create, None) }.named("vkCreateInstance")?;
    Ok(Loaded { instance, entry, is_lent: false })
}

/// Every device of the loader.
pub(super) fn found(instance: &Instance) -> Result<Vec<Found>, VulkanError> {
    // SAFETY: the instance is alive.
    let all = unsafe { instance.enumerate_physical_devices() }.named("vkEnumeratePhysicalDevices")?;
    if all.is_empty() {
        return Err(VulkanError::NoDriver);
    }
    Ok(all.into_iter().enumerate().map(|(index, physical)| look(instance, index, physical)).collect())
}

/// Every Vulkan device, usable or not.
///
/// # Errors
/// [`VulkanError`] if there is no loader or no driver.
pub fn devices() -> Result<Vec<DeviceInfo>, VulkanError> {
    let loaded = load(false)?;
    Ok(found(&loaded.instance)?.into_iter().map(|one| one.info).collect())
}

/// The device that is meant.
pub(super) fn choose(all: Vec<Found>, select: &Select) -> Result<Found, VulkanError> {
    let there =
        all.iter().map(|f| format!("{} ({})", f.info.index, f.info.name)).collect::<Vec<_>>().join(", ");
    let lack = |found: &Found| {
        let lacks = |lacks| VulkanError::Lacks { device: found.info.name.clone(), lacks };
        found.info.lacks.map(lacks)
    };
    let (asked, chosen) = match select {
        Select::Any => {
            let why = all.first().and_then(lack);
            let chosen = all.into_iter().find(|found| found.info.lacks.is_none());
            return chosen.ok_or_else(|| why.unwrap_or(VulkanError::NoDriver));
        }
        Select::Index(index) => (index.to_string(), all.into_iter().nth(*index)),
        Select::Name(name) => {
            let wanted = name.to_lowercase();
            let fits = |found: &Found| found.info.name.to_lowercase().contains(&wanted);
            (name.clone(), all.into_iter().find(fits))
        }
    };
    let chosen = chosen.ok_or(VulkanError::NoSuchDevice { asked, there })?;
    match lack(&chosen) {
        Some(error) => Err(error),
        None => Ok(chosen),
    }
}
