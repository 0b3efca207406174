//! The software device on real memory, with the test as the fault service.
#![allow(unsafe_code, reason = "mappings that vanish, and a userfaultfd that nobody serves")]

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use granule::ports::{Device, DeviceFault, FaultCause, MapTarget};
use granule::units::{Access, BLOCK_BYTES, DevAddr, DevMemAddr, Iova, PAGE_BYTES, PhysAddr};
use granule_backends::software::{AccessError, Inject, SoftwareDevice};

const RW: Access = Access::Write;
const PAGE: usize = PAGE_BYTES as usize;

/// Anonymous memory of the application.
struct Mapping {
    at: u64,
    bytes: usize,
}

impl Mapping {
    fn new(bytes: usize) -> Self {
        let (protection, flags) =
            (libc::PROT_READ | libc::PROT_WRITE, libc::MAP_PRIVATE | libc::MAP_ANONYMOUS);
        // SAFETY: a fresh mapping.
        let at = unsafe { libc::mmap(std::ptr::null_mut(), bytes, protection, flags, -1, 0) };
        assert_ne!(at, libc::MAP_FAILED);
        Self { at: at as u64, bytes }
    }
    fn words(&self) -> &[AtomicU64] {
        // SAFETY: mapped, aligned, atomics; tests that unmap parts do not touch those parts.
        unsafe { std::slice::from_raw_parts(self.at as *const AtomicU64, self.bytes / 8) }
    }
    fn unmap(&self, from: usize, bytes: usize) {
        // SAFETY: a part of this mapping that the test does not touch any more.
        assert_eq!(unsafe { libc::munmap((self.at + from as u64) as *mut _, bytes) }, 0);
    }
}

impl Drop for Mapping {
    fn drop(&mut self) {
        self.unmap(0, self.bytes);
    }
}

/// Serves faults with `serve` until `body` has ended.
fn served<R>(
    device: &SoftwareDevice,
    serve: impl Fn(&DeviceFault) -> Result<(), FaultCause> + Sync,
    body: impl FnOnce() -> R,
) -> R {
    let ended = AtomicBool::new(false);
    device.attach();
    std::thread::scope(|scope| {
        scope.spawn(|| {
            let mut faults = [DeviceFault::default(); 16];
            while !ended.load(Ordering::SeqCst) {
                device.wait_fault();
                let taken = device.fetch(&mut faults);
                for fault in &faults[..taken] {
                    if let Err(cause) = serve(fault) {
                        device.cancel(fault, cause);
                    }
                }
                device.replay();
            }
        });
        let result = body();
        ended.store(true, Ordering::SeqCst);
        device.interrupt();
        result
    })
}

/// Links a page of the process at the IOVA of the same number and maps it.
fn link(device: &SoftwareDevice, at: u64, access: Access) {
    let page = at & !(PAGE_BYTES - 1);
    match device.iommu().map(Iova(page), PhysAddr(page), PAGE_BYTES, access) {
        Ok(()) | Err(granule::ports::IommuError::AlreadyMapped(_)) => {}
        Err(error) => panic!("{error}"),
    }
    device.map(DevAddr(page), 1, MapTarget::System(Iova(page)), access).expect("room for tables");
}

