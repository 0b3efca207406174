//! Sparse mode: shaders reach bound pages directly, every other page through the table, and nobody an unbound one.
#![cfg(feature = "vulkan")]
#![allow(unsafe_code, reason = "memory of the test is read as a device leaves it")]

mod vulkan_support;

use std::sync::atomic::{AtomicU64, Ordering};

use granule::ports::{Device, DeviceFault, MapTarget};
use granule::service::{Granularity, Svm};
use granule::units::{Access, DevAddr, DevMemAddr, DeviceId, PAGE_BYTES, VirtAddr, VirtRange};
use granule_backends::vulkan::{Kernel, Mode, VulkanDevice, VulkanError, shaders};

use vulkan_support::{builder, here, modes};

const PAGES: usize = 1024;

/// Ordinary memory of whole pages.
struct Words(Vec<AtomicU64>, usize);

impl Words {
    fn new(pages: usize) -> Self {
        let all: Vec<AtomicU64> = (0..(pages + 16) * 512).map(|_| AtomicU64::new(0)).collect();
        let first = (all.as_ptr() as usize).next_multiple_of(64 << 10);
        let skip = (first - all.as_ptr() as usize) / 8;
        Self(all, skip)
    }
    fn words(&self) -> &[AtomicU64] {
        &self.0[self.1..self.1 + (self.0.len() / 512 - 16) * 512]
    }
    fn at(&self) -> u64 {
        self.words().as_ptr() as u64
    }
    fn range(&self) -> VirtRange {
        VirtRange::of_pages(VirtAddr(self.at()), (self.words().len() / 512) as u64)
    }
}

fn turn(word: u64) -> u64 {
    word.wrapping_mul(0x2545_f491_4f6c_dd1d).wrapping_add(1)
}

fn turned(start: u64, times: usize) -> u64 {
    (0..times).fold(start, |word, _| turn(word))
}

fn play(device: &VulkanDevice, kernel: &Kernel, data: &Words) {
    let count = data.words().len() as u64;
    device.launch(kernel, (count / 512) as u32, &[data.at(), count]).expect("a turn");
}

#[test]
fn warm_pages_are_reached_directly() {
    let Some(_alone) = here() else { return };
    for (mode, builder) in modes() {
        let device = builder.memory_bytes(16 << 20).validate(true).build().expect("a device");
        let svm =
            Svm::builder().device(device.clone()).granularity(Granularity::Kib64).build().expect("a space");
        let kernel = device.kernel(shaders::PING_PONG).expect("a kernel");
        let data = Words::new(PAGES);
        data.words().iter().enumerate().for_each(|(at, word)| word.store(at as u64, Ordering::Relaxed));
        for _ in 0..3 {
            play(&device, &kernel, &data);
        }
        let counters = device.counters();
        if device.mode() == Mode::Sparse {
            assert!(counters.direct_pages >= PAGES as u64, "{mode}: {counters:?}");
            assert!(counters.bound_runs > 0 && counters.bound_runs < 200, "{mode}: {counters:?}");
        } else {
            assert_eq!((counters.direct_pages, counters.binds), (0, 0), "{mode}");
        }
        for (at, word) in data.words().iter().enumerate() {
            assert_eq!(word.load(Ordering::Relaxed), turned(at as u64, 3), "{mode}: word {at}");
        }
        drop(svm);
        assert_eq!(device.validation_messages(), [""; 0], "{mode}");
    }
}

/// Pages leave and come, at other places of a memory that is too small, page by page: bindings are moved all the time.
#[test]
fn memory_that_changes_hands_shows_the_right_page() {
    let Some(_alone) = here() else { return };
    for (mode, builder) in modes() {
        for granularity in [Granularity::Kib4, Granularity::Kib64] {
            let device = builder.clone().memory_bytes(2 << 20).validate(true).build().expect("a device");
            let svm =
                Svm::builder().device(device.clone()).granularity(granularity).build().expect("a space");
            let kernel = device.kernel(shaders::PING_PONG).expect("a kernel");
            let data = Words::new(PAGES);
            data.words().iter().enumerate().for_each(|(at, word)| word.store(at as u64, Ordering::Relaxed));
            for round in 1..=3 {
                play(&device, &kernel, &data);
                // The CPU takes every third page back.
                for page in (0..PAGES).step_by(3) {
                    let (at, word) = (page * 512, &data.words()[page * 512]);
                    assert_eq!(word.load(Ordering::Relaxed), turned(at as u64, round), "{mode}: page {page}");
                }
            }
            for (at, word) in data.words().iter().enumerate() {
                assert_eq!(word.load(Ordering::Relaxed), turned(at as u64, 3), "{mode}: word {at}");
            }
            drop(svm);
            assert_eq!(device.validation_messages(), [""; 0], "{mode}");
        }
    }
}

