//! The accesses of a kernel: the one way from an engine to memory.
//!
//! # One access
//! enter -> translate (TLB, else a walk) -> device memory, or: system memory -> IOVA -> IOTLB or walk -> address of
//! the process -> guarded access -> leave. What can go wrong, and what follows:
//!
//! | where | what | then |
//! |---|---|---|
//! | translation | missing, or not for writing | device fault; after its replay the access begins again |
//! | gate | closed by `quiesce` | wait for `resume`, again |
//! | IOMMU | not linked, or not for writing | recorded; the kernel ends with [`AccessError::Iommu`] |
//! | guarded access | the page is not there, or not writable | device fault at this address |
//! | guarded access | stopped by a closer | again, when the closer has finished |
//!
//! # Rules
//! 1. Between enter and leave an engine touches private memory and the one address of its access. Slices of the
//!    kernel that do not lie on its own (private) stack are copied by way of a private buffer.
//! 2. An access of a word happens exactly once. A copy goes on where it was stopped.
//! 3. Words are read and written in one piece. Copies may tear between words, and engines that race on plain
//!    words see one value or the other, as on a GPU.
#![allow(unsafe_code, reason = "the accesses themselves")]

use granule::os::guarded::{self, Failed};
use granule::os::private::{self, PrivateBytes};
use granule::sync::{AtomicU32, Ordering};
use granule::units::{Access, Iova, VirtAddr, VirtRange};

use super::device::Inner;
use super::entry::{EngineRecord, count};
use super::fault_buffer::Answer;
use super::memory::NEVER;
use super::page_table::Found;
use super::scalar::{AccessError, Scalar};
use super::space::Space;
use super::tlb::Tlb;
use super::windows::is_window;

/// The most that is copied in one access.
pub(super) const CHUNK_BYTES: usize = 64 << 10;
/// The most that is copied in one access by way of the private buffer: stays in the first level cache.
pub(super) const BOUNCE_BYTES: usize = 16 << 10;

/// One engine, in the hands of the kernel that runs on it.
pub struct Engine<'d> {
    pub(super) inner: &'d Inner,
    pub(super) space: &'d Space,
    pub(super) record: &'d EngineRecord,
    pub(super) index: usize,
    pub(super) bounce: &'d PrivateBytes,
    pub(super) tlb: &'d mut Tlb,
    pub(super) iotlb: &'d mut Tlb,
}

/// Where an address leads at this moment. The engine is inside of an access.
struct Place<'d> {
    host: u64,
    /// How many bytes from here on lie in the same leaves.
    bytes: u64,
    system: bool,
    stop: &'d AtomicU32,
}

/// Why there is no place.
enum Nowhere {
    Fault,
    Closed,
    NotLinked(Iova),
}

impl<'d> Engine<'d> {
    /// The number of this engine, from 0.
    pub fn index(&self) -> usize {
        self.index
    }

    /// How many engines run the kernel.
    pub fn count(&self) -> usize {
        self.inner.engines.len()
    }

    /// The part of `0..items` that falls to this engine when all engines share it evenly, in order.
    pub fn share(&self, items: usize) -> core::ops::Range<usize> {
        let (each, rest) = (items / self.count(), items % self.count());
        let start = self.index * each + self.index.min(rest);
        start..start + each + usize::from(self.index < rest)
    }

