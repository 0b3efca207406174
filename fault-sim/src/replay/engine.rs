use granule::policy::Granularity;
use granule::units::{PAGE_BYTES, PAGES_PER_BLOCK, PageIndex, PageMask};
use thiserror::Error;

use super::cost::Phase;
use super::{Block, Blocks, Cost, Future, Metrics};
use crate::policy::catalogue::Set;
use crate::policy::{Batch, Batching, Eviction, Prefetcher, RawFault, Replay, Residency, unit_of};
use crate::processor;
use crate::trace::{Access, Event, EventKind};

/// Events whose blocks are fetched ahead of their turn, side by side.
const AHEAD: usize = 32;
/// The least device memory: two blocks, so that one can be filled while another one leaves.
const LEAST_PAGES: u64 = 2 * PAGES_PER_BLOCK as u64;
/// The same in bytes.
pub const LEAST_BYTES: u64 = LEAST_PAGES * PAGE_BYTES;

/// The device and the driver of one replay, beside its policies.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Limits {
    /// Device memory in bytes.
    pub device_bytes: u64,
    /// Faults that the device can have open before it stands still.
    pub outstanding: usize,
    /// Every page has contents in system memory from the start.
    pub data_on_cpu: bool,
    /// A page that comes back within so many evictions is a refault.
    pub refault_window: u64,
}

impl Limits {
    /// The defaults, with this much device memory.
    pub fn new(device_bytes: u64) -> Self {
        Self { device_bytes, outstanding: 256, data_on_cpu: true, refault_window: 64 }
    }
}

/// Why a replay cannot begin.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Error)]
pub enum SetupError {
    /// Too little device memory.
    #[error("device memory of {0} bytes is too small to replay with; give at least 4MiB")]
    TooSmall(u64),
    /// No fault may be open.
    #[error("at least one fault must be allowed to be outstanding")]
    NoOutstanding,
}

/// One replay.
pub struct Engine {
    pub(super) blocks: Blocks,
    pub(super) prefetch: Box<dyn Prefetcher>,
    pub(super) eviction: Box<dyn Eviction>,
    pub(super) residency: Box<dyn Residency>,
    batching: Box<dyn Batching>,
    pub(super) unit: Granularity,
    sees_hits: bool,
    replay: Replay,
    pub(super) cost: Cost,
    pub(super) limits: Limits,
    /// Pages of device memory, and those that no unit has.
    all_pages: u64,
    pub(super) free_pages: u64,
    pub(super) metrics: Metrics,
    /// The device's clock, and how far it is behind the trace's.
    pub(super) device_ns: u64,
    pub(super) shift_ns: u64,
    latest_ns: u64,
    begun_ns: Option<u64>,
    /// When the driver is done with what it has.
    pub(super) driver_free_ns: u64,
    /// When the driver starts on what is in the buffer; `u64::MAX` if nothing is.
    starts_ns: u64,
    /// The driver's clock while it serves, and when its batch began.
    pub(super) now_ns: u64,
    batch_ns: u64,
    buffer: Vec<RawFault>,
    batch: Batch,
    done_ns: Vec<u64>,
    /// Arrivals of who was served and waits for the replay at the end of the loop.
    held: Vec<u64>,
    batches_in_service: u32,
    /// The blocks of the batch that is being served.
    coming: Vec<u32>,
}

/// The blocks of one batch.
struct Services<'a> {
    engine: &'a mut Engine,
    keys: &'a [u64],
}

impl processor::Work for Services<'_> {
    type Found = u64;
    #[inline(always)]
    fn run(self) -> u64 {
        self.engine.serve_blocks(self.keys)
    }
}

