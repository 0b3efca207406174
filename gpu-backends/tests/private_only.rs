//! What the thread that serves CPU faults calls on the software device does not touch the heap: design rule 2.
#![allow(unsafe_code, reason = "an allocator that counts")]

use std::alloc::{GlobalAlloc, Layout, System};
use std::cell::Cell;

use granule::os::private::PrivateBytes;
use granule::ports::{BounceMemory, CacheSync, Device, DeviceFault, FaultCause, MapTarget, PasidDevice};
use granule::units::{
    Access, BLOCK_BYTES, DevAddr, DevMemAddr, Direction, Iova, PAGE_BYTES, Pasid, PhysAddr,
};
use granule_backends::software::{BouncePages, SoftwareDevice};

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

/// What two-step DMA calls under block locks: tables, flushes, caches, bounce pages.
#[test]
fn the_side_of_dma_leaves_the_heap_alone() {
    let builder = SoftwareDevice::builder().memory_bytes(2 << 20).engines(1).pasid_bits(8).non_coherent();
    let device = builder.build().expect("a device");
    let pages = BouncePages::new(2, PAGE_BYTES).expect("memory");
    let memory = PrivateBytes::aligned(2 * BLOCK_BYTES, BLOCK_BYTES).expect("memory");
    let (at, phys) = (Iova(BLOCK_BYTES), PhysAddr(memory.base().0));
    let iommu = device.iommu();
    device.attach_pasid(Pasid(3)).expect("attached");
    iommu.map(at, phys, PAGE_BYTES, Access::Write).expect("links");
    let mut bytes = [0; 8];
    device.dma_read(Pasid(3), at, &mut bytes).expect("mapped");
    device.dma_write(Pasid(0), at, &bytes).expect("mapped");
    let before = CALLS.get();
    iommu.replace(at, phys + PAGE_BYTES, PAGE_BYTES, Access::Write).expect("replaces");
    iommu.flush_runs(&[(at, PAGE_BYTES), (at + BLOCK_BYTES, PAGE_BYTES)]);
    let mut runs = (1..400).map(|page| (phys + page * 2 * PAGE_BYTES, PAGE_BYTES));
    iommu.map_runs(at + PAGE_BYTES, &mut runs, Access::Read).expect("links");
    iommu.protect(at + PAGE_BYTES, 7 * PAGE_BYTES, Access::Write).expect("linked");
    assert!(iommu.mapped(at, BLOCK_BYTES).is_some());
    iommu.sync(at, 400 * PAGE_BYTES);
    iommu.unmap(at, 400 * PAGE_BYTES).expect("linked");
    iommu.flush(at, 400 * PAGE_BYTES);
    device.sync_for_device(phys, PAGE_BYTES, Direction::Both);
    device.sync_for_cpu(phys, PAGE_BYTES, Direction::Both);
    pages.clear(0);
    pages.copy_in(0, 0, phys, 100).expect("copies");
    pages.copy_out(0, 0, phys, 100).expect("copies");
    device.detach_pasid(Pasid(3));
    assert_eq!(CALLS.get(), before, "calls of the allocator while links change");
}

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