    #[inline]
    fn translate(&mut self, at: u64, access: Access, generation: u64) -> Result<Place<'d>, Nowhere> {
        let leaf = match self.tlb.get(at, generation).filter(|leaf| leaf.covers(access)) {
            Some(leaf) => {
                count(&self.record.tlb_hits);
                leaf
            }
            None => {
                count(&self.record.tlb_misses);
                let is_gone = self.space.detached.load(Ordering::SeqCst) != 0;
                if is_gone || self.inner.entry.lost.load(Ordering::SeqCst) != 0 {
                    return Err(Nowhere::Fault);
                }
                let Found::Leaf(leaf) = self.space.table.find(at) else { return Err(Nowhere::Fault) };
                if !leaf.covers(access) {
                    return Err(Nowhere::Fault);
                }
                self.tlb.put(leaf, generation);
                leaf
            }
        };
        let (target, bytes) = (leaf.target + (at - leaf.base), leaf.base + leaf.bytes - at);
        if !leaf.system {
            let host = self.inner.memory.host_address(target);
            return Ok(Place { host, bytes, system: false, stop: &NEVER });
        }
        self.inner.entry.enter_system(self.record);
        let far = match self.iotlb.get(target, generation).filter(|leaf| leaf.covers(access)) {
            Some(leaf) => {
                count(&self.record.iotlb_hits);
                leaf
            }
            None => {
                count(&self.record.iotlb_misses);
                match self.space.domain.table.find(target) {
                    Found::Leaf(leaf) if leaf.covers(access) && !is_window(leaf.target) => {
                        self.iotlb.put(leaf, generation);
                        leaf
                    }
                    _ => return Err(Nowhere::NotLinked(Iova(target))),
                }
            }
        };
        let host = far.target + (target - far.base);
        let bytes = bytes.min(far.base + far.bytes - target);
        Ok(Place { host, bytes, system: true, stop: &self.record.stop })
    }

    /// Makes one access: calls `op` with the place of `at` until it has succeeded.
    #[inline]
    fn reach<R>(
        &mut self,
        at: u64,
        access: Access,
        mut op: impl FnMut(&Place<'_>) -> Result<R, Failed>,
    ) -> Result<R, AccessError> {
        loop {
            let entered = self.inner.entry.enter(self.record).ok_or(Nowhere::Closed);
            let place = entered.and_then(|generation| self.translate(at, access, generation));
            let result = place.map(|place| (op(&place), place.system));
            self.inner.entry.leave(self.record);
            match result {
                Ok((Ok(done), _)) => return Ok(done),
                failed => self.recover(at, access, failed.map(|(done, system)| (done.err(), system)))?,
            }
        }
    }

    /// Does what must be done before an access is tried again.
    #[cold]
    fn recover(
        &mut self,
        at: u64,
        access: Access,
        failed: Result<(Option<Failed>, bool), Nowhere>,
    ) -> Result<(), AccessError> {
        if self.inner.entry.lost.load(Ordering::SeqCst) != 0 {
            return Err(AccessError::DeviceLost);
        }
        match failed {
            Err(Nowhere::Fault) => self.fault(at, access),
            Err(Nowhere::Closed) => {
                self.inner.entry.wait_open();
                Ok(())
            }
            Err(Nowhere::NotLinked(iova)) => {
                self.inner.log.record(iova.0);
                Err(AccessError::Iommu { at, iova })
            }
            Ok((Some(Failed::Vanished), true)) => {
                count(&self.record.vanished);
                self.fault(at, access)
            }
            Ok((Some(Failed::Vanished), false)) => Err(AccessError::DeviceMemory { at }),
            Ok((Some(Failed::Stopped), _)) => {
                count(&self.record.stopped);
                self.inner.entry.wait_unstopped(self.record);
                Ok(())
            }
            Ok((None, _)) => unreachable!("a finished access needs no recovery"),
        }
    }

    fn fault(&mut self, at: u64, access: Access) -> Result<(), AccessError> {
        self.inner.fate.fault();
        let lost = &self.inner.entry.lost;
        let room = &self.inner.room;
        match self.space.faults.raise(self.index as u32, self.record, lost, room, at, access) {
            Answer::Again => Ok(()),
            Answer::Cancelled(cause) => Err(AccessError::Fault { at, access, cause }),
            Answer::DeviceLost => Err(AccessError::DeviceLost),
        }
    }

    #[inline]
    fn word<R>(
        &mut self,
        at: u64,
        bytes: usize,
        access: Access,
        op: impl Fn(u64, &AtomicU32) -> Result<R, Failed>,
    ) -> Result<R, AccessError> {
        if !at.is_multiple_of(bytes as u64) {
            return Err(AccessError::Unaligned { at, bytes });
        }
        self.reach(at, access, |place| op(place.host, place.stop))
    }

    /// Loads a number.
    ///
    /// # Errors
    /// [`AccessError`].
    #[inline]
    pub fn load<T: Scalar>(&mut self, at: u64) -> Result<T, AccessError> {
        let word = self.word(at, size_of::<T>(), Access::Read, |host, stop| {
            // SAFETY: an address that the tables lead to: memory that the application lent to the device, or
            // device memory, which lives as long as the device. Aligned, checked. Engines are admitted.
            unsafe {
                match size_of::<T>() {
                    1 => guarded::load_u8(host, stop).map(u64::from),
                    2 => guarded::load_u16(host, stop).map(u64::from),
                    4 => guarded::load_u32(host, stop).map(u64::from),
                    _ => guarded::load_u64(host, stop),
                }
            }
        })?;
        Ok(T::from_word(word))
    }

    /// Stores a number.
    ///
    /// # Errors
    /// [`AccessError`]; nothing was written then.
    #[inline]
    pub fn store<T: Scalar>(&mut self, at: u64, value: T) -> Result<(), AccessError> {
        let word = value.to_word();
        self.word(at, size_of::<T>(), Access::Write, |host, stop| {
            // SAFETY: as in `load`, and the tables permit writes.
            unsafe {
                match size_of::<T>() {
                    1 => guarded::store_u8(host, word as u8, stop),
                    2 => guarded::store_u16(host, word as u16, stop),
                    4 => guarded::store_u32(host, word as u32, stop),
                    _ => guarded::store_u64(host, word, stop),
                }
            }
        })
    }
}

