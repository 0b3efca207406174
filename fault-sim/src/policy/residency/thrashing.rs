//! NVIDIA's detection of thrashing, for the CPU and one device.
//!
//! Left out, since nothing of it exists here: revocations of permissions, links over which processors reach one another
//! with native atomics, more than one device.

use std::collections::VecDeque;

use granule::units::{PAGES_PER_BLOCK, PageIndex, PageMask};

use super::{Lapse, LapseRule};
use crate::policy::Cause;
use crate::processor;
use crate::replay::Proc;

/// The driver's parameters, with its defaults.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct ThrashingOptions {
    /// `uvm_perf_thrashing_threshold`: moves within the lapse that make a page thrash.
    pub threshold: u8,
    /// `uvm_perf_thrashing_pin_threshold`: throttles after which it is pinned.
    pub pin_threshold: u8,
    /// `uvm_perf_thrashing_lapse_usec`, in nanoseconds.
    pub lapse_ns: u64,
    /// `uvm_perf_thrashing_nap`, in lapses.
    pub nap: u64,
    /// `uvm_perf_thrashing_epoch`, in lapses.
    pub epoch: u64,
    /// `uvm_perf_thrashing_pin`, in lapses; 0: for ever.
    pub pin: u64,
    /// `uvm_perf_thrashing_max_resets`.
    pub max_resets: u8,
    /// How the lapse changes.
    pub rule: LapseRule,
}

impl Default for ThrashingOptions {
    fn default() -> Self {
        Self {
            threshold: 3,
            pin_threshold: 10,
            lapse_ns: 500_000,
            nap: 1,
            epoch: 2000,
            pin: 300,
            max_resets: 4,
            rule: LapseRule::Fixed,
        }
    }
}

/// The slack of the driver's timer that ends pins.
const TIMER_SLACK_NS: u64 = 20_000;
/// Times are kept without their low bits.
const LOW_BITS: u64 = 63;
/// Events are counted in three bits.
const MOST_EVENTS: u8 = 7;

/// What to do with a fault on a page.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Hint {
    /// Nothing special.
    None,
    /// It shall be there for a while, and who else touches it maps it there.
    Pin(Proc),
    /// Who faulted waits until then.
    Throttle(u64),
}

/// A set of processors.
#[derive(Clone, Copy, Default, Debug, PartialEq, Eq)]
struct Procs(u8);

impl Procs {
    fn bit(proc: Proc) -> u8 {
        1 << proc as u8
    }
    fn add(&mut self, proc: Proc) {
        self.0 |= Self::bit(proc);
    }
    fn remove(&mut self, proc: Proc) {
        self.0 &= !Self::bit(proc);
    }
    fn has(self, proc: Proc) -> bool {
        self.0 & Self::bit(proc) != 0
    }
    /// Whether all of them reach memory of `place`: the device reaches all, the CPU only its own.
    fn all_reach(self, place: Proc) -> bool {
        place == Proc::Cpu || !self.has(Proc::Cpu)
    }
}

fn reaches(proc: Proc, place: Proc) -> bool {
    proc == place || proc == Proc::Device
}

#[derive(Clone, Copy, Default, Debug)]
struct Page {
    last_ns: u64,
    throttle_end_ns: u64,
    /// When its pin was set, which tells its end in the queue from that of an earlier one.
    pinned_ns: u64,
    events: u8,
    throttle_count: u8,
    procs: Procs,
    throttled: Procs,
    pinned: Option<Proc>,
    do_not_throttle: Option<Proc>,
}

impl Page {
    /// Everything but the count of throttles and who is not throttled.
    fn reset(&mut self) {
        let kept = (self.throttle_count, self.do_not_throttle);
        *self = Self::default();
        (self.throttle_count, self.do_not_throttle) = kept;
    }
}

/// What every migration to a block needs to know, in 24 bytes: most blocks never have more.
#[derive(Clone, Default, Debug)]
struct BlockState {
    last_ns: u64,
    detail: Option<Box<Detail>>,
    last_proc: Option<Proc>,
    resets: u8,
}

/// What is kept of a block once pages went back and forth there.
#[derive(Clone, Debug)]
struct Detail {
    pages: [Page; PAGES_PER_BLOCK],
    last_thrash_ns: u64,
    thrashing: PageMask,
    pinned: PageMask,
    /// Only ever grows: after the first pin a block is not reset by epoch any more, as in the driver.
    pinned_count: u32,
}