#[test]
fn a_kernel_over_plain_memory_is_served_by_linking() {
    let device = SoftwareDevice::builder().engines(4).fault_buffer_entries(2).build().expect("a device");
    let (x, y) = ((0..100_000).map(f64::from).collect::<Vec<_>>(), vec![1.0f64; 100_000]);
    let (x_at, y_at) = (x.as_ptr() as u64, y.as_ptr() as u64);
    let linked = |fault: &DeviceFault| {
        link(&device, fault.at.0, RW);
        Ok(())
    };
    served(&device, linked, || {
        device.run(|engine| {
            let mut part = [0.0; 512];
            let share = engine.share(100_000);
            for from in share.clone().step_by(512) {
                let n = 512.min(share.end - from);
                engine.load_slice(x_at + from as u64 * 8, &mut part[..n])?;
                for (i, x) in part[..n].iter().enumerate() {
                    let at = y_at + (from + i) as u64 * 8;
                    let y: f64 = engine.load(at)?;
                    engine.store(at, 2.0 * x + y)?;
                }
            }
            Ok(())
        })
    })
    .expect("every fault was served");
    for (x, y) in x.iter().zip(&y) {
        // SAFETY: the engines wrote behind the compiler's back and have ended.
        assert_eq!(unsafe { std::ptr::from_ref(y).read_volatile() }, 2.0 * x + 1.0);
    }
    let counters = device.counters();
    assert!(counters.faults >= 2 * 100_000 * 8 / PAGE_BYTES, "{counters:?}");
    assert!(counters.tlb_hits > 199_000 && counters.iommu_errors == 0, "{counters:?}");
}

#[test]
fn a_fault_that_cannot_be_served_ends_its_kernel_with_the_cause() {
    let device = SoftwareDevice::builder().engines(3).build().expect("a device");
    let memory = Mapping::new(PAGE);
    let serve = |fault: &DeviceFault| {
        if fault.at.0 < memory.at {
            return Err(FaultCause::NoMapping);
        }
        link(&device, fault.at.0, RW);
        Ok(())
    };
    let result = served(&device, serve, || {
        device.run(|engine| match engine.index() {
            1 => engine.store(0x1008, 1u8),
            other => engine.store(memory.at + other as u64 * 8, 7u64),
        })
    });
    let expected = AccessError::Fault { at: 0x1008, access: RW, cause: FaultCause::NoMapping };
    assert_eq!(result, Err(expected));
    assert_eq!(memory.words()[0].load(Ordering::SeqCst), 7);
    assert_eq!(memory.words()[2].load(Ordering::SeqCst), 7);
}

#[test]
fn an_iova_that_is_not_linked_is_an_error_that_stays_visible() {
    let device = SoftwareDevice::builder().engines(1).build().expect("a device");
    let memory = Mapping::new(2 * PAGE);
    link(&device, memory.at, Access::Read);
    let other = Iova(memory.at + PAGE_BYTES);
    device.map(DevAddr(other.0), 1, MapTarget::System(other), RW).expect("maps");
    assert_eq!(device.run(|engine| engine.load::<u64>(memory.at).map(drop)), Ok(()));
    let result = device.run(|engine| engine.load::<u64>(other.0 + 16).map(drop));
    assert_eq!(result, Err(AccessError::Iommu { at: other.0 + 16, iova: Iova(other.0 + 16) }));
    // Linked for reading, mapped for writing: just as wrong.
    device.map(DevAddr(memory.at), 1, MapTarget::System(Iova(memory.at)), RW).expect("maps");
    assert!(matches!(device.run(|engine| engine.store(memory.at, 1u32)), Err(AccessError::Iommu { .. })));
    let counters = device.counters();
    assert_eq!(counters.iommu_errors, 2);
    assert_eq!(counters.first_iommu_errors[0], Some(Iova(other.0 + 16)));
    assert_eq!(memory.words()[0].load(Ordering::SeqCst), 0);
}

#[test]
fn memory_that_vanished_becomes_a_device_fault_at_its_byte() {
    let device = SoftwareDevice::builder().engines(1).build().expect("a device");
    let memory = Mapping::new(3 * PAGE);
    (0..3).for_each(|page| link(&device, memory.at + page * PAGE_BYTES, RW));
    memory.words().iter().enumerate().for_each(|(i, word)| word.store(i as u64, Ordering::SeqCst));
    memory.unmap(2 * PAGE, PAGE);
    let mut copied = vec![u64::MAX; 3 * 512];
    let lent = std::sync::Mutex::new(&mut copied[..]);
    let result = served(
        &device,
        |_| Err(FaultCause::NoMapping),
        || device.run(|engine| engine.load_slice(memory.at, &mut lent.lock().expect("one engine")[..])),
    );
    let at = memory.at + 2 * PAGE_BYTES;
    assert_eq!(result, Err(AccessError::Fault { at, access: Access::Read, cause: FaultCause::NoMapping }));
    assert_eq!(device.counters().vanished, 1);
}

