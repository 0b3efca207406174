//! What `vulkan_list.rs` does, without the library: the nodes are copied into a buffer, and pointers become numbers.
//!
//! ```sh
//! cargo run -p granule-backends --features vulkan --example vulkan_list_plain
//! ```
#![allow(unsafe_code, reason = "calls of the Vulkan driver")]
#![allow(dead_code, reason = "the benches measure against the same plain program")]

use std::error::Error;

use ash::vk;

const NODES: u64 = 10_000;
/// Compiled with `shaders/compile.sh`.
const LIST: &[u8] = include_bytes!("../shaders/plain_list.spv");

/// A device with a queue that computes, as a program makes it that needs nothing else.
pub struct Plain {
    device: ash::Device,
    queue: vk::Queue,
    pool: vk::CommandPool,
    memory_type: u32,
    instance: ash::Instance,
    _entry: ash::Entry,
}

/// Memory that host and device see.
#[derive(Clone, Copy)]
pub struct Buffer {
    buffer: vk::Buffer,
    memory: vk::DeviceMemory,
    /// Where the host finds it.
    pub host: *mut u64,
    /// Where shaders find it.
    pub address: u64,
}

/// A compute shader whose push constants are three words.
#[derive(Clone, Copy)]
pub struct Shader {
    layout: vk::PipelineLayout,
    pipeline: vk::Pipeline,
}

impl Plain {
    /// The first device with 64-bit integers and addresses of buffers.
    pub fn new() -> Result<Self, Box<dyn Error>> {
        // SAFETY: in this file every handle is alive when it is used, structures live until their call returns, and one
        // thread uses the queue.
        unsafe {
            let entry = ash::Entry::load()?;
            let application = vk::ApplicationInfo::default().api_version(vk::API_VERSION_1_2);
            let create = vk::InstanceCreateInfo::default().application_info(&application);
            let instance = entry.create_instance(&create, None)?;
            let physical = *instance.enumerate_physical_devices()?.first().ok_or("no Vulkan device")?;
            let families = instance.get_physical_device_queue_family_properties(physical);
            let computes = |f: &vk::QueueFamilyProperties| f.queue_flags.contains(vk::QueueFlags::COMPUTE);
            let family = families.iter().position(computes).ok_or("no queue that computes")? as u32;
            let queues =
                [vk::DeviceQueueCreateInfo::default().queue_family_index(family).queue_priorities(&[1.0])];
            let features = vk::PhysicalDeviceFeatures::default().shader_int64(true);
            let mut features12 = vk::PhysicalDeviceVulkan12Features::default()
                .buffer_device_address(true)
                .shader_buffer_int64_atomics(true);
            let create = vk::DeviceCreateInfo::default()
                .queue_create_infos(&queues)
                .enabled_features(&features)
                .push_next(&mut features12);
            let device = instance.create_device(physical, &create, None)?;
            let queue = device.get_device_queue(family, 0);
            let create = vk::CommandPoolCreateInfo::default().queue_family_index(family);
            let pool = device.create_command_pool(&create, None)?;
            let memories = instance.get_physical_device_memory_properties(physical);
            let coherent = vk::MemoryPropertyFlags::HOST_VISIBLE | vk::MemoryPropertyFlags::HOST_COHERENT;
            let fits = |memory: &vk::MemoryType| memory.property_flags.contains(coherent);
            let types = memories.memory_types_as_slice();
            let memory_type = types.iter().position(fits).ok_or("no memory that the host maps")? as u32;
            Ok(Self { device, queue, pool, memory_type, instance, _entry: entry })
        }
    }

    /// Memory of so many bytes.
    pub fn buffer(&self, bytes: u64) -> Result<Buffer, Box<dyn Error>> {
        let usage = vk::BufferUsageFlags::STORAGE_BUFFER | vk::BufferUsageFlags::SHADER_DEVICE_ADDRESS;
        // SAFETY: as in `new`.
        unsafe {
            let create = vk::BufferCreateInfo::default().size(bytes).usage(usage);
            let buffer = self.device.create_buffer(&create, None)?;
            let mut flags =
                vk::MemoryAllocateFlagsInfo::default().flags(vk::MemoryAllocateFlags::DEVICE_ADDRESS);
            let allocate = vk::MemoryAllocateInfo::default()
                .allocation_size(self.device.get_buffer_memory_requirements(buffer).size)
                .memory_type_index(self.memory_type)
                .push_next(&mut flags);
            let memory = self.device.allocate_memory(&allocate, None)?;
            self.device.bind_buffer_memory(buffer, memory, 0)?;
            let host = self.device.map_memory(memory, 0, vk::WHOLE_SIZE, vk::MemoryMapFlags::empty())?;
            let info = vk::BufferDeviceAddressInfo::default().buffer(buffer);
            let address = self.device.get_buffer_device_address(&info);
            Ok(Buffer { buffer, memory, host: host.cast(), address })
        }
    }

