//! Memory of the process that stays: present and locked, so that DMA finds it. The software device reaches memory by the
//! process's addresses, so a physical address is one of those, and nothing else has to hold still.
#![allow(unsafe_code, reason = "populates and locks memory of the application")]

use std::collections::BTreeMap;
use std::sync::{Mutex, PoisonError};

use granule::ports::{PinError, PinMemory};
use granule::units::{Access, PhysAddr, PhysRange, VirtAddr, VirtRange};

/// Pins memory of the process for software devices: populates it and locks it (`mlock`), page by page as often as it is
/// pinned.
///
/// What the application unmaps meanwhile is gone all the same; DMA to it is an error then.
#[derive(Debug, Default)]
pub struct ProcessPins {
    /// Where the count of pins changes, to what it is from there on. Nothing stands for 0.
    counts: Mutex<BTreeMap<u64, u32>>,
}

impl ProcessPins {
    /// Nothing pinned.
    pub fn new() -> Self {
        Self::default()
    }

    /// Bytes that are pinned at present.
    pub fn pinned_bytes(&self) -> u64 {
        let counts = self.counts.lock().unwrap_or_else(PoisonError::into_inner);
        counts
            .iter()
            .zip(counts.keys().skip(1))
            .filter(|((_, n), _)| **n > 0)
            .map(|((at, _), end)| end - at)
            .sum()
    }

    /// The count before an address.
    fn count_at(counts: &BTreeMap<u64, u32>, at: u64) -> u32 {
        counts.range(..=at).next_back().map_or(0, |(_, count)| *count)
    }

    /// Adds to the count of every page of a range, and calls `each` for the parts that were, or are now, pinned once.
    fn change(
        &self,
        range: VirtRange,
        pins: bool,
        mut each: impl FnMut(u64, u64) -> Result<(), PinError>,
    ) -> Result<(), PinError> {
        let counts = &mut *self.counts.lock().unwrap_or_else(PoisonError::into_inner);
        let (start, end) = (range.start().0, range.end().0);
        for edge in [start, end] {
            let count = Self::count_at(counts, edge);
            counts.insert(edge, count);
        }
        let parts: Vec<(u64, u32)> = counts.range(start..end).map(|(at, count)| (*at, *count)).collect();
        let ends = parts.iter().skip(1).map(|(at, _)| *at).chain([end]);
        let mut result = Ok(());
        for ((at, count), until) in parts.iter().zip(ends) {
            let edge = if pins { 0 } else { 1 };
            if *count == edge && result.is_ok() {
                result = each(*at, until - at);
            }
        }
        if result.is_ok() {
            for (at, count) in &parts {
                let now = if pins { count + 1 } else { count.saturating_sub(1) };
                counts.insert(*at, now);
            }
        }
        // Edges that are none any more.
        let near: Vec<u64> = counts.range(start..=end).map(|(at, _)| *at).collect();
        for at in near {
            let before = counts.range(..at).next_back().map_or(0, |(_, count)| *count);
            if counts.get(&at) == Some(&before) {
                counts.remove(&at);
            }
        }
        result
    }
}

/// Makes a range present with the right to do `access`.
fn populate(range: VirtRange, access: Access) -> Result<(), PinError> {
    let advice = if access == Access::Write { libc::MADV_POPULATE_WRITE } else { libc::MADV_POPULATE_READ };
    let (at, bytes) = (range.start().0 as *mut libc::c_void, range.bytes() as usize);
    // SAFETY: makes pages present that the application has mapped; what they hold stays.
    if unsafe { libc::madvise(at, bytes, advice) } == 0 {
        return Ok(());
    }
    match std::io::Error::last_os_error().raw_os_error() {
        // It says this of addresses without a mapping and of a machine without memory.
        Some(libc::ENOMEM) if is_mapped(range) => Err(PinError::OutOfMemory(range.start())),
        Some(libc::ENOMEM | libc::EFAULT | libc::EINVAL | libc::EACCES) => {
            Err(PinError::NoAccess(range.start()))
        }
        _ => Err(PinError::OutOfMemory(range.start())),
    }
}

/// Whether every page of a range has a mapping.
fn is_mapped(range: VirtRange) -> bool {
    // SAFETY: asks for nothing but this: what is written back without waiting is a file's, and would be anyway.
    let rc = unsafe { libc::msync(range.start().0 as *mut _, range.bytes() as usize, libc::MS_ASYNC) };
    rc == 0
}