impl Default for Detail {
    fn default() -> Self {
        Self {
            pages: [Page::default(); PAGES_PER_BLOCK],
            last_thrash_ns: 0,
            thrashing: PageMask::EMPTY,
            pinned: PageMask::EMPTY,
            pinned_count: 0,
        }
    }
}

/// What is known of all blocks.
#[derive(Clone, Debug)]
pub struct Thrashing {
    options: ThrashingOptions,
    lapse: Lapse,
    blocks: Vec<BlockState>,
    /// Pins in the order in which they end: when, block, page, when it was set.
    pins: VecDeque<(u64, u32, u16, u64)>,
}

impl Thrashing {
    /// Nothing is known.
    pub fn new(options: ThrashingOptions) -> Self {
        let lapse = Lapse::new(options.rule, options.lapse_ns);
        Self { options, lapse, blocks: Vec::new(), pins: VecDeque::new() }
    }

    fn block(&mut self, block: u32) -> &mut BlockState {
        if block as usize >= self.blocks.len() {
            self.blocks.resize_with(block as usize + 1, BlockState::default);
        }
        &mut self.blocks[block as usize]
    }

    /// Whether no fault on this block can be answered with anything but [`Hint::None`].
    pub fn is_quiet(&self, block: u32) -> bool {
        self.blocks.get(block as usize).is_none_or(|state| state.detail.is_none())
    }

    /// A block will be asked about soon.
    #[inline]
    pub fn soon(&self, block: u32) {
        if let Some(state) = self.blocks.get(block as usize) {
            processor::fetch(state);
        }
    }

    /// Pages that thrash, if any does.
    pub fn mask(&self, block: u32) -> Option<&PageMask> {
        let mask = &self.blocks.get(block as usize)?.detail.as_ref()?.thrashing;
        (!mask.is_empty()).then_some(mask)
    }

    /// Pages were moved. `duplicates`: the block allows duplicates, for which nothing thrashes.
    pub fn moved(
        &mut self,
        block: u32,
        pages: &PageMask,
        to: Proc,
        cause: Cause,
        duplicates: bool,
        now_ns: u64,
    ) {
        if cause == Cause::Eviction {
            return;
        }
        let (lapse_ns, threshold) = (self.lapse.ns(), self.options.threshold);
        let state = self.block(block);
        let Some(detail) = &mut state.detail else {
            let bounced = state.last_ns != 0
                && state.last_proc != Some(to)
                && now_ns.saturating_sub(state.last_ns) <= lapse_ns;
            if bounced && !duplicates {
                let detail = state.detail.insert(Box::default());
                detail.moved(pages, to, lapse_ns, threshold, now_ns);
            } else if !duplicates {
                (state.last_ns, state.last_proc) = (now_ns.max(1), Some(to));
            }
            return;
        };
        if duplicates {
            detail.reset_pages(&(*pages & detail.thrashing));
        } else if !detail.pinned.covers(pages) {
            detail.moved(pages, to, lapse_ns, threshold, now_ns);
        }
    }

    /// What to do with a fault.
    pub fn hint(&mut self, block: u32, index: usize, by: Proc, preferred: Option<Proc>, now_ns: u64) -> Hint {
        if self.is_quiet(block) {
            return Hint::None;
        }
        let options = self.options;
        let state = &mut self.blocks[block as usize];
        let Some(detail) = &mut state.detail else { return Hint::None };
        let epoch_ns = options.epoch * options.lapse_ns;
        if detail.last_thrash_ns != 0
            && now_ns.saturating_sub(detail.last_thrash_ns) > epoch_ns
            && detail.pinned_count == 0
            && state.resets < options.max_resets
        {
            *state = BlockState { resets: state.resets + 1, ..BlockState::default() };
            return Hint::None;
        }
        let page = &mut detail.pages[index];
        if page.events < options.threshold {
            return Hint::None;
        }
        let is_free = |page: &Page| page.do_not_throttle == Some(by);
        if page.throttled.has(by) {
            if now_ns < page.throttle_end_ns && !is_free(page) {
                return Hint::Throttle(page.throttle_end_ns);
            }
            page.throttled.remove(by);
        }
        let gap_ns = now_ns.saturating_sub(page.last_ns);
        self.lapse.vote(gap_ns);
        if gap_ns > self.lapse.ns() && page.pinned.is_none() {
            return Hint::None;
        }
        page.procs.add(by);
        if now_ns > page.throttle_end_ns {
            page.throttle_end_ns = (now_ns + options.nap * options.lapse_ns) & !LOW_BITS;
            page.do_not_throttle = if is_free(page) { None } else { Some(by) };
        } else if page.do_not_throttle.is_none() {
            page.do_not_throttle = Some(by);
        }
        let hint = decide(page, by, preferred, options.pin_threshold);
        match hint {
            Hint::None => {}
            Hint::Throttle(_) => {
                if !page.throttled.has(by) {
                    page.throttled.add(by);
                    if page.pinned.is_none() {
                        page.throttle_count = page.throttle_count.saturating_add(1);
                    }
                }
            }
            Hint::Pin(place) => {
                (page.throttled, page.throttle_count) = (Procs::default(), 0);
                if page.pinned.is_none() {
                    detail.pinned_count += 1;
                    detail.pinned.insert(PageIndex(index as u16));
                    page.pinned_ns = now_ns.max(1);
                    if options.pin > 0 {
                        let ends = now_ns + options.pin * options.lapse_ns + TIMER_SLACK_NS;
                        self.pins.push_back((ends, block, index as u16, page.pinned_ns));
                    }
                }
                page.pinned = Some(place);
            }
        }
        hint
    }

