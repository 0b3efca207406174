//! Launches: passes of a kernel until every item has finished.
//!
//! # A launch
//! dispatch -> wait -> all finished? -> collect the misses -> announce them -> wait for the answers -> dispatch ...
//!
//! # Rules
//! 1. This is the only place from which the driver is called while faults are served, and it is called by threads of
//!    the application, outside of every lock of the service. Such a thread may fault inside the driver, be it on a
//!    page of the heap that is on the device: nobody who serves that fault needs the driver or this thread.
//! 2. All misses of a pass are announced before the first is answered, each page once (per kind of access), those of
//!    the first items first.
//! 3. What is announced is limited so that it fits on the device beside what is in use: to half of its pages at first,
//!    then to half of that after each pass in which fewer items got on than half of what had been served, and twice as
//!    much after each other one. So in the end one miss is served at a time, and its item looks at once.
//! 4. After a pass with few misses, or two in which nobody got on, items are *patient*: they look for their page for a
//!    bounded time before they give up their turn, and this thread serves them while the dispatch runs. Nothing relies on
//!    it: a shader that gives up comes back in the next pass.
//! 5. Sparse mode: what came since is bound when a launch begins, and every so many passes of a long one.
#![allow(unsafe_code, reason = "calls of the Vulkan driver")]

use std::ops::Range;
use std::sync::PoisonError;
use std::time::{Duration, Instant};

use ash::vk;
use granule::ports::FaultCause;
use granule::sync::Ordering;
use granule::units::PAGE_BYTES;

use super::device::{Inner, VulkanDevice};
use super::driver::Driver;
use super::error::{LaunchError, Named, VulkanError};
use super::faults::{MOST_RECORDS, Miss, Seat};
use super::kernel::Kernel;
use super::launch_block::{LaunchBlock, PassEnd};
use crate::software::page_table::Found;

/// How many words an item may save, unless its launch says more.
pub const SAVED_WORDS: usize = 5;

/// Passes that may serve misses, one at a time, without an item that gets on.
const MOST_IDLE_PASSES: u32 = 1_000;
/// So few misses in a pass are worth waiting for in the next one.
const FEW_FAULTS: usize = 64;
/// How long items then look for their pages after the last answer, at first and at the most: twice as long after each
/// pass that did not get on.
const PATIENCE: Duration = Duration::from_millis(5);
const MOST_PATIENCE: Duration = Duration::from_millis(200);
/// How often an item looks at the most, whatever the host does.
const MOST_LOOKS: u32 = 1 << 22;
/// How many passes there are from one binding of new pages to the next: a page that is bound is touched for the first time
/// once more, which pays for those that stay.
const PASSES_PER_BIND: u32 = 16;
/// How often the driver is asked whether it lost a dispatch.
const ASK_DRIVER: Duration = Duration::from_millis(500);

impl VulkanDevice {
    /// Runs `items` items of a kernel and waits until each has finished. Returns the argument words as the kernel left
    /// them. Any number of threads may launch at once.
    ///
    /// # Errors
    /// [`LaunchError`]; for items that failed the first one's. The others run to their end.
    pub fn launch(&self, kernel: &Kernel, items: u32, arguments: &[u64]) -> Result<Vec<u64>, LaunchError> {
        self.launch_saving(kernel, items, SAVED_WORDS, arguments)
    }

    /// As [`VulkanDevice::launch`], for items that save more than [`SAVED_WORDS`] words each.
    ///
    /// # Errors
    /// [`LaunchError`], as there.
    pub fn launch_saving(
        &self,
        kernel: &Kernel,
        items: u32,
        saved: usize,
        arguments: &[u64],
    ) -> Result<Vec<u64>, LaunchError> {
        let most = self.driver.found.most_groups.saturating_mul(kernel.0.group);
        if items > most {
            return Err(LaunchError::TooManyItems { asked: items, most });
        }
        if items == 0 {
            return Ok(arguments.to_vec());
        }
        let block = self.block(items as usize, saved.max(SAVED_WORDS))?;
        let (inner, driver) = (&*self.inner, &*self.driver);
        let launch = Launch { inner, driver, seat: inner.faults.seat(), block: &block, items };
        let ended = block
            .begin(items, arguments)
            .and_then(|()| self.record(kernel, &block, items))
            .and_then(|()| launch.passes());
        let left = (0..arguments.len()).map(|index| block.argument(index)).collect();
        drop(launch);
        self.give_back(block);
        ended.map(|()| left)
    }

