//! Which Vulkan devices there are, and what each lacks.
#![allow(unsafe_code, reason = "calls of the Vulkan loader")]

use std::ffi::CStr;

use ash::{Entry, Instance, vk};

use super::error::{Named, VulkanError};

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

/// What is known of a device before it is opened.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct DeviceInfo {
    /// Its number in the loader's list.
    pub index: usize,
    /// Its name.
    pub name: String,
    /// Name and version of its driver.
    pub driver: String,
    /// Whether it computes on the CPU's own processors, in this process.
    pub is_cpu: bool,
    /// Whether 64-bit words in memory have atomic additions.
    pub has_atomic64: bool,
    /// What it lacks to be used, in words; `None` if nothing.
    pub lacks: Option<&'static str>,
}

pub(super) struct Found {
    pub(super) info: DeviceInfo,
    pub(super) physical: vk::PhysicalDevice,
    pub(super) family: u32,
    pub(super) most_allocation: u64,
    pub(super) import_align: u64,
    pub(super) most_groups: u32,
}

const VALIDATION: &CStr = c"VK_LAYER_KHRONOS_validation";

/// The loader with an instance; destroyed when dropped, after everything that was made from it.
pub(super) struct Loaded {
    pub(super) instance: Instance,
    pub(super) entry: Entry,
}

impl Drop for Loaded {
    fn drop(&mut self) {
        // SAFETY: whoever makes something from the instance destroys it before.
        unsafe { self.instance.destroy_instance(None) };
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
    Ok(Loaded { instance, entry })
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

fn text(chars: &[std::ffi::c_char]) -> String {
    let bytes: Vec<u8> = chars.iter().map(|&c| c as u8).take_while(|&byte| byte != 0).collect();
    String::from_utf8_lossy(&bytes).into_owned()
}

fn look(instance: &Instance, index: usize, physical: vk::PhysicalDevice) -> Found {
    // SAFETY: the device is of this instance.
    let extensions = unsafe { instance.enumerate_device_extension_properties(physical) }.unwrap_or_default();
    let has = |name: &CStr| extensions.iter().any(|e| e.extension_name_as_c_str() == Ok(name));
    let imports = has(ash::ext::external_memory_host::NAME);
    let mut driver = vk::PhysicalDeviceDriverProperties::default();
    let mut limits = vk::PhysicalDeviceMaintenance3Properties::default();
    let mut import = vk::PhysicalDeviceExternalMemoryHostPropertiesEXT::default();
    let mut properties =
        vk::PhysicalDeviceProperties2::default().push_next(&mut driver).push_next(&mut limits);
    if imports {
        properties = properties.push_next(&mut import);
    }
    // SAFETY: the device is of this instance, and each structure in the chain is one that its version or an
    // extension of it defines (those that it does not know, it passes over).
    unsafe { instance.get_physical_device_properties2(physical, &mut properties) };
    let base = properties.properties;
    let mut features12 = vk::PhysicalDeviceVulkan12Features::default();
    let mut features = vk::PhysicalDeviceFeatures2::default();
    if base.api_version >= vk::API_VERSION_1_2 {
        features = features.push_next(&mut features12);
    }
    // SAFETY: as above.
    unsafe { instance.get_physical_device_features2(physical, &mut features) };
    let has_int64 = features.features.shader_int64 != 0;
    // SAFETY: as above.
    let families = unsafe { instance.get_physical_device_queue_family_properties(physical) };
    let family = families.iter().position(|f| f.queue_flags.contains(vk::QueueFlags::COMPUTE));
    let is_cpu = base.device_type == vk::PhysicalDeviceType::CPU;
    let needs = [
        (base.api_version >= vk::API_VERSION_1_2, "Vulkan 1.2"),
        (family.is_some(), "a queue that computes"),
        (has_int64, "64-bit integers in shaders (shaderInt64)"),
        (features12.buffer_device_address != 0, "addresses of buffers (bufferDeviceAddress)"),
        (features12.timeline_semaphore != 0, "timeline semaphores (timelineSemaphore)"),
        (imports, "memory of the host as its own (VK_EXT_external_memory_host)"),
        (
            is_cpu,
            "windows that are coherent with the CPU while a shader runs: shown for CPU drivers only so far",
        ),
    ];
    let lacks = needs.iter().find(|(there, _)| !there).map(|(_, what)| *what);
    let driver = format!("{} {}", text(&driver.driver_name), text(&driver.driver_info));
    Found {
        info: DeviceInfo {
            index,
            name: text(&base.device_name),
            driver: driver.trim().to_owned(),
            is_cpu,
            has_atomic64: features12.shader_buffer_int64_atomics != 0,
            lacks,
        },
        physical,
        family: family.unwrap_or(0) as u32,
        most_allocation: limits.max_memory_allocation_size,
        import_align: import.min_imported_host_pointer_alignment,
        most_groups: base.limits.max_compute_work_group_count[0],
    }
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