macro_rules! atomics {
    ($word:ty, $add:ident, $swap:ident, $cas:ident, $or:ident, $and:ident, $min:ident, $max:ident) => {
        impl Engine<'_> {
            /// Adds atomically (wrapping) and returns what was there before.
            ///
            /// # Errors
            /// [`AccessError`]; nothing was written then.
            pub fn $add(&mut self, at: u64, value: $word) -> Result<$word, AccessError> {
                // SAFETY: as in `store`.
                self.word(at, size_of::<$word>(), Access::Write, |host, stop| unsafe {
                    guarded::$add(host, value, stop)
                })
            }
            /// Exchanges atomically and returns what was there before.
            ///
            /// # Errors
            /// [`AccessError`]; nothing was written then.
            pub fn $swap(&mut self, at: u64, value: $word) -> Result<$word, AccessError> {
                // SAFETY: as in `store`.
                self.word(at, size_of::<$word>(), Access::Write, |host, stop| unsafe {
                    guarded::$swap(host, value, stop)
                })
            }
            /// Stores `new` if `expected` is there, atomically, and returns what was there before.
            ///
            /// # Errors
            /// [`AccessError`]; nothing was written then.
            pub fn $cas(&mut self, at: u64, expected: $word, new: $word) -> Result<$word, AccessError> {
                // SAFETY: as in `store`.
                self.word(at, size_of::<$word>(), Access::Write, |host, stop| unsafe {
                    guarded::$cas(host, expected, new, stop)
                })
            }
            /// Or, atomically; returns what was there before.
            ///
            /// # Errors
            /// [`AccessError`]; nothing was written then.
            pub fn $or(&mut self, at: u64, value: $word) -> Result<$word, AccessError> {
                self.update(at, |old| old | value, Self::load, Self::$cas)
            }
            /// And, atomically; returns what was there before.
            ///
            /// # Errors
            /// [`AccessError`]; nothing was written then.
            pub fn $and(&mut self, at: u64, value: $word) -> Result<$word, AccessError> {
                self.update(at, |old| old & value, Self::load, Self::$cas)
            }
            /// The smaller one, atomically; returns what was there before.
            ///
            /// # Errors
            /// [`AccessError`]; nothing was written then.
            pub fn $min(&mut self, at: u64, value: $word) -> Result<$word, AccessError> {
                self.update(at, |old| old.min(value), Self::load, Self::$cas)
            }
            /// The larger one, atomically; returns what was there before.
            ///
            /// # Errors
            /// [`AccessError`]; nothing was written then.
            pub fn $max(&mut self, at: u64, value: $word) -> Result<$word, AccessError> {
                self.update(at, |old| old.max(value), Self::load, Self::$cas)
            }
        }
    };
}
atomics!(
    u32,
    fetch_add_u32,
    swap_u32,
    compare_exchange_u32,
    fetch_or_u32,
    fetch_and_u32,
    fetch_min_u32,
    fetch_max_u32
);
atomics!(
    u64,
    fetch_add_u64,
    swap_u64,
    compare_exchange_u64,
    fetch_or_u64,
    fetch_and_u64,
    fetch_min_u64,
    fetch_max_u64
);

