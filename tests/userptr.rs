//! Userptrs and regions on real memory.
#![cfg(not(granule_loom))]
#![allow(unsafe_code, reason = "maps, unmaps and reads memory as an application does")]

use std::sync::{Mutex, MutexGuard, PoisonError};

use granule::ports::{Count, FaultCause};
use granule::service::{UserptrError, UserptrOptions};
use granule::units::{Access, DevAddr, DeviceId, VirtAddr, VirtRange};
use granule::{Granularity, Svm};
use granule_backends::software::{AccessError, SoftwareDevice};

const PAGE: u64 = 4096;

/// One space at a time: each serves the whole process. (Bindings are dropped in reverse: the turn goes last.)
fn start() -> (MutexGuard<'static, ()>, SoftwareDevice, Svm) {
    static ONE: Mutex<()> = Mutex::new(());
    let one = ONE.lock().unwrap_or_else(PoisonError::into_inner);
    let device = SoftwareDevice::builder().memory_bytes(16 << 20).engines(2).build().unwrap();
    let svm = Svm::builder().device(device.clone()).granularity(Granularity::Kib64).build().unwrap();
    (one, device, svm)
}

/// Private anonymous memory, unmapped on drop.
struct Mapped(u64, usize);
impl Mapped {
    fn new(pages: u64) -> Self {
        let bytes = (pages * PAGE) as usize;
        // SAFETY: a fresh mapping, unmapped by drop.
        let at = unsafe {
            libc::mmap(
                std::ptr::null_mut(),
                bytes,
                libc::PROT_READ | libc::PROT_WRITE,
                libc::MAP_PRIVATE | libc::MAP_ANONYMOUS,
                -1,
                0,
            )
        };
        assert_ne!(at, libc::MAP_FAILED);
        Self(at as u64, bytes)
    }
    fn read(&self, offset: u64) -> u64 {
        // SAFETY: inside of the mapping; volatile, since a device writes it.
        unsafe { ((self.0 + offset) as *const u64).read_volatile() }
    }
    fn write(&self, offset: u64, value: u64) {
        // SAFETY: as above.
        unsafe { ((self.0 + offset) as *mut u64).write_volatile(value) }
    }
    fn unmap(&self, page: u64, pages: u64) {
        // SAFETY: a part of this mapping that the test does not touch any more.
        assert_eq!(unsafe { libc::munmap((self.0 + page * PAGE) as *mut _, (pages * PAGE) as usize) }, 0);
    }
    fn discard(&self, page: u64) {
        let at = (self.0 + page * PAGE) as *mut libc::c_void;
        // SAFETY: a page of this mapping.
        let rc = unsafe { libc::madvise(at, PAGE as usize, libc::MADV_DONTNEED) };
        assert_eq!(rc, 0);
    }
}
impl Drop for Mapped {
    fn drop(&mut self) {
        // SAFETY: ours; holes in it are fine.
        unsafe { libc::munmap(self.0 as *mut _, self.1) };
    }
}

#[test]
fn a_link_only_userptr_of_odd_bounds_is_the_cpus_own_memory() {
    let (_one, device, svm) = start();
    let memory = Mapped::new(20);
    memory.write(3 * PAGE + 8, 41);
    let user =
        svm.userptr(VirtAddr(memory.0 + 3 * PAGE + 8), 9 * PAGE + 100, UserptrOptions::default()).unwrap();
    assert_eq!(user.device_address(), DevAddr(memory.0 + 3 * PAGE + 8));
    assert_eq!(user.range().pages(), 10);
    let ranges = user.dma_ranges().unwrap();
    assert_eq!(ranges.len(), 1, "neighbours are merged");
    assert_eq!(u64::from(ranges[0].len), 10 * PAGE);
    let at = user.device_address().0;
    device
        .run(|engine| {
            if engine.index() == 0 {
                engine.fetch_add_u64(at, 1)?;
            }
            Ok(())
        })
        .unwrap();
    assert_eq!(memory.read(3 * PAGE + 8), 42);
    let stats = svm.stats();
    assert_eq!(stats.count(Count::PagesToDevice), 0, "nothing moved");
    assert_eq!(stats.count(Count::DeviceFaults), 0, "what was registered does not fault");
    assert_eq!(stats.count(Count::PagesLinked), 10);
    drop(user);
    assert_eq!(svm.stats().count(Count::PagesUnlinked), 10);
}

