//! Everything that a run has beside the library's own state: the address space, the devices, the scheduler, the oracle.
//!
//! The arena is five blocks across the border of two granules; a page is known by its number in it. Only the first word
//! of a page is ever looked at.

use std::cell::Cell;
use std::collections::BTreeMap;
use std::sync::{Mutex, MutexGuard, PoisonError};

use granule::ports::{HostEvent, VmaKind, WORDS_PER_PAGE, Word};
use granule::units::{Access, BLOCK_BYTES, PAGE_BYTES, PAGES_PER_BLOCK, VirtAddr, VirtRange};

use super::counts::{Counts, Did};
use super::device::DeviceState;
use super::fibers;
use super::oracle::{Checker, LifeNo, Oracle, Violation};
use super::plan::{Habit, Habits, Kind, Plan, Shape};
use super::random::Stream;
use super::scheduler::{Key, Scheduler};

/// Blocks of the arena.
pub const BLOCKS: usize = 5;
/// Pages of the arena.
pub const PAGES: usize = BLOCKS * PAGES_PER_BLOCK;
/// Its first block: the last but one of a granule.
pub const FIRST_BLOCK: u32 = 254;
/// Pages at which devices see userptrs at addresses of their own, behind the arena's.
pub const ALIASES: usize = 256;
/// Blocks of memory of each device.
pub const CHUNKS: usize = 1;
/// Staging slots that workers may have at once.
const WORKERS_SLOTS: usize = 4;
/// Staging slots for the reader: one per block, and one for a child.
const SLOTS: usize = WORKERS_SLOTS + BLOCKS + 2;

/// The address of a page.
pub fn at(page: usize) -> VirtAddr {
    VirtAddr(u64::from(FIRST_BLOCK) * BLOCK_BYTES + page as u64 * PAGE_BYTES)
}

/// Pages as a range of addresses.
pub fn range(pages: &std::ops::Range<usize>) -> VirtRange {
    VirtRange::of_pages(at(pages.start), pages.len() as u64)
}

/// The page of an address, if it lies in the arena.
pub fn page_of(address: u64) -> Option<usize> {
    let page = address.checked_sub(at(0).0)? / PAGE_BYTES;
    (page < PAGES as u64).then_some(page as usize)
}

/// The part of a range that lies in the arena.
pub fn pages_of(range: VirtRange) -> std::ops::Range<usize> {
    let clip = |address: u64| (address.saturating_sub(at(0).0) / PAGE_BYTES).min(PAGES as u64) as usize;
    clip(range.start().0)..clip(range.end().0)
}

/// One page of the address space.
#[derive(Clone, Copy, Debug, Default)]
pub struct Page {
    /// Number of its mapping; 0: none.
    pub mapping: u32,
    /// Whose contents it has, or had before they were taken.
    pub life: LifeNo,
    /// What the CPU sees, if it is present.
    pub value: u64,
    /// Some of the constants below.
    pub bits: u16,
}

/// The CPU has a page there.
pub const PRESENT: u16 = 1;
/// Its contents were taken and not given back.
pub const AWAY: u16 = 2;
/// The kernel delivers changes of its mapping.
pub const FOLLOWED: u16 = 4;
/// The kernel traps touches while it is absent.
pub const TRAPPED: u16 = 8;
/// A touch is an error while it is absent.
pub const POISONED: u16 = 16;
/// A child has it, too, until somebody writes.
pub const SHARED: u16 = 32;
/// The host's table says that it is followed. This and what stands below outlives the mapping until its event is read.
pub const TABLE_FOLLOWED: u16 = 64;
/// The host's table says that it is trapped.
pub const TABLE_TRAPPED: u16 = 128;
/// A madvise whose event was read may still discard it.
pub const REMOVING: u16 = 256;
/// What belongs to the host and not to the kernel.
pub const TABLES: u16 = TABLE_FOLLOWED | TABLE_TRAPPED | REMOVING;

impl Page {
    /// Whether all of these bits are set.
    pub fn has(&self, bits: u16) -> bool {
        self.bits & bits == bits
    }
    /// Sets or clears bits.
    pub fn set(&mut self, bits: u16, on: bool) {
        self.bits = if on { self.bits | bits } else { self.bits & !bits };
    }
}

/// A mapping's constants.
#[derive(Clone, Copy, Debug)]
pub struct Mapping {
    /// What the CPU may do.
    pub access: Access,
    /// Whether it may move.
    pub kind: VmaKind,
}

impl Mapping {
    fn of(kind: Kind) -> Self {
        match kind {
            Kind::Plain => Self { access: Access::Write, kind: VmaKind::Movable },
            Kind::ReadOnly => Self { access: Access::Read, kind: VmaKind::Movable },
            Kind::Linked => Self { access: Access::Write, kind: VmaKind::LinkOnly },
        }
    }
}

