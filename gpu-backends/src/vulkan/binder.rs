//! Sparse mode, the driver's side: sparse buffers, one per granule, and what is bound in them.
//!
//! # Who
//! Threads that launch, one at a time, between their passes. All of this is on the heap: such a thread may fault here,
//! and nobody who serves that fault needs it.
//!
//! # Rules
//! 1. A buffer's addresses are reserved when its granule is first used. Memory is bound later, in runs, and unbound when
//!    its memory is wanted elsewhere, or at the end: a page that left keeps its binding until then, and no bit leads
//!    there.
//! 2. Memory is never bound twice at a time: it is unbound from its old place before. Before that the bits of the old
//!    place are cleared, and a flush has waited for who had seen them.
//! 3. A bind waits for one value of a timeline and signals the next; unbinds come before binds in that order. Bits are
//!    set when the host has seen the last value.
//! 4. Each run is a mapping of the process on a CPU driver, so their number is capped; what is not bound is reached
//!    through the page table.
//! 5. After a bind that the driver refused nothing is bound any more: everything is reached through the table.
#![allow(unsafe_code, reason = "calls of the Vulkan driver")]

use std::collections::{BTreeMap, HashMap};

use ash::vk;

use super::device::Inner;
use super::driver::Driver;
use super::error::{Named, VulkanError};
use super::pool::Pool;
use super::residency::{GRANULE_BYTES, Residency, Run};

/// The most runs that are bound at a time.
const MOST_RUNS: usize = 16_384;
/// The most ranges of one call of the driver.
const MOST_RANGES: usize = 4_096;

/// What is bound where.
pub(super) struct Binder {
    /// The unit of binding: the driver's alignment, or more.
    unit: u64,
    /// How many granules may have buffers: the driver's limit on addresses of sparse buffers.
    most_granules: u64,
    buffers: HashMap<u64, vk::Buffer>,
    /// Device memory by the unit of addresses that it is bound at.
    bound: HashMap<u64, u64>,
    /// The other way round.
    places: HashMap<u64, u64>,
    runs: usize,
    timeline: vk::Semaphore,
    value: u64,
    is_off: bool,
    /// Units that were bound and unbound so far.
    binds: u64,
}

/// Makes a sparse buffer for a granule.
fn buffer(device: &ash::Device) -> Result<vk::Buffer, VulkanError> {
    let create = vk::BufferCreateInfo::default()
        .size(GRANULE_BYTES)
        .flags(vk::BufferCreateFlags::SPARSE_BINDING | vk::BufferCreateFlags::SPARSE_RESIDENCY)
        .usage(vk::BufferUsageFlags::STORAGE_BUFFER | vk::BufferUsageFlags::SHADER_DEVICE_ADDRESS);
    // SAFETY: the device is alive; the structure lives until the call returns.
    unsafe { device.create_buffer(&create, None) }.named("vkCreateBuffer")
}

impl Binder {
    /// Makes the pool of device memory, and a binder for it.
    pub(super) fn new(driver: &Driver, bytes: u64, unit: u64) -> Result<(Self, Pool), VulkanError> {
        let device = &driver.device;
        let probe = buffer(device)?;
        // SAFETY: the buffer is alive.
        let align = unsafe { device.get_buffer_memory_requirements(probe) }.alignment;
        let pool = Pool::new(driver, bytes, probe);
        // SAFETY: the buffer was bound to nothing.
        unsafe { device.destroy_buffer(probe, None) };
        let pool = pool?;
        let mut kind = vk::SemaphoreTypeCreateInfo::default().semaphore_type(vk::SemaphoreType::TIMELINE);
        let create = vk::SemaphoreCreateInfo::default().push_next(&mut kind);
        // SAFETY: as above.
        let timeline = match unsafe { device.create_semaphore(&create, None) }.named("vkCreateSemaphore") {
            Ok(timeline) => timeline,
            Err(error) => {
                pool.free(device);
                return Err(error);
            }
        };
        let binder = Self {
            unit: unit.max(align),
            most_granules: driver.found.sparse_bytes / GRANULE_BYTES,
            buffers: HashMap::new(),
            bound: HashMap::new(),
            places: HashMap::new(),
            runs: 0,
            timeline,
            value: 0,
            is_off: false,
            binds: 0,
        };
        Ok((binder, pool))
    }

    /// Units that were bound so far, and runs that are bound now.
    pub(super) fn counts(&self) -> (u64, u64) {
        (self.binds, self.runs as u64)
    }