fn lock(at: u64, bytes: u64) -> Result<(), PinError> {
    // SAFETY: keeps pages present that `populate` made so.
    if unsafe { libc::mlock(at as *const libc::c_void, bytes as usize) } == 0 {
        return Ok(());
    }
    match std::io::Error::last_os_error().raw_os_error() {
        Some(libc::EAGAIN) => Err(PinError::NoAccess(VirtAddr(at))),
        // ENOMEM is the limit, too; what is not mapped was found by `populate`.
        _ => Err(PinError::OverLimit),
    }
}

fn unlock(at: u64, bytes: u64) {
    // SAFETY: undoes `lock`; what is not mapped any more needs no undoing.
    unsafe { libc::munlock(at as *const libc::c_void, bytes as usize) };
}

impl PinMemory for ProcessPins {
    fn pin(
        &self,
        at: VirtAddr,
        bytes: u64,
        access: Access,
        each: &mut dyn FnMut(PhysRange),
    ) -> Result<(), PinError> {
        let bad = PinError::BadRange { at, bytes };
        let range = VirtRange::covering(at, bytes).map_err(|_| bad)?;
        if bytes == 0 {
            return Err(bad);
        }
        populate(range, access)?;
        let mut locked = Vec::new();
        let result = self.change(range, true, |at, bytes| {
            lock(at, bytes)?;
            locked.push((at, bytes));
            Ok(())
        });
        if let Err(error) = result {
            locked.into_iter().for_each(|(at, bytes)| unlock(at, bytes));
            return Err(error);
        }
        PhysRange::of_run(PhysAddr(at.0), bytes, PhysRange::PINNED).for_each(each);
        Ok(())
    }

    fn unpin(&self, at: VirtAddr, bytes: u64) {
        let Ok(range) = VirtRange::covering(at, bytes) else { return };
        let unlocked = self.change(range, false, |at, bytes| {
            unlock(at, bytes);
            Ok(())
        });
        debug_assert_eq!(unlocked, Ok(()), "unlocking refuses nothing");
    }
}

#[cfg(test)]
mod tests {
    use granule::dma::pin;
    use granule::os::private::PrivateBytes;
    use granule::units::PAGE_BYTES;

    use super::*;

    /// One test at a time: the kernel counts for the whole process.
    static ALONE: Mutex<()> = Mutex::new(());

    /// Kilobytes of the process that are locked, by the kernel's account.
    fn locked_kib() -> u64 {
        let status = std::fs::read_to_string("/proc/self/status").expect("a status");
        let line =
            status.lines().find_map(|line| line.strip_prefix("VmLck:")).expect("a line for locked memory");
        line.trim_end_matches("kB").trim().parse().expect("a number")
    }

    #[test]
    fn pages_are_locked_while_anybody_pins_them() {
        let _alone = ALONE.lock().unwrap_or_else(PoisonError::into_inner);
        let memory = PrivateBytes::new(8 * PAGE_BYTES).expect("memory");
        let (pins, base) = (ProcessPins::new(), memory.base());
        let before = locked_kib();
        let one = pin(&pins, base + 100, 2 * PAGE_BYTES, Access::Write).expect("pinned");
        let range = one.ranges().iter().next().expect("a range");
        assert_eq!((range.addr, range.len), (PhysAddr(base.0 + 100), 2 * PAGE_BYTES as u32));
        assert_eq!(range.flags, PhysRange::PINNED);
        assert_eq!((pins.pinned_bytes(), locked_kib() - before), (3 * PAGE_BYTES, 12));
        let two = pin(&pins, base + 2 * PAGE_BYTES, 3 * PAGE_BYTES, Access::Read).expect("pinned");
        assert_eq!((pins.pinned_bytes(), locked_kib() - before), (5 * PAGE_BYTES, 20));
        drop(one);
        assert_eq!(
            (pins.pinned_bytes(), locked_kib() - before),
            (3 * PAGE_BYTES, 12),
            "one page was pinned twice"
        );
        drop(two);
        assert_eq!((pins.pinned_bytes(), locked_kib()), (0, before));
        assert!(pins.counts.lock().expect("whole").is_empty());
    }

