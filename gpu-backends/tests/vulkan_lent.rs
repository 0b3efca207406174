//! Under an application that has its own instance, device and queue.
#![cfg(feature = "vulkan")]
#![allow(unsafe_code, reason = "the application's own calls of the driver")]

mod vulkan_support;

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex};

use ash::vk;
use granule::service::Svm;
use granule_backends::vulkan::{Lent, Mode, VulkanDevice, devices, shaders};

use vulkan_support::{Aligned, here};

/// What an application makes for itself, with what the library needs enabled.
fn application(index: usize, has_sparse: bool) -> Lent {
    // SAFETY: structures live until their call returns, and handles are alive when they are used.
    unsafe {
        let entry = ash::Entry::load().expect("a loader");
        let version = vk::ApplicationInfo::default().api_version(vk::API_VERSION_1_2);
        let create = vk::InstanceCreateInfo::default().application_info(&version);
        let instance = entry.create_instance(&create, None).expect("an instance");
        let physical = instance.enumerate_physical_devices().expect("devices")[index];
        let family = 0;
        let queues =
            [vk::DeviceQueueCreateInfo::default().queue_family_index(family).queue_priorities(&[1.0])];
        let extensions = [ash::ext::external_memory_host::NAME.as_ptr()];
        let features = vk::PhysicalDeviceFeatures::default()
            .shader_int64(true)
            .sparse_binding(has_sparse)
            .sparse_residency_buffer(has_sparse);
        let mut features12 = vk::PhysicalDeviceVulkan12Features::default()
            .buffer_device_address(true)
            .timeline_semaphore(true)
            .shader_buffer_int64_atomics(true);
        let create = vk::DeviceCreateInfo::default()
            .queue_create_infos(&queues)
            .enabled_extension_names(&extensions)
            .enabled_features(&features)
            .push_next(&mut features12);
        let device = instance.create_device(physical, &create, None).expect("a device");
        let queue = Arc::new(Mutex::new(device.get_device_queue(family, 0)));
        Lent { entry, instance, physical, device, family, queue, has_atomic64: true, has_sparse }
    }
}

/// Sums on the library's device while the application submits to the same queue.
#[test]
fn an_application_shares_its_device_and_its_queue() {
    let Some(_alone) = here() else { return };
    let all = devices().expect("a driver");
    let usable =
        all.iter().find(|one| one.lacks.is_none() && one.has_atomic64).expect("a device that can be used");
    for (has_sparse, mode) in [(false, Mode::Translation), (true, Mode::Sparse)] {
        if has_sparse && !usable.has_sparse {
            continue;
        }
        let own = application(usable.index, has_sparse);
        // SAFETY: `own` outlives the device and its space, and everybody holds the queue's lock.
        let made = unsafe { VulkanDevice::builder().memory_bytes(8 << 20).build_on(own.clone()) };
        let device = made.expect("a device");
        assert_eq!(device.mode(), mode);
        let svm = Svm::builder().device(device.clone()).build().expect("a space");
        let (stop, submitted) = (AtomicBool::new(false), AtomicU64::new(0));
        std::thread::scope(|scope| {
            scope.spawn(|| {
                while !stop.load(Ordering::Relaxed) {
                    let queue = own.queue.lock().expect("no panic");
                    // SAFETY: the lock is held, and nothing is handed over but the wish to be told of the end.
                    unsafe {
                        own.device.queue_submit(*queue, &[], vk::Fence::null()).expect("a submission");
                    }
                    submitted.fetch_add(1, Ordering::Relaxed);
                }
            });
            let kernel = device.kernel(shaders::SUM).expect("a kernel");
            for round in 0..10 {
                let data: Vec<u64> = (0..100_000).map(|at| at * 7 + round).collect();
                let sum = Aligned::of([0]);
                let at = data.as_ptr() as u64;
                let items = (at + 800_000).div_ceil(4096) - at / 4096;
                device.launch(&kernel, items as u32, &[at, 100_000, sum.address(), 1]).expect("a sum");
                assert_eq!(sum.words()[0], data.iter().sum::<u64>());
            }
            while submitted.load(Ordering::Relaxed) == 0 {
                std::thread::yield_now();
            }
            stop.store(true, Ordering::Relaxed);
        });
        drop(svm);
        drop(device);
        // The application's objects are still its own.
        // SAFETY: the library's last handle is gone, and no thread uses the device.
        unsafe {
            own.device.device_wait_idle().expect("the device still works");
            own.device.destroy_device(None);
            own.instance.destroy_instance(None);
        }
    }
}
