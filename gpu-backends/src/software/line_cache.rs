//! The cache of a device that is not coherent: lines of memory that it keeps and into which nobody looks. What the CPU
//! wrote after a line came in is not seen, and what the device wrote stays here, until somebody syncs.
//!
//! Only DMA by IOVA goes through it: shared virtual memory needs a coherent device.
//!
//! # Rules
//! 1. Lines change under the lock; memory is read and written outside of it, since such an access may sleep in a page
//!    fault that somebody serves who needs the lock.
//! 2. A line that was read outside of the lock comes in only if nobody synced meanwhile (`syncs`): else it is read
//!    again.
//! 3. A line that was written stays until `sync_for_cpu` or `sync_for_device` takes it. An access whose place such a
//!    line has goes past the cache.
//! 4. `sync_for_device` drops lines; what the device wrote and nobody synced for the CPU is lost then. `sync_for_cpu`
//!    writes whole lines back and drops them: what the CPU wrote into such a line meanwhile is lost.
#![allow(unsafe_code, reason = "lines are copied from and to memory of the application")]

use granule::os::FutexPark;
use granule::os::guarded::{self, Failed};
use granule::os::private::{PrivateError, Slab};
use granule::ports::CacheSync;
use granule::sync::{AtomicU32, AtomicU64, Ordering, WordLock};
use granule::units::{Access, Direction, PhysAddr};

use super::device::SoftwareDevice;
use super::memory::NEVER;

/// Bytes of a line.
pub(super) const LINE: u64 = 64;
const WORDS: usize = 8;
/// Places: 1 MiB, so that buffers of tests do not displace one another.
const PLACES: usize = 16 << 10;

const VALID: u64 = 1;
const DIRTY: u64 = 2;

type Line = [u64; WORDS];

/// Direct-mapped by physical address.
pub(crate) struct LineCache {
    lock: WordLock,
    /// The line's address and its bits; 0: empty.
    keys: Slab<AtomicU64>,
    data: Slab<[AtomicU64; WORDS]>,
    /// Changes with each sync.
    syncs: AtomicU64,
    pub(super) written_back: AtomicU64,
}

/// A part of one line that an engine reads or writes.
#[derive(Clone, Copy)]
pub(super) struct Part {
    /// Address of the first byte; the host sees it there, too.
    pub phys: u64,
    /// The engine's own memory, private.
    pub own: u64,
    /// Ends in the same line.
    pub bytes: usize,
    pub access: Access,
}

impl LineCache {
    pub(crate) fn new() -> Result<Self, PrivateError> {
        Ok(Self {
            lock: WordLock::new(),
            keys: Slab::new(PLACES)?,
            data: Slab::new(PLACES)?,
            syncs: AtomicU64::new(0),
            written_back: AtomicU64::new(0),
        })
    }

    fn place(line: u64) -> usize {
        (line / LINE) as usize % PLACES
    }

    /// The contents of a place, if it holds this line. Under the lock.
    fn held(&self, line: u64) -> Option<(usize, u64)> {
        let place = Self::place(line);
        let key = self.keys[place].load(Ordering::Relaxed);
        (key & VALID != 0 && key & !(LINE - 1) == line).then_some((place, key))
    }

    fn read(&self, place: usize) -> Line {
        core::array::from_fn(|word| self.data[place][word].load(Ordering::Relaxed))
    }

    fn put(&self, place: usize, key: u64, line: &Line) {
        self.data[place].iter().zip(line).for_each(|(to, from)| to.store(*from, Ordering::Relaxed));
        self.keys[place].store(key, Ordering::Relaxed);
    }

    /// Moves the bytes of a part between the engine and a line; what the line is then.
    fn apply(part: &Part, mut line: Line) -> Line {
        let inside = (&raw mut line) as u64 + part.phys % LINE;
        let (to, from) = if part.access == Access::Write { (inside, part.own) } else { (part.own, inside) };
        // SAFETY: both sides are as long as the part: the engine's private memory, and this line.
        unsafe { core::ptr::copy_nonoverlapping(from as *const u8, to as *mut u8, part.bytes) };
        line
    }