#[test]
fn a_userptr_brings_its_pages_home_and_keeps_them() {
    let (_one, device, svm) = start();
    let memory = Mapped::new(16);
    let at = memory.0;
    let write = |value: u64| {
        device
            .run(|engine| {
                for page in 0..16 {
                    if engine.index() == 0 {
                        engine.store(at + page * PAGE, value + page)?;
                    }
                }
                Ok(())
            })
            .unwrap();
    };
    write(100);
    assert!(svm.stats().count(Count::PagesToDevice) >= 16);
    let moved = svm.stats().count(Count::PagesToDevice);
    let user = svm.userptr(VirtAddr(at), 16 * PAGE, UserptrOptions::default()).unwrap();
    assert!(svm.stats().count(Count::PagesToRam) >= 16, "they came home for the link");
    write(200);
    for page in 0..16 {
        assert_eq!(memory.read(page * PAGE), 200 + page);
    }
    assert_eq!(svm.prefetch(user.range(), DeviceId(0)).unwrap(), 16, "linked is served");
    assert_eq!(svm.stats().count(Count::PagesToDevice), moved, "what a userptr holds does not move");
    drop(user);
    write(300);
    assert_eq!(memory.read(5 * PAGE), 305);
    assert!(svm.stats().count(Count::PagesToDevice) > moved, "afterwards it moves again");
}

#[test]
fn an_alias_reaches_the_same_memory_and_overlaps_are_independent() {
    let (_one, device, svm) = start();
    let memory = Mapped::new(8);
    let alias = DevAddr(0x1234_5000_0000);
    let options = UserptrOptions { device_at: Some(alias), ..UserptrOptions::default() };
    let first = svm.userptr(VirtAddr(memory.0), 8 * PAGE, options).unwrap();
    let second = svm.userptr(VirtAddr(memory.0 + 4 * PAGE), 4 * PAGE, UserptrOptions::default()).unwrap();
    assert!(matches!(svm.userptr(VirtAddr(memory.0), PAGE, options), Err(UserptrError::Occupied(_))));
    let add = |at: u64| {
        device.run(|engine| {
            if engine.index() == 0 {
                engine.fetch_add_u64(at, 1)?;
            }
            Ok(())
        })
    };
    add(alias.0 + 5 * PAGE).unwrap();
    add(memory.0 + 5 * PAGE).unwrap();
    assert_eq!(memory.read(5 * PAGE), 2);
    drop(first);
    assert!(matches!(add(alias.0 + 5 * PAGE), Err(AccessError::Fault { .. })), "the alias is gone");
    add(memory.0 + 5 * PAGE).unwrap();
    assert_eq!(memory.read(5 * PAGE), 3);
    drop(second);
}

#[test]
fn a_partial_munmap_drops_exactly_its_pages() {
    let (_one, device, svm) = start();
    let memory = Mapped::new(64);
    let alias = DevAddr(0x2000_0000_0000);
    let options = UserptrOptions { device_at: Some(alias), ..UserptrOptions::default() };
    let user = svm.userptr(VirtAddr(memory.0), 64 * PAGE, options).unwrap();
    memory.unmap(10, 3);
    let stats = svm.stats();
    assert_eq!(stats.count(Count::PagesUnlinked), 3, "exactly those");
    let ranges = user.dma_ranges().unwrap();
    assert_eq!(ranges.len(), 2);
    assert_eq!(ranges[1].addr, ranges[0].addr + 13 * PAGE, "the rest keeps its position");
    let load = |page: u64| device.run(|engine| engine.load::<u64>(alias.0 + page * PAGE).map(drop));
    for page in (0..64).filter(|page| !(10..13).contains(page)) {
        load(page).unwrap();
    }
    match load(11) {
        Err(AccessError::Fault { cause, .. }) => assert_eq!(cause, FaultCause::NoMapping),
        other => panic!("an access to an unmapped page ends with its cause, not {other:?}"),
    }
    assert_eq!(svm.stats().count(Count::PagesLinked), 64, "the rest was not linked again");
    assert!(matches!(user.validate(), Err(UserptrError::Page(fault)) if fault.at.0 == memory.0 + 10 * PAGE));
}

#[test]
fn a_submission_fails_after_an_invalidation_and_an_invalidation_waits_for_a_submission() {
    let (_one, _device, svm) = start();
    let memory = Mapped::new(4);
    memory.write(0, 9);
    let user = svm.userptr(VirtAddr(memory.0), 4 * PAGE, UserptrOptions::default()).unwrap();
    let valid = user.validate().unwrap();
    memory.discard(1);
    // madvise returns once its event was read; it is applied a moment later.
    while valid.is_current() {
        std::thread::yield_now();
    }
    assert!(matches!(valid.submit(), Err(UserptrError::Invalidated)));
    let valid = user.validate().unwrap();
    assert_eq!(user.dma_ranges().unwrap().len(), 1, "it is whole again");

    let submission = valid.submit().unwrap();
    let before = svm.stats().count(Count::PagesUnlinked);
    std::thread::scope(|scope| {
        let discarding = scope.spawn(|| memory.discard(2));
        // The invalidation has begun once a new submission is refused; it cannot end while ours runs.
        while valid.is_current() {
            std::thread::yield_now();
        }
        assert_eq!(svm.stats().count(Count::PagesUnlinked), before, "it waits for the submission");
        drop(submission);
        discarding.join().unwrap();
    });
    assert_eq!(memory.read(0), 9);
}