    fn block(&self, items: usize, saved: usize) -> Result<LaunchBlock, VulkanError> {
        let mut blocks = self.driver.blocks.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(at) = blocks.iter().position(|block| block.fits(items, saved)) {
            return Ok(blocks.swap_remove(at));
        }
        drop(blocks);
        LaunchBlock::new(&self.driver, items, saved)
    }

    fn give_back(&self, block: LaunchBlock) {
        const MOST_POOLED: usize = 32;
        let mut blocks = self.driver.blocks.lock().unwrap_or_else(PoisonError::into_inner);
        if blocks.len() < MOST_POOLED {
            blocks.push(block);
        } else {
            drop(blocks);
            block.destroy(&self.driver);
        }
    }

    /// Records the dispatch once; each pass submits it again.
    fn record(&self, kernel: &Kernel, block: &LaunchBlock, items: u32) -> Result<(), LaunchError> {
        let (device, commands) = (&self.driver.device, block.commands);
        let (launch, arguments) = block.addresses();
        let push: Vec<u8> =
            [self.control, launch, arguments].iter().flat_map(|word| word.to_ne_bytes()).collect();
        let barrier = [vk::MemoryBarrier::default()
            .src_access_mask(vk::AccessFlags::SHADER_WRITE)
            .dst_access_mask(vk::AccessFlags::HOST_READ)];
        // SAFETY: the command buffer is this launch's alone and not under way; kernel and block outlive its passes.
        unsafe {
            device
                .begin_command_buffer(commands, &vk::CommandBufferBeginInfo::default())
                .named("vkBeginCommandBuffer")?;
            device.cmd_bind_pipeline(commands, vk::PipelineBindPoint::COMPUTE, kernel.0.pipeline);
            device.cmd_push_constants(commands, kernel.0.layout, vk::ShaderStageFlags::COMPUTE, 0, &push);
            device.cmd_dispatch(commands, items.div_ceil(kernel.0.group), 1, 1);
            device.cmd_pipeline_barrier(
                commands,
                vk::PipelineStageFlags::COMPUTE_SHADER,
                vk::PipelineStageFlags::HOST,
                vk::DependencyFlags::empty(),
                &barrier,
                &[],
                &[],
            );
            device.end_command_buffer(commands).named("vkEndCommandBuffer")?;
        }
        Ok(())
    }
}

struct Launch<'a> {
    inner: &'a Inner,
    driver: &'a Driver,
    seat: Seat<'a>,
    block: &'a LaunchBlock,
    items: u32,
}