/// Pages whose place in a unit of memory is not their place in a unit of addresses cannot be bound, and pages of two units
/// of addresses that lie in one unit of memory cannot be bound at once: they are reached all the same.
#[test]
fn what_cannot_be_bound_is_reached_through_the_table() {
    let Some(_alone) = here() else { return };
    for (mode, builder) in modes() {
        let device = builder.memory_bytes(2 << 20).validate(true).build().expect("a device");
        let kernel = device.kernel(shaders::PING_PONG).expect("a kernel");
        const AT: u64 = 0x20_0000_0000;
        // Address (page), memory (page): turned by one; the halves of one unit of memory at two places; a whole unit.
        let runs = [(0, 33, 16), (64, 0, 8), (88, 8, 8), (128, 64, 16)];
        for (page, memory, pages) in runs {
            for index in 0..pages {
                let words =
                    device.window(DevMemAddr((memory + index) * PAGE_BYTES), PAGE_BYTES).expect("memory");
                words.iter().for_each(|word| word.store(page + index, Ordering::Relaxed));
            }
        }
        let map = |(page, memory, pages): (u64, u64, u64)| {
            let target = MapTarget::DeviceMemory(DevMemAddr(memory * PAGE_BYTES));
            device.map(DevAddr(AT + page * PAGE_BYTES), pages, target, Access::Write).expect("a table");
        };
        for run in runs {
            map(run);
        }
        for round in 1..=3 {
            for (page, _, pages) in runs {
                let arguments = [AT + page * PAGE_BYTES, pages * 512];
                device.launch(&kernel, pages as u32, &arguments).expect("a turn");
            }
            for (page, memory, pages) in runs {
                for index in 0..pages {
                    let at = DevMemAddr((memory + index) * PAGE_BYTES);
                    let words = device.window(at, PAGE_BYTES).expect("memory");
                    let expected = turned(page + index, round);
                    assert!(
                        words.iter().all(|word| word.load(Ordering::Relaxed) == expected),
                        "{mode}: {page}"
                    );
                }
            }
            // Taken away, flushed, and given back at the next round: nobody may have kept a short cut.
            for (page, _, pages) in runs {
                device.unmap(DevAddr(AT + page * PAGE_BYTES), pages);
            }
            device.flush(DevAddr(AT), 512);
            assert_eq!(device.counters().direct_pages, 0, "{mode}");
            runs.into_iter().for_each(map);
        }
        assert_eq!(device.validation_messages(), [""; 0], "{mode}");
    }
}

/// A page that left faults, whatever is still bound at its place.
#[test]
fn a_page_that_left_faults() {
    let Some(_alone) = here() else { return };
    for (mode, builder) in modes() {
        let device = builder.memory_bytes(16 << 20).build().expect("a device");
        let svm =
            Svm::builder().device(device.clone()).granularity(Granularity::Kib4).build().expect("a space");
        let kernel = device.kernel(shaders::PING_PONG).expect("a kernel");
        let data = Words::new(PAGES);
        play(&device, &kernel, &data);
        let before = device.counters();
        for page in (0..PAGES).step_by(2) {
            data.words()[page * 512].store(9, Ordering::Relaxed);
        }
        play(&device, &kernel, &data);
        let faults = device.counters().faults - before.faults;
        assert_eq!(faults, PAGES as u64 / 2, "{mode}");
        for (at, word) in data.words().iter().enumerate() {
            let expected = if at % 1024 == 0 { turned(9, 1) } else { turned(0, 2) };
            assert_eq!(word.load(Ordering::Relaxed), expected, "{mode}: word {at}");
        }
        drop(svm);
    }
}

