//! Everything that belongs to the Vulkan driver: instance, device, queue, imports, command buffers. On the heap, and
//! touched by threads of the application only: whoever makes a device, a kernel or a launch. The calls of
//! [`granule::ports::Device`] never come here.
#![allow(unsafe_code, reason = "calls of the Vulkan driver")]

use std::ffi::{CStr, c_void};
use std::sync::{Arc, Mutex, PoisonError};

use ash::vk;
use granule::os::private::{PrivateArc, PrivateBytes};

use super::binder::Binder;
use super::device::Inner;
use super::error::{Named, VulkanError};
use super::launch_block::LaunchBlock;
use super::pool::Pool;
use super::select::{Found, Loaded};

/// A queue, and the lock that is held while something is handed to it.
pub type SharedQueue = Arc<Mutex<vk::Queue>>;

/// Messages of the validation layer.
type Messages = Arc<Mutex<Vec<String>>>;

/// An imported piece of private memory, as a buffer with an address.
#[derive(Clone, Copy)]
pub(super) struct Import {
    buffer: vk::Buffer,
    memory: vk::DeviceMemory,
    /// Where shaders find its first byte.
    pub(super) address: u64,
}

pub(super) struct Driver {
    messages: Messages,
    messenger: Option<(ash::ext::debug_utils::Instance, vk::DebugUtilsMessengerEXT)>,
    import_host: ash::ext::external_memory_host::Device,
    pub(super) device: ash::Device,
    queue: SharedQueue,
    memories: vk::PhysicalDeviceMemoryProperties,
    pub(super) found: Found,
    imports: Mutex<Vec<Import>>,
    /// Launch blocks that nobody uses.
    pub(super) blocks: Mutex<Vec<LaunchBlock>>,
    /// Sparse mode: what is bound, and the memory that it is bound to.
    sparse: Option<(Mutex<Binder>, Pool)>,
    /// What the imports lie in; dropped after they are gone.
    inner: Option<PrivateArc<Inner>>,
    /// Declared last: destroyed when everything else is gone.
    loaded: Loaded,
}

unsafe extern "system" fn on_message(
    _: vk::DebugUtilsMessageSeverityFlagsEXT,
    _: vk::DebugUtilsMessageTypeFlagsEXT,
    data: *const vk::DebugUtilsMessengerCallbackDataEXT<'_>,
    messages: *mut c_void,
) -> vk::Bool32 {
    // SAFETY: the layer passes valid data, and the pointer that `Driver::new` gave, whose target the driver holds until
    // after the messenger is destroyed.
    let (message, messages) =
        unsafe { (CStr::from_ptr((*data).p_message), &*messages.cast::<Mutex<Vec<String>>>()) };
    let line = message.to_string_lossy().into_owned();
    messages.lock().unwrap_or_else(PoisonError::into_inner).push(line);
    // The call that is wrong is not passed on: it fails, and what the driver would have made of it is not seen.
    vk::TRUE
}

impl Driver {
    pub(super) fn new(
        loaded: Loaded,
        found: Found,
        validate: bool,
        is_sparse: bool,
    ) -> Result<Self, VulkanError> {
        let priorities = [1.0];
        let queues = [vk::DeviceQueueCreateInfo::default()
            .queue_family_index(found.family)
            .queue_priorities(&priorities)];
        let extensions = [ash::ext::external_memory_host::NAME.as_ptr()];
        let features = vk::PhysicalDeviceFeatures::default()
            .shader_int64(true)
            .sparse_binding(is_sparse)
            .sparse_residency_buffer(is_sparse);
        let mut features12 = vk::PhysicalDeviceVulkan12Features::default()
            .buffer_device_address(true)
            .timeline_semaphore(true)
            .shader_buffer_int64_atomics(found.info.has_atomic64);
        let create = vk::DeviceCreateInfo::default()
            .queue_create_infos(&queues)
            .enabled_extension_names(&extensions)
            .enabled_features(&features)
            .push_next(&mut features12);
        let instance = &loaded.instance;
        // SAFETY: `select` has made sure that the device has all of this; the structures live until the call returns.
        let device =
            unsafe { instance.create_device(found.physical, &create, None) }.named("vkCreateDevice")?;
        // SAFETY: the queue was asked for above.
        let queue = Arc::new(Mutex::new(unsafe { device.get_device_queue(found.family, 0) }));
        let mut driver = Self::on(loaded, found, device, queue);
        if validate {
            driver.listen()?;
        }
        Ok(driver)
    }