impl Engine {
    /// A replay with these policies.
    ///
    /// # Errors
    /// The limits leave nothing to replay with.
    pub fn new(set: Set, cost: Cost, limits: Limits) -> Result<Self, SetupError> {
        let unit = set.eviction.unit();
        let pages = limits.device_bytes / PAGE_BYTES / unit.pages() as u64 * unit.pages() as u64;
        if pages < LEAST_PAGES {
            return Err(SetupError::TooSmall(limits.device_bytes));
        }
        if limits.outstanding == 0 {
            return Err(SetupError::NoOutstanding);
        }
        Ok(Self {
            blocks: Blocks::new(limits.data_on_cpu),
            sees_hits: set.eviction.sees_hits(),
            replay: set.batching.replay(),
            prefetch: set.prefetch,
            eviction: set.eviction,
            residency: set.residency,
            // Who serves one fault at a time cannot have more of them waiting than it reads.
            limits: Limits { outstanding: limits.outstanding.min(set.outstanding), ..limits },
            batching: set.batching,
            unit,
            cost,
            all_pages: pages,
            free_pages: pages,
            metrics: Metrics::default(),
            device_ns: 0,
            shift_ns: 0,
            latest_ns: 0,
            begun_ns: None,
            driver_free_ns: 0,
            starts_ns: u64::MAX,
            now_ns: 0,
            batch_ns: 0,
            buffer: Vec::new(),
            batch: Batch::default(),
            done_ns: Vec::new(),
            held: Vec::new(),
            batches_in_service: 0,
            coming: Vec::new(),
        })
    }

    /// Numbers blocks in the order in which a future numbers them. Must come before the first event.
    pub fn expect(&mut self, future: &Future) {
        future.first_pages().for_each(|page| {
            self.blocks.number(page);
        });
    }

    /// Plays these events, which follow those of the last call.
    pub fn feed(&mut self, events: &[Event]) {
        for events in events.chunks(AHEAD) {
            let mut blocks = [0; AHEAD];
            for (event, block) in events.iter().zip(&mut blocks) {
                if matches!(event.kind, EventKind::Access | EventKind::DeviceFault) {
                    *block = self.blocks.number(event.page);
                    self.blocks.fetch(*block);
                }
            }
            for (event, block) in events.iter().zip(blocks) {
                self.event(event, block);
            }
        }
    }

    #[inline]
    fn event(&mut self, event: &Event, block: u32) {
        self.metrics.events += 1;
        self.blocks.position += 1;
        if event.time_ns < self.latest_ns {
            self.metrics.time_backwards += 1;
        }
        self.latest_ns = self.latest_ns.max(event.time_ns);
        self.begun_ns.get_or_insert(event.time_ns);
        self.device_ns = self.device_ns.max(self.latest_ns.saturating_add(self.shift_ns));
        while self.device_ns > self.starts_ns {
            self.serve();
        }
        match event.kind {
            EventKind::Access | EventKind::DeviceFault => self.touch(event, block),
            EventKind::CpuFault => self.cpu_touch(event),
            EventKind::Migration => self.metrics.not_replayed += 1,
            EventKind::Unmap => self.unmap(event),
            EventKind::Map => self.map(event),
            EventKind::Advice => self.advise(event),
        }
    }

    #[inline]
    fn touch(&mut self, event: &Event, block: u32) {
        let page = event.page as usize % PAGES_PER_BLOCK;
        let index = PageIndex(page as u16);
        let (state, rare) = self.blocks.both_mut(block);
        if state.resident.contains(index) {
            if !(event.access.writes() && state.some_shared && rare.duplicated.contains(index)) {
                self.metrics.hits += 1;
                if state.marked.contains(index) {
                    self.metrics.prefetch_hits += 1;
                    self.metrics.prefetch_late += u64::from(self.device_ns < state.ready_ns);
                    *state.marked -= PageMask::of(index);
                }
                if event.access.writes() {
                    rare.dirty.insert(index);
                    state.some_dirty = true;
                }
                if self.sees_hits {
                    self.eviction.hit(unit_of(self.unit, block, page), self.blocks.position);
                }
                return;
            }
        } else if state.some_shared && rare.linked.contains(index) {
            self.remote(event, block, page);
            return;
        }
        if self.buffer.is_empty() {
            let wakes = self.device_ns.saturating_add(self.cost.interrupt_ns);
            self.starts_ns = wakes.max(self.driver_free_ns);
            if wakes >= self.driver_free_ns {
                self.batches_in_service = 0;
                self.spend_aside(Phase::Interrupt, self.cost.interrupt_ns);
            }
        }
        self.buffer.push(RawFault {
            page: event.page,
            arrival_ns: self.device_ns,
            block,
            engine: event.engine,
            access: event.access,
        });
        if self.buffer.len() >= self.limits.outstanding {
            // The device stands still until somebody can go on.
            let stood_still = self.device_ns;
            while self.buffer.len() >= self.limits.outstanding {
                self.serve();
            }
            self.hold_device_until(self.driver_free_ns);
            self.metrics.stalled_ns += self.device_ns - stood_still;
        }
    }

