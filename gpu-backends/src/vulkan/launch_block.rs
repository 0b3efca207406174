//! What one launch and its shader share: `GranuleLaunch` in `shaders/granule.glsl`, with the items' records, the fault
//! buffer, the places that keep a miss from being announced twice, and the arguments. Private memory, imported; command
//! buffer and fence besides. Blocks are used again.
//!
//! ```text
//! 0         256          4096      seen_at     faults_at        items_at
//! | header  | arguments  | (page)  | seen      | fault records  | item records                |
//! ```
#![allow(unsafe_code, reason = "calls of the Vulkan driver, and raw memory that a shader writes")]

use std::cell::RefCell;

use ash::vk;
use granule::os::private::{PrivateBytes, PrivateError};
use granule::ports::FaultCause;
use granule::sync::{AtomicU32, Ordering};
use granule::units::{Access, PAGE_BYTES};

use super::control::half;
use super::driver::{Driver, Import};
use super::error::{LaunchError, Named, VulkanError};
use super::faults::{MOST_RECORDS, Miss};

/// The most words that a launch is given.
pub const MOST_ARGUMENTS: usize = (PAGE_BYTES as usize - ARGUMENTS_AT) / 8;

const ARGUMENTS_AT: usize = 256;
const SEEN_AT: usize = PAGE_BYTES as usize;
/// An item's record without what it saves.
const ITEM_HEAD_BYTES: usize = 24;
const FAULT_BYTES: usize = 16;
/// Places per record of the fault buffer: few enough collisions that a miss is rarely announced twice.
const SEEN_PER_FAULT: usize = 4;

/// Set in a record's last word when the others are written.
const RECORD_WHOLE: u32 = 2;
const STATE_FAILED: u32 = 2;
/// `GRANULE_IOMMU`.
const CAUSE_IOMMU: u32 = 100;
/// A cause of the service is told to an item as its number.
const MOST_CAUSE: u32 = FaultCause::COUNT as u32;

/// What a pass left in the header.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub(super) struct PassEnd {
    pub(super) faults: usize,
    pub(super) finished: u32,
    pub(super) failed: u32,
    pub(super) advanced: u32,
    pub(super) stopped: u32,
}

impl PassEnd {
    /// A number that grows when items get on.
    pub(super) fn sum(&self) -> usize {
        self.finished as usize + self.failed as usize + self.advanced as usize
    }
}

pub(super) struct LaunchBlock {
    memory: PrivateBytes,
    import: Import,
    pool: vk::CommandPool,
    pub(super) commands: vk::CommandBuffer,
    pub(super) done: vk::Fence,
    /// Where its launch sorts misses.
    pub(super) scratch: RefCell<Scratch>,
    capacity: usize,
    item_bytes: usize,
    most_items: usize,
}

/// Private memory for misses on their way from the fault buffer to the service.
pub(super) struct Scratch(PrivateBytes);

impl Scratch {
    fn new(misses: usize) -> Result<Self, PrivateError> {
        Ok(Self(PrivateBytes::new((misses * size_of::<Miss>()) as u64)?))
    }

    /// Keeps what an iterator yields, as far as there is room.
    pub(super) fn collect(&mut self, from: impl Iterator<Item = Miss>) -> &mut [Miss] {
        let room = size_of_val(self.0.as_words()) / size_of::<Miss>();
        let first = self.0.base().0 as *mut Miss;
        let mut count = 0;
        for miss in from.take(room) {
            // SAFETY: inside of the mapping, page aligned at its first byte, and this borrow is the only one.
            unsafe { first.add(count).write(miss) };
            count += 1;
        }
        // SAFETY: as above; so many were written.
        unsafe { core::slice::from_raw_parts_mut(first, count) }
    }
}

/// Records of items begin at multiples of this, so that neighbours do not disturb one another.
fn item_bytes(saved: usize) -> usize {
    (ITEM_HEAD_BYTES + 8 * saved).next_multiple_of(64)
}

fn capacity_for(items: usize) -> usize {
    (2 * items).next_power_of_two().clamp(1024, MOST_RECORDS)
}

