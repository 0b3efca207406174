use std::sync::mpsc::Receiver;

use rayon::prelude::*;

use super::core::Core;
use super::request::{Ask, Request};
use crate::fault::{BlockFault, group, serve};
use crate::migrate::{Retry, to_ram, unlink};
use crate::ports::{Clock, Count, DeviceFault, Host, Timing};
use crate::units::{BlockNo, DeviceId, GRANULE_BYTES, PageIndex, PageMask, Seat, VirtAddr, VirtRange};

/// Faults fetched at once.
const BATCH: usize = 256;

/// One device's thread: fetches its faults and answers them; does what the program asks of this device.
pub(super) struct DeviceThread<'a> {
    pub(super) core: &'a Core,
    pub(super) device: DeviceId,
    /// This thread's own seat; the pool's threads have 0 to their count.
    pub(super) seat: Seat,
    pub(super) pool: &'a rayon::ThreadPool,
}

const NO_FAULT: BlockFault =
    BlockFault { block: BlockNo(0), device: DeviceId(0), faulted: PageMask::EMPTY, written: PageMask::EMPTY };

impl DeviceThread<'_> {
    /// Until asked to stop. The device is attached by whoever starts this thread.
    pub(super) fn run(&self, requests: &Receiver<Request>) {
        let port = self.core.space.device(self.device).port;
        let mut faults = [DeviceFault::default(); BATCH];
        let mut groups = [NO_FAULT; BATCH];
        loop {
            port.wait_fault();
            loop {
                let since_ns = self.core.clock.now_ns();
                let fetched = port.fetch(&mut faults);
                if fetched == 0 {
                    break;
                }
                self.answer(&mut faults[..fetched], &mut groups, since_ns);
            }
            while let Ok(request) = requests.try_recv() {
                let (done, stop) = match request.what {
                    Ask::Prefetch(range) => (self.prefetch(range), false),
                    Ask::ToRam(range) => (self.range_to_ram(range), false),
                    Ask::Stop => (self.stop(), true),
                };
                // Whoever asked may have gone.
                let _ = request.reply.send(Ok(done));
                if stop {
                    return;
                }
            }
        }
    }

    /// One batch: grouped by block, served in parallel, the hopeless cancelled, the rest replayed.
    fn answer(&self, faults: &mut [DeviceFault], groups: &mut [BlockFault], since_ns: u64) {
        let space = &self.core.space;
        let port = space.device(self.device).port;
        let (used, duplicates) = group(faults, self.device, groups);
        space.probe.add(Count::DeviceBatches, 1);
        space.probe.add(Count::DeviceFaults, faults.len() as u64);
        space.probe.add(Count::DeviceFaultsDuplicate, duplicates);
        let (faults, groups) = (&*faults, &groups[..used]);
        if let [only] = groups {
            self.serve_group(self.seat, only, faults);
        } else {
            self.pool.install(|| {
                groups.par_iter().for_each(|group| {
                    let seat = rayon::current_thread_index().expect("the pool's own threads run this");
                    self.serve_group(Seat(seat as u16), group, faults);
                });
            });
        }
        port.replay();
        let took_ns = self.core.clock.now_ns() - since_ns;
        for _ in faults {
            space.probe.time(Timing::DeviceFault, took_ns);
        }
    }

    fn serve_group(&self, seat: Seat, group: &BlockFault, faults: &[DeviceFault]) {
        let answer = serve(&self.core.space, seat, group);
        if answer.failed().is_empty() {
            return;
        }
        let first = faults.partition_point(|fault| fault.at.0 < group.block.base().0);
        for fault in &faults[first..] {
            let at = VirtAddr(fault.at.0);
            if BlockNo::of(at) != group.block {
                break;
            }
            if let Some(cause) = answer.cause(PageIndex::of(at)) {
                self.core.space.device(self.device).port.cancel(fault, cause);
            }
        }
    }

    fn prefetch(&self, range: VirtRange) -> u64 {
        range
            .blocks()
            .map(|block| {
                let faulted = range.mask_in(block);
                let fault = BlockFault { block, device: self.device, faulted, written: PageMask::EMPTY };
                serve(&self.core.space, self.seat, &fault).served.count() as u64
            })
            .sum()
    }

    fn range_to_ram(&self, range: VirtRange) -> u64 {
        let space = &self.core.space;
        space
            .tables
            .blocks_in(range)
            .map(|(number, index)| {
                loop {
                    match to_ram(space, self.seat, index, &range.mask_in(number)) {
                        Ok(pages) => break pages as u64,
                        Err(Retry::InTransit(busy)) => {
                            space.tables.record(index).wait_transit(busy, space.park);
                        }
                        Err(_) => space.host.pause(),
                    }
                }
            })
            .sum()
    }

    /// Ends this device's part: no fault is served any more, every page goes to RAM, nothing stays linked. Answers
    /// the pages that could not be read back from the device.
    fn stop(&self) -> u64 {
        let space = &self.core.space;
        let device = space.device(self.device);
        device.port.detach();
        self.range_to_ram(space.host.window());
        let mut left = 0;
        for index in space.tables.all_blocks() {
            let _inside = space.gate.enter(self.seat, space.park);
            let mut block = space.tables.lock(index, space.park);
            unlink(space, &mut block, self.device, &PageMask::FULL);
            if block.owner() == self.device {
                left += block.device_private().count() as u64;
            }
        }
        for index in space.tables.all_blocks() {
            let granule = space.tables.granule(space.tables.record(index).number().granule());
            if let Some(base) = granule.and_then(|granule| granule.take_iova_base(self.device)) {
                device.iova.free(base, GRANULE_BYTES).expect("a granule's reservation is freed once");
            }
        }
        left
    }
}