impl Engine<'_> {
    fn update<T: Copy + PartialEq>(
        &mut self,
        at: u64,
        with: impl Fn(T) -> T,
        load: fn(&mut Self, u64) -> Result<T, AccessError>,
        cas: fn(&mut Self, u64, T, T) -> Result<T, AccessError>,
    ) -> Result<T, AccessError> {
        let mut old = load(self, at)?;
        loop {
            match cas(self, at, old, with(old))? {
                same if same == old => return Ok(old),
                other => old = other,
            }
        }
    }

    /// Loads numbers from neighbouring addresses. The elements are not loaded in one piece.
    ///
    /// # Errors
    /// [`AccessError`]; the elements before the address that it names were loaded.
    pub fn load_slice<T: Scalar>(&mut self, at: u64, into: &mut [T]) -> Result<(), AccessError> {
        let bytes = check_slice::<T>(at, into.len())?;
        self.copy(at, into.as_mut_ptr() as u64, bytes, Access::Read)
    }

    /// Stores numbers to neighbouring addresses. The elements are not stored in one piece.
    ///
    /// # Errors
    /// [`AccessError`]; the elements before the address that it names were stored.
    pub fn store_slice<T: Scalar>(&mut self, at: u64, from: &[T]) -> Result<(), AccessError> {
        let bytes = check_slice::<T>(at, from.len())?;
        self.copy(at, from.as_ptr() as u64, bytes, Access::Write)
    }

    /// Copies between the device's addresses and a slice of the kernel, in the direction of `access`.
    fn copy(&mut self, at: u64, slice: u64, bytes: usize, access: Access) -> Result<(), AccessError> {
        let is_private = VirtRange::covering(VirtAddr(slice), bytes as u64).is_ok_and(private::contains);
        let bounce = self.bounce.base().0;
        let mut done = 0;
        while done < bytes {
            let here = slice + done as u64;
            let most = (bytes - done).min(if is_private { CHUNK_BYTES } else { BOUNCE_BYTES });
            let own = if is_private { here } else { bounce };
            if !is_private && access == Access::Write {
                // SAFETY: `here..` is a part of the caller's slice; the buffer is as long and private. Outside
                // of any access: the slice may fault.
                unsafe { core::ptr::copy_nonoverlapping(here as *const u8, bounce as *mut u8, most) };
            }
            let from = at + done as u64;
            let mut copied = 0;
            while copied < most {
                copied += self.copy_part(from + copied as u64, own + copied as u64, most - copied, access)?;
            }
            if !is_private && access == Access::Read {
                // SAFETY: as above, the other way: the caller lent the slice mutably.
                unsafe { core::ptr::copy_nonoverlapping(bounce as *const u8, here as *mut u8, most) };
            }
            done += most;
        }
        Ok(())
    }

    /// Copies at most to the end of a leaf and says how much.
    fn copy_part(&mut self, at: u64, own: u64, most: usize, access: Access) -> Result<usize, AccessError> {
        self.reach(at, access, |place| {
            let bytes = most.min(place.bytes as usize);
            let (to, from) = if access == Access::Write { (place.host, own) } else { (own, place.host) };
            // SAFETY: as in `load` and `store` for the far side; the near side is private memory of this engine
            // (its stack, lent by the kernel, or its buffer).
            match unsafe { guarded::copy(to, from, bytes, place.stop) } {
                Ok(()) => Ok(bytes),
                // What was copied stays copied; the next part begins where this one stopped, and meets the cause.
                Err(failed) if failed.bytes_left < bytes => Ok(bytes - failed.bytes_left),
                Err(failed) => Err(failed.why),
            }
        })
    }
}

fn check_slice<T>(at: u64, len: usize) -> Result<usize, AccessError> {
    let bytes = len * size_of::<T>();
    if !at.is_multiple_of(size_of::<T>() as u64) {
        return Err(AccessError::Unaligned { at, bytes: size_of::<T>() });
    }
    if at.checked_add(bytes as u64).is_none() {
        return Err(AccessError::Wraps { at, bytes });
    }
    Ok(bytes)
}