impl LaunchBlock {
    /// A block for launches of at most `items` items that save so many words each.
    pub(super) fn new(driver: &Driver, items: usize, saved: usize) -> Result<Self, VulkanError> {
        let item_bytes = item_bytes(saved);
        let items = items.next_power_of_two().max(64);
        let capacity = capacity_for(items);
        let bytes = SEEN_AT + capacity * (SEEN_PER_FAULT * 4 + FAULT_BYTES) + items * item_bytes;
        let align = driver.found.import_align.max(PAGE_BYTES);
        let memory = PrivateBytes::aligned((bytes as u64).next_multiple_of(align), align)?;
        let scratch = RefCell::new(Scratch::new(capacity)?);
        let import = driver.import_bytes(&memory)?;
        let (device, family) = (&driver.device, driver.found.family);
        let create = vk::CommandPoolCreateInfo::default()
            .queue_family_index(family)
            .flags(vk::CommandPoolCreateFlags::RESET_COMMAND_BUFFER);
        // SAFETY: the device is alive; what was made is destroyed by `destroy`, or here if a later call fails.
        let made = unsafe {
            device.create_command_pool(&create, None).named("vkCreateCommandPool").and_then(|pool| {
                let allocate = vk::CommandBufferAllocateInfo::default()
                    .command_pool(pool)
                    .level(vk::CommandBufferLevel::PRIMARY)
                    .command_buffer_count(1);
                let made = device
                    .allocate_command_buffers(&allocate)
                    .named("vkAllocateCommandBuffers")
                    .and_then(|commands| {
                        let done = device.create_fence(&vk::FenceCreateInfo::default(), None);
                        Ok((commands[0], done.named("vkCreateFence")?))
                    });
                if made.is_err() {
                    device.destroy_command_pool(pool, None);
                }
                made.map(|(commands, done)| (pool, commands, done))
            })
        };
        let (pool, commands, done) = match made {
            Ok(made) => made,
            Err(error) => {
                driver.forget(import);
                return Err(error);
            }
        };
        Ok(Self { memory, import, pool, commands, done, scratch, capacity, item_bytes, most_items: items })
    }

    /// Whether a launch of so many items fits, without wasting most of the block.
    pub(super) fn fits(&self, items: usize, saved: usize) -> bool {
        self.item_bytes == item_bytes(saved)
            && items <= self.most_items
            && self.most_items <= items.max(64) * 4
    }

    pub(super) fn destroy(self, driver: &Driver) {
        // SAFETY: no launch uses the block: it was in the pool, or its launch has ended.
        unsafe {
            driver.device.destroy_fence(self.done, None);
            driver.device.destroy_command_pool(self.pool, None);
        }
        driver.forget(self.import);
    }

    fn seen_bytes(&self) -> usize {
        self.capacity * SEEN_PER_FAULT * 4
    }
    fn faults_at(&self) -> usize {
        SEEN_AT + self.seen_bytes()
    }
    fn items_at(&self) -> usize {
        self.faults_at() + self.capacity * FAULT_BYTES
    }
    fn word(&self, offset: usize) -> u64 {
        self.memory.as_words()[offset / 8].load(Ordering::SeqCst)
    }
    fn set(&self, offset: usize, value: u64) {
        self.memory.as_words()[offset / 8].store(value, Ordering::SeqCst);
    }
    fn half(&self, offset: usize) -> &AtomicU32 {
        half(&self.memory, offset)
    }

    /// Fills bytes with zeros. No dispatch is under way.
    fn clear(&self, from: usize, bytes: usize) {
        debug_assert!(from + bytes <= size_of_val(self.memory.as_words()));
        // SAFETY: a part of the block's own memory, which no shader touches between two passes.
        unsafe { core::ptr::write_bytes((self.memory.base().0 as usize + from) as *mut u8, 0, bytes) };
    }

    /// Writes arguments and empties the items.
    pub(super) fn begin(&self, items: u32, arguments: &[u64]) -> Result<(), LaunchError> {
        if arguments.len() > MOST_ARGUMENTS {
            return Err(LaunchError::TooManyArguments(arguments.len()));
        }
        let address = self.import.address;
        self.clear_records();
        self.clear(0, SEEN_AT);
        self.clear(self.items_at(), items as usize * self.item_bytes);
        self.set(0, address + self.items_at() as u64);
        self.set(8, address + self.faults_at() as u64);
        self.set(16, address + SEEN_AT as u64);
        self.half(24).store(self.capacity as u32, Ordering::SeqCst);
        self.half(28).store((self.seen_bytes() / 4) as u32 - 1, Ordering::SeqCst);
        self.half(32).store(items, Ordering::SeqCst);
        self.half(68).store(self.item_bytes as u32, Ordering::SeqCst);
        for (index, argument) in arguments.iter().enumerate() {
            self.set(ARGUMENTS_AT + 8 * index, *argument);
        }
        Ok(())
    }