/// A driver that forgets its fence holds nobody up for ever: after the deadline the pages are dropped all the same.
#[test]
fn an_invalidation_waits_for_a_submission_no_longer_than_its_deadline() {
    let (_one, _device, svm) = start();
    let memory = Mapped::new(4);
    let user = svm.userptr(VirtAddr(memory.0), 4 * PAGE, UserptrOptions::default()).unwrap();
    let submission = user.validate().unwrap().submit().unwrap();
    let before = svm.stats().count(Count::PagesUnlinked);
    let begin = std::time::Instant::now();
    memory.unmap(1, 2);
    while svm.stats().count(Count::PagesUnlinked) == before {
        std::thread::yield_now();
    }
    let waited = begin.elapsed();
    assert!(waited.as_millis() >= 900, "it waited for the submission: {waited:?}");
    assert_eq!(svm.stats().count(Count::PagesUnlinked), before + 2, "exactly those");
    drop(submission);
    assert_eq!(user.dma_ranges().unwrap().len(), 2);
}

#[test]
fn a_read_only_userptr_is_not_written_and_bad_ones_are_refused() {
    let (_one, device, svm) = start();
    let memory = Mapped::new(4);
    let options = UserptrOptions {
        access: Access::Read,
        device_at: Some(DevAddr(0x3000_0000_0000)),
        ..UserptrOptions::default()
    };
    let user = svm.userptr(VirtAddr(memory.0), 4 * PAGE, options).unwrap();
    let at = user.device_address().0;
    device.run(|engine| engine.load::<u64>(at).map(drop)).unwrap();
    match device.run(|engine| engine.store(at, 1u64)) {
        Err(AccessError::Fault { cause, .. }) => assert_eq!(cause, FaultCause::ReadOnly),
        other => panic!("a write through a read-only userptr is refused, not {other:?}"),
    }
    assert_eq!(memory.read(0), 0);

    let refuse = |start, bytes, options| svm.userptr(VirtAddr(start), bytes, options).unwrap_err();
    let default = UserptrOptions::default();
    assert_eq!(refuse(memory.0, 0, default), UserptrError::Empty);
    assert!(matches!(refuse(u64::MAX - 10, 100, default), UserptrError::Request(_)));
    assert!(matches!(
        refuse(memory.0, PAGE, UserptrOptions { device_at: Some(DevAddr(5)), ..default }),
        UserptrError::BadDeviceAddress(_)
    ));
    assert!(matches!(
        refuse(memory.0, PAGE, UserptrOptions { device: DeviceId(7), ..default }),
        UserptrError::Request(_)
    ));
    let gone = Mapped::new(1);
    gone.unmap(0, 1);
    assert!(matches!(
        refuse(gone.0, PAGE, default),
        UserptrError::Page(fault) if fault.cause == FaultCause::NoMapping
    ));
}

#[test]
fn a_region_of_the_library_is_shared_by_cpu_device_and_service() {
    let (_one, device, svm) = start();
    let region = svm.alloc(100_000).unwrap();
    assert_eq!(region.len(), 102_400);
    let at = region.as_ptr() as u64;
    // SAFETY: inside of the region.
    unsafe { (at as *mut u64).write_volatile(6) };
    device
        .run(|engine| {
            if engine.index() == 0 {
                let value: u64 = engine.load(at)?;
                engine.store(at + 80_000, value * 7)?;
            }
            Ok(())
        })
        .unwrap();
    // SAFETY: inside of the region; volatile, since a device wrote it.
    assert_eq!(unsafe { ((at + 80_000) as *const u64).read_volatile() }, 42);
    assert_eq!(region.view()[10_000].load(std::sync::atomic::Ordering::Relaxed), 42);
    let stats = svm.stats();
    assert!(stats.count(Count::PagesToDevice) >= 2, "its pages move: {stats:?}");
    drop(region);
    assert!(device.run(|engine| engine.load::<u64>(at).map(drop)).is_err());
    assert!(svm.prefetch(VirtRange::default(), DeviceId(0)).is_ok());
}