impl Launch<'_> {
    fn passes(&self) -> Result<(), LaunchError> {
        let most = (self.inner.memory_bytes() / PAGE_BYTES / 2).clamp(1, MOST_RECORDS as u64) as usize;
        let (mut limit, mut idle, mut patience) = (most, 0, Duration::ZERO);
        let (mut before, mut passes) = (PassEnd::default(), 0u32);
        loop {
            if passes.is_multiple_of(PASSES_PER_BIND) {
                self.driver.bind_noted(self.inner).map_err(|error| self.lost(error))?;
            }
            passes += 1;
            let faults_before = before.faults;
            let served = self.pass(patience, limit)?;
            let end = self.block.end_of_pass();
            if end.finished + end.failed == self.items {
                return self.result(end.failed);
            }
            let got_on = end.sum() - before.sum();
            if end.faults == 0 && end.stopped == 0 && got_on == 0 {
                return Err(LaunchError::Stuck { unfinished: self.items - end.finished - end.failed });
            }
            // What was served before this pass should have let as many items get on.
            limit = if got_on * 2 < faults_before.min(limit) { limit / 2 } else { limit * 2 }.clamp(1, most);
            idle = if got_on > 0 { 0 } else { idle + 1 };
            if idle > MOST_IDLE_PASSES {
                return Err(LaunchError::NoProgress { passes: idle });
            }
            let (got_on, is_few) = (got_on > 0, (1..=FEW_FAULTS).contains(&end.faults));
            patience = match (is_few, got_on) {
                (true, true) => PATIENCE,
                // Nobody gets on in the first pass over memory that is all away.
                (false, true) => Duration::ZERO,
                (false, false) if idle < 2 => Duration::ZERO,
                (_, false) => (patience * 2).clamp(PATIENCE, MOST_PATIENCE),
            };
            before = end;
            if end.faults > served {
                self.serve(served..end.faults, limit);
            }
            let failed = self.block.end_of_pass().failed;
            if end.finished + failed == self.items {
                return self.result(failed);
            }
        }
    }

    /// One dispatch, from its submission to its end. Returns how many records were served meanwhile.
    fn pass(&self, patience: Duration, limit: usize) -> Result<usize, LaunchError> {
        self.inner.windows().wait_open();
        if self.inner.is_lost() {
            return Err(LaunchError::Lost);
        }
        self.block.begin_pass(if patience.is_zero() { 0 } else { MOST_LOOKS });
        let run = || {
            self.driver.submit(self.block.commands, self.block.done)?;
            let served = if patience.is_zero() { 0 } else { self.attend(patience, limit)? };
            self.driver.wait(self.block.done)?;
            Ok(served)
        };
        run().map_err(|error| self.lost(error))
    }

    /// What an error of the driver means for the launch; a lost device is remembered.
    fn lost(&self, error: VulkanError) -> LaunchError {
        match error {
            VulkanError::Call { result: vk::Result::ERROR_DEVICE_LOST, .. } => {
                self.inner.lost.store(1, Ordering::SeqCst);
                LaunchError::Lost
            }
            error => error.into(),
        }
    }

    /// Serves misses while the pass that announces them runs, without a call of the driver between a page's coming and
    /// the item's next look: a page that the driver itself uses at each call would go back to RAM in between.
    fn attend(&self, patience: Duration, limit: usize) -> Result<usize, VulkanError> {
        let (mut served, mut asked, mut answered) = (0, Instant::now(), Instant::now());
        while !self.block.all_ended(self.items) {
            let ready = (served..).take_while(|index| self.block.miss(*index).is_some()).count();
            if ready > 0 {
                self.serve(served..served + ready, limit);
                served += ready;
                self.block.forget_seen();
                answered = Instant::now();
                continue;
            }
            if answered.elapsed() > patience {
                self.block.end_patience();
            }
            // A dispatch that ended without all of its items: the device was lost.
            if asked.elapsed() > ASK_DRIVER {
                if self.driver.has_ended(self.block.done)? {
                    break;
                }
                asked = Instant::now();
            }
            rustix::thread::sched_yield();
        }
        Ok(served)
    }

    /// Announces the misses of a pass, waits for their answers, and ends the items whose misses were refused.
    ///
    /// Works in private memory: on the heap, what it writes could share a page with what is missed.
    fn serve(&self, faults: Range<usize>, limit: usize) {
        let page = |miss: &Miss| (miss.at / PAGE_BYTES, miss.write);
        let mut scratch = self.block.scratch.borrow_mut();
        // What came meanwhile is found by whoever waits for it.
        let is_open = |miss: &Miss| match self.inner.table.find(miss.at) {
            Found::Hole(_) => true,
            Found::Leaf(leaf) => miss.write && !leaf.write,
        };
        let misses = scratch.collect(faults.filter_map(|index| self.block.miss(index)).filter(is_open));
        misses.sort_unstable_by_key(|miss| (page(miss), miss.item));
        let mut kept = 0;
        for at in 0..misses.len() {
            if at == 0 || page(&misses[at]) != page(&misses[kept - 1]) {
                misses[kept] = misses[at];
                kept += 1;
            }
        }
        let misses = &mut misses[..kept];
        misses.sort_unstable();
        let announced = &misses[..kept.min(limit)];
        let mut refused: Vec<((u64, bool), FaultCause)> = Vec::new();
        self.seat.raise(announced, |miss, cause| refused.push((page(miss), cause)));
        if refused.is_empty() {
            return;
        }
        refused.sort_unstable_by_key(|(page, _)| *page);
        for item in 0..self.items {
            let Some(missed) = self.block.missed(item) else { continue };
            if let Ok(at) = refused.binary_search_by_key(&page(&missed), |(page, _)| *page) {
                self.block.fail(item, refused[at].1);
            }
        }
    }

    /// The end of a launch of which so many items failed.
    fn result(&self, failed: u32) -> Result<(), LaunchError> {
        if failed == 0 {
            return Ok(());
        }
        let first = (0..self.items).find_map(|item| self.block.error(item));
        first.map_or(Ok(()), Err)
    }
}