    /// Addresses of the header and of the arguments, for the shader.
    pub(super) fn addresses(&self) -> (u64, u64) {
        (self.import.address, self.import.address + ARGUMENTS_AT as u64)
    }

    /// An argument word, as the kernel left it.
    pub(super) fn argument(&self, index: usize) -> u64 {
        assert!(index < MOST_ARGUMENTS, "an argument of the launch");
        self.word(ARGUMENTS_AT + 8 * index)
    }

    /// Empties what the last pass, perhaps one of another launch, put into the fault buffer.
    fn clear_records(&self) {
        let faults = (self.half(40).load(Ordering::SeqCst) as usize).min(self.capacity);
        self.clear(self.faults_at(), faults * FAULT_BYTES);
    }

    /// Makes ready for a pass in which items look so many times for a page that they missed.
    pub(super) fn begin_pass(&self, patience: u32) {
        self.clear_records();
        self.half(36).fetch_add(1, Ordering::SeqCst);
        for (offset, value) in [(40, 0), (56, 0), (60, patience), (64, 0)] {
            self.half(offset).store(value, Ordering::SeqCst);
        }
        self.clear(SEEN_AT, self.seen_bytes());
    }

    pub(super) fn end_of_pass(&self) -> PassEnd {
        let read = |offset| self.half(offset).load(Ordering::SeqCst);
        PassEnd {
            faults: (read(40) as usize).min(self.capacity),
            finished: read(44),
            failed: read(48),
            advanced: read(52),
            stopped: read(56),
        }
    }

    /// Has items that look for a page give up their turns.
    pub(super) fn end_patience(&self) {
        self.half(60).store(0, Ordering::SeqCst);
    }

    /// Lets misses be announced again that were announced before in this pass.
    pub(super) fn forget_seen(&self) {
        self.clear(SEEN_AT, self.seen_bytes());
    }

    /// Whether every item has ended its part of the pass that is under way.
    pub(super) fn all_ended(&self, items: u32) -> bool {
        self.half(64).load(Ordering::SeqCst) == items
    }

    /// The record at a position of the fault buffer, once it is whole.
    pub(super) fn miss(&self, index: usize) -> Option<Miss> {
        if index >= self.capacity {
            return None;
        }
        let at = self.faults_at() + index * FAULT_BYTES;
        let access = self.half(at + 12).load(Ordering::SeqCst);
        let miss = || Miss {
            at: self.word(at),
            item: self.half(at + 8).load(Ordering::SeqCst),
            write: access & 1 != 0,
        };
        (access & RECORD_WHOLE != 0).then(miss)
    }

    /// The miss for which an item gave up its last turn; `None` if it has finished or was turned away.
    pub(super) fn missed(&self, item: u32) -> Option<Miss> {
        let at = self.items_at() + item as usize * self.item_bytes;
        let is_waiting = self.half(at).load(Ordering::SeqCst) == 0
            && self.half(at + 20).load(Ordering::SeqCst) == self.half(36).load(Ordering::SeqCst);
        let write = self.half(at + 16).load(Ordering::SeqCst) != 0;
        is_waiting.then(|| Miss { at: self.word(at + 8), item, write })
    }

    /// Ends an item with a cause, unless it ends by itself at this moment.
    pub(super) fn fail(&self, item: u32, cause: FaultCause) {
        let at = self.items_at() + item as usize * self.item_bytes;
        self.half(at + 4).store(cause as u32, Ordering::SeqCst);
        let state = self.half(at);
        if state.compare_exchange(0, STATE_FAILED, Ordering::SeqCst, Ordering::SeqCst).is_ok() {
            self.half(48).fetch_add(1, Ordering::SeqCst);
        }
    }

    /// The error of an item that failed.
    pub(super) fn error(&self, item: u32) -> Option<LaunchError> {
        let place = self.items_at() + item as usize * self.item_bytes;
        if self.half(place).load(Ordering::SeqCst) != STATE_FAILED {
            return None;
        }
        let at = self.word(place + 8);
        let write = self.half(place + 16).load(Ordering::SeqCst) != 0;
        Some(match self.half(place + 4).load(Ordering::SeqCst) {
            cause @ 1..=MOST_CAUSE => LaunchError::Fault {
                item,
                at,
                access: if write { Access::Write } else { Access::Read },
                cause: FaultCause::ALL[cause as usize - 1],
            },
            cause => {
                debug_assert_eq!(cause, CAUSE_IOMMU);
                LaunchError::NotLinked { item, at }
            }
        })
    }
}
