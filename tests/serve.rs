//! The path of a fault over simulated ports, step by step: what is where after each step, and with which data.
#![cfg(not(granule_loom))]

mod support;

use granule::fault::{BlockFault, CpuFault, Reader, RoundEnd, round, serve};
use granule::granule::check_block;
use granule::migrate::{Space, evict_one, to_ram};
use granule::policy::{Granularity, LinkOnly, MigrateOnFault, Policy};
use granule::ports::{FaultCause, HostEvent, MapTarget, NoProbe, VmaKind};
use granule::units::{Access, BlockNo, DeviceId, PAGES_PER_BLOCK, PageIndex, PageMask, Seat, VirtRange};
use support::{Mapping, SimDevice, SimHost, SimMemory, TickClock, one, page_at, words};

const RW: Mapping = Mapping { access: Access::Write, kind: VmaKind::Movable };

fn with_space(
    blocks: usize,
    policy: &dyn Policy,
    body: impl FnOnce(&SimHost, &SimDevice, &Space<'_, SimHost>),
) {
    let host = SimHost::new(words(4 * PAGES_PER_BLOCK));
    let device = SimDevice::new(words(blocks * PAGES_PER_BLOCK));
    let memory = SimMemory::new(8, 2, &device);
    let devices = [memory.device(&device)];
    let space = memory.space(&host, &devices, policy, &NoProbe);
    body(&host, &device, &space);
    for index in space.tables.all_blocks() {
        check_block(&space.tables.lock(index, space.park)).unwrap();
    }
}

fn fault(page: u64, access: Access) -> BlockFault {
    let at = page_at(page);
    let faulted = PageMask::of(PageIndex::of(at));
    let written = if access == Access::Write { faulted } else { PageMask::EMPTY };
    BlockFault { block: BlockNo::of(at), device: DeviceId(0), faulted, written, ..BlockFault::NONE }
}

fn rounds(space: &Space<'_, SimHost>) {
    let mut waiting = [CpuFault::NONE; 4];
    let mut events = [HostEvent::Unmap(VirtRange::default()); 4];
    let mut reader = Reader::new(&mut waiting, &mut events);
    while round(space, &TickClock::new(), &mut reader) == RoundEnd::WorkLeft {}
}

#[test]
fn a_page_goes_to_the_device_and_comes_home_with_what_both_sides_wrote() {
    with_space(2, &MigrateOnFault { granularity: Granularity::Kib64 }, |host, device, space| {
        for page in 0..64 {
            host.mmap(page, RW);
            host.put(page, 100 + page);
        }
        let answer = serve(space, Seat(0), &fault(3, Access::Write));
        assert_eq!(answer.served, one(3));
        for page in 0..16 {
            assert_eq!(host.present(page), None, "page {page} left the CPU with its unit");
            assert_eq!(device.touch(host, page, Access::Write, |v| v + 1), Ok(100 + page));
        }
        assert_eq!(host.present(16), Some(116), "the next unit stayed");
        std::thread::scope(|scope| {
            let cpu = scope.spawn(|| host.touch(5, |v| v * 2));
            while !host.has_events() {
                support::yield_now();
            }
            rounds(space);
            assert_eq!(cpu.join().unwrap(), Some(106));
        });
        for page in 0..16 {
            let expected = if page == 5 { 212 } else { 101 + page };
            assert_eq!(host.present(page), Some(expected), "page {page} came home");
            assert_eq!(device.translation(page), None);
        }
        assert_eq!(space.devices[0].memory.used_pages(), 0, "its device memory is free again");
    });
}

#[test]
fn a_linked_page_goes_to_the_device_comes_home_and_is_linked_anew() {
    struct Either(std::sync::atomic::AtomicBool);
    impl Policy for Either {
        fn place(&self, fault: &granule::policy::DeviceFaultView) -> granule::policy::Placement {
            match self.0.load(std::sync::atomic::Ordering::Relaxed) {
                true => MigrateOnFault::default().place(fault),
                false => LinkOnly.place(fault),
            }
        }
        fn homecoming(&self, _: BlockNo, touched: PageIndex, _: &PageMask) -> PageMask {
            PageMask::of(touched)
        }
        fn granularity(&self) -> Granularity {
            Granularity::Kib4
        }
    }
    let policy = Either(false.into());
    with_space(1, &policy, |host, device, space| {
        host.mmap(0, RW);
        host.put(0, 7);
        assert_eq!(serve(space, Seat(0), &fault(0, Access::Read)).served, one(0));
        assert!(matches!(device.translation(0), Some((MapTarget::System(_), Access::Read))));
        let Some((MapTarget::System(first), _)) = device.translation(0) else { panic!("it is linked") };
        assert_eq!(serve(space, Seat(0), &fault(0, Access::Write)).served, one(0));
        assert_eq!(
            device.translation(0),
            Some((MapTarget::System(first), Access::Write)),
            "an upgrade keeps it"
        );
        assert_eq!(device.touch(host, 0, Access::Write, |v| v + 1), Ok(7));
        assert_eq!(host.present(0), Some(8), "a linked page is the CPU's page");

        device_loses(space, device);
        policy.0.store(true, std::sync::atomic::Ordering::Relaxed);
        assert_eq!(serve(space, Seat(0), &fault(0, Access::Write)).served, one(0));
        assert_eq!(host.present(0), None, "it left the CPU");
        assert_eq!(device.touch(host, 0, Access::Write, |v| v + 1), Ok(8));
        let index = space.tables.block(BlockNo::of(page_at(0))).unwrap();
        assert_eq!(to_ram(space, Seat(1), index, &PageMask::FULL), Ok(1));
        assert_eq!(host.present(0), Some(9));

        policy.0.store(false, std::sync::atomic::Ordering::Relaxed);
        assert_eq!(serve(space, Seat(0), &fault(0, Access::Write)).served, one(0));
        assert_eq!(device.translation(0), Some((MapTarget::System(first), Access::Write)), "at its position");
        assert_eq!(device.touch(host, 0, Access::Write, |v| v + 1), Ok(9));
        assert_eq!(host.present(0), Some(10));
    });
    fn device_loses(space: &Space<'_, SimHost>, device: &SimDevice) {
        let index = space.tables.block(BlockNo::of(page_at(0))).unwrap();
        let mut block = space.tables.lock(index, space.park);
        granule::migrate::unlink(space, &mut block, DeviceId(0), &PageMask::FULL);
        assert_eq!(device.linked_pages(), 0);
    }
}

#[test]
fn faults_that_cannot_be_served_have_their_cause_and_hurt_nobody_else() {
    with_space(1, &MigrateOnFault { granularity: Granularity::Kib4 }, |host, device, space| {
        host.mmap(0, RW);
        host.mmap(1, Mapping { access: Access::Read, kind: VmaKind::Movable });
        host.put(1, 11);
        let mut both = fault(0, Access::Write);
        both.faulted |= one(1) | one(2);
        both.written |= one(1) | one(2);
        let answer = serve(space, Seat(0), &both);
        assert_eq!(answer.served, one(0));
        assert_eq!(answer.cause(PageIndex::of(page_at(1))), Some(FaultCause::ReadOnly));
        assert_eq!(answer.cause(PageIndex::of(page_at(2))), Some(FaultCause::NoMapping));
        assert_eq!(host.present(1), Some(11));
        assert_eq!(device.touch(host, 0, Access::Write, |_| 5), Ok(0));
    });
}

#[test]
fn a_full_device_evicts_its_oldest_block_and_loses_nothing() {
    let policy = MigrateOnFault { granularity: Granularity::Mib2 };
    with_space(1, &policy, |host, device, space| {
        let pages = 3 * PAGES_PER_BLOCK as u64;
        for page in 0..pages {
            host.mmap(page, RW);
            host.put(page, page + 1);
        }
        for block in 0..3 {
            let page = block * PAGES_PER_BLOCK as u64;
            assert_eq!(serve(space, Seat(0), &fault(page, Access::Write)).served.count(), 1);
            assert_eq!(device.touch(host, page, Access::Write, |v| v + 1000), Ok(page + 1));
        }
        assert_eq!(space.devices[0].memory.used_pages(), PAGES_PER_BLOCK as u64);
        assert!(matches!(evict_one(space, Seat(1), DeviceId(0), None), granule::migrate::Evicted::Pages(_)));
        for page in 0..pages {
            let touched = if page % PAGES_PER_BLOCK as u64 == 0 { 1000 } else { 0 };
            assert_eq!(host.present(page), Some(page + 1 + touched));
        }
    });
}

#[test]
fn a_partial_munmap_takes_exactly_its_page_and_leaves_the_rest_on_the_device() {
    with_space(1, &MigrateOnFault { granularity: Granularity::Kib64 }, |host, device, space| {
        for page in 0..16 {
            host.mmap(page, RW);
            host.put(page, page);
        }
        let _ = serve(space, Seat(0), &fault(0, Access::Write));
        std::thread::scope(|scope| {
            let unmap = scope.spawn(|| host.munmap(7));
            while !host.has_events() {
                support::yield_now();
            }
            rounds(space);
            unmap.join().unwrap();
        });
        for page in 0..16 {
            assert_eq!(device.translation(page).is_some(), page != 7, "page {page}");
        }
        assert_eq!(space.devices[0].memory.used_pages(), 16, "survivors stay where they are");
        let index = space.tables.block(BlockNo::of(page_at(0))).unwrap();
        assert_eq!(to_ram(space, Seat(0), index, &PageMask::FULL), Ok(15));
        for page in (0..16).filter(|page| *page != 7) {
            assert_eq!(host.present(page), Some(page));
        }
        assert_eq!(host.present(7), None);
    });
}

/// In the middle of whatever step: the fault fails with its cause or is served, and every page keeps its data.
#[test]
fn no_memory_in_the_middle_of_the_work_is_an_error_and_loses_nothing() {
    let (mut failed, mut served, mut retried) = (0, 0, 0);
    for good in 0..48 {
        for granularity in [Granularity::Kib4, Granularity::Kib64] {
            with_space(2, &MigrateOnFault { granularity }, |host, device, space| {
                for page in 0..16 {
                    host.mmap(page, RW);
                    host.put(page, 100 + page);
                }
                host.run_out_of_memory(good, 3);
                for page in 0..16 {
                    let at = PageIndex::of(page_at(page));
                    let answer = serve(space, Seat(0), &fault(page, Access::Write));
                    if answer.served.contains(at) {
                        served += 1;
                        assert_eq!(device.touch(host, page, Access::Write, |v| v + 1000), Ok(100 + page));
                    } else {
                        failed += 1;
                        assert_eq!(answer.cause(at), Some(FaultCause::OutOfMemory), "page {page}");
                        assert_eq!(host.present(page), Some(100 + page), "it is where it was");
                        let again = serve(space, Seat(0), &fault(page, Access::Write));
                        let done = again.served.contains(at);
                        assert!(done || again.cause(at) == Some(FaultCause::OutOfMemory));
                        if done {
                            device.touch(host, page, Access::Write, |v| v + 1000).expect("it was served");
                        } else {
                            host.touch(page, |v| v + 1000);
                        }
                    }
                }
                // On the way home memory comes back: nobody is told that it was short.
                let left = host.refusals_left();
                host.run_out_of_memory(good % 16, 5);
                for index in space.tables.all_blocks() {
                    let _ = to_ram(space, Seat(1), index, &PageMask::FULL);
                }
                retried += 5 - host.refusals_left() + (3 - left);
                for page in 0..16 {
                    assert_eq!(host.present(page), Some(1100 + page), "page {page}, memory for {good}");
                }
                assert_eq!(space.devices[0].memory.used_pages(), 0);
            });
        }
    }
    assert!(
        failed > 0 && served > failed && retried > 0,
        "{failed} failed, {served} served, {retried} refusals"
    );
}
