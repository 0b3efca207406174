//! What the thread that serves CPU faults calls on the software device does not touch the heap: design rule 2.
#![allow(unsafe_code, reason = "an allocator that counts")]

use std::alloc::{GlobalAlloc, Layout, System};
use std::cell::Cell;

use granule::os::private::PrivateBytes;
use granule::ports::{Device, DeviceFault, FaultCause, MapTarget};
use granule::units::{Access, BLOCK_BYTES, DevAddr, DevMemAddr, Iova, PAGE_BYTES, PhysAddr};
use granule_backends::software::SoftwareDevice;

struct Counting;

thread_local!(static CALLS: Cell<u64> = const { Cell::new(0) });

// SAFETY: the system's allocator, counted in a thread-local without a destructor.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        CALLS.set(CALLS.get() + 1);
        // SAFETY: passed on.
        unsafe { System.alloc(layout) }
    }
    unsafe fn dealloc(&self, at: *mut u8, layout: Layout) {
        CALLS.set(CALLS.get() + 1);
        // SAFETY: passed on.
        unsafe { System.dealloc(at, layout) }
    }
}

#[global_allocator]
static ALLOCATOR: Counting = Counting;

#[test]
fn the_serving_side_of_the_device_leaves_the_heap_alone() {
    let device = SoftwareDevice::builder().memory_bytes(8 << 20).engines(2).build().expect("a device");
    let memory = PrivateBytes::aligned(2 * BLOCK_BYTES, BLOCK_BYTES).expect("memory");
    let (at, pages) = (DevAddr(BLOCK_BYTES), 2 * BLOCK_BYTES / PAGE_BYTES);
    let target = DevAddr(7 * BLOCK_BYTES);
    let phys = PhysAddr(memory.base().0);
    device.attach();
    std::thread::scope(|scope| {
        let kernel = scope.spawn(|| {
            device.run(|engine| {
                for round in 0..20 {
                    engine.store(target.0 + engine.index() as u64 * 8, round)?;
                }
                engine.load::<u64>(at.0 + (1 << 40)).map(drop)
            })
        });
        let mut faults = [DeviceFault::default(); 4];
        let before = CALLS.get();
        assert!(before > 0, "the allocator counts");
        let mut cancelled = 0;
        while cancelled < 2 {
            device.wait_fault();
            let taken = device.fetch(&mut faults);
            device.copy_in(DevMemAddr(0), &memory.as_words()[..512]).expect("copies");
            for fault in &faults[..taken] {
                if fault.at.0 > 1 << 40 {
                    cancelled += 1;
                    device.cancel(fault, FaultCause::NoMapping);
                } else {
                    let memory = MapTarget::DeviceMemory(DevMemAddr(0));
                    device.map(target, 1, memory, Access::Write).expect("maps");
                }
            }
            device.replay();
            device.quiesce();
            device.resume();
            let iommu = device.iommu();
            iommu.map(Iova(at.0), phys, 2 * BLOCK_BYTES, Access::Write).expect("links");
            device.map(at, pages, MapTarget::System(Iova(at.0)), Access::Write).expect("maps");
            device.unmap(at + 5 * PAGE_BYTES, 3);
            device.unmap(at, pages);
            device.flush(at, pages);
            iommu.protect(Iova(at.0), PAGE_BYTES, Access::Read).expect("linked");
            iommu.unmap(Iova(at.0), 2 * BLOCK_BYTES).expect("linked");
            iommu.flush(Iova(at.0), 2 * BLOCK_BYTES);
            device.copy_out(DevMemAddr(0), &memory.as_words()[..512]).expect("copies");
            assert!(device.window(DevMemAddr(0), PAGE_BYTES).is_some());
            device.clone().interrupt();
        }
        device.detach();
        assert_eq!(CALLS.get(), before, "calls of the allocator by the serving thread");
        kernel.join().expect("no panic").expect_err("nothing is mapped there");
    });
}