/// What a child must be given: where, which contents, how many writes they had seen when it was made.
pub struct Child {
    /// Pages that were away.
    pub owed: Vec<(usize, LifeNo, u32)>,
    /// What it was given.
    pub given: BTreeMap<usize, u64>,
    /// It goes on alone.
    pub is_done: bool,
}

/// The kernel.
pub struct Kernel {
    /// By number.
    pub pages: Vec<Page>,
    /// By number less one.
    pub mappings: Vec<Mapping>,
    /// What waits to be read: number, who waits for its reading, event.
    pub events: Vec<(u64, usize, HostEvent)>,
    /// Events made so far.
    pub made: u64,
    /// Calls whose event is not read, or whose caller has not run since.
    pub changing: u32,
    /// Of each fiber, how many of its events are not read.
    pub unread: [u32; super::scheduler::MOST_FIBERS],
    /// Threads that wait for a page.
    pub waiting: Vec<(usize, usize)>,
    /// How often something was followed that was not before.
    pub follows: u64,
    /// Which staging slots are in use.
    pub slots: [bool; SLOTS],
    /// Made by raw clones.
    pub children: Vec<Child>,
    /// Wake-ups of whole blocks, and answers that a page was present already.
    pub block_wakes: u64,
    /// See `block_wakes`.
    pub presents: u64,
}

/// What a lock guards.
pub struct State {
    /// Who goes on.
    pub scheduler: Scheduler,
    /// What every page must hold.
    pub oracle: Oracle,
    /// The address space.
    pub kernel: Kernel,
    /// The devices.
    pub devices: Vec<DeviceState>,
    /// What happened.
    pub counts: Counts,
    /// The first thing that was wrong.
    pub violation: Option<Violation>,
    /// What fails, and what a policy answers.
    pub chance: Stream,
    /// What the world may do.
    pub habits: Habits,
    /// Nothing fails any more.
    pub is_closing: bool,
    /// Everything that happened, in one word.
    pub digest: u64,
    /// The next fault's own name.
    pub cookie: u64,
    /// So many copies out fail in a row.
    pub failing_copies: u64,
    /// The operations that were begun, in order.
    pub begun: Vec<super::plan::Op>,
    /// Every step in words, if somebody wants to read them.
    pub log: Option<Vec<String>>,
}

/// See the module header.
pub struct World {
    state: Mutex<State>,
    /// The constants of this run.
    pub shape: Shape,
    /// Which fiber is the reader.
    pub reader: usize,
    /// Memory of devices and staging.
    pub memory: &'static Memory,
}

/// Memory that a thread uses for one run after the other: what an earlier run left in it is no stamp of this one.
pub struct Memory {
    words: Vec<Word>,
}

thread_local! {
    static MEMORY: &'static Memory = Memory::leak();
    static RUNS: Cell<u64> = const { Cell::new(0) };
}

impl Memory {
    fn leak() -> &'static Self {
        let pages = (SLOTS + 2 * CHUNKS) * PAGES_PER_BLOCK;
        Box::leak(Box::new(Self {
            words: std::iter::repeat_with(|| Word::new(0)).take(pages * WORDS_PER_PAGE).collect(),
        }))
    }
    fn blocks(&self, first: usize, count: usize) -> &[Word] {
        const WORDS: usize = PAGES_PER_BLOCK * WORDS_PER_PAGE;
        &self.words[first * WORDS..(first + count) * WORDS]
    }
    /// A staging slot.
    pub fn staging(&self, slot: usize) -> &[Word] {
        self.blocks(slot, 1)
    }
    /// The memory of a device.
    pub fn device(&self, no: usize) -> &[Word] {
        self.blocks(SLOTS + no * CHUNKS, CHUNKS)
    }
}

impl World {
    /// The world at the start of a plan, for `fibers` fibers of which `clients` are waited for.
    pub fn new(plan: &Plan, fibers: usize, clients: u32, reader: usize) -> Self {
        let shape = plan.shape();
        let habits = plan.habits();
        let tag = RUNS.get() + 1;
        RUNS.set(tag);
        let mut kernel = Kernel {
            pages: vec![Page::default(); PAGES],
            mappings: Vec::new(),
            events: Vec::new(),
            made: 0,
            changing: 0,
            unread: Default::default(),
            waiting: Vec::new(),
            follows: 0,
            slots: [false; SLOTS],
            children: Vec::new(),
            block_wakes: 0,
            presents: 0,
        };
        let mut oracle = Oracle::new(tag);
        for (range, kind) in &shape.layout {
            kernel.map(&mut oracle, range.clone(), *kind);
        }
        let devices = if habits.has(Habit::Second) { 2 } else { 1 };
        let state = State {
            scheduler: Scheduler::new(plan.schedule_seed(), fibers, clients, plan.steps),
            oracle,
            kernel,
            devices: (0..devices).map(|_| DeviceState::new(shape.buffer)).collect(),
            counts: Counts::default(),
            violation: None,
            chance: Stream::new(plan.seed, 3),
            habits,
            is_closing: false,
            digest: 0,
            cookie: 0,
            failing_copies: 0,
            begun: Vec::new(),
            log: plan.log.then(Vec::new),
        };
        Self { state: Mutex::new(state), shape, reader, memory: MEMORY.with(|memory| *memory) }
    }

