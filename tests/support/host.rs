//! The address space and the threads of the application.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::sync::Mutex;
use std::sync::atomic::Ordering::Relaxed;

use granule::ports::{
    FollowCount, Give, Host, HostError, HostEvent, Lookup, Mirrored, StagingId, Take, Vma, VmaKind,
    WORDS_PER_PAGE, Word,
};
use granule::sync::{AtomicU32, Park};
use granule::units::{Access, BlockNo, PAGE_BYTES, PAGES_PER_BLOCK, PageMask, PhysAddr, VirtAddr, VirtRange};

use super::{SimPark, Sleepers, Step, page_at, yield_now};

#[derive(Clone, Copy, PartialEq, Debug)]
pub struct Mapping {
    pub access: Access,
    pub kind: VmaKind,
}

#[derive(Default)]
struct World {
    /// Page number -> mapping.
    mapped: BTreeMap<u64, Mapping>,
    /// Page number -> the value that the CPU sees. Absent: not present.
    present: BTreeMap<u64, u64>,
    mirrored: BTreeSet<u64>,
    /// How often that grew.
    follows: u64,
    armed: BTreeSet<u64>,
    /// What waits to be read, with its number.
    events: VecDeque<(u64, HostEvent)>,
    /// Events pushed so far.
    pushed: u64,
    /// Callers whose event is not read, or who did not run since.
    changing: u32,
    /// Pages for which threads wait.
    waiting: BTreeSet<u64>,
    /// Wake-ups of ranges in which nobody waited.
    idle_wakes: u64,
    /// The reader sleeps, and everything that it read is applied.
    reader_idle: bool,
    /// Threads that may need the reader.
    users: u32,
    staging_used: Vec<bool>,
    /// Absent pages whose touch is an error.
    poisoned: BTreeSet<u64>,
    /// After so many allocations of the kernel the next ones fail, as many as said.
    out_of_memory: Option<(u64, u64)>,
}

impl World {
    /// The kernel needs memory.
    fn allocate(&mut self) -> Result<(), HostError> {
        let Some((good, bad)) = &mut self.out_of_memory else { return Ok(()) };
        match (*good, *bad) {
            (0, 0) => Ok(()),
            (0, _) => {
                *bad -= 1;
                Err(HostError::OutOfMemory)
            }
            _ => {
                *good -= 1;
                Ok(())
            }
        }
    }
}

pub struct SimHost {
    world: Mutex<World>,
    step: Step,
    sleepers: Sleepers,
    /// The futex of everything in this address space.
    pub park: SimPark,
    staging: &'static [Word],
    slots: usize,
}

/// What threads sleep on: the reader, callers whose event is not read, who wait for the reader to be idle, pages (their number above these).
const EVENTS: usize = 0;
const READ: usize = 1;
const IDLE: usize = 2;
const FIRST_PAGE: usize = 3;

const fn no(at: VirtAddr) -> u64 {
    at.0 / PAGE_BYTES
}

impl SimHost {
    pub fn new(staging: &'static [Word]) -> Self {
        let slots = staging.len() / (PAGES_PER_BLOCK * WORDS_PER_PAGE);
        let world = World { staging_used: vec![false; slots], ..World::default() };
        Self {
            world: Mutex::new(world),
            step: Step::default(),
            sleepers: Sleepers::default(),
            park: SimPark::default(),
            staging,
            slots,
        }
    }

    fn step(&self) {
        self.step.take_in_order();
    }

    /// Sleeps on `key` until `ready`; looking and falling asleep are one step.
    fn wait(&self, key: usize, mut ready: impl FnMut(&mut World) -> bool) {
        let mut done = false;
        while !done {
            self.sleepers.sleep_if(key, || {
                self.step();
                done = ready(&mut self.world.lock().unwrap());
                !done
            });
        }
    }

    fn push(&self, world: &mut World, event: HostEvent) -> u64 {
        world.pushed += 1;
        world.reader_idle = false;
        world.events.push_back((world.pushed, event));
        self.sleepers.wake(EVENTS);
        world.pushed
    }

    // ---- what a program does ----

    pub fn mmap(&self, page: u64, mapping: Mapping) {
        self.step();
        self.world.lock().unwrap().mapped.insert(no(page_at(page)), mapping);
    }