    /// Takes the right to lock without limit from the calling thread, if it has it.
    fn drop_privilege() {
        const VERSION: u32 = 0x2008_0522;
        const IPC_LOCK: u32 = 14;
        let mut header = [VERSION, 0];
        // Effective, permitted, inheritable; twice, for 64 of them.
        let mut sets = [0u32; 6];
        // SAFETY: both point to what the calls want, and concern this thread only.
        unsafe {
            assert_eq!(libc::syscall(libc::SYS_capget, header.as_mut_ptr(), sets.as_mut_ptr()), 0);
            sets[0] &= !(1 << IPC_LOCK);
            assert_eq!(libc::syscall(libc::SYS_capset, header.as_mut_ptr(), sets.as_ptr()), 0);
        }
    }

    #[test]
    fn the_limit_on_locked_memory_is_named_and_nothing_stays_locked() {
        let _alone = ALONE.lock().unwrap_or_else(PoisonError::into_inner);
        let mut before = libc::rlimit { rlim_cur: 0, rlim_max: 0 };
        // SAFETY: reads into a local.
        assert_eq!(unsafe { libc::getrlimit(libc::RLIMIT_MEMLOCK, &raw mut before) }, 0);
        let locked = locked_kib();
        let most = locked * 1024 + 3 * PAGE_BYTES;
        assert!(before.rlim_max >= most, "the limit of this machine leaves room for three pages");
        let limit = |bytes| {
            let limit = libc::rlimit { rlim_cur: bytes, rlim_max: before.rlim_max };
            // SAFETY: a soft limit of this process, put back below.
            assert_eq!(unsafe { libc::setrlimit(libc::RLIMIT_MEMLOCK, &raw const limit) }, 0);
        };
        let memory = PrivateBytes::new(16 * PAGE_BYTES).expect("memory");
        let (pins, base) = (ProcessPins::new(), memory.base());
        limit(most);
        let (few, many) = std::thread::scope(|scope| {
            let unprivileged = scope.spawn(|| {
                drop_privilege();
                let few = pin(&pins, base, 2 * PAGE_BYTES, Access::Write).map(drop);
                // Its first page is pinned already, so that it is locked in two parts, and the first has to be undone.
                let first = pin(&pins, base + PAGE_BYTES, PAGE_BYTES, Access::Write).expect("there is room");
                let many = pin(&pins, base, 9 * PAGE_BYTES, Access::Write).map(drop);
                drop(first);
                (few, many)
            });
            unprivileged.join().expect("no panic")
        });
        limit(before.rlim_cur);
        assert_eq!((few, many), (Ok(()), Err(PinError::OverLimit)));
        assert_eq!((pins.pinned_bytes(), locked_kib()), (0, locked));
    }

    #[test]
    fn what_cannot_be_pinned_is_refused_and_nothing_is_held() {
        let _alone = ALONE.lock().unwrap_or_else(PoisonError::into_inner);
        let pins = ProcessPins::new();
        let nowhere = VirtAddr(PAGE_BYTES);
        let refused = |at, bytes| pin(&pins, at, bytes, Access::Write).expect_err("refused");
        assert_eq!(refused(nowhere, 1), PinError::NoAccess(nowhere));
        // Mapped, and closed to everybody.
        let closed = PrivateBytes::new(2 * PAGE_BYTES).expect("memory");
        // SAFETY: the last page of the test's own memory, which nobody reads.
        let rc = unsafe { libc::mprotect((closed.base().0 + PAGE_BYTES) as *mut _, PAGE_BYTES as usize, 0) };
        assert_eq!(rc, 0);
        assert!(matches!(refused(closed.base(), 2 * PAGE_BYTES), PinError::NoAccess(_)));
        assert_eq!(refused(nowhere, 0), PinError::BadRange { at: nowhere, bytes: 0 });
        let last = VirtAddr(u64::MAX);
        assert_eq!(refused(last, 2), PinError::BadRange { at: last, bytes: 2 });
        let each = &mut |_: PhysRange| panic!("nothing is pinned");
        assert_eq!(pins.pin(last, 1, Access::Read, each), Err(PinError::BadRange { at: last, bytes: 1 }));
        assert_eq!(pins.pinned_bytes(), 0);
        let word = 5u64;
        let on_stack =
            pin(&pins, VirtAddr(&raw const word as u64), 8, Access::Read).expect("any memory will do");
        assert_eq!(on_stack.ranges().bytes(), 8);
    }
}