#[test]
fn a_kernel_that_panics_leaves_the_device_usable() {
    let device = SoftwareDevice::builder().engines(2).build().expect("a device");
    let result = device.run(|engine| if engine.index() == 1 { panic!("on purpose") } else { Ok(()) });
    assert_eq!(result, Err(AccessError::KernelPanicked { engine: 1 }));
    assert_eq!(device.run(|_| Ok(())), Ok(()));
    assert_eq!(
        device.run(|engine| engine.load::<u32>(0x1001).map(drop)),
        Err(AccessError::Unaligned { at: 0x1001, bytes: 4 })
    );
}

#[test]
fn a_lost_device_ends_its_kernels_and_keeps_its_memory_readable() {
    let inject = Inject { lost_at_copy: Some(1), ..Inject::default() };
    let device = SoftwareDevice::builder().engines(2).inject(inject).build().expect("a device");
    let page = granule::os::private::PrivateBytes::new(PAGE_BYTES).expect("memory");
    page.as_words()[5].store(77, Ordering::SeqCst);
    device.copy_in(DevMemAddr(0), page.as_words()).expect("the first copy");
    device.map(DevAddr(BLOCK_BYTES), 1, MapTarget::DeviceMemory(DevMemAddr(0)), RW).expect("maps");
    let started = AtomicBool::new(false);
    device.attach();
    std::thread::scope(|scope| {
        let kernel = scope.spawn(|| {
            device.run(|engine| {
                // One engine waits for a fault that nobody serves, the other one works.
                if engine.index() == 0 {
                    engine.load::<u8>(0x5000)?;
                }
                loop {
                    engine.fetch_add_u64(BLOCK_BYTES, 1)?;
                    started.store(true, Ordering::SeqCst);
                }
            })
        });
        while !started.load(Ordering::SeqCst) {
            std::thread::yield_now();
        }
        device.wait_fault();
        let back = granule::os::private::PrivateBytes::new(PAGE_BYTES).expect("memory");
        device.copy_out(DevMemAddr(0), back.as_words()).expect("its memory can be read");
        assert_eq!(back.as_words()[5].load(Ordering::SeqCst), 77);
        assert_eq!(kernel.join().expect("no panic"), Err(AccessError::DeviceLost));
    });
    assert_eq!(device.copy_in(DevMemAddr(0), page.as_words()), Err(granule::ports::DeviceError::Lost));
}

/// A userfaultfd for missing pages, which nobody serves until `fill`.
struct Unserved(libc::c_int, u64, usize);

impl Unserved {
    fn over(memory: &Mapping) -> Self {
        // SAFETY: system calls on arrays of this stack and a mapping of the test.
        unsafe {
            let fd =
                libc::syscall(libc::SYS_userfaultfd, libc::O_CLOEXEC | libc::O_NONBLOCK | 1) as libc::c_int;
            assert!(fd >= 0, "userfaultfd(2) in user mode: {}", std::io::Error::last_os_error());
            assert_eq!(libc::ioctl(fd, 0xc018_aa3f_u64 as _, &mut [0xaau64, 0, 0]), 0);
            assert_eq!(libc::ioctl(fd, 0xc020_aa00_u64 as _, &mut [memory.at, memory.bytes as u64, 1, 0]), 0);
            Self(fd, memory.at, memory.bytes)
        }
    }
    fn wait_for_a_fault(&self) {
        let mut poll = libc::pollfd { fd: self.0, events: libc::POLLIN, revents: 0 };
        // SAFETY: one entry on this stack.
        assert_eq!(unsafe { libc::poll(&mut poll, 1, 10_000) }, 1, "no engine sleeps in a page fault");
        assert_eq!(poll.revents, libc::POLLIN);
    }
    fn fill(&self) {
        // SAFETY: zero pages for the registered mapping.
        unsafe { libc::ioctl(self.0, 0xc020_aa04_u64 as _, &mut [self.1, self.2 as u64, 0, 0]) };
    }
}

