#![allow(unsafe_code, reason = "passes on the promise of a region")]
use std::collections::VecDeque;
use std::sync::mpsc::Receiver;

use super::core::Core;
use super::request::{Answered, Ask, Request};
use crate::dma::DmaRange;
use crate::fault::{BlockFault, group, is_served, register, release, revalidate, serve, serve_alias};
use crate::granule::UserptrNo;
use crate::migrate::{Retry, abandon, to_ram, unlink};
use crate::ports::{Clock, Count, DeviceFault, Host, HostError, Timing};
use crate::sync::Ordering;
use crate::units::{BlockNo, DeviceId, GRANULE_BYTES, Iova, PageMask, Seat, VirtAddr, VirtRange};

/// Faults fetched at once.
const BATCH: usize = 256;

/// One device's thread: fetches its faults and answers them; does what the program asks of this device.
pub(super) struct DeviceThread<'a> {
    pub(super) core: &'a Core,
    pub(super) device: DeviceId,
    /// This thread's own seat; the workers have 0 to their count.
    pub(super) seat: Seat,
}

const NO_FAULT: BlockFault = BlockFault::NONE;

impl DeviceThread<'_> {
    /// Until asked to stop. The device is attached by whoever starts this thread.
    pub(super) fn run(&self, requests: &Receiver<Request>) {
        let port = self.core.space.device(self.device).port;
        let mut faults = [DeviceFault::default(); BATCH];
        let mut groups = [NO_FAULT; BATCH];
        let mut waiting = VecDeque::new();
        let mut received = 0u32;
        loop {
            port.wait_fault();
            // By turns, so that neither starves the other: a batch of faults, then one request.
            loop {
                let since_ns = self.core.clock.now_ns();
                let fetched = port.fetch(&mut faults);
                if fetched != 0 {
                    self.answer(&mut faults[..fetched], &mut groups, since_ns);
                }
                let Some(request) = waiting.pop_front().or_else(|| self.receive(requests, &mut received))
                else {
                    if fetched == 0 {
                        break;
                    }
                    continue;
                };
                self.reply(&request);
                let ends = match request.what {
                    Ask::Hold => self.hold(requests, &mut waiting, &mut received),
                    what => matches!(what, Ask::Stop),
                };
                if ends {
                    return;
                }
            }
        }
    }

    /// The next request, if something was sent that was not received: else the channel, which is on the heap, stays
    /// untouched between a replay and the accesses that it lets go on. Whoever asks counts after he sent, then interrupts:
    /// what is missed here is seen after that.
    fn receive(&self, requests: &Receiver<Request>, received: &mut u32) -> Option<Request> {
        if self.core.asked[self.device.0 as usize].load(Ordering::Acquire) == *received {
            return None;
        }
        let request = requests.try_recv().ok()?;
        *received = received.wrapping_add(1);
        Some(request)
    }

    /// Serves nothing while a fork is under way; what else is asked waits for its end. Whether the service ends.
    fn hold(
        &self,
        requests: &Receiver<Request>,
        waiting: &mut VecDeque<Request>,
        received: &mut u32,
    ) -> bool {
        while let Ok(request) = requests.recv() {
            *received = received.wrapping_add(1);
            match request.what {
                Ask::Hold | Ask::Resume | Ask::Stop => self.reply(&request),
                _ => {
                    waiting.push_back(request);
                    continue;
                }
            }
            match request.what {
                Ask::Resume => return false,
                Ask::Stop => return true,
                _ => {}
            }
        }
        true
    }

    fn reply(&self, request: &Request) {
        // Whoever asked may have gone.
        let _ = request.reply.send(self.do_request(request.what));
    }

    fn do_request(&self, what: Ask) -> Answered {
        let space = &self.core.space;
        match what {
            Ask::Prefetch(range) => Answered::Pages(self.prefetch(range)),
            Ask::ToRam(range) => Answered::Pages(self.range_to_ram(range)),
            Ask::Register(no, spec) => {
                register(space, self.seat, no, &spec);
                Answered::Done
            }
            Ask::Validate(no, part) => Answered::Validated(revalidate(space, self.seat, no, part)),
            Ask::Name(range) => Answered::Named(self.unless_changing(|| space.host.name(range))),
            Ask::EnterRegion(range, view) => {
                // SAFETY: `Region` asks, and keeps the order at its end.
                let entered = self.unless_changing(|| unsafe { space.host.enter_region(range, view) });
                Answered::Region(entered.unwrap_or(None))
            }
            Ask::FaultMode(range, mode) => {
                let chosen = self.unless_changing(|| space.host.set_fault_mode(range, mode));
                Answered::FaultMode(chosen.expect("whatever but a change is refused by name"))
            }
            Ask::DmaRanges(no) => Answered::Ranges(self.dma_ranges(no)),
            Ask::Release(no) => {
                release(space, self.seat, no);
                Answered::Done
            }
            Ask::Hold => Answered::Pages(self.range_to_ram(space.host.window())),
            Ask::Resume => Answered::Done,
            Ask::Stop => Answered::Pages(self.stop()),
        }
    }

    /// Does something inside the gate, again and again until no event waits to be read.
    fn unless_changing<T>(&self, act: impl Fn() -> Result<T, HostError>) -> Result<T, HostError> {
        let space = &self.core.space;
        loop {
            let inside = space.gate.enter(self.seat, space.park);
            let done = act();
            drop(inside);
            match done {
                Err(HostError::Changing) => space.host.pause(),
                done => return done,
            }
        }
    }

    /// Collects in rounds on the stack: the record's lock is not held while the heap is touched.
    fn dma_ranges(&self, no: UserptrNo) -> Vec<DmaRange> {
        const ROUND: usize = 64;
        let space = &self.core.space;
        let mut all = Vec::new();
        loop {
            let mut round = [DmaRange { addr: Iova(0), len: 0, flags: 0 }; ROUND];
            let mut got = 0;
            // Inside the gate, so that what an event said that was read before (its caller goes on then) is applied.
            let inside = space.gate.enter(self.seat, space.park);
            if let Some(held) = space.userptrs.lock(no, space.park) {
                let access = held.spec().access;
                for range in held.list().dma_ranges(access).skip(all.len()).take(ROUND) {
                    round[got] = range;
                    got += 1;
                }
            }
            drop(inside);
            all.extend_from_slice(&round[..got]);
            if got < ROUND {
                return all;
            }
        }
    }

    /// One batch: grouped by block, served in parallel, the hopeless cancelled, the rest replayed.
    fn answer(&self, faults: &mut [DeviceFault], groups: &mut [BlockFault], since_ns: u64) {
        let space = &self.core.space;
        let port = space.device(self.device).port;
        let fetched = faults.len();
        let faults = self.serve_aliases(faults);
        let (used, duplicates) = group(faults, self.device, groups);
        space.probe.add(Count::DeviceBatches, 1);
        space.probe.add(Count::DeviceFaults, fetched as u64);
        space.probe.add(Count::DeviceFaultsDuplicate, duplicates);
        let (faults, groups) = (&*faults, &groups[..used]);
        match groups {
            [] => {}
            [only] => {
                self.serve_group(self.seat, only, faults);
            }
            _ => self.serve_groups(groups, faults),
        }
        port.replay();
        let took_ns = self.core.clock.now_ns() - since_ns;
        for _ in 0..fetched {
            space.probe.time(Timing::DeviceFault, took_ns);
        }
    }

    /// Serves the faults at device addresses that are not the process's own; returns the others.
    fn serve_aliases<'f>(&self, faults: &'f mut [DeviceFault]) -> &'f mut [DeviceFault] {
        let space = &self.core.space;
        if space.userptrs.is_empty() {
            return faults;
        }
        let mut kept = 0;
        for at in 0..faults.len() {
            let fault = faults[at];
            match serve_alias(space, self.seat, fault.at, self.device, fault.access) {
                None => {
                    faults[kept] = fault;
                    kept += 1;
                }
                Some(Ok(())) => {}
                Some(Err(cause)) => space.device(self.device).port.cancel(&fault, cause),
            }
        }
        &mut faults[..kept]
    }

    /// This thread and the workers take one block after the other.
    ///
    /// A look at mappings touches the heap, and what it touches comes home: perhaps a block that was just served for
    /// another engine. Blocks that are gone again, or could not be served by a worker, are served once more by this
    /// thread alone, which then touches private memory only until the replay.
    fn serve_groups(&self, groups: &[BlockFault], faults: &[DeviceFault]) {
        let mut failed = [false; BATCH];
        self.core.crew.share(self.device, groups, |at| {
            failed[at] = !self.serve_group(self.seat, &groups[at], faults);
        });
        for (group, failed) in groups.iter().zip(failed) {
            if !failed && !is_served(&self.core.space, group) {
                self.serve_group(self.seat, group, faults);
            }
        }
    }

    /// Serves the faults on one block and cancels the hopeless; whether there was none of these.
    fn serve_group(&self, seat: Seat, group: &BlockFault, faults: &[DeviceFault]) -> bool {
        let answer = serve(&self.core.space, seat, group);
        if answer.failed().is_empty() {
            return true;
        }
        let first = faults.partition_point(|fault| fault.at.0 < group.block.base().0);
        for fault in &faults[first..] {
            if BlockNo::of(VirtAddr(fault.at.0)) != group.block {
                break;
            }
            if let Some(cause) = answer.cause_of(fault) {
                self.core.space.device(self.device).port.cancel(fault, cause);
            }
        }
        false
    }

    fn prefetch(&self, range: VirtRange) -> u64 {
        range
            .blocks()
            .map(|block| {
                let faulted = range.mask_in(block);
                let fault =
                    BlockFault { block, device: self.device, faulted, prefetch: true, ..BlockFault::NONE };
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
                        Err(Retry::Unreadable) => break 0,
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
        for no in space.userptrs.numbers() {
            if space.userptrs.lock(no, space.park).is_some_and(|held| held.spec().device == self.device) {
                release(space, self.seat, no);
            }
        }
        self.range_to_ram(space.host.window());
        let mut left = 0;
        for index in space.tables.all_blocks() {
            let inside = space.gate.enter(self.seat, space.park);
            let mut block = space.tables.lock(index, space.park);
            unlink(space, &mut block, self.device, &PageMask::FULL);
            drop(block);
            drop(inside);
            left += abandon(space, self.seat, index, self.device) as u64;
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