    /// Binds what was mapped since the last call, as far as it can be.
    ///
    /// # Errors
    /// [`VulkanError`] if the device was lost.
    pub(super) fn bind_noted(
        &mut self,
        driver: &Driver,
        pool: &Pool,
        inner: &Inner,
    ) -> Result<(), VulkanError> {
        let Some(residency) = inner.residency.as_ref().filter(|_| !self.is_off) else { return Ok(()) };
        let notes = residency.take();
        let mut next = 0;
        while next < notes.len() {
            // What each touched unit was bound to before this batch.
            let mut touched: BTreeMap<u64, Option<u64>> = BTreeMap::new();
            let first = next;
            while next < notes.len() && touched.len() < MOST_RANGES {
                self.plan(driver, residency, inner, notes.get(next), &mut touched)?;
                next += 1;
            }
            match self.carry_out(driver, pool, &touched) {
                Ok(()) => {}
                Err(VulkanError::Call { result: vk::Result::ERROR_DEVICE_LOST, call }) => {
                    return Err(VulkanError::Call { result: vk::Result::ERROR_DEVICE_LOST, call });
                }
                Err(_) => {
                    self.is_off = true;
                    residency.cleared(0, granule::units::SPACE_BYTES);
                    inner.windows().flush();
                    return Ok(());
                }
            }
            for index in first..next {
                self.reach(residency, inner, notes.get(index));
            }
        }
        Ok(())
    }

    /// The units of a run: address, and the memory that belongs there; none if the run does not lie in its memory as in
    /// its addresses.
    fn units(&self, run: Run) -> impl Iterator<Item = (u64, u64)> + use<> {
        let (unit, into) = (self.unit, run.at % self.unit);
        let first = (run.memory % unit == into).then(|| (run.at - into, run.memory - into));
        let count = (into + run.bytes).div_ceil(unit);
        first
            .into_iter()
            .flat_map(move |(at, memory)| (0..count).map(move |n| (at + n * unit, memory + n * unit)))
    }

    /// Decides what is bound for a run, and enters it; remembers what was bound before.
    fn plan(
        &mut self,
        driver: &Driver,
        residency: &Residency,
        inner: &Inner,
        run: Run,
        touched: &mut BTreeMap<u64, Option<u64>>,
    ) -> Result<(), VulkanError> {
        for (at, memory) in self.units(run) {
            if self.bound.get(&at) == Some(&memory) || memory + self.unit > inner.memory_bytes() {
                continue;
            }
            if self.runs >= MOST_RUNS || !self.granule(driver, residency, at / GRANULE_BYTES)? {
                continue;
            }
            let old_place = self.places.get(&memory).copied();
            let mut was_seen = false;
            for place in old_place.into_iter().chain(self.bound.contains_key(&at).then_some(at)) {
                touched.entry(place).or_insert(self.bound.get(&place).copied());
                was_seen |= residency.cleared(place, self.unit);
                self.unbind(place);
            }
            if was_seen {
                inner.windows().flush();
            }
            touched.entry(at).or_insert(None);
            self.bind(at, memory);
        }
        Ok(())
    }

    /// How many neighbours of a unit continue its run.
    fn neighbours(&self, at: u64, memory: u64) -> usize {
        let is_at = |at: u64, memory: u64| self.bound.get(&at) == Some(&memory);
        let below =
            !at.is_multiple_of(GRANULE_BYTES) && memory != 0 && is_at(at - self.unit, memory - self.unit);
        let above =
            !(at + self.unit).is_multiple_of(GRANULE_BYTES) && is_at(at + self.unit, memory + self.unit);
        usize::from(below) + usize::from(above)
    }

    fn bind(&mut self, at: u64, memory: u64) {
        let before = self.bound.insert(at, memory);
        let other = self.places.insert(memory, at);
        assert!(
            before.is_none() && other.is_none(),
            "memory is bound at one place, and a place to one memory"
        );
        self.runs = self.runs + 1 - self.neighbours(at, memory);
        self.binds += 1;
    }

    fn unbind(&mut self, at: u64) {
        if let Some(memory) = self.bound.remove(&at) {
            self.places.remove(&memory);
            self.runs = self.runs + self.neighbours(at, memory) - 1;
        }
    }