    /// Serves what the device asked of a block before the CPU touches or unmaps something there: what happens in a trace
    /// happens in its order.
    pub(super) fn settle(&mut self, block: u32) {
        while self.buffer.iter().any(|fault| fault.block == block) {
            self.serve();
            self.hold_device_until(self.driver_free_ns);
        }
    }

    /// The device does nothing before this time; all later events are that much later.
    pub(super) fn hold_device_until(&mut self, until_ns: u64) {
        if until_ns > self.device_ns {
            self.shift_ns += until_ns - self.device_ns;
            self.device_ns = until_ns;
        }
    }

    /// Counts time that does not move the driver's clock.
    pub(super) fn spend_aside(&mut self, phase: Phase, ns: u64) {
        self.metrics.phase_ns[phase as usize] += ns;
    }

    /// Lets the driver's clock go on.
    #[inline]
    pub(super) fn spend(&mut self, phase: Phase, ns: u64) {
        self.metrics.phase_ns[phase as usize] += ns;
        self.now_ns += ns;
    }

    /// Serves one batch. The buffer must not be empty.
    fn serve(&mut self) {
        self.now_ns = self.starts_ns;
        self.batch_ns = self.now_ns;
        if self.batches_in_service == self.batching.batches_per_service() {
            self.batches_in_service = 0;
            self.spend(Phase::Interrupt, self.cost.interrupt_ns);
        }
        self.batches_in_service += 1;
        self.expire();
        self.batch.keys.clear();
        self.batch.stands_for.clear();
        let count = self.batching.read(&self.buffer, &mut self.batch);
        self.done_ns.clear();
        self.done_ns.resize(count, 0);
        self.metrics.batches += 1;
        self.metrics.faults += count as u64;
        self.metrics.faults_coalesced += (count - self.batch.keys.len()) as u64;
        self.spend(Phase::Fetch, self.cost.fetch_entry_ns * count as u64);
        self.spend(Phase::Preprocess, self.cost.preprocess_entry_ns * self.batch.keys.len() as u64);
        let keys = std::mem::take(&mut self.batch.keys);
        let keys = self.sorted(keys);
        self.fetch_ahead(&keys);
        let throttled_until = processor::fast(Services { engine: self, keys: &keys });
        self.batch.keys = keys;
        self.end_batch(count, throttled_until);
    }

    fn sorted(&self, mut keys: Vec<u64>) -> Vec<u64> {
        if !keys.is_sorted() {
            keys.sort_unstable();
        }
        keys
    }

    /// Fetches what the batch will look at, side by side: its blocks once more, for the faults may be long ago, what the
    /// residency policy keeps of them, and those that will most likely leave.
    fn fetch_ahead(&mut self, keys: &[u64]) {
        self.coming.clear();
        for key in keys {
            let block = self.buffer[Batch::position(*key)].block;
            if self.coming.last() != Some(&block) {
                self.blocks.fetch(block);
                self.coming.push(block);
            }
        }
        self.residency.soon(&self.coming);
        if self.free_pages < (PAGES_PER_BLOCK * keys.len()) as u64 {
            self.eviction.soon(keys.len()).for_each(|block| self.blocks.fetch(block));
        }
    }

    /// Serves the blocks of a batch in order. Returns until when somebody was throttled; `u64::MAX` if nobody was.
    #[inline(always)]
    fn serve_blocks(&mut self, keys: &[u64]) -> u64 {
        let mut throttled_until = u64::MAX;
        let mut from = 0;
        while from < keys.len() {
            let block = self.buffer[Batch::position(keys[from])].block;
            let pages = Batch::page(keys[from]) | (PAGES_PER_BLOCK as u64 - 1);
            let length = keys[from..].iter().take_while(|key| Batch::page(**key) <= pages).count();
            let until = self.service(block, &keys[from..from + length]);
            throttled_until = throttled_until.min(until);
            if self.replay == Replay::EachBlock {
                self.spend(Phase::Replay, self.cost.replay_ns);
                keys[from..from + length].iter().for_each(|key| {
                    self.done_ns[Batch::position(*key)] = self.now_ns;
                });
            }
            from += length;
        }
        throttled_until
    }