    /// The state, for a moment. Never held where a fiber may be stopped.
    pub fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// A point at which others may run, before this happens.
    pub fn step(&self, did: Did) {
        self.state().did(did);
        fibers::switch();
    }

    /// As [`World::step`], for what gets nowhere before somebody else has run.
    pub fn pause(&self, did: Did) {
        assert!(fibers::is_inside(), "somebody waits for a change after everybody has ended");
        let mut state = self.state();
        state.did(did);
        state.scheduler.pause();
        drop(state);
        fibers::switch();
    }

    /// The running fiber waits for `key`, which the caller has set under this guard.
    pub fn wait(&self, mut state: MutexGuard<'_, State>, key: Key) {
        assert!(fibers::is_inside(), "somebody waits for {key:?} after everybody has ended");
        state.scheduler.wait_for(key);
        drop(state);
        fibers::switch();
    }
}

impl State {
    /// Counts a step.
    pub fn did(&mut self, did: Did) {
        self.counts.step(did);
        let running = self.scheduler.running() as u64;
        self.digest = crate::seed::word(self.digest, (did as u64) << 8 | running);
        self.note(|| did.says().to_owned());
    }

    /// A line for who reads along.
    pub fn note(&mut self, line: impl FnOnce() -> String) {
        if let Some(log) = &mut self.log {
            let (step, running) = (self.scheduler.steps, self.scheduler.running());
            log.push(format!("{step:>6} {running:>2} {}: {}", super::actors::name(running), line()));
        }
    }

    /// Notes what is wrong; the first one counts. The run ends at the next step.
    pub fn violate(&mut self, checker: Checker, what: impl Into<String>) {
        if self.violation.is_none() {
            self.violation = Some(Violation { checker, what: what.into() });
        }
    }

    /// Notes an error of the oracle's.
    pub fn judge<T>(&mut self, judged: Result<T, Violation>) -> Option<T> {
        judged.map_err(|violation| self.violate(violation.checker, violation.what)).ok()
    }

    /// Whether something fails now: once in `times`, if the world has this habit.
    pub fn fails(&mut self, habit: Habit, times: u64) -> bool {
        self.habits.has(habit) && !self.is_closing && self.chance.once_in(times)
    }

    /// Threads that wait for a page of the range go on. Whether any did.
    pub fn wake_pages(&mut self, pages: std::ops::Range<usize>) -> bool {
        let (kernel, scheduler) = (&mut self.kernel, &mut self.scheduler);
        let before = kernel.waiting.len();
        kernel.waiting.retain(|(page, fiber)| {
            let woken = pages.contains(page);
            if woken {
                scheduler.wake_fiber(*fiber);
            }
            !woken
        });
        if kernel.waiting.len() == before {
            return false;
        }
        // Whoever does not wait any more has no message.
        kernel.events.retain(|(_, _, event)| match event {
            HostEvent::Fault { at, .. } => page_of(at.0).is_none_or(|page| !pages.contains(&page)),
            _ => true,
        });
        true
    }

    /// An event for the reader.
    pub fn push(&mut self, event: HostEvent) -> u64 {
        self.kernel.made += 1;
        self.kernel.events.push((self.kernel.made, self.scheduler.running(), event));
        self.scheduler.wake(Key::Events);
        self.kernel.made
    }
}

impl Kernel {
    /// Maps the pages of a range that are not mapped. Whether there were any.
    pub fn map(&mut self, oracle: &mut Oracle, pages: std::ops::Range<usize>, kind: Kind) -> bool {
        self.mappings.push(Mapping::of(kind));
        let number = self.mappings.len() as u32;
        let mut any = false;
        for page in pages {
            let here = &mut self.pages[page];
            if here.mapping == 0 {
                any = true;
                let life = oracle.begin(page, kind != Kind::ReadOnly);
                *here = Page { mapping: number, life, value: 0, bits: here.bits & TABLES };
            }
        }
        any
    }

    /// The mapping of a page.
    pub fn mapping(&self, page: usize) -> Option<Mapping> {
        let number = self.pages[page].mapping.checked_sub(1)?;
        Some(self.mappings[number as usize])
    }

    /// The pages around one that are of the same mapping.
    pub fn extent(&self, page: usize) -> std::ops::Range<usize> {
        let number = self.pages[page].mapping;
        let same = |at: usize| self.pages[at].mapping == number;
        let start = (0..page).rev().take_while(|at| same(*at)).last().unwrap_or(page);
        let end = (page + 1..PAGES).find(|at| !same(*at)).unwrap_or(PAGES);
        start..end
    }
}
