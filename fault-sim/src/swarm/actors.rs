//! Who runs: the service's threads, engines of the devices, threads of the application, and one that looks.
//!
//! The service's threads do what those of the live service do, with the same functions of the library; what a device's
//! thread hands to its pool goes to two workers here.

use std::cell::{Cell, RefCell};
use std::collections::VecDeque;
use std::ops::Range;
use std::rc::Rc;

use granule::dma::ReserveIova;
use granule::fault::{
    BlockFault, CpuFault, Reader, RoundEnd, group, register, release, revalidate, round, serve, serve_alias,
    serve_in_place,
};
use granule::granule::{UserptrNo, UserptrSpec};
use granule::migrate::{Retry, Space, to_ram};
use granule::ports::{Count, Device, DeviceFault, FaultCause, Host, HostEvent};
use granule::units::{Access, BlockNo, DevAddr, DeviceId, PAGE_BYTES, Seat, VirtAddr, VirtRange};

use super::audit;
use super::counts::Did;
use super::device::{Ended, SimDevice};
use super::fibers::Body;
use super::host::SimHost;
use super::oracle::Checker;
use super::plan::{Habit, Kind, Op, Plan};
use super::ports::{SimClock, SimIovas};
use super::random::Stream;
use super::scheduler::Key;
use super::world::{ALIASES, BLOCKS, FIRST_BLOCK, PAGES, World, at, range};

/// The reader's fiber.
pub const READER: usize = 0;
const WORKERS: Range<usize> = 1..3;
const DEVICE_THREADS: Range<usize> = 3..5;
/// Whoever asks the service for things.
pub const OPERATOR: usize = 5;
/// Threads of the application.
pub const THREADS: Range<usize> = 6..9;
/// Two of each device.
pub const ENGINES: Range<usize> = 9..13;
/// Whoever looks.
pub const AUDITOR: usize = 13;
/// How many fibers there are.
pub const FIBERS: usize = 14;
/// Those that a run waits for.
pub const CLIENTS: u32 = (1 << FIBERS) - (1 << OPERATOR);
/// Seats at the gate: workers, device threads, operator, threads that serve themselves, auditor.
pub const SEATS: usize = 9;
/// Userptrs are of so many pages at most.
pub const USERPTR_PAGES: usize = 48;

/// What an actor is called.
pub fn name(fiber: usize) -> &'static str {
    match fiber {
        READER => "the reader",
        1..3 => "a worker",
        3..5 => "a device's thread",
        OPERATOR => "a request of the program",
        6..9 => "a thread of the application",
        9..13 => "an engine",
        _ => "the auditor",
    }
}

struct Job {
    group: BlockFault,
    batch: Rc<Batch>,
}

struct Batch {
    faults: Vec<DeviceFault>,
    left: Cell<usize>,
    fiber: usize,
}

/// A run's actors and what they share.
pub struct Actors<'r> {
    /// The world.
    pub world: &'r World,
    /// The plan.
    pub plan: &'r Plan,
    /// The library's state over it.
    pub space: &'r Space<'r, SimHost<'r>>,
    /// Its devices.
    pub devices: &'r [SimDevice<'r>],
    /// Their IOVAs.
    pub iovas: &'r [SimIovas<'r>],
    jobs: RefCell<VecDeque<Job>>,
    /// What is registered.
    userptr: Cell<Option<UserptrSpec>>,
}