    /// A compute shader.
    pub fn shader(&self, code: &[u8]) -> Result<Shader, Box<dyn Error>> {
        let words = ash::util::read_spv(&mut std::io::Cursor::new(code))?;
        let range = [vk::PushConstantRange::default().stage_flags(vk::ShaderStageFlags::COMPUTE).size(24)];
        // SAFETY: as in `new`.
        unsafe {
            let create = vk::PipelineLayoutCreateInfo::default().push_constant_ranges(&range);
            let layout = self.device.create_pipeline_layout(&create, None)?;
            let create = vk::ShaderModuleCreateInfo::default().code(&words);
            let module = self.device.create_shader_module(&create, None)?;
            let stage = vk::PipelineShaderStageCreateInfo::default()
                .stage(vk::ShaderStageFlags::COMPUTE)
                .module(module)
                .name(c"main");
            let create = [vk::ComputePipelineCreateInfo::default().stage(stage).layout(layout)];
            let made = self.device.create_compute_pipelines(vk::PipelineCache::null(), &create, None);
            self.device.destroy_shader_module(module, None);
            Ok(Shader { layout, pipeline: made.map_err(|(_, error)| error)?[0] })
        }
    }

    /// Runs work groups of a shader and waits.
    pub fn run(&self, shader: Shader, groups: u32, push: [u64; 3]) -> Result<(), Box<dyn Error>> {
        let bytes: Vec<u8> = push.iter().flat_map(|word| word.to_ne_bytes()).collect();
        let device = &self.device;
        // SAFETY: as in `new`.
        unsafe {
            let allocate =
                vk::CommandBufferAllocateInfo::default().command_pool(self.pool).command_buffer_count(1);
            let commands = device.allocate_command_buffers(&allocate)?;
            device.begin_command_buffer(commands[0], &vk::CommandBufferBeginInfo::default())?;
            device.cmd_bind_pipeline(commands[0], vk::PipelineBindPoint::COMPUTE, shader.pipeline);
            let stage = vk::ShaderStageFlags::COMPUTE;
            device.cmd_push_constants(commands[0], shader.layout, stage, 0, &bytes);
            device.cmd_dispatch(commands[0], groups, 1, 1);
            device.end_command_buffer(commands[0])?;
            let submit = [vk::SubmitInfo::default().command_buffers(&commands)];
            device.queue_submit(self.queue, &submit, vk::Fence::null())?;
            device.queue_wait_idle(self.queue)?;
            device.free_command_buffers(self.pool, &commands);
        }
        Ok(())
    }

    /// Gives memory back.
    pub fn free(&self, buffer: Buffer) {
        // SAFETY: as in `new`; nothing runs that uses it.
        unsafe {
            self.device.destroy_buffer(buffer.buffer, None);
            self.device.free_memory(buffer.memory, None);
        }
    }

    /// Gives everything back; shaders first.
    pub fn close(self, shaders: &[Shader]) {
        // SAFETY: as in `new`; nothing runs any more.
        unsafe {
            for shader in shaders {
                self.device.destroy_pipeline(shader.pipeline, None);
                self.device.destroy_pipeline_layout(shader.layout, None);
            }
            self.device.destroy_command_pool(self.pool, None);
            self.device.destroy_device(None);
            self.instance.destroy_instance(None);
        }
    }
}

/// A node of the CPU's list.
struct Node {
    next: Option<Box<Node>>,
    value: u64,
}

fn main() -> Result<(), Box<dyn Error>> {
    let plain = Plain::new()?;
    let shader = plain.shader(LIST)?;

    let mut first: Option<Box<Node>> = None;
    for value in 1..=NODES {
        first = Some(Box::new(Node { next: first, value }));
    }

    // Pointers mean nothing to the device: each node is copied, and its pointer replaced by a number.
    let (nodes, result) = (plain.buffer(NODES * 32)?, plain.buffer(8)?);
    let mut copied = 0;
    let mut node = first.as_deref();
    while let Some(here) = node {
        let next = if here.next.is_some() { copied + 2 } else { 0 };
        for (word, value) in [next, here.value, 0, 0].into_iter().enumerate() {
            // SAFETY: the buffer has four words for each node and is mapped.
            unsafe { nodes.host.add(4 * copied as usize + word).write(value) };
        }
        copied += 1;
        node = here.next.as_deref();
    }
    plain.run(shader, 1, [nodes.address, 1, result.address])?;
    // SAFETY: mapped, and the shader has ended.
    let sum = unsafe { result.host.read_volatile() };

    println!("the sum of {NODES} nodes is {sum}");
    // A long list is taken apart node by node, not by recursion.
    while let Some(node) = first {
        first = node.next;
    }
    plain.free(nodes);
    plain.free(result);
    plain.close(&[shader]);
    if sum == NODES * (NODES + 1) / 2 { Ok(()) } else { Err("the sum is wrong".into()) }
}
