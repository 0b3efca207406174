//! One block of one batch.

use granule::units::{PAGE_BYTES, PAGES_PER_BLOCK, PAGES_PER_SLOT_64K, PageIndex, PageMask};

use super::cost::Phase;
use super::{Engine, Proc, words};
use crate::policy::{Batch, Brought, Cause, Decision, Demand, FaultView, unit_of, units_per_block};
use crate::trace::Access;

/// What became of the pages of one service.
#[derive(Default)]
struct Decided {
    to_device: PageMask,
    written: PageMask,
    duplicated: PageMask,
    linked: PageMask,
    throttled_until: Option<u64>,
}

impl Engine {
    /// Serves the keys of one block, in order. Returns until when somebody was throttled; `u64::MAX` if nobody was.
    #[inline(always)]
    pub(super) fn service(&mut self, block: u32, keys: &[u64]) -> u64 {
        self.metrics.services += 1;
        self.spend(Phase::Lock, self.cost.block_ns);
        let state = self.blocks.get(block);
        if !state.some_shared && self.residency.always_device(block, state) {
            let (mut to_device, mut written) = (PageMask::EMPTY, PageMask::EMPTY);
            self.ask(block, keys, &mut to_device, &mut written);
            if !to_device.is_empty() {
                self.bring(block, &to_device, &written, &PageMask::EMPTY, true, Cause::Fault);
            }
            return u64::MAX;
        }
        let decided = self.decide(block, keys);
        let one_destination = decided.linked.is_empty() || decided.to_device.is_empty();
        if !decided.to_device.is_empty() {
            let Decided { to_device, written, duplicated, .. } = &decided;
            self.bring(block, to_device, written, duplicated, one_destination, Cause::Fault);
        }
        if !decided.linked.is_empty() {
            self.link(block, &decided.linked);
        }
        decided.throttled_until.unwrap_or(u64::MAX)
    }

    /// What of the keys of one block the device does not have, and what of that is written: where all that faults goes to
    /// the device.
    #[inline(always)]
    fn ask(&mut self, block: u32, keys: &[u64], to_device: &mut PageMask, written: &mut PageMask) {
        let state = self.blocks.get_mut(block);
        let (mut duplicate, mut spurious) = (0, 0);
        let mut last = u64::MAX;
        for key in keys {
            let page = Batch::page(*key);
            duplicate += u64::from(page == last);
            if page != last {
                last = page;
                let page = page as usize % PAGES_PER_BLOCK;
                if state.resident.contains(PageIndex(page as u16)) {
                    spurious += 1;
                    continue;
                }
                let asked = words::one(page);
                *to_device |= asked;
                if Batch::writes(*key) {
                    *written |= asked;
                }
            }
        }
        let unique = keys.len() as u64 - duplicate - spurious;
        state.faults += unique as u32;
        self.metrics.faults_duplicate += duplicate;
        self.metrics.faults_spurious += spurious;
        self.metrics.faults_unique += unique;
    }

    #[inline(always)]
    fn decide(&mut self, block: u32, keys: &[u64]) -> Decided {
        let mut decided = Decided::default();
        let state = self.blocks.get(block);
        let resident = *state.resident;
        let (linked, duplicated) = match state.some_shared {
            true => (self.blocks.rare(block).linked, self.blocks.rare(block).duplicated),
            false => (PageMask::EMPTY, PageMask::EMPTY),
        };
        let (mut duplicate, mut spurious, mut unique) = (0, 0, 0u32);
        let mut last = u64::MAX;
        for key in keys {
            let page = Batch::page(*key);
            if page == last {
                duplicate += 1;
                continue;
            }
            last = page;
            let page = page as usize % PAGES_PER_BLOCK;
            let index = PageIndex(page as u16);
            let writes = Batch::writes(*key);
            let there = resident.contains(index) && !(writes && duplicated.contains(index));
            if there || linked.contains(index) {
                spurious += 1;
                continue;
            }
            unique += 1;
            let decision = {
                let access = Self::access_of(writes);
                let (state, rare) = (self.blocks.get(block), self.blocks.rare(block));
                let now_ns = self.now_ns;
                let by = Proc::Device;
                self.residency.decide(&FaultView { by, block, page, access, now_ns, state, rare })
            };
            match decision {
                Decision::Device => decided.to_device.insert(index),
                Decision::Duplicate => {
                    decided.to_device.insert(index);
                    decided.duplicated.insert(index);
                }
                Decision::Cpu => decided.linked.insert(index),
                Decision::Throttle { until_ns } => {
                    self.metrics.throttles += 1;
                    decided.throttled_until =
                        Some(decided.throttled_until.map_or(until_ns, |until| until.min(until_ns)));
                    continue;
                }
            }
            if writes {
                decided.written.insert(index);
            }
        }
        self.metrics.faults_duplicate += duplicate;
        self.metrics.faults_spurious += spurious;
        self.metrics.faults_unique += u64::from(unique);
        self.blocks.get_mut(block).faults += unique;
        decided
    }