impl<'r> Actors<'r> {
    /// Nothing is under way.
    pub fn new(
        world: &'r World,
        plan: &'r Plan,
        space: &'r Space<'r, SimHost<'r>>,
        devices: &'r [SimDevice<'r>],
        iovas: &'r [SimIovas<'r>],
    ) -> Self {
        let (jobs, userptr) = (RefCell::default(), Cell::new(None));
        Self { world, plan, space, devices, iovas, jobs, userptr }
    }

    /// One body per fiber, in their order.
    pub fn bodies(&self) -> Vec<Body<'_>> {
        (0..FIBERS)
            .map(|fiber| -> Body<'_> {
                match fiber {
                    READER => Box::new(|| self.reader()),
                    _ if WORKERS.contains(&fiber) => Box::new(move || self.worker(fiber)),
                    _ if DEVICE_THREADS.contains(&fiber) => Box::new(move || self.device_thread(fiber)),
                    OPERATOR => Box::new(|| self.operator()),
                    _ if THREADS.contains(&fiber) => Box::new(move || self.thread(fiber)),
                    _ if ENGINES.contains(&fiber) => Box::new(move || self.engine(fiber)),
                    _ => Box::new(|| self.auditor()),
                }
            })
            .collect()
    }

    /// Does the operations of one actor, as many as the plan has.
    fn operations(&self, actor: usize, mut act: impl FnMut(&mut Stream)) {
        for number in 0.. {
            let steps = self.world.state().scheduler.steps;
            let goes_on = match &self.plan.only {
                None => steps < self.plan.steps,
                Some(_) => self.plan.has_more(actor, number),
            };
            if !goes_on {
                return;
            }
            let op = Op { actor, number };
            if self.plan.has(op) {
                self.world.state().begun.push(op);
                act(&mut self.plan.op(op));
            }
        }
    }

    fn reader(&self) {
        let mut waiting = [CpuFault::NONE; 3];
        let mut events = [HostEvent::Unmap(VirtRange::default()); 4];
        let mut reader = Reader::new(&mut waiting, &mut events);
        let clock = SimClock(self.world);
        loop {
            let state = self.world.state();
            if state.kernel.events.is_empty() {
                self.world.wait(state, Key::Events);
                continue;
            }
            drop(state);
            while round(self.space, &clock, &mut reader) == RoundEnd::WorkLeft {
                self.world.pause(Did::Pause);
            }
        }
    }

    fn worker(&self, fiber: usize) {
        let seat = Seat((fiber - WORKERS.start) as u16);
        loop {
            let next = self.jobs.borrow_mut().pop_front();
            let Some(job) = next else {
                let state = self.world.state();
                self.world.wait(state, Key::Jobs);
                continue;
            };
            self.serve_group(seat, &job.group, &job.batch.faults);
            job.batch.left.set(job.batch.left.get() - 1);
            if job.batch.left.get() == 0 {
                self.world.state().scheduler.wake_fiber(job.batch.fiber);
            }
        }
    }

    /// As the service's own: one batch after the other.
    fn device_thread(&self, fiber: usize) {
        let no = fiber - DEVICE_THREADS.start;
        let Some(port) = self.devices.get(no) else { return };
        let (device, seat) = (DeviceId(no as u8), Seat((WORKERS.len() + no) as u16));
        let mut faults = [DeviceFault::default(); 8];
        let mut groups = [BlockFault::NONE; 8];
        loop {
            port.wait_fault();
            let fetched = port.fetch(&mut faults[..self.world.shape.batch]);
            let kept = self.serve_aliases(&mut faults[..fetched], device, seat);
            let (used, duplicates) = group(&mut faults[..kept], device, &mut groups);
            self.space.probe.add(Count::DeviceBatches, 1);
            self.space.probe.add(Count::DeviceFaults, fetched as u64);
            self.space.probe.add(Count::DeviceFaultsDuplicate, duplicates);
            if used == 1 {
                self.serve_group(seat, &groups[0], &faults[..kept]);
            } else if used > 1 {
                let faults = faults[..kept].to_vec();
                let batch = Rc::new(Batch { faults, left: Cell::new(used), fiber });
                for group in &groups[..used] {
                    self.jobs.borrow_mut().push_back(Job { group: *group, batch: batch.clone() });
                }
                self.world.state().scheduler.wake(Key::Jobs);
                while batch.left.get() > 0 {
                    let state = self.world.state();
                    self.world.wait(state, Key::Own);
                }
            }
            port.replay();
        }
    }

    fn serve_aliases(&self, faults: &mut [DeviceFault], device: DeviceId, seat: Seat) -> usize {
        let mut kept = 0;
        for at in 0..faults.len() {
            let fault = faults[at];
            if self.space.userptrs.is_empty() {
                faults[kept] = fault;
                kept += 1;
                continue;
            }
            match serve_alias(self.space, seat, fault.at, device, fault.access) {
                None => {
                    faults[kept] = fault;
                    kept += 1;
                }
                Some(served) => {
                    self.world.step(Did::AliasFault);
                    if let Err(cause) = served {
                        self.devices[device.0 as usize].cancel(&fault, cause);
                    }
                }
            }
        }
        kept
    }

    fn serve_group(&self, seat: Seat, group: &BlockFault, faults: &[DeviceFault]) {
        let answer = serve(self.space, seat, group);
        for fault in faults.iter().filter(|fault| BlockNo::of(VirtAddr(fault.at.0)) == group.block) {
            if let Some(cause) = answer.cause_of(fault) {
                self.devices[group.device.0 as usize].cancel(fault, cause);
            }
        }
    }

    /// A thread of the application.
    fn thread(&self, fiber: usize) {
        let seat = Seat((WORKERS.len() + DEVICE_THREADS.len() + 1 + fiber - THREADS.start) as u16);
        let habits = self.world.state().habits;
        let serves_itself = habits.has(Habit::OwnServer) && fiber == THREADS.start;
        let serve = |page: usize, access: Access| {
            let fault = CpuFault { at: at(page), access, ..CpuFault::NONE };
            serve_in_place(self.space, seat, &fault)
        };
        let serve: Option<&dyn Fn(usize, Access) -> bool> = if serves_itself { Some(&serve) } else { None };
        let shape = &self.world.shape;
        self.operations(fiber, |chance| match chance.below(24) {
            0 if habits.has(Habit::Unmap) => self.world.munmap(shape.range(chance)),
            1..=2 => {
                let pages = shape.range(chance);
                self.world.mmap(pages, Kind::of(chance));
            }
            3 if habits.has(Habit::Discard) => self.world.discard(shape.range(chance)),
            4 if habits.has(Habit::Move) => {
                let from = shape.range(chance);
                // To anywhere, or within the block; and it is used there at once.
                let block = from.start / 512 * 512;
                let to = match chance.once_in(2) {
                    true => shape.page(chance),
                    false => block + chance.below(512 - from.len().min(511) as u64) as usize,
                };
                let touched = to + chance.below(from.len() as u64) as usize;
                if self.world.mremap(from, to) {
                    self.world.cpu(touched, Access::Read, serve);
                }
            }
            // Another mapping in the place of one, which may be all that anybody knew of it.
            5 if habits.has(Habit::Unmap) => {
                let pages = shape.range(chance);
                let kind = if chance.once_in(2) { Kind::ReadOnly } else { Kind::of(chance) };
                self.world.munmap(pages.clone());
                self.world.mmap(pages, kind);
            }
            6 if habits.has(Habit::Fork) && chance.once_in(3) => self.world.fork(),
            word => {
                let access = if word % 2 == 0 { Access::Write } else { Access::Read };
                self.world.cpu(shape.page(chance), access, serve);
            }
        });
    }

    fn engine(&self, fiber: usize) {
        let no = (fiber - ENGINES.start) / 2;
        let Some(device) = self.devices.get(no) else { return };
        self.operations(fiber, |chance| {
            let access = if chance.once_in(3) { Access::Read } else { Access::Write };
            let alias = self.userptr.get().filter(|spec| spec.device.0 as usize == no && chance.once_in(3));
            let page = match alias {
                Some(spec) => {
                    let first = (spec.device_at.0 - at(0).0) / PAGE_BYTES;
                    (first + chance.below(spec.range.pages())) as usize
                }
                None => self.world.shape.page(chance),
            };
            let mapping = |page: usize| match page < PAGES {
                true => self.world.state().kernel.pages[page].mapping,
                false => 0,
            };
            let before = mapping(page);
            if let Ended::Failed(cause) = device.access(page, access) {
                self.judge(page, access, cause, before, mapping(page));
            }
        });
    }

    /// Whether a fault may have failed like this.
    fn judge(&self, page: usize, access: Access, cause: FaultCause, before: u32, after: u32) {
        let mut state = self.world.state();
        let has = |habit| state.habits.has(habit);
        let fails = has(Habit::Copies) || has(Habit::Tables) || has(Habit::Memory);
        let stayed = before != 0 && before == after;
        let writable = page < PAGES && state.kernel.mapping(page).is_some_and(|m| m.access == Access::Write);
        let may = match cause {
            FaultCause::RetriesSpent => false,
            // A userptr is as good as the mapping behind it, and may have gone.
            _ if page >= PAGES => true,
            FaultCause::NoMapping => !stayed,
            FaultCause::ReadOnly => access == Access::Write && !(stayed && writable),
            FaultCause::NoAccess => has(Habit::Copies) || !stayed,
            FaultCause::OutOfMemory => fails,
            FaultCause::DeviceFailed => fails,
            _ => false,
        };
        if !may {
            state.violate(
                Checker::Account,
                format!("a fault on page {page} failed without a reason: {cause}"),
            );
        }
    }

    /// What a program asks of the service, besides faulting.
    fn operator(&self) {
        let seat = Seat((WORKERS.len() + DEVICE_THREADS.len()) as u16);
        let habits = self.world.state().habits;
        let shape = &self.world.shape;
        self.operations(OPERATOR, |chance| {
            let device = DeviceId(chance.below(self.devices.len() as u64) as u8);
            match chance.below(4) {
                0 | 1 if habits.has(Habit::Userptr) => self.userptr(chance, device, seat),
                0 | 2 if habits.has(Habit::Requests) => {
                    self.world.step(Did::Prefetch);
                    let wanted = range(&shape.range(chance));
                    for block in wanted.blocks() {
                        let faulted = wanted.mask_in(block);
                        let fault = BlockFault { block, device, faulted, prefetch: true, ..BlockFault::NONE };
                        let _ = serve(self.space, seat, &fault);
                    }
                }
                _ if habits.has(Habit::Requests) => {
                    self.world.step(Did::ToRam);
                    self.range_to_ram(range(&shape.range(chance)), seat);
                }
                _ => self.world.pause(Did::ToRam),
            }
        });
        self.release(seat);
    }

    /// As the service does it.
    fn range_to_ram(&self, range: VirtRange, seat: Seat) {
        for (number, index) in self.space.tables.blocks_in(range) {
            loop {
                match to_ram(self.space, seat, index, &range.mask_in(number)) {
                    Ok(_) | Err(Retry::Unreadable) => break,
                    Err(Retry::InTransit(busy)) => {
                        self.space.tables.record(index).wait_transit(busy, self.space.park);
                    }
                    Err(_) => self.space.host.pause(),
                }
            }
        }
    }

    fn userptr(&self, chance: &mut Stream, device: DeviceId, seat: Seat) {
        const NO: UserptrNo = UserptrNo(0);
        let Some(spec) = self.userptr.get() else {
            let mut pages = self.world.shape.range(chance);
            pages.end = pages.end.min(pages.start + USERPTR_PAGES);
            let count = pages.len() as u64;
            let Ok(iova) = self.iovas[device.0 as usize].reserve(count * PAGE_BYTES, PAGE_BYTES) else {
                return;
            };
            let alias = at(PAGES + chance.below((ALIASES - USERPTR_PAGES) as u64) as usize);
            let device_at = if chance.once_in(3) { at(pages.start) } else { alias };
            let spec = UserptrSpec {
                range: range(&pages),
                device,
                device_at: DevAddr(device_at.0),
                iova,
                access: if chance.once_in(3) { Access::Read } else { Access::Write },
                movable: chance.once_in(3),
                first_word: 0,
            };
            self.world.step(Did::Register);
            register(self.space, seat, NO, &spec);
            self.userptr.set(Some(spec));
            return;
        };
        if chance.once_in(6) {
            return self.release(seat);
        }
        self.world.step(Did::Revalidate);
        let Ok(sample) = revalidate(self.space, seat, NO, spec.range) else { return };
        // Pages that may move are for devices that fault in the middle of a submission.
        if spec.movable || !self.space.userptrs.begin_submission(NO, sample, self.space.park) {
            return;
        }
        let first = ((spec.device_at.0 - at(0).0) / PAGE_BYTES) as usize;
        for _ in 0..1 + chance.below(4) {
            let page = first + chance.below(spec.range.pages()) as usize;
            let access = if chance.once_in(2) { Access::Read } else { spec.access };
            self.devices[spec.device.0 as usize].submit(page, access);
        }
        self.space.userptrs.end_submission(NO, self.space.park);
    }

    fn release(&self, seat: Seat) {
        let Some(spec) = self.userptr.take() else { return };
        self.world.step(Did::Release);
        release(self.space, seat, UserptrNo(0));
        let freed = self.iovas[spec.device.0 as usize].free(spec.iova, spec.range.bytes());
        if freed.is_err() {
            self.world.state().violate(Checker::Account, "a userptr's IOVAs cannot be given back");
        }
    }

    fn auditor(&self) {
        self.operations(AUDITOR, |chance| {
            self.world.pause(Did::Audit);
            let block = BlockNo(FIRST_BLOCK + chance.below(BLOCKS as u64) as u32);
            if let Some(index) = self.space.tables.block(block) {
                audit::block(self.world, self.space, Seat(SEATS as u16 - 1), index);
            }
        });
    }
}