impl Drop for Unserved {
    fn drop(&mut self) {
        // SAFETY: made by `over`.
        unsafe { libc::close(self.0) };
    }
}

#[test]
fn flush_and_quiesce_do_not_wait_for_a_page_fault_of_the_cpu() {
    let device = SoftwareDevice::builder().engines(1).build().expect("a device");
    let memory = Mapping::new(PAGE);
    link(&device, memory.at, RW);
    device.map(DevAddr(BLOCK_BYTES), 1, MapTarget::DeviceMemory(DevMemAddr(0)), RW).expect("maps");
    let unserved = Unserved::over(&memory);
    let progress = AtomicU64::new(0);
    std::thread::scope(|scope| {
        let kernel = scope.spawn(|| {
            device.run(|engine| {
                let before = engine.fetch_add_u64(memory.at, 1)?;
                assert_eq!(before, 0);
                progress.store(1, Ordering::SeqCst);
                Ok(())
            })
        });
        let begin = Instant::now();
        for _ in 0..20 {
            unserved.wait_for_a_fault();
            device.flush(DevAddr(memory.at), 1);
            unserved.wait_for_a_fault();
            device.quiesce();
            assert_eq!(progress.load(Ordering::SeqCst), 0);
            device.resume();
        }
        assert!(begin.elapsed() < Duration::from_secs(10), "{:?}", begin.elapsed());
        unserved.wait_for_a_fault();
        unserved.fill();
        assert_eq!(kernel.join().expect("no panic"), Ok(()));
    });
    assert_eq!(memory.words()[0].load(Ordering::SeqCst), 1, "one access, executed once");
    assert!(device.counters().stopped >= 20, "{:?}", device.counters());
}

#[test]
fn accesses_that_are_stopped_all_the_time_still_happen_exactly_once() {
    const EACH: u64 = 150_000;
    let device = SoftwareDevice::builder().engines(2).build().expect("a device");
    let memory = Mapping::new(17 * PAGE);
    (0..17).for_each(|page| link(&device, memory.at + page * PAGE_BYTES, RW));
    let ended = AtomicBool::new(false);
    std::thread::scope(|scope| {
        let closer = scope.spawn(|| {
            let mut rounds = 0u64;
            while !ended.load(Ordering::SeqCst) {
                device.flush(DevAddr(memory.at), 1);
                device.quiesce();
                device.resume();
                rounds += 1;
            }
            rounds
        });
        let result = device.run(|engine| {
            // Each engine fills its own half of 16 pages again and again, by copies that are stopped in the middle.
            let own = memory.at + PAGE_BYTES + engine.index() as u64 * 8 * PAGE_BYTES;
            let mut back = [0u64; 4096];
            for round in 0..EACH {
                engine.fetch_add_u64(memory.at, 1)?;
                engine.fetch_add_u32(memory.at + 64 + engine.index() as u64 * 4, 1)?;
                if round % 64 == 0 {
                    let words: [u64; 4096] = std::array::from_fn(|at| round << 32 | at as u64);
                    engine.store_slice(own, &words)?;
                    engine.load_slice(own, &mut back)?;
                    assert_eq!(words, back);
                }
            }
            Ok(())
        });
        ended.store(true, Ordering::SeqCst);
        let rounds = closer.join().expect("no panic");
        assert_eq!(result, Ok(()));
        assert!(rounds > 100, "only {rounds} rounds of flush and quiesce");
        println!("{rounds} rounds, {} accesses stopped", device.counters().stopped);
    });
    assert_eq!(memory.words()[0].load(Ordering::SeqCst), 2 * EACH);
    assert_eq!(memory.words()[8].load(Ordering::SeqCst), EACH << 32 | EACH);
}