    /// Brings pages to the device, and those that a prefetcher adds.
    #[inline(always)]
    fn bring(
        &mut self,
        block: u32,
        faulted: &PageMask,
        written: &PageMask,
        duplicated: &PageMask,
        one_destination: bool,
        cause: Cause,
    ) {
        let state = self.blocks.get(block);
        let region = state.region();
        let demand = Demand {
            block,
            first_page: self.blocks.first_page(block),
            to: Proc::Device,
            faulted,
            written,
            resident: &state.resident,
            thrashing: self.residency.thrashing(block),
            preferred: state.preferred,
            exists: &self.blocks.rare(block).exists,
            region: region.clone(),
            one_destination,
            position: self.blocks.position,
        };
        let mut wide = self.prefetch.widen(&demand);
        if region.len() < PAGES_PER_BLOCK {
            wide &= PageMask::of_range(region.clone());
        }
        self.make_room(block, faulted, &wide);

        let refault =
            self.metrics.evictions - self.blocks.get(block).evicted_at <= self.limits.refault_window;
        let (state, rare) = self.blocks.both_mut(block);
        if state.some_shared {
            wide -= rare.linked;
        }
        let had = *state.resident;
        let done = words::bring(state, faulted, &wide);
        if refault {
            self.metrics.refaults += done.returned_pages;
        }
        if !written.is_empty() {
            rare.dirty |= *written;
            state.some_dirty = true;
        }
        if state.some_shared || !duplicated.is_empty() {
            state.some_shared = true;
            rare.linked -= done.fresh;
            rare.duplicated = (rare.duplicated | *duplicated) - *written;
            self.metrics.duplicated_pages += duplicated.count() as u64;
        }
        state.demand_pages += done.demand_pages as u32;
        state.prefetch_pages += done.prefetch_pages as u32;
        self.metrics.demand_pages += done.demand_pages;
        self.metrics.prefetch_pages += done.prefetch_pages;
        if state.all_exist {
            self.pay_for_copy(done.demand_runs + done.prefetch_runs, done.demand_pages + done.prefetch_pages);
        } else {
            let fresh = done.fresh;
            let (zeroed, demand, ahead) =
                (fresh - rare.exists, fresh & *faulted & rare.exists, (fresh - *faulted) & rare.exists);
            rare.exists |= fresh;
            state.all_exist = rare.exists.is_full();
            let copied = (demand.count() + ahead.count()) as u64;
            self.pay_for_copy((demand.runs().count() + ahead.runs().count()) as u64, copied);
            self.pay_for_zeroes(&zeroed);
        }
        self.spend(Phase::Map, self.cost.map_ns);
        self.brought(block, &had, &done.fresh, faulted, region.len() == PAGES_PER_BLOCK);
        let state = self.blocks.get_mut(block);
        state.ready_ns = self.now_ns;
        self.residency.moved(block, state, &done.fresh, Proc::Device, cause, self.now_ns);
    }