    /// As `mmap`, and the page is there with this value: one step.
    pub fn mmap_with(&self, page: u64, mapping: Mapping, value: u64) {
        self.step();
        let mut world = self.world.lock().unwrap();
        world.mapped.insert(no(page_at(page)), mapping);
        world.present.insert(no(page_at(page)), value);
    }

    /// Gives up the page; returns when its event was read.
    pub fn munmap(&self, page: u64) {
        self.step();
        let number = no(page_at(page));
        let mine = {
            let mut world = self.world.lock().unwrap();
            world.mapped.remove(&number);
            world.present.remove(&number);
            world.poisoned.remove(&number);
            world.armed.remove(&number);
            if !world.mirrored.remove(&number) {
                return;
            }
            world.changing += 1;
            self.push(&mut world, HostEvent::Unmap(VirtRange::of_pages(page_at(page), 1)))
        };
        self.wait(READ, |world| {
            let read = world.events.iter().all(|(number, _)| *number != mine);
            world.changing -= u32::from(read);
            read
        });
    }

    /// Applies `change` to the page's value as one access of a CPU thread; waits while the page is away. `None`: no
    /// mapping, no permission, or poison.
    pub fn touch(&self, page: u64, change: impl Fn(u64) -> u64) -> Option<u64> {
        let number = no(page_at(page));
        loop {
            self.step();
            {
                let mut world = self.world.lock().unwrap();
                world.mapped.get(&number)?;
                if let Some(value) = world.present.get(&number).copied() {
                    let new = change(value);
                    world.present.insert(number, new);
                    return Some(value);
                }
                if world.poisoned.contains(&number) {
                    return None;
                }
                if !world.armed.contains(&number) {
                    world.present.insert(number, change(0));
                    return Some(0);
                }
                world.waiting.insert(number);
                let at = page_at(page);
                let fault = HostEvent::Fault { at, access: Access::Write, write_protected: false };
                self.push(&mut world, fault);
            }
            self.wait(FIRST_PAGE + number as usize, |world| !world.waiting.contains(&number));
        }
    }

    // ---- what the frame of a test does ----

    /// So many threads may need the reader.
    pub fn expect_users(&self, users: u32) {
        self.world.lock().unwrap().users = users;
    }
    /// One of them does not any more.
    pub fn user_done(&self) {
        self.step();
        self.world.lock().unwrap().users -= 1;
        self.sleepers.wake(EVENTS);
    }
    /// Sleeps until there is an event; `false`: there is none, and nobody is left to make one.
    pub fn wait_event(&self) -> bool {
        let mut any = false;
        self.wait(EVENTS, |world| {
            any = !world.events.is_empty();
            world.reader_idle = !any;
            if !any {
                self.sleepers.wake(IDLE);
            }
            any || world.users == 0
        });
        any
    }
    /// Sleeps until the reader has applied everything that it read.
    pub fn wait_applied(&self) {
        self.wait(IDLE, |world| world.reader_idle);
    }
    /// From now on the kernel has memory for `good` allocations, and after that refuses `bad` of them.
    pub fn run_out_of_memory(&self, good: u64, bad: u64) {
        self.world.lock().unwrap().out_of_memory = Some((good, bad));
    }

    /// How many of the refusals are still to come.
    pub fn refusals_left(&self) -> u64 {
        self.world.lock().unwrap().out_of_memory.map_or(0, |(_, bad)| bad)
    }

    pub fn present(&self, page: u64) -> Option<u64> {
        self.world.lock().unwrap().present.get(&no(page_at(page))).copied()
    }
    pub fn put(&self, page: u64, value: u64) {
        self.world.lock().unwrap().present.insert(no(page_at(page)), value);
    }
    pub fn has_events(&self) -> bool {
        !self.world.lock().unwrap().events.is_empty()
    }
    /// How often a range was woken in which nobody waited.
    pub fn idle_wakes(&self) -> u64 {
        self.world.lock().unwrap().idle_wakes
    }

    /// The switch point of an access by an engine to system memory; the access itself is one step with the engine's.
    pub fn dma_step(&self) {
        self.step();
    }
    /// That access: to the page that stands there now.
    pub fn dma(&self, phys: PhysAddr, change: &impl Fn(u64) -> u64) -> Option<u64> {
        let mut world = self.world.lock().unwrap();
        let number = phys.0 / PAGE_BYTES;
        let old = *world.present.get(&number)?;
        world.present.insert(number, change(old));
        Some(old)
    }