    /// A driver over a device that is there.
    pub(super) fn on(loaded: Loaded, found: Found, device: ash::Device, queue: SharedQueue) -> Self {
        let instance = &loaded.instance;
        // SAFETY: the device is of this instance.
        let memories = unsafe { instance.get_physical_device_memory_properties(found.physical) };
        let import_host = ash::ext::external_memory_host::Device::new(instance, &device);
        Self {
            messages: Messages::default(),
            messenger: None,
            import_host,
            device,
            queue,
            memories,
            found,
            imports: Mutex::default(),
            blocks: Mutex::default(),
            sparse: None,
            inner: None,
            loaded,
        }
    }

    /// Keeps what the validation layer says.
    fn listen(&mut self) -> Result<(), VulkanError> {
        let utils = ash::ext::debug_utils::Instance::new(&self.loaded.entry, &self.loaded.instance);
        let create = vk::DebugUtilsMessengerCreateInfoEXT::default()
            .message_severity(
                vk::DebugUtilsMessageSeverityFlagsEXT::ERROR | vk::DebugUtilsMessageSeverityFlagsEXT::WARNING,
            )
            .message_type(
                vk::DebugUtilsMessageTypeFlagsEXT::VALIDATION
                    | vk::DebugUtilsMessageTypeFlagsEXT::PERFORMANCE,
            )
            .pfn_user_callback(Some(on_message))
            .user_data(Arc::as_ptr(&self.messages) as *mut c_void);
        // SAFETY: `messages` is held by the driver until after the messenger is destroyed.
        let messenger = unsafe { utils.create_debug_utils_messenger(&create, None) }
            .named("vkCreateDebugUtilsMessengerEXT")?;
        self.messenger = Some((utils, messenger));
        Ok(())
    }

    /// Keeps what the imports of the device lie in.
    pub(super) fn keep(&mut self, inner: PrivateArc<Inner>) {
        self.inner = Some(inner);
    }