    /// The next page whose pin has ended by now; it is forgotten.
    pub fn unpinned(&mut self, now_ns: u64) -> Option<(u32, PageMask)> {
        while let Some((_, block, index, pinned_ns)) = self.next_pin_to_end(now_ns) {
            let Some(detail) = &mut self.blocks[block as usize].detail else { continue };
            let page = &detail.pages[usize::from(index)];
            if page.pinned.is_some() && page.pinned_ns == pinned_ns {
                let mask = PageMask::of(PageIndex(index));
                detail.reset_pages(&mask);
                return Some((block, mask));
            }
        }
        None
    }

    fn next_pin_to_end(&mut self, now_ns: u64) -> Option<(u64, u32, u16, u64)> {
        let is_over = self.pins.front().is_some_and(|pin| pin.0 <= now_ns);
        if is_over { self.pins.pop_front() } else { None }
    }

    /// The program unmapped pages.
    pub fn unmapped(&mut self, block: u32, pages: &PageMask) {
        if let Some(detail) = self.blocks.get_mut(block as usize).and_then(|state| state.detail.as_mut()) {
            detail.reset_pages(pages);
        }
    }
}

impl Detail {
    fn moved(&mut self, pages: &PageMask, to: Proc, lapse_ns: u64, threshold: u8, now_ns: u64) {
        for index in pages.pages() {
            let page = &mut self.pages[usize::from(index.0)];
            page.procs.add(to);
            let before = std::mem::replace(&mut page.last_ns, (now_ns & !LOW_BITS).max(LOW_BITS + 1));
            if before == 0 {
                continue;
            }
            if now_ns.saturating_sub(before) <= lapse_ns {
                page.events = (page.events + 1).min(MOST_EVENTS);
                if page.events == threshold {
                    self.thrashing.insert(index);
                }
                if page.events >= threshold {
                    self.last_thrash_ns = now_ns;
                }
            } else if page.events >= threshold && page.pinned.is_none() {
                page.reset();
                self.thrashing -= PageMask::of(index);
            }
        }
    }

    fn reset_pages(&mut self, mask: &PageMask) {
        mask.pages().for_each(|index| self.pages[usize::from(index.0)].reset());
        self.thrashing -= *mask;
        self.pinned -= *mask;
    }
}

/// The decision itself, for a page that thrashes.
fn decide(page: &Page, by: Proc, preferred: Option<Proc>, pin_threshold: u8) -> Hint {
    let throttle = Hint::Throttle(page.throttle_end_ns);
    let is_free = page.do_not_throttle == Some(by);
    if let Some(preferred) = preferred.filter(|place| page.procs.all_reach(*place)) {
        return Hint::Pin(preferred);
    }
    if preferred == Some(by) {
        return match page.pinned {
            Some(place) if place == by || is_free => Hint::Pin(by),
            Some(_) => throttle,
            None if !is_free => throttle,
            None if page.throttle_count >= pin_threshold => Hint::Pin(by),
            None => Hint::None,
        };
    }
    match page.pinned {
        // The location that all reach is system memory.
        Some(_) if is_free => Hint::Pin(if page.procs.all_reach(by) { by } else { Proc::Cpu }),
        Some(place) if reaches(by, place) => Hint::Pin(place),
        Some(_) => throttle,
        None if !is_free => throttle,
        None if page.throttle_count >= pin_threshold => Hint::Pin(by),
        None => Hint::None,
    }
}