    /// Returns whether anybody waited.
    fn wake_pages(&self, world: &mut World, range: VirtRange) -> bool {
        let mut any = false;
        for page in no(range.start())..no(range.end()) {
            if world.waiting.remove(&page) {
                any = true;
                self.sleepers.wake(FIRST_PAGE + page as usize);
            }
        }
        any
    }
}

impl Host for SimHost {
    fn window(&self) -> VirtRange {
        VirtRange::of_pages(VirtAddr(0), 1 << 35)
    }
    fn vma(&self, at: VirtAddr) -> Result<Lookup, HostError> {
        self.step();
        let world = self.world.lock().unwrap();
        let Some(here) = world.mapped.get(&no(at)).copied() else {
            return Ok(Lookup::Hole { until: at + PAGE_BYTES });
        };
        let same = |page: u64| world.mapped.get(&page) == Some(&here);
        let mut first = no(at);
        let mut end = first + 1;
        while same(first - 1) {
            first -= 1;
        }
        while same(end) {
            end += 1;
        }
        let range = VirtRange::of_pages(VirtAddr(first * PAGE_BYTES), end - first);
        Ok(Lookup::Mapped(Vma { range, access: Some(here.access), kind: here.kind }))
    }
    fn mirror(&self, range: VirtRange) -> Result<Mirrored, HostError> {
        self.step();
        let mut world = self.world.lock().unwrap();
        let mut was = Mirrored::Already;
        for page in no(range.start())..no(range.end()) {
            if !world.mapped.contains_key(&page) {
                return Err(HostError::NoMapping);
            }
            if world.mirrored.insert(page) {
                world.follows += 1;
                was = Mirrored::FromNow;
            }
        }
        Ok(was)
    }
    fn follow_count(&self) -> FollowCount {
        self.step();
        FollowCount(self.world.lock().unwrap().follows)
    }
    fn arm(&self, range: VirtRange) -> Result<(), HostError> {
        self.step();
        let mut world = self.world.lock().unwrap();
        world.allocate()?;
        world.armed.extend(no(range.start())..no(range.end()));
        Ok(())
    }
    fn disarm(&self, block: BlockNo) {
        self.step();
        let range = block.range();
        self.world.lock().unwrap().armed.retain(|page| !range.contains(VirtAddr(page * PAGE_BYTES)));
    }
    fn populate(&self, range: VirtRange, access: Access) -> Result<(), HostError> {
        self.step();
        let mut world = self.world.lock().unwrap();
        for page in no(range.start())..no(range.end()) {
            let here = world.mapped.get(&page).ok_or(HostError::NoMapping)?;
            if !here.access.covers(access) {
                return Err(HostError::NotPermitted);
            }
            if !world.present.contains_key(&page) {
                world.allocate()?;
                world.present.insert(page, 0);
            }
        }
        Ok(())
    }
    fn take(&self, block: BlockNo, pages: &PageMask, staging: StagingId) -> Take {
        self.step();
        let mut world = self.world.lock().unwrap();
        if world.changing > 0 {
            return Take { stopped: Some(HostError::Changing), ..Take::default() };
        }
        let mut take = Take::default();
        for page in pages.pages() {
            let number = no(block.page(page));
            if !world.mapped.contains_key(&number) {
                take.refused.insert(page);
                continue;
            }
            assert!(world.armed.contains(&number), "a page is taken that would not trap");
            if let Err(error) = world.allocate() {
                return Take { stopped: Some(error), ..take };
            }
            let value = world.present.remove(&number).unwrap_or(0);
            self.staging_words(staging)[page.0 as usize * WORDS_PER_PAGE].store(value, Relaxed);
            take.taken.insert(page);
        }
        take
    }
    fn drop_taken(&self, _: BlockNo, pages: &PageMask) -> PageMask {
        *pages
    }
    fn give(&self, block: BlockNo, pages: &PageMask, staging: StagingId) -> Give {
        let mut give = Give::default();
        for page in pages.pages() {
            let from = &self.staging_words(staging)[page.0 as usize * WORDS_PER_PAGE..][..WORDS_PER_PAGE];
            match self.give_words(block.page(page), from) {
                (1, Ok(())) => give.given.insert(page),
                (_, Err(HostError::Present)) => give.present.insert(page),
                (_, why) => {
                    give.stopped = why.err();
                    break;
                }
            }
        }
        give
    }
    fn give_words(&self, at: VirtAddr, words: &[Word]) -> (u64, Result<(), HostError>) {
        self.step();
        let mut world = self.world.lock().unwrap();
        if world.changing > 0 {
            return (0, Err(HostError::Changing));
        }
        if !world.mapped.contains_key(&no(at)) {
            return (0, Err(HostError::NoMapping));
        }
        if world.present.contains_key(&no(at)) {
            return (0, Err(HostError::Present));
        }
        if let Err(error) = world.allocate() {
            return (0, Err(error));
        }
        world.present.insert(no(at), words[0].load(Relaxed));
        world.poisoned.remove(&no(at));
        self.wake_pages(&mut world, VirtRange::of_pages(at, 1));
        (1, Ok(()))
    }
    fn fill_zero(&self, range: VirtRange) -> (u64, Result<(), HostError>) {
        self.step();
        let mut world = self.world.lock().unwrap();
        let mut filled = 0;
        for page in no(range.start())..no(range.end()) {
            if world.changing > 0 {
                return (filled, Err(HostError::Changing));
            }
            if !world.mapped.contains_key(&page) {
                return (filled, Err(HostError::NoMapping));
            }
            if world.present.contains_key(&page) {
                return (filled, Err(HostError::Present));
            }
            world.present.insert(page, 0);
            self.wake_pages(&mut world, VirtRange::of_pages(VirtAddr(page * PAGE_BYTES), 1));
            filled += 1;
        }
        (filled, Ok(()))
    }
    fn poison(&self, range: VirtRange) -> (u64, Result<(), HostError>) {
        self.step();
        let mut world = self.world.lock().unwrap();
        if world.changing > 0 {
            return (0, Err(HostError::Changing));
        }
        let mut poisoned = 0;
        for page in no(range.start())..no(range.end()) {
            if world.mapped.contains_key(&page) && !world.present.contains_key(&page) {
                poisoned += u64::from(world.poisoned.insert(page));
            }
        }
        self.wake_pages(&mut world, range);
        (poisoned, Ok(()))
    }
    fn unprotect(&self, _: VirtRange) -> Result<(), HostError> {
        // Nothing is ever protected here.
        Ok(())
    }

