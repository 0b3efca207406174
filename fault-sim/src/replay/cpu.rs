//! The other side: CPU faults, unmaps, maps, advice.

use granule::units::{PAGES_PER_BLOCK, PageIndex, PageMask};

use super::cost::Phase;
use super::{Engine, Proc};
use crate::policy::{Cause, Decision, Demand, FaultView};
use crate::trace::{Advice, Event};

impl Engine {
    /// The CPU touches a page.
    pub(super) fn cpu_touch(&mut self, event: &Event) {
        let block = self.blocks.number(event.page);
        let page = event.page as usize % PAGES_PER_BLOCK;
        let index = PageIndex(page as u16);
        self.settle(block);
        let begun = self.device_ns;
        loop {
            self.now_ns = self.device_ns;
            let rare = self.blocks.rare(block);
            if rare.duplicated.contains(index) && event.access.writes() {
                // The device's copy is out of date from now on.
                let pages = PageMask::of(index);
                self.release(block, &pages);
                let (state, rare) = self.blocks.both_mut(block);
                *state.resident -= pages;
                *state.marked -= pages;
                rare.duplicated -= pages;
                rare.dirty -= pages;
                self.spend_aside(Phase::Map, self.cost.map_ns);
                return;
            }
            let (state, rare) = self.blocks.both_mut(block);
            if !state.resident.contains(index) || rare.duplicated.contains(index) {
                rare.exists.insert(index);
                state.all_exist = rare.exists.is_full();
                return;
            }
            let now_ns = self.device_ns;
            let (state, rare) = (self.blocks.get(block), self.blocks.rare(block));
            let view = FaultView { by: Proc::Cpu, block, page, access: event.access, now_ns, state, rare };
            match self.residency.decide(&view) {
                Decision::Throttle { until_ns } => {
                    self.metrics.throttles += 1;
                    let until = until_ns.max(self.device_ns + 1);
                    self.spend_aside(Phase::Throttle, until - self.device_ns);
                    self.hold_device_until(until);
                }
                // A duplicate for the CPU: the device keeps its copy.
                Decision::Duplicate => {
                    self.metrics.cpu_faults += 1;
                    let (state, rare) = self.blocks.both_mut(block);
                    rare.duplicated.insert(index);
                    state.some_shared = true;
                    self.pay_cpu_fault(begun, 1, 4096);
                    return;
                }
                // The bus does not let the CPU reach device memory, so whatever the decision, the page comes home.
                Decision::Cpu | Decision::Device => {
                    self.metrics.cpu_faults += 1;
                    self.homecoming(block, index, event);
                    self.pay_cpu_fault(begun, 0, 0);
                    return;
                }
            }
        }
    }

    fn pay_cpu_fault(&mut self, begun: u64, runs: u64, bytes: u64) {
        self.spend(Phase::CopyOut, self.cost.copy_out(runs, bytes));
        self.spend(Phase::CpuFault, self.cost.cpu_fault_ns);
        self.hold_device_until(self.now_ns);
        self.metrics.cpu_latency.add(self.device_ns - begun);
    }

    /// Brings a page home, and those that a prefetcher adds.
    fn homecoming(&mut self, block: u32, index: PageIndex, event: &Event) {
        let faulted = PageMask::of(index);
        let state = self.blocks.get(block);
        let on_cpu = self.blocks.on_cpu(block);
        let written = if event.access.writes() { faulted } else { PageMask::EMPTY };
        let demand = Demand {
            block,
            first_page: self.blocks.first_page(block),
            to: Proc::Cpu,
            faulted: &faulted,
            written: &written,
            resident: &on_cpu,
            thrashing: self.residency.thrashing(block),
            preferred: state.preferred,
            exists: &self.blocks.rare(block).exists,
            region: state.region(),
            one_destination: true,
            position: self.blocks.position,
        };
        let pages = (self.prefetch.widen(&demand) | faulted) & *self.blocks.get(block).resident;
        self.send_home(block, &pages, Cause::Fault);
    }

    /// The program unmaps pages: their contents are gone.
    pub(super) fn unmap(&mut self, event: &Event) {
        self.each_block(event, false, |this, block, pages| {
            this.settle(block);
            this.metrics.unmapped_pages += (*this.blocks.get(block).resident & pages).count() as u64;
            let there = *this.blocks.get(block).resident & pages;
            this.release(block, &there);
            let (state, rare) = this.blocks.both_mut(block);
            this.metrics.prefetch_wasted += (state.unused() & pages).count() as u64;
            for mask in [
                &mut state.resident.0,
                &mut state.marked.0,
                &mut rare.exists,
                &mut rare.dirty,
                &mut rare.linked,
                &mut rare.duplicated,
            ] {
                *mask -= pages;
            }
            state.all_exist = rare.exists.is_full();
            this.residency.unmapped(block, &pages);
            this.prefetch.unmapped(block, &pages);
        });
    }

    /// The program maps pages. What is not known of them stays as it is.
    pub(super) fn map(&mut self, event: &Event) {
        self.each_block(event, true, |this, block, pages| {
            let (Some(first), Some(last)) = (pages.first(), pages.runs().last()) else { return };
            let state = this.blocks.get_mut(block);
            let hull = (first.0, last.end as u16);
            (state.first, state.end) = match state.mapped {
                true => (state.first.min(hull.0), state.end.max(hull.1)),
                false => hull,
            };
            state.mapped = true;
        });
    }

    /// The program gives advice. It is kept by block: advice on part of a block counts for all of it.
    pub(super) fn advise(&mut self, event: &Event) {
        let Some(advice) = Advice::of_code(event.detail) else { return };
        self.each_block(event, true, |this, block, _| {
            let state = this.blocks.get_mut(block);
            match advice {
                Advice::PreferDevice => state.preferred = Some(Proc::Device),
                Advice::PreferCpu => state.preferred = Some(Proc::Cpu),
                Advice::PreferNothing => state.preferred = None,
                Advice::AccessedByDevice => state.accessed_by_device = true,
                Advice::NotAccessedByDevice => state.accessed_by_device = false,
                Advice::ReadMostly => state.read_mostly = true,
                Advice::NotReadMostly => state.read_mostly = false,
            }
        });
    }

    /// Calls `act` for each block of a range, with its pages in the range; unknown blocks only if `add`.
    fn each_block(&mut self, event: &Event, add: bool, mut act: impl FnMut(&mut Self, u32, PageMask)) {
        let end = event.page + u64::from(event.pages);
        let mut page = event.page;
        while page < end {
            let first = page as usize % PAGES_PER_BLOCK;
            let pages = ((PAGES_PER_BLOCK - first) as u64).min(end - page);
            let block = if add { Some(self.blocks.number(page)) } else { self.blocks.known(page) };
            if let Some(block) = block {
                act(self, block, PageMask::of_range(first..first + pages as usize));
            }
            page += pages;
        }
    }
}