    /// What the validation layer said so far.
    pub(super) fn messages(&self) -> Vec<String> {
        self.messages.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Imports private memory for as long as the driver lives. The caller keeps the memory longer.
    pub(super) fn import_for_ever(&self, at: u64, bytes: u64) -> Result<Import, VulkanError> {
        let import = self.import(at, bytes)?;
        self.keep_import(import);
        Ok(import)
    }

    /// Keeps an import until it is forgotten, or to the end.
    pub(super) fn keep_import(&self, import: Import) {
        self.imports.lock().unwrap_or_else(PoisonError::into_inner).push(import);
    }

    /// Ends the kept import with this address. No launch that uses it is under way.
    pub(super) fn forget_at(&self, address: u64) {
        let mut imports = self.imports.lock().unwrap_or_else(PoisonError::into_inner);
        let at = imports.iter().position(|import| import.address == address);
        if let Some(import) = at.map(|at| imports.swap_remove(at)) {
            drop(imports);
            self.forget(import);
        }
    }

    /// Whether the driver gives so much in one piece.
    pub(super) fn check_size(&self, bytes: u64) -> Result<(), VulkanError> {
        if bytes <= self.found.most_allocation {
            return Ok(());
        }
        Err(VulkanError::TooLarge {
            device: self.found.info.name.clone(),
            asked: bytes,
            most: self.found.most_allocation,
        })
    }

    pub(super) fn lacks(&self, lacks: &'static str) -> VulkanError {
        VulkanError::Lacks { device: self.found.info.name.clone(), lacks }
    }

    /// The first allowed memory type that the host maps coherently.
    pub(super) fn coherent_type(&self, allowed: u32, lacks: &'static str) -> Result<u32, VulkanError> {
        let coherent = vk::MemoryPropertyFlags::HOST_VISIBLE | vk::MemoryPropertyFlags::HOST_COHERENT;
        let fits = |index: &u32| {
            let flags = self.memories.memory_types[*index as usize].property_flags;
            allowed & (1 << index) != 0 && flags.contains(coherent)
        };
        (0..self.memories.memory_type_count).find(fits).ok_or_else(|| self.lacks(lacks))
    }

    /// Imports private memory (address and length are multiples of the driver's alignment) as a buffer.
    pub(super) fn import(&self, at: u64, bytes: u64) -> Result<Import, VulkanError> {
        self.check_size(bytes)?;
        let kind = vk::ExternalMemoryHandleTypeFlags::HOST_ALLOCATION_EXT;
        let device = &self.device;
        let mut external = vk::ExternalMemoryBufferCreateInfo::default().handle_types(kind);
        let create = vk::BufferCreateInfo::default()
            .size(bytes)
            .usage(vk::BufferUsageFlags::STORAGE_BUFFER | vk::BufferUsageFlags::SHADER_DEVICE_ADDRESS)
            .push_next(&mut external);
        // SAFETY: the device is alive, and the structures live until the call returns; so in each call below.
        let buffer = unsafe { device.create_buffer(&create, None) }.named("vkCreateBuffer")?;
        let memory = match self.allocate_for(buffer, at, bytes) {
            Ok(memory) => memory,
            Err(error) => {
                // SAFETY: nothing uses the new buffer.
                unsafe { device.destroy_buffer(buffer, None) };
                return Err(error);
            }
        };
        // SAFETY: the buffer is bound to memory that was allocated with an address.
        let address = unsafe {
            device.get_buffer_device_address(&vk::BufferDeviceAddressInfo::default().buffer(buffer))
        };
        Ok(Import { buffer, memory, address })
    }

    fn allocate_for(&self, buffer: vk::Buffer, at: u64, bytes: u64) -> Result<vk::DeviceMemory, VulkanError> {
        let kind = vk::ExternalMemoryHandleTypeFlags::HOST_ALLOCATION_EXT;
        let device = &self.device;
        let pointer = at as *mut c_void;
        let mut properties = vk::MemoryHostPointerPropertiesEXT::default();
        // SAFETY: the caller owns the private memory at `pointer`.
        unsafe {
            (self.import_host.fp().get_memory_host_pointer_properties_ext)(
                device.handle(),
                kind,
                pointer,
                &mut properties,
            )
        }
        .result()
        .named("vkGetMemoryHostPointerPropertiesEXT")?;
        // SAFETY: the buffer is alive.
        let needs = unsafe { device.get_buffer_memory_requirements(buffer) };
        let index = self.coherent_type(
            properties.memory_type_bits & needs.memory_type_bits,
            "a coherent memory type for imported memory of the host",
        )?;
        let mut import =
            vk::ImportMemoryHostPointerInfoEXT::default().handle_type(kind).host_pointer(pointer);
        let mut flags = vk::MemoryAllocateFlagsInfo::default().flags(vk::MemoryAllocateFlags::DEVICE_ADDRESS);
        let allocate = vk::MemoryAllocateInfo::default()
            .allocation_size(bytes)
            .memory_type_index(index)
            .push_next(&mut import)
            .push_next(&mut flags);
        // SAFETY: the memory at `pointer` stays mapped until the import is destroyed: the caller's promise.
        let memory = unsafe { device.allocate_memory(&allocate, None) }.named("vkAllocateMemory")?;
        // SAFETY: both are new, and the memory is as large as the buffer.
        let bound = unsafe { device.bind_buffer_memory(buffer, memory, 0) }.named("vkBindBufferMemory");
        if let Err(error) = bound {
            // SAFETY: nothing uses the new memory.
            unsafe { device.free_memory(memory, None) };
            return Err(error);
        }
        Ok(memory)
    }

    /// Ends an import. No launch that uses it is under way.
    pub(super) fn forget(&self, import: Import) {
        // SAFETY: the caller's promise.
        unsafe {
            self.device.destroy_buffer(import.buffer, None);
            self.device.free_memory(import.memory, None);
        }
    }

    /// Imports a whole private mapping. The caller keeps it until the import is forgotten.
    pub(super) fn import_bytes(&self, memory: &PrivateBytes) -> Result<Import, VulkanError> {
        self.import(memory.base().0, memory.range().bytes())
    }

    /// Sparse mode: takes over the binder and its memory.
    pub(super) fn keep_sparse(&mut self, binder: Binder, pool: Pool) {
        self.sparse = Some((Mutex::new(binder), pool));
    }

    /// Binds what was mapped since the last call; nothing to do without sparse mode.
    pub(super) fn bind_noted(&self, inner: &Inner) -> Result<(), VulkanError> {
        let Some((binder, pool)) = &self.sparse else { return Ok(()) };
        binder.lock().unwrap_or_else(PoisonError::into_inner).bind_noted(self, pool, inner)
    }

    /// Units that were bound so far, and runs that are bound now.
    pub(super) fn bind_counts(&self) -> (u64, u64) {
        let binder = self.sparse.as_ref().map(|(binder, _)| binder);
        binder.map_or((0, 0), |binder| binder.lock().unwrap_or_else(PoisonError::into_inner).counts())
    }

    /// Binds ranges after a value of a timeline, which then has the value that is returned.
    pub(super) fn bind(
        &self,
        ranges: &[(vk::Buffer, vk::SparseMemoryBind)],
        timeline: vk::Semaphore,
        value: u64,
    ) -> Result<u64, VulkanError> {
        let (timelines, waits, signals) = ([timeline], [value], [value + 1]);
        let buffers: Vec<_> = ranges
            .chunk_by(|one, other| one.0 == other.0)
            .map(|part| (part[0].0, part.iter().map(|(_, bind)| *bind).collect::<Vec<_>>()))
            .collect();
        let infos: Vec<_> = buffers
            .iter()
            .map(|(buffer, binds)| vk::SparseBufferMemoryBindInfo::default().buffer(*buffer).binds(binds))
            .collect();
        let mut values = vk::TimelineSemaphoreSubmitInfo::default()
            .wait_semaphore_values(&waits)
            .signal_semaphore_values(&signals);
        let bind = vk::BindSparseInfo::default()
            .buffer_binds(&infos)
            .wait_semaphores(&timelines)
            .signal_semaphores(&timelines)
            .push_next(&mut values);
        let queue = self.queue.lock().unwrap_or_else(PoisonError::into_inner);
        // SAFETY: buffers, memory and timeline are alive, and the queue is this thread's alone.
        unsafe { self.device.queue_bind_sparse(*queue, &[bind], vk::Fence::null()) }
            .named("vkQueueBindSparse")?;
        Ok(value + 1)
    }

    /// Waits until a timeline has a value.
    pub(super) fn wait_for(&self, timeline: vk::Semaphore, value: u64) -> Result<(), VulkanError> {
        let (timelines, values) = ([timeline], [value]);
        let wait = vk::SemaphoreWaitInfo::default().semaphores(&timelines).values(&values);
        // SAFETY: the timeline is alive.
        unsafe { self.device.wait_semaphores(&wait, u64::MAX) }.named("vkWaitSemaphores")
    }

    /// Submits a command buffer.
    pub(super) fn submit(&self, commands: vk::CommandBuffer, done: vk::Fence) -> Result<(), VulkanError> {
        let buffers = [commands];
        let submit = [vk::SubmitInfo::default().command_buffers(&buffers)];
        let queue = self.queue.lock().unwrap_or_else(PoisonError::into_inner);
        // SAFETY: the fence is not in use, the commands are recorded, and the queue is this thread's alone.
        unsafe { self.device.queue_submit(*queue, &submit, done) }.named("vkQueueSubmit")
    }

    /// Waits for the end of what was submitted with a fence.
    pub(super) fn wait(&self, done: vk::Fence) -> Result<(), VulkanError> {
        // SAFETY: the fence was submitted by the caller, and nobody else uses it.
        unsafe {
            self.device.wait_for_fences(&[done], true, u64::MAX).named("vkWaitForFences")?;
            self.device.reset_fences(&[done]).named("vkResetFences")
        }
    }

    /// Whether what was submitted with a fence has ended.
    pub(super) fn has_ended(&self, done: vk::Fence) -> Result<bool, VulkanError> {
        // SAFETY: the fence is alive.
        unsafe { self.device.get_fence_status(done) }.named("vkGetFenceStatus")
    }
}

impl Drop for Driver {
    fn drop(&mut self) {
        let blocks = std::mem::take(self.blocks.get_mut().unwrap_or_else(PoisonError::into_inner));
        let sparse = self.sparse.take();
        let imports = std::mem::take(self.imports.get_mut().unwrap_or_else(PoisonError::into_inner));
        // SAFETY: the last handle is gone, so no thread uses the device; everything made from it is destroyed before
        // it, and the private memory of the imports outlives them (`inner` is dropped after this body).
        unsafe {
            // A device that was lost says so here; its objects are destroyed all the same. Of a device that is lent, other
            // queues are the application's; every launch has waited for its own end.
            if !self.loaded.is_lent {
                let _ = self.device.device_wait_idle();
            }
            for block in blocks {
                block.destroy(self);
            }
            if let Some((binder, pool)) = sparse {
                binder.into_inner().unwrap_or_else(PoisonError::into_inner).destroy(self);
                pool.free(&self.device);
            }
            for import in imports {
                self.forget(import);
            }
            if !self.loaded.is_lent {
                self.device.destroy_device(None);
            }
            if let Some((utils, messenger)) = self.messenger.take() {
                utils.destroy_debug_utils_messenger(messenger, None);
            }
        }
    }
}
