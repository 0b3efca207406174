//! Device memory: what the driver allocated and mapped for the host (sparse mode), or private memory of the library that
//! is imported (translation). Either way the host reads and writes it without the driver.
#![allow(unsafe_code, reason = "calls of the Vulkan driver, and the memory that it maps")]

use ash::vk;
use granule::os::private::PrivateBytes;
use granule::ports::Word;

use super::driver::Driver;
use super::error::{Named, VulkanError};

/// Memory of the driver, mapped, as a buffer with an address. Freed by `free`.
pub(super) struct Pool {
    pub(super) memory: vk::DeviceMemory,
    buffer: vk::Buffer,
    pub(super) address: u64,
    pub(super) at: u64,
    pub(super) bytes: u64,
}

/// Device memory as the host sees it.
pub(super) enum HostView {
    /// Private memory of the library.
    Private(PrivateBytes),
    /// Mapped by the driver: first byte, bytes. The driver lives longer than whoever looks.
    Mapped(u64, u64),
}

impl HostView {
    pub(super) fn bytes(&self) -> u64 {
        match self {
            HostView::Private(memory) => memory.range().bytes(),
            HostView::Mapped(_, bytes) => *bytes,
        }
    }

    pub(super) fn base(&self) -> u64 {
        match self {
            HostView::Private(memory) => memory.base().0,
            HostView::Mapped(at, _) => *at,
        }
    }

    pub(super) fn as_words(&self) -> &[Word] {
        match self {
            HostView::Private(memory) => memory.as_words(),
            // SAFETY: mapped until the driver's last handle goes, and every handle of the device holds one; aligned;
            // any bytes are words, and words may change under a shared reference.
            HostView::Mapped(at, bytes) => unsafe {
                core::slice::from_raw_parts(*at as *const Word, *bytes as usize / size_of::<Word>())
            },
        }
    }
}

/// Whether a mapping of this process at an address is one that the library could take as the application's.
fn is_movable(at: u64) -> bool {
    let Ok(maps) = std::fs::read_to_string("/proc/self/maps") else { return true };
    let holds = |line: &&str| {
        let range = line.split_whitespace().next().and_then(|range| range.split_once('-'));
        range.is_some_and(|(start, end)| {
            let hex = |text| u64::from_str_radix(text, 16).unwrap_or(0);
            hex(start) <= at && at < hex(end)
        })
    };
    let mut fields = maps.lines().find(holds).unwrap_or("").split_whitespace().skip(1);
    let (rights, inode) = (fields.next().unwrap_or(""), fields.nth(2).unwrap_or("0"));
    rights.ends_with('p') && inode == "0"
}

impl Pool {
    /// Allocates and maps memory that sparse buffers like `sparse` and a plain buffer can be bound to.
    pub(super) fn new(driver: &Driver, bytes: u64, sparse: vk::Buffer) -> Result<Self, VulkanError> {
        driver.check_size(bytes)?;
        let device = &driver.device;
        let create = vk::BufferCreateInfo::default()
            .size(bytes)
            .usage(vk::BufferUsageFlags::STORAGE_BUFFER | vk::BufferUsageFlags::SHADER_DEVICE_ADDRESS);
        // SAFETY: the device is alive, and structures live until their call returns; so in each call below.
        let buffer = unsafe { device.create_buffer(&create, None) }.named("vkCreateBuffer")?;
        let made = Self::allocate(driver, bytes, buffer, sparse);
        if made.is_err() {
            // SAFETY: nothing uses the new buffer.
            unsafe { device.destroy_buffer(buffer, None) };
        }
        made
    }

    fn allocate(
        driver: &Driver,
        bytes: u64,
        buffer: vk::Buffer,
        sparse: vk::Buffer,
    ) -> Result<Self, VulkanError> {
        let device = &driver.device;
        // SAFETY: both buffers are alive.
        let (plain, sparse) = unsafe {
            (device.get_buffer_memory_requirements(buffer), device.get_buffer_memory_requirements(sparse))
        };
        let index = driver.coherent_type(
            plain.memory_type_bits & sparse.memory_type_bits,
            "memory that the host can map and sparse buffers can be bound to",
        )?;
        let mut flags = vk::MemoryAllocateFlagsInfo::default().flags(vk::MemoryAllocateFlags::DEVICE_ADDRESS);
        let allocate = vk::MemoryAllocateInfo::default()
            .allocation_size(bytes)
            .memory_type_index(index)
            .push_next(&mut flags);
        // SAFETY: as above; what was made is freed here if a later call fails.
        unsafe {
            let memory = device.allocate_memory(&allocate, None).named("vkAllocateMemory")?;
            let address = || {
                let at = device
                    .map_memory(memory, 0, vk::WHOLE_SIZE, vk::MemoryMapFlags::empty())
                    .named("vkMapMemory")? as u64;
                if is_movable(at) {
                    return Err(
                        driver.lacks("device memory that the library cannot mistake for the application's")
                    );
                }
                device.bind_buffer_memory(buffer, memory, 0).named("vkBindBufferMemory")?;
                let info = vk::BufferDeviceAddressInfo::default().buffer(buffer);
                Ok((at, device.get_buffer_device_address(&info)))
            };
            match address() {
                Ok((at, address)) => Ok(Self { memory, buffer, address, at, bytes }),
                Err(error) => {
                    device.free_memory(memory, None);
                    Err(error)
                }
            }
        }
    }

    /// Gives the memory back. Nothing is bound to it any more, and nobody looks at it.
    pub(super) fn free(self, device: &ash::Device) {
        // SAFETY: the caller's promise.
        unsafe {
            device.destroy_buffer(self.buffer, None);
            device.free_memory(self.memory, None);
        }
    }
}