    /// Tells the eviction policy which units have come.
    #[inline(always)]
    fn brought(
        &mut self,
        block: u32,
        had: &PageMask,
        fresh: &PageMask,
        demanded: &PageMask,
        whole_block: bool,
    ) {
        let position = self.blocks.position;
        let per_block = units_per_block(self.unit);
        if per_block == 1 {
            let fresh = had.is_empty();
            self.metrics.units_in += u64::from(fresh);
            self.eviction.brought(block, Brought { fresh, demanded: true, whole_block, position });
            return;
        }
        let mut last = u32::MAX;
        for page in fresh.pages() {
            let unit = unit_of(self.unit, block, page.0.into());
            if unit == last {
                continue;
            }
            last = unit;
            let pages = self.unit.pages();
            let at = usize::from(page.0) / pages * pages;
            let unit_pages = PageMask::of_range(at..at + pages);
            let fresh = !unit_pages.intersects(had);
            self.metrics.units_in += u64::from(fresh);
            let demanded = unit_pages.intersects(demanded);
            self.eviction.brought(unit, Brought { fresh, demanded, whole_block, position });
        }
    }

    #[inline(always)]
    fn pay_for_copy(&mut self, runs: u64, pages: u64) {
        if pages > 0 {
            self.spend(Phase::Unmap, self.cost.unmap_ns);
            self.spend(Phase::DmaMap, self.cost.dma_map_page_ns * pages);
            self.spend(Phase::CopyIn, self.cost.copy_in(runs, pages * PAGE_BYTES));
            self.metrics.copies_in += runs;
        }
    }

    fn pay_for_zeroes(&mut self, zeroed: &PageMask) {
        if !zeroed.is_empty() {
            self.metrics.zeroed_pages += zeroed.count() as u64;
            self.spend(Phase::Populate, self.cost.populate_64k_ns * groups(zeroed));
        }
    }

    /// Maps pages of system memory for the device.
    fn link(&mut self, block: u32, pages: &PageMask) {
        let state = self.blocks.get(block);
        let home = *pages & *state.resident;
        if !home.is_empty() {
            self.send_home(block, &home, Cause::Fault);
        }
        let (state, rare) = self.blocks.both_mut(block);
        let zeroed = *pages - rare.exists;
        rare.exists |= *pages;
        state.all_exist = rare.exists.is_full();
        rare.linked |= *pages;
        state.some_shared = true;
        let linked = pages.count() as u64;
        self.metrics.linked_pages += linked;
        self.pay_for_zeroes(&zeroed);
        self.spend(Phase::DmaMap, self.cost.dma_map_page_ns * linked);
        self.spend(Phase::Map, self.cost.map_ns);
    }

    /// Evicts until these pages fit.
    #[inline(always)]
    fn make_room(&mut self, block: u32, faulted: &PageMask, wide: &PageMask) {
        let unit_pages = self.unit.pages();
        loop {
            let had = &*self.blocks.get(block).resident;
            let new_units = match units_per_block(self.unit) {
                1 => usize::from(had.is_empty()),
                512 => ((*faulted | *wide) - *had).count(),
                _ => {
                    ((*faulted | *wide | *had).widened_to(unit_pages).count()
                        - had.widened_to(unit_pages).count())
                        / unit_pages
                }
            };
            let needed = (new_units * unit_pages) as u64;
            if self.free_pages >= needed {
                self.free_pages -= needed;
                return;
            }
            while self.free_pages < needed {
                let victim = self.eviction.victim(&self.blocks);
                // Device memory is at least two blocks and a service brings at most one, so something is there.
                let Some(victim) = victim else { unreachable!("device memory is full and holds nothing") };
                self.evict(victim.block, &victim.pages);
            }
        }
    }

    /// Takes pages away to make room.
    #[inline(always)]
    fn evict(&mut self, block: u32, pages: &PageMask) {
        self.metrics.evictions += 1;
        let evictions = self.metrics.evictions;
        let state = self.blocks.get_mut(block);
        let pages = *pages & *state.resident;
        let left = *state.resident - pages;
        state.evictions += 1;
        state.evicted_at = evictions;
        let freed = freed_pages(self.unit.pages(), &state.resident, &left);
        self.free_pages += freed;
        let left = self.leave(block, &pages, true);
        self.metrics.evicted_pages += left.pages;
        self.metrics.evicted_dirty_pages += left.dirty_pages;
        let state = self.blocks.get(block);
        self.residency.moved(block, state, &pages, Proc::Cpu, Cause::Eviction, self.now_ns);
    }