    /// One access by an engine, inside of an access to system memory.
    ///
    /// # Errors
    /// [`Failed`], if memory had to be read or written and could not be; nothing was done then.
    pub(super) fn reach(&self, part: &Part, stop: &AtomicU32) -> Result<(), Failed> {
        let line = part.phys & !(LINE - 1);
        let is_write = part.access == Access::Write;
        let whole = is_write && part.bytes as u64 == LINE;
        let mut fetched: Option<(u64, Line)> = None;
        loop {
            let sampled = {
                let _held = self.lock.lock(&FutexPark);
                let syncs = self.syncs.load(Ordering::Relaxed);
                let known = self.held(line);
                let is_current = fetched.is_some_and(|(sampled, _)| sampled == syncs);
                let place = Self::place(line);
                let is_taken = known.is_none() && self.keys[place].load(Ordering::Relaxed) & DIRTY != 0;
                if let Some((place, key)) = known {
                    let after = Self::apply(part, self.read(place));
                    if is_write {
                        self.put(place, key | DIRTY, &after);
                    }
                    return Ok(());
                } else if !is_taken && (whole || is_current) {
                    let after = Self::apply(part, fetched.map_or([0; WORDS], |(_, line)| line));
                    self.put(place, line | VALID | if is_write { DIRTY } else { 0 }, &after);
                    return Ok(());
                } else if is_taken {
                    None
                } else {
                    Some(syncs)
                }
            };
            match sampled {
                None => {
                    let (to, from) = if is_write { (part.phys, part.own) } else { (part.own, part.phys) };
                    // SAFETY: the near side is the engine's private memory; the far side is memory that the
                    // application lent to the device. The engine is admitted.
                    return unsafe { guarded::copy(to, from, part.bytes, stop) }.map_err(|failed| failed.why);
                }
                Some(syncs) => {
                    let mut memory: Line = [0; WORDS];
                    // SAFETY: as above; a line does not leave its page.
                    unsafe { guarded::copy((&raw mut memory) as u64, line, LINE as usize, stop) }
                        .map_err(|failed| failed.why)?;
                    fetched = Some((syncs, memory));
                }
            }
        }
    }

    /// Takes a line out: `Some` if it is to be written back.
    fn take(&self, line: u64) -> Option<Line> {
        let _held = self.lock.lock(&FutexPark);
        let (place, key) = self.held(line)?;
        self.keys[place].store(0, Ordering::Relaxed);
        (key & DIRTY != 0).then(|| self.read(place))
    }

    /// Every line that is held and touches a range, without one twice.
    fn lines(&self, phys: PhysAddr, bytes: u64) -> impl Iterator<Item = u64> {
        let (first, end) = (phys.0 & !(LINE - 1), phys.0.saturating_add(bytes));
        let asked = (end - first).div_ceil(LINE);
        let by_place = asked > PLACES as u64;
        (0..asked.min(PLACES as u64)).filter_map(move |index| {
            if !by_place {
                return Some(first + index * LINE);
            }
            let line = self.keys[index as usize].load(Ordering::Relaxed) & !(LINE - 1);
            (first..end).contains(&line).then_some(line)
        })
    }

    fn count_sync(&self) {
        let _held = self.lock.lock(&FutexPark);
        self.syncs.store(self.syncs.load(Ordering::Relaxed) + 1, Ordering::Relaxed);
    }

    fn sync_for_device(&self, phys: PhysAddr, bytes: u64) {
        self.count_sync();
        for line in self.lines(phys, bytes) {
            self.take(line);
        }
    }

    fn sync_for_cpu(&self, phys: PhysAddr, bytes: u64) {
        self.count_sync();
        for line in self.lines(phys, bytes) {
            let Some(data) = self.take(line) else { continue };
            // SAFETY: memory that the application lent to the device for writing; if it is gone, so are the bytes,
            // and nobody misses them. The handlers were installed when the device was built.
            let back = unsafe { guarded::copy(line, (&raw const data) as u64, LINE as usize, &NEVER) };
            self.written_back.fetch_add(u64::from(back.is_ok()), Ordering::Relaxed);
        }
    }
}

/// A coherent device has nothing to sync: the calls do nothing then.
impl CacheSync for SoftwareDevice {
    fn line_bytes(&self) -> u64 {
        LINE
    }

    fn sync_for_device(&self, phys: PhysAddr, bytes: u64, _: Direction) {
        if let Some(lines) = &self.inner.lines {
            lines.sync_for_device(phys, bytes);
        }
    }

    fn sync_for_cpu(&self, phys: PhysAddr, bytes: u64, direction: Direction) {
        if let (Some(lines), true) = (&self.inner.lines, direction.is_from_device()) {
            lines.sync_for_cpu(phys, bytes);
        }
    }
}
