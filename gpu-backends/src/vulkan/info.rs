//! What is known of a device before it is opened: what it can do, what it lacks, how it would be used.
#![allow(unsafe_code, reason = "calls of the Vulkan loader")]

use std::ffi::CStr;

use ash::{Instance, vk};

use super::select::Found;

/// How shaders reach device memory.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Mode {
    /// Through a page table that they walk.
    Translation,
    /// Directly, at an address that follows from the pointer, in a sparse buffer per granule of 512 MiB; through the page
    /// table where a page is not bound.
    Sparse,
}

impl Mode {
    /// Its name, as commands take it.
    pub fn name(self) -> &'static str {
        match self {
            Mode::Translation => "translation",
            Mode::Sparse => "sparse",
        }
    }
}

/// What is known of a device before it is opened.
#[derive(Clone, PartialEq, Eq, Debug)]
#[non_exhaustive]
pub struct DeviceInfo {
    /// Its number in the loader's list.
    pub index: usize,
    /// Its name.
    pub name: String,
    /// Name and version of its driver.
    pub driver: String,
    /// The version of Vulkan: major, minor.
    pub version: (u32, u32),
    /// What it is: `cpu`, `integrated-gpu`, `discrete-gpu`, `virtual-gpu` or `other`.
    pub kind: &'static str,
    /// Whether it computes on the CPU's own processors, in this process.
    pub is_cpu: bool,
    /// Bytes of memory of its own: heaps that the driver calls device-local.
    pub memory_bytes: u64,
    /// Whether the host can map all kinds of that memory.
    pub maps_memory: bool,
    /// Whether it can use memory of the host as its own (`VK_EXT_external_memory_host`).
    pub imports: bool,
    /// Whether 64-bit words in memory have atomic additions.
    pub has_atomic64: bool,
    /// Whether buffers can be bound to memory in parts (`sparseResidencyBuffer`).
    pub has_sparse: bool,
    /// Whether it says how much of its memory is free (`VK_EXT_memory_budget`).
    pub has_budget: bool,
    /// Whether it has a queue that copies and does nothing else.
    pub has_transfer_queue: bool,
    /// What it lacks to be used, in words; `None` if nothing.
    pub lacks: Option<&'static str>,
}

impl DeviceInfo {
    /// How its memory is reached unless a program says otherwise, and why.
    pub fn mode(&self) -> (Mode, &'static str) {
        if self.has_sparse && self.maps_memory {
            (Mode::Sparse, "it has sparse buffers, and the host maps its memory")
        } else if self.has_sparse {
            (Mode::Translation, "it has sparse buffers, but memory that the host cannot map")
        } else {
            (Mode::Translation, "it has no sparse buffers on a queue that computes")
        }
    }
}

fn text(chars: &[std::ffi::c_char]) -> String {
    let bytes: Vec<u8> = chars.iter().map(|&c| c as u8).take_while(|&byte| byte != 0).collect();
    String::from_utf8_lossy(&bytes).into_owned()
}

fn kind(device: vk::PhysicalDeviceType) -> &'static str {
    match device {
        vk::PhysicalDeviceType::CPU => "cpu",
        vk::PhysicalDeviceType::INTEGRATED_GPU => "integrated-gpu",
        vk::PhysicalDeviceType::DISCRETE_GPU => "discrete-gpu",
        vk::PhysicalDeviceType::VIRTUAL_GPU => "virtual-gpu",
        _ => "other",
    }
}

/// Bytes of device-local memory, and whether the host maps every kind of it.
fn own_memory(memories: &vk::PhysicalDeviceMemoryProperties) -> (u64, bool) {
    let heaps = memories.memory_heaps_as_slice().iter();
    let local = heaps.filter(|heap| heap.flags.contains(vk::MemoryHeapFlags::DEVICE_LOCAL));
    let (own, host) = (vk::MemoryPropertyFlags::DEVICE_LOCAL, vk::MemoryPropertyFlags::HOST_VISIBLE);
    let mut kinds = memories.memory_types_as_slice().iter().filter(|kind| kind.property_flags.contains(own));
    (local.map(|heap| heap.size).sum(), kinds.all(|kind| kind.property_flags.contains(host)))
}

pub(super) fn look(instance: &Instance, index: usize, physical: vk::PhysicalDevice) -> Found {
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
    let base_features = features.features;
    // SAFETY: as above.
    let families = unsafe { instance.get_physical_device_queue_family_properties(physical) };
    let both = vk::QueueFlags::COMPUTE | vk::QueueFlags::SPARSE_BINDING;
    let with = |flags| families.iter().position(|family| family.queue_flags.contains(flags));
    let (sparse_family, family) = (with(both), with(both).or(with(vk::QueueFlags::COMPUTE)));
    let is_transfer = |family: &vk::QueueFamilyProperties| {
        family.queue_flags.contains(vk::QueueFlags::TRANSFER)
            && !family.queue_flags.intersects(vk::QueueFlags::COMPUTE | vk::QueueFlags::GRAPHICS)
    };
    let is_cpu = base.device_type == vk::PhysicalDeviceType::CPU;
    // SAFETY: as above.
    let (memory_bytes, maps_memory) =
        own_memory(&unsafe { instance.get_physical_device_memory_properties(physical) });
    let needs = [
        (base.api_version >= vk::API_VERSION_1_2, "Vulkan 1.2"),
        (family.is_some(), "a queue that computes"),
        (base_features.shader_int64 != 0, "64-bit integers in shaders (shaderInt64)"),
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
            version: (vk::api_version_major(base.api_version), vk::api_version_minor(base.api_version)),
            kind: kind(base.device_type),
            is_cpu,
            memory_bytes,
            maps_memory,
            imports,
            has_atomic64: features12.shader_buffer_int64_atomics != 0,
            has_sparse: base_features.sparse_binding != 0
                && base_features.sparse_residency_buffer != 0
                && sparse_family.is_some(),
            has_budget: has(ash::ext::memory_budget::NAME),
            has_transfer_queue: families.iter().any(is_transfer),
            lacks,
        },
        physical,
        family: family.unwrap_or(0) as u32,
        most_allocation: limits.max_memory_allocation_size,
        import_align: import.min_imported_host_pointer_alignment,
        sparse_bytes: base.limits.sparse_address_space_size,
        most_groups: base.limits.max_compute_work_group_count[0],
    }
}