    /// Sees to it that a granule has a buffer; `false` if it cannot have one.
    fn granule(&mut self, driver: &Driver, residency: &Residency, granule: u64) -> Result<bool, VulkanError> {
        if self.buffers.contains_key(&granule) {
            return Ok(true);
        }
        if self.buffers.len() as u64 >= self.most_granules || residency.has(granule) {
            return Ok(false);
        }
        let buffer = match buffer(&driver.device) {
            Err(VulkanError::Call { result: vk::Result::ERROR_DEVICE_LOST, call }) => {
                return Err(VulkanError::Call { result: vk::Result::ERROR_DEVICE_LOST, call });
            }
            // No addresses are left.
            Err(_) => return Ok(false),
            Ok(buffer) => buffer,
        };
        let info = vk::BufferDeviceAddressInfo::default().buffer(buffer);
        // SAFETY: a sparse buffer has its address from the start.
        let address = unsafe { driver.device.get_buffer_device_address(&info) };
        if !residency.enter(granule, address) {
            // SAFETY: nobody knows of the buffer.
            unsafe { driver.device.destroy_buffer(buffer, None) };
            return Ok(false);
        }
        self.buffers.insert(granule, buffer);
        Ok(true)
    }

    /// Has the driver unbind what was bound, then bind what is to be, and waits.
    fn carry_out(
        &mut self,
        driver: &Driver,
        pool: &Pool,
        touched: &BTreeMap<u64, Option<u64>>,
    ) -> Result<(), VulkanError> {
        let changed = || touched.iter().filter(|(at, old)| self.bound.get(at) != old.as_ref());
        let gone = changed().filter(|(_, old)| old.is_some()).map(|(at, _)| (*at, None));
        let gone = self.ranges(gone, pool);
        let come = changed().filter_map(|(at, _)| Some((*at, Some(*self.bound.get(at)?))));
        let come = self.ranges(come, pool);
        for part in gone.chunks(MOST_RANGES).chain(come.chunks(MOST_RANGES)) {
            self.value = driver.bind(part, self.timeline, self.value)?;
        }
        driver.wait_for(self.timeline, self.value)
    }

    /// Joins units (in the order of their addresses) to ranges.
    fn ranges(
        &self,
        units: impl Iterator<Item = (u64, Option<u64>)>,
        pool: &Pool,
    ) -> Vec<(vk::Buffer, vk::SparseMemoryBind)> {
        let mut ranges: Vec<(vk::Buffer, vk::SparseMemoryBind)> = Vec::new();
        for (at, memory) in units {
            let (buffer, offset) = (self.buffers[&(at / GRANULE_BYTES)], at % GRANULE_BYTES);
            if let Some((last_buffer, last)) = ranges.last_mut() {
                let end = last.resource_offset + last.size;
                assert!(*last_buffer != buffer || end <= offset, "ranges of one call do not overlap");
                let continues = match memory {
                    None => last.memory == vk::DeviceMemory::null(),
                    Some(memory) => last.memory == pool.memory && last.memory_offset + last.size == memory,
                };
                if *last_buffer == buffer && end == offset && continues {
                    last.size += self.unit;
                    continue;
                }
            }
            let bind = vk::SparseMemoryBind::default().resource_offset(offset).size(self.unit);
            let bind = match memory {
                None => bind,
                Some(memory) => bind.memory(pool.memory).memory_offset(memory),
            };
            ranges.push((buffer, bind));
        }
        ranges
    }

    /// Sets the bits of a run as far as it is bound.
    fn reach(&self, residency: &Residency, inner: &Inner, run: Run) {
        let mut whole: Option<Run> = None;
        for (at, memory) in self.units(run) {
            if self.bound.get(&at) != Some(&memory) {
                continue;
            }
            let (from, until) = (at.max(run.at), (at + self.unit).min(run.at + run.bytes));
            let part = Run { at: from, bytes: until - from, memory: memory + (from - at) };
            whole = match whole {
                Some(whole) if whole.is_followed_by(&part) => {
                    Some(Run { bytes: whole.bytes + part.bytes, ..whole })
                }
                before => {
                    before.into_iter().for_each(|run| residency.reach(run, &inner.table));
                    Some(part)
                }
            };
        }
        whole.into_iter().for_each(|run| residency.reach(run, &inner.table));
    }

    /// Unbinds everything and destroys the buffers. No dispatch is under way, and none follows.
    pub(super) fn destroy(mut self, driver: &Driver) {
        let whole = |buffer: &vk::Buffer| (*buffer, vk::SparseMemoryBind::default().size(GRANULE_BYTES));
        let all: Vec<_> = self.buffers.values().map(whole).collect();
        for part in all.chunks(MOST_RANGES) {
            // A device that was lost has nothing bound.
            let Ok(value) = driver.bind(part, self.timeline, self.value) else { break };
            self.value = value;
        }
        let _ = driver.wait_for(self.timeline, self.value);
        // SAFETY: the caller's promise.
        unsafe {
            self.buffers.values().for_each(|buffer| driver.device.destroy_buffer(*buffer, None));
            driver.device.destroy_semaphore(self.timeline, None);
        }
    }
}