    fn wake(&self, range: VirtRange) {
        self.step();
        let mut world = self.world.lock().unwrap();
        if !self.wake_pages(&mut world, range) {
            world.idle_wakes += 1;
        }
    }
    fn staging(&self, _: &PageMask) -> Option<StagingId> {
        let mut world = self.world.lock().unwrap();
        let slot = world.staging_used.iter().position(|used| !used)?;
        world.staging_used[slot] = true;
        Some(StagingId(slot as u32))
    }
    fn staging_words(&self, staging: StagingId) -> &[Word] {
        let words = PAGES_PER_BLOCK * WORDS_PER_PAGE;
        &self.staging[staging.0 as usize * words..][..words]
    }
    fn staging_done(&self, staging: StagingId) {
        self.world.lock().unwrap().staging_used[staging.0 as usize] = false;
    }
    fn drain(&self, out: &mut [HostEvent]) -> usize {
        self.step();
        let mut world = self.world.lock().unwrap();
        // The kernel hands out faults before older events.
        let (faults, others): (VecDeque<_>, VecDeque<_>) =
            world.events.drain(..).partition(|(_, event)| matches!(event, HostEvent::Fault { .. }));
        let all: Vec<_> = faults.into_iter().chain(others).collect();
        let n = all.len().min(out.len());
        for (out, (_, event)) in out.iter_mut().zip(&all) {
            *out = *event;
        }
        world.events.extend(&all[n..]);
        self.sleepers.wake(READ);
        n
    }
    fn wait_word(&self, word: &AtomicU32, seen: u32, _: u64) {
        self.park.park(word, seen);
    }
    fn pause(&self) {
        yield_now();
    }
    fn child_fill(&self, _: u32, _: VirtAddr, _: &[Word]) {}
    fn child_done(&self, _: u32) {}
}