    /// Takes pages to system memory for the CPU's sake.
    pub(super) fn send_home(&mut self, block: u32, pages: &PageMask, cause: Cause) {
        let pages = *pages & *self.blocks.get(block).resident;
        self.release(block, &pages);
        self.metrics.homecoming_pages += self.leave(block, &pages, false).pages;
        let state = self.blocks.get(block);
        self.residency.moved(block, state, &pages, Proc::Cpu, cause, self.now_ns);
    }

    /// Gives device memory back whose pages leave by another hand than the eviction policy's. The pages are still
    /// entered as resident.
    pub(super) fn release(&mut self, block: u32, pages: &PageMask) {
        let state = self.blocks.get(block);
        let left = *state.resident - *pages;
        self.free_pages += freed_pages(self.unit.pages(), &state.resident, &left);
        let mut last = u32::MAX;
        for page in pages.pages() {
            let unit = unit_of(self.unit, block, page.0.into());
            if unit != last {
                last = unit;
                let size = self.unit.pages();
                let at = usize::from(page.0) / size * size;
                if !PageMask::of_range(at..at + size).intersects(&left) {
                    self.eviction.gone(unit);
                }
            }
        }
    }

    /// Copies pages out and enters that they are in system memory.
    #[inline(always)]
    fn leave(&mut self, block: u32, pages: &PageMask, evicted: bool) -> words::Left {
        let (state, rare) = self.blocks.both_mut(block);
        let left = words::leave(state, rare, pages, evicted);
        self.metrics.prefetch_wasted += left.unused_pages;
        self.metrics.copies_out += left.copy_runs;
        self.spend(Phase::Map, self.cost.map_ns);
        self.spend(Phase::CopyOut, self.cost.copy_out(left.copy_runs, left.copy_pages * PAGE_BYTES));
        left
    }

    /// Mappings in system memory whose time is over.
    pub(super) fn expire(&mut self) {
        while let Some((block, pages)) = self.residency.expired(self.now_ns) {
            self.blocks.rare_mut(block).linked -= pages;
            self.spend(Phase::Map, self.cost.map_ns);
        }
    }

    /// Tells the residency policy of a touch through the bus, and moves the page if that was enough.
    pub(super) fn count_remote(&mut self, block: u32, page: usize, access: Access) {
        let now_ns = self.device_ns;
        let (state, rare) = (self.blocks.get(block), self.blocks.rare(block));
        let view = FaultView { by: Proc::Device, block, page, access, now_ns, state, rare };
        let to_device = self.residency.remote_touch(&view) & rare.linked;
        if !to_device.is_empty() {
            let touched = PageMask::of(PageIndex(page as u16));
            let written = if access.writes() { touched & to_device } else { PageMask::EMPTY };
            self.now_ns = self.device_ns.max(self.driver_free_ns);
            self.blocks.rare_mut(block).linked -= to_device;
            self.bring(block, &to_device, &written, &PageMask::EMPTY, true, Cause::AccessCounter);
            self.driver_free_ns = self.now_ns;
        }
    }
}

/// Pages of device memory that become free when `had` shrinks to `left`.
#[inline(always)]
fn freed_pages(unit: usize, had: &PageMask, left: &PageMask) -> u64 {
    let held = |mask: &PageMask| match unit {
        1 => mask.count(),
        PAGES_PER_BLOCK => usize::from(!mask.is_empty()) * PAGES_PER_BLOCK,
        unit => mask.widened_to(unit).count(),
    };
    (held(had) - held(left)) as u64
}

/// How many aligned 64 KiB a mask touches.
fn groups(mask: &PageMask) -> u64 {
    (mask.widened_to(PAGES_PER_SLOT_64K).count() / PAGES_PER_SLOT_64K) as u64
}