/// A page that may be read directly is not written directly.
#[test]
fn a_read_only_page_faults_on_a_write() {
    let Some(_alone) = here() else { return };
    for (mode, builder) in modes() {
        let device = builder.memory_bytes(2 << 20).build().expect("a device");
        let (sum, write) =
            (device.kernel(shaders::SUM).expect("a kernel"), device.kernel(shaders::PING_PONG));
        let write = write.expect("a kernel");
        const AT: u64 = 0x20_0000_0000;
        let map = |page: u64, access| {
            let target = MapTarget::DeviceMemory(DevMemAddr(page * PAGE_BYTES));
            device.map(DevAddr(AT + page * PAGE_BYTES), 1, target, access).expect("a table");
        };
        map(0, Access::Read);
        map(1, Access::Write);
        device
            .window(DevMemAddr(0), PAGE_BYTES)
            .expect("memory")
            .iter()
            .for_each(|word| word.store(3, Ordering::Relaxed));
        device.launch(&sum, 1, &[AT, 512, AT + PAGE_BYTES, 1]).expect("a sum");
        device.launch(&sum, 1, &[AT, 512, AT + PAGE_BYTES, 1]).expect("a sum");
        let total = device.window(DevMemAddr(PAGE_BYTES), 8).expect("memory")[0].load(Ordering::Relaxed);
        assert_eq!(total, 2 * 3 * 512, "{mode}");
        let faults = AtomicU64::new(0);
        device.attach();
        std::thread::scope(|scope| {
            scope.spawn(|| {
                let mut fault = [DeviceFault::default()];
                device.wait_fault();
                while device.fetch(&mut fault) == 1 {
                    assert_eq!(fault[0].access, Access::Write);
                    faults.fetch_add(1, Ordering::SeqCst);
                    map(0, Access::Write);
                    device.replay();
                }
            });
            device.launch(&write, 1, &[AT, 512]).expect("a turn");
        });
        device.detach();
        assert_eq!(faults.load(Ordering::SeqCst), 1, "{mode}");
        let words = device.window(DevMemAddr(0), PAGE_BYTES).expect("memory");
        assert!(words.iter().all(|word| word.load(Ordering::Relaxed) == turn(3)), "{mode}");
    }
}

/// Granules far apart have buffers of their own, and a page beside a granule's end lies in the right one.
#[test]
fn granules_have_buffers_of_their_own() {
    let Some(_alone) = here() else { return };
    for (mode, builder) in modes() {
        let device = builder.memory_bytes(2 << 20).validate(true).build().expect("a device");
        let kernel = device.kernel(shaders::PING_PONG).expect("a kernel");
        // The driver of the reference has addresses for four buffers; what lies beyond is reached through the table.
        let ends = [1u64, 200, 3, 77, (1 << 18) - 1].map(|granule| granule << 29);
        for (index, end) in ends.into_iter().enumerate() {
            let memory = DevMemAddr(index as u64 * (128 << 10));
            let target = MapTarget::DeviceMemory(memory);
            device.map(DevAddr(end - (64 << 10)), 32, target, Access::Write).expect("a table");
        }
        for _ in 0..2 {
            for end in ends {
                device.launch(&kernel, 32, &[end - (64 << 10), 32 * 512]).expect("a turn");
            }
        }
        let words = device.window(DevMemAddr(0), ends.len() as u64 * (128 << 10)).expect("memory");
        assert!(words.iter().all(|word| word.load(Ordering::Relaxed) == turned(0, 2)), "{mode}");
        if device.mode() == Mode::Sparse {
            assert!(device.counters().direct_pages >= 2 * 32, "{mode}: {:?}", device.counters());
        }
        assert_eq!(device.validation_messages(), [""; 0], "{mode}");
    }
}

#[test]
fn a_unit_that_is_none_is_refused() {
    let refused = builder().mode(Mode::Sparse).sparse_unit(3 << 12).build();
    assert!(matches!(refused, Err(VulkanError::SparseUnit(unit)) if unit == 3 << 12));
    let refused = builder().mode(Mode::Sparse).sparse_unit(4 << 20).build();
    assert!(matches!(refused, Err(VulkanError::SparseUnit(_))));
}

/// What a prefetch brings is bound, too, in few runs.
#[test]
fn what_was_prefetched_is_bound_in_runs() {
    let Some(_alone) = here() else { return };
    for (mode, builder) in modes() {
        let device = builder.memory_bytes(16 << 20).build().expect("a device");
        let svm =
            Svm::builder().device(device.clone()).granularity(Granularity::Kib64).build().expect("a space");
        let kernel = device.kernel(shaders::PING_PONG).expect("a kernel");
        let data = Words::new(PAGES);
        data.words().iter().for_each(|word| word.store(1, Ordering::Relaxed));
        let moved = svm.prefetch(data.range(), DeviceId(0)).expect("a prefetch");
        assert_eq!(moved, PAGES as u64, "{mode}");
        // What comes in a launch's last pass is bound by the next launch.
        for _ in 0..3 {
            play(&device, &kernel, &data);
        }
        let counters = device.counters();
        if device.mode() == Mode::Sparse {
            assert!(
                counters.direct_pages >= PAGES as u64 && counters.bound_runs < 200,
                "{mode}: {counters:?}"
            );
        }
        assert!(data.words().iter().all(|word| word.load(Ordering::Relaxed) == turned(1, 3)), "{mode}");
        drop(svm);
    }
}