    /// Lets go of who was served, keeps who was throttled, and says when the driver goes on.
    fn end_batch(&mut self, count: usize, throttled_until: u64) {
        let once = self.replay == Replay::Once;
        let drained = count == self.buffer.len();
        if matches!(self.replay, Replay::EachBatch | Replay::Flush) || (once && drained) {
            self.spend(Phase::Replay, self.cost.replay_ns);
        }
        let now = self.now_ns;
        if drained && throttled_until == u64::MAX && matches!(self.replay, Replay::EachBatch | Replay::Flush)
        {
            self.metrics.serving.add_many(now - self.batch_ns, self.buffer.len() as u64);
            for fault in self.buffer.drain(..) {
                self.metrics.waiting.add(self.batch_ns.saturating_sub(fault.arrival_ns));
                self.metrics.latency.add(now.saturating_sub(fault.arrival_ns));
            }
            self.starts_ns = u64::MAX;
            self.driver_free_ns = now;
            return;
        }
        let (mut kept, mut served) = (0, 0u64);
        for at in 0..self.buffer.len() {
            let fault = self.buffer[at];
            let state = self.blocks.get(fault.block);
            let index = PageIndex((fault.page % PAGES_PER_BLOCK as u64) as u16);
            let has = |state: &Block| {
                if !state.some_shared {
                    return state.resident.contains(index);
                }
                let rare = self.blocks.rare(fault.block);
                let there = state.resident.contains(index);
                there && !(fault.access.writes() && rare.duplicated.contains(index))
                    || rare.linked.contains(index)
            };
            let goes = if at < count {
                // Whoever was throttled stays; who was served and evicted again within the batch faults again later.
                throttled_until == u64::MAX || has(state)
            } else if self.replay == Replay::Flush {
                self.metrics.faults_reappeared += u64::from(!has(state));
                has(state)
            } else {
                false
            };
            if goes {
                let by = if at < count { usize::from(self.batch.stands_for[at]) } else { 0 };
                let done =
                    if at < count && self.replay == Replay::EachBlock { self.done_ns[by] } else { now };
                served += 1;
                if once {
                    self.held.push(fault.arrival_ns);
                } else {
                    self.metrics.ended(fault.arrival_ns, self.batch_ns, done);
                }
            } else {
                self.buffer[kept] = fault;
                kept += 1;
            }
        }
        self.buffer.truncate(kept);
        if once && drained {
            self.held.drain(..).for_each(|arrival_ns| self.metrics.ended(arrival_ns, self.batch_ns, now));
        }
        if self.buffer.is_empty() {
            self.starts_ns = u64::MAX;
        } else if served == 0 && throttled_until != u64::MAX {
            let waits = throttled_until.max(now + 1);
            self.spend(Phase::Throttle, waits - now);
            self.starts_ns = waits;
        } else {
            self.starts_ns = now;
        }
        self.driver_free_ns = self.now_ns;
    }

    /// Serves what is left and says what was counted.
    pub fn finish(mut self) -> (Metrics, Blocks) {
        while !self.buffer.is_empty() {
            self.serve();
        }
        let end = self.device_ns.max(self.driver_free_ns);
        self.metrics.total_ns = end - self.begun_ns.unwrap_or(end).min(end);
        (self.metrics, self.blocks)
    }

    /// A touch through the bus; the residency policy may have had enough of them.
    fn remote(&mut self, event: &Event, block: u32, page: usize) {
        self.metrics.remote_touches += 1;
        self.hold_device_until(self.device_ns + self.cost.remote_access_ns);
        self.count_remote(block, page, event.access);
    }

    /// Time of the device since the first event.
    pub fn time_ns(&self) -> u64 {
        self.device_ns - self.begun_ns.unwrap_or(self.device_ns).min(self.device_ns)
    }

    /// Pages of device memory that are in use, in whole units of the eviction policy.
    pub fn held_pages(&self) -> u64 {
        self.all_pages - self.free_pages
    }

    /// What the policies work on.
    pub fn blocks(&self) -> &Blocks {
        &self.blocks
    }

    /// What was counted so far.
    pub fn metrics(&self) -> &Metrics {
        &self.metrics
    }

    /// An access as a fault by the device.
    pub(super) fn access_of(writes: bool) -> Access {
        if writes { Access::Write } else { Access::Read }
    }
}
