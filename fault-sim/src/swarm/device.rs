//! A device: page table, TLB, IOMMU, memory, a bounded fault buffer, and engines.
//!
//! An engine's access has two halves, between which others may run: it finds its translation, then it reads or writes.
//! In between it is *inside*; `flush` and `quiesce` wait for it, and no other engine goes inside while the device is
//! quiesced.

use std::collections::BTreeMap;
use std::sync::MutexGuard;

use granule::ports::{
    Device, DeviceCaps, DeviceError, DeviceFault, FaultCause, Iommu, IommuError, MapTarget, Mapped,
    WORDS_PER_PAGE, Word,
};
use granule::sync::Ordering;
use granule::units::{Access, BLOCK_BYTES, DevAddr, DevMemAddr, Iova, PAGE_BYTES, PhysAddr};

use super::counts::Did;
use super::fibers;
use super::host::device_page;
use super::oracle::{By, Checker};
use super::plan::Habit;
use super::scheduler::Key;
use super::world::{ALIASES, CHUNKS, PAGES, PRESENT, SHARED, State, World, at, page_of};

/// A translation.
type Entry = Option<(MapTarget, Access)>;

/// What became of a fault.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Answer {
    Replayed,
    Cancelled(FaultCause),
}

/// A fault that has no answer.
#[derive(Clone, Copy, Debug)]
struct Open {
    fault: DeviceFault,
    fiber: usize,
    is_fetched: bool,
}

/// The state of one device.
pub struct DeviceState {
    table: Vec<Entry>,
    tlb: Vec<Entry>,
    iommu: BTreeMap<u64, (PhysAddr, Access)>,
    is_quiesced: bool,
    /// Engines that are inside an access, by fiber, and where.
    inside: Vec<(usize, usize)>,
    open: Vec<Open>,
    answers: Vec<(u64, Answer)>,
    buffer: usize,
}

impl DeviceState {
    /// With a fault buffer of so many records.
    pub fn new(buffer: usize) -> Self {
        Self {
            table: vec![None; PAGES + ALIASES],
            tlb: vec![None; PAGES + ALIASES],
            iommu: BTreeMap::new(),
            is_quiesced: false,
            inside: Vec::new(),
            open: Vec::new(),
            answers: Vec::new(),
            buffer,
        }
    }

    /// Whether there is something to fetch.
    pub fn has_faults(&self) -> bool {
        self.open.iter().any(|open| !open.is_fetched)
    }

    /// The translation of a device page.
    pub fn translation(&self, page: usize) -> Entry {
        self.table[page]
    }

    /// What engines may still use for a device page.
    pub fn cached(&self, page: usize) -> Entry {
        self.tlb[page]
    }

    /// Pages that are mapped for DMA.
    pub fn linked_pages(&self) -> usize {
        self.iommu.len()
    }

    /// What is mapped for DMA at an address.
    pub fn dma(&self, iova: Iova) -> Option<(PhysAddr, Access)> {
        self.iommu.get(&(iova.0 / PAGE_BYTES)).copied()
    }

    /// Whether every fault was answered and nobody is inside.
    pub fn is_at_rest(&self) -> bool {
        self.open.is_empty() && self.answers.is_empty() && self.inside.is_empty() && !self.is_quiesced
    }
}

/// Device `no` of a world.
pub struct SimDevice<'w> {
    /// Where it is.
    pub world: &'w World,
    /// Its number.
    pub no: usize,
}

/// How an engine's access ended.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Ended {
    /// It was made.
    Done,
    /// It cannot be made, for this reason.
    Failed(FaultCause),
}

impl SimDevice<'_> {
    fn words(&self) -> &[Word] {
        self.world.memory.device(self.no)
    }

    /// An engine accesses a device page until it is done. `is_held`: the device can be stopped, and waits where it is.
    pub fn access(&self, page: usize, access: Access) -> Ended {
        loop {
            fibers::switch();
            let mut state = self.world.state();
            if state.violation.is_some() {
                return Ended::Done;
            }
            if state.devices[self.no].is_quiesced {
                state.did(Did::EngineHeld);
                self.world.wait(state, Key::Resumed(self.no));
                continue;
            }
            let Some(target) = state.devices[self.no].translate(page, access) else {
                match self.fault(state, page, access) {
                    Some(Answer::Cancelled(cause)) => return Ended::Failed(cause),
                    _ => continue,
                }
            };
            let me = state.scheduler.running();
            if state.chance.once_in(2) {
                state.devices[self.no].inside.push((me, page));
                drop(state);
                fibers::switch();
                state = self.world.state();
                state.devices[self.no].inside.retain(|(fiber, _)| *fiber != me);
                state.scheduler.wake(Key::Left(self.no));
            }
            if state.reach(self.no, page, target, access, self.words()) {
                return Ended::Done;
            }
            // Linked, and the page is not there: the access becomes a fault.
            if let Some(Answer::Cancelled(cause)) = self.fault(state, page, access) {
                return Ended::Failed(cause);
            }
        }
    }

    /// Records a fault and waits for its answer; `None`: nothing was recorded, look again.
    fn fault<'s>(&'s self, mut state: MutexGuard<'s, State>, page: usize, access: Access) -> Option<Answer> {
        let device = &state.devices[self.no];
        if device.open.iter().filter(|open| !open.is_fetched).count() == device.buffer {
            state.did(Did::BufferFull);
            self.world.wait(state, Key::Room(self.no));
            return None;
        }
        state.did(Did::DeviceFault);
        state.note(|| format!("  device {} page {page}, {access:?}", self.no));
        state.cookie += 1;
        let (cookie, fiber) = (state.cookie, state.scheduler.running());
        let fault = DeviceFault { at: DevAddr(at(page).0), access, engine: fiber as u32, cookie };
        state.devices[self.no].open.push(Open { fault, fiber, is_fetched: false });
        state.scheduler.wake(Key::Faults(self.no));
        loop {
            let answers = &mut state.devices[self.no].answers;
            if let Some(found) = answers.iter().position(|(of, _)| *of == cookie) {
                return Some(answers.swap_remove(found).1);
            }
            if state.violation.is_some() {
                return None;
            }
            self.world.wait(state, Key::Own);
            state = self.world.state();
        }
    }

    /// Makes the access of a submission, which nothing stops: its pages stay where they are until it has ended.
    pub fn submit(&self, page: usize, access: Access) {
        self.world.step(Did::Submission);
        let mut state = self.world.state();
        match state.devices[self.no].table[page] {
            Some((target @ MapTarget::System(iova), right)) if right.covers(access) => {
                // A mapping that came after a munmap whose event is not applied is not what the submission reaches.
                let phys = state.devices[self.no].dma(iova).and_then(|(phys, _)| page_of(phys.0));
                let mapping = phys.and_then(|page| state.kernel.mapping(page));
                if phys.is_none() || mapping.is_some_and(|mapping| mapping.access.covers(access)) {
                    state.reach(self.no, page, target, access, self.words());
                }
            }
            // At the process's own addresses a fault of an engine may link the page as well, with fewer rights.
            _ if page < PAGES => {}
            other => {
                let what =
                    format!("device {} cannot reach page {page} during a submission: {other:?}", self.no);
                state.violate(Checker::StaleMapping, what);
            }
        }
    }
}

impl DeviceState {
    fn translate(&mut self, page: usize, access: Access) -> Option<MapTarget> {
        let usable = |entry: &Entry| entry.is_some_and(|(_, right)| right.covers(access));
        let entry = [self.tlb[page], self.table[page]].into_iter().find(usable).flatten()?;
        self.tlb[page] = Some(entry);
        Some(entry.0)
    }
}

impl State {
    /// The second half of an access; `false`: the page is not there.
    fn reach(&mut self, no: usize, page: usize, target: MapTarget, access: Access, memory: &[Word]) -> bool {
        let writes = access == Access::Write;
        match target {
            MapTarget::DeviceMemory(at) => {
                self.did(if writes { Did::DeviceWrites } else { Did::DeviceReads });
                let word = &memory[at.0 as usize / size_of::<Word>()];
                let found = self.oracle.look(word.load(Ordering::Relaxed), page, By::Device);
                if let Some(life) = self.judge(found).filter(|_| writes) {
                    let written = self.oracle.write(life, By::Device);
                    if let Some(stamp) = self.judge(written) {
                        word.store(stamp, Ordering::Relaxed);
                    }
                }
                true
            }
            MapTarget::System(iova) => {
                let Some((phys, right)) = self.devices[no].dma(iova) else {
                    self.violate(
                        Checker::StaleMapping,
                        format!("device {no} does DMA through an unlinked IOVA"),
                    );
                    return true;
                };
                if !right.covers(access) {
                    self.violate(
                        Checker::StaleMapping,
                        format!("device {no} does DMA against the IOMMU's rights"),
                    );
                    return true;
                }
                let page = page_of(phys.0).expect("links lead into the arena");
                let here = self.kernel.pages[page];
                // A link leads to what stands at its address now; a mapping whose event is not read may be another one.
                let rights = self.kernel.mapping(page).is_some_and(|mapping| mapping.access.covers(access));
                if !here.has(PRESENT) || !rights && self.kernel.changing > 0 {
                    self.did(Did::DmaFaults);
                    return false;
                }
                self.did(if writes { Did::DmaWrites } else { Did::DmaReads });
                let found = self.oracle.look(here.value, page, By::Device);
                if let Some(life) = self.judge(found).filter(|_| writes) {
                    let written = self.oracle.write(life, By::Device);
                    if let Some(stamp) = self.judge(written) {
                        self.kernel.pages[page].value = stamp;
                        self.kernel.pages[page].set(SHARED, false);
                    }
                }
                true
            }
        }
    }
}

fn pages(at: DevAddr, count: u64) -> std::ops::Range<usize> {
    let first = device_page(at.0).unwrap_or(0);
    first..(first + count as usize).min(PAGES + ALIASES)
}

impl Device for SimDevice<'_> {
    fn caps(&self) -> DeviceCaps {
        let memory_bytes = CHUNKS as u64 * BLOCK_BYTES;
        DeviceCaps { name: "swarm", memory_bytes, driver_free: true, can_quiesce: true, links_any: true }
    }

    fn copy_in(&self, dst: DevMemAddr, src: &[Word]) -> Result<(), DeviceError> {
        self.world.step(Did::CopyIn);
        let mut state = self.world.state();
        if state.fails(Habit::Copies, 30) {
            state.did(Did::CopyInFails);
            return Err(DeviceError::CopyFailed);
        }
        drop(state);
        copy(src, &self.words()[dst.0 as usize / size_of::<Word>()..]);
        Ok(())
    }

    fn copy_out(&self, src: DevMemAddr, dst: &[Word]) -> Result<(), DeviceError> {
        self.world.step(Did::CopyOut);
        if self.cannot_read() {
            return Err(DeviceError::CopyFailed);
        }
        let from = src.0 as usize / size_of::<Word>();
        copy(&self.words()[from..from + dst.len()], dst);
        Ok(())
    }

    fn window(&self, at: DevMemAddr, bytes: u64) -> Option<&[Word]> {
        self.world.step(Did::Window);
        if self.cannot_read() {
            return None;
        }
        let from = at.0 as usize / size_of::<Word>();
        Some(&self.words()[from..from + bytes as usize / size_of::<Word>()])
    }

    fn map(&self, at: DevAddr, count: u64, target: MapTarget, access: Access) -> Result<(), DeviceError> {
        self.world.step(Did::DeviceMap);
        let mut state = self.world.state();
        if state.fails(Habit::Tables, 40) {
            state.did(Did::DeviceMapFails);
            return Err(DeviceError::OutOfTables);
        }
        state.note(|| format!("  device {} pages {:?} to {target:?}, {access:?}", self.no, pages(at, count)));
        for (page, offset) in pages(at, count).zip(0..) {
            let to = match target {
                MapTarget::DeviceMemory(to) => MapTarget::DeviceMemory(to + offset * PAGE_BYTES),
                MapTarget::System(to) => MapTarget::System(to + offset * PAGE_BYTES),
            };
            state.devices[self.no].table[page] = Some((to, access));
        }
        Ok(())
    }

    fn unmap(&self, at: DevAddr, count: u64) {
        self.world.step(Did::DeviceUnmap);
        let mut state = self.world.state();
        state.note(|| format!("  device {} pages {:?}", self.no, pages(at, count)));
        state.devices[self.no].table[pages(at, count)].fill(None);
    }

    fn flush(&self, at: DevAddr, count: u64) {
        self.world.step(Did::Flush);
        let range = pages(at, count);
        let mut state = self.world.state();
        state.devices[self.no].tlb[range.clone()].fill(None);
        while state.devices[self.no].inside.iter().any(|(_, page)| range.contains(page)) {
            if state.violation.is_some() {
                return;
            }
            state.did(Did::FlushWaits);
            self.world.wait(state, Key::Left(self.no));
            state = self.world.state();
        }
    }

    fn quiesce(&self) {
        self.world.step(Did::Quiesce);
        let mut state = self.world.state();
        if std::mem::replace(&mut state.devices[self.no].is_quiesced, true) {
            state.violate(Checker::Conduct, "a device is quiesced twice");
        }
        while !state.devices[self.no].inside.is_empty() {
            if state.violation.is_some() {
                return;
            }
            state.did(Did::QuiesceWaits);
            self.world.wait(state, Key::Left(self.no));
            state = self.world.state();
        }
    }

    fn resume(&self) {
        let mut state = self.world.state();
        state.devices[self.no].is_quiesced = false;
        state.scheduler.wake(Key::Resumed(self.no));
    }

    fn attach(&self) {}
    fn detach(&self) {}

    fn wait_fault(&self) {
        let mut state = self.world.state();
        while !state.devices[self.no].has_faults() {
            self.world.wait(state, Key::Faults(self.no));
            state = self.world.state();
        }
    }

    fn interrupt(&self) {}

    fn fetch(&self, out: &mut [DeviceFault]) -> usize {
        self.world.step(Did::Fetch);
        let mut state = self.world.state();
        let mut count = 0;
        let waiting = state.devices[self.no].open.iter_mut().filter(|open| !open.is_fetched);
        for (out, open) in out.iter_mut().zip(waiting) {
            open.is_fetched = true;
            *out = open.fault;
            count += 1;
        }
        state.scheduler.wake(Key::Room(self.no));
        count
    }

    fn replay(&self) {
        self.world.step(Did::Replay);
        let mut state = self.world.state();
        let State { devices, scheduler, .. } = &mut *state;
        let DeviceState { open, answers, .. } = &mut devices[self.no];
        open.retain(|open| {
            if open.is_fetched {
                answers.push((open.fault.cookie, Answer::Replayed));
                scheduler.wake_fiber(open.fiber);
            }
            !open.is_fetched
        });
    }

    fn cancel(&self, fault: &DeviceFault, cause: FaultCause) {
        self.world.step(Did::Cancel);
        let mut state = self.world.state();
        let device = &mut state.devices[self.no];
        let found = device.open.iter().position(|open| open.is_fetched && open.fault.cookie == fault.cookie);
        match found {
            Some(at) => {
                let open = device.open.remove(at);
                device.answers.push((fault.cookie, Answer::Cancelled(cause)));
                state.scheduler.wake_fiber(open.fiber);
            }
            None => {
                state.violate(Checker::Wake, "a fault is answered that was not asked, or was answered before")
            }
        }
    }

    fn iommu(&self) -> &dyn Iommu {
        self
    }
}

impl SimDevice<'_> {
    /// Copies out fail in runs: mostly short ones, rarely longer than the library's patience.
    fn cannot_read(&self) -> bool {
        let mut state = self.world.state();
        if state.failing_copies == 0 && state.fails(Habit::Copies, 24) {
            state.failing_copies = if state.chance.once_in(6) { 90 } else { 1 + state.chance.below(6) };
        }
        let fails = state.failing_copies > 0 && !state.is_closing;
        if fails {
            state.failing_copies -= 1;
            state.did(Did::CopyOutFails);
        }
        fails
    }
}

fn copy(from: &[Word], to: &[Word]) {
    for (from, to) in from.iter().step_by(WORDS_PER_PAGE).zip(to.iter().step_by(WORDS_PER_PAGE)) {
        to.store(from.load(Ordering::Relaxed), Ordering::Relaxed);
    }
}

impl Iommu for SimDevice<'_> {
    fn aperture(&self) -> (Iova, Iova) {
        (Iova(0), Iova((1 << 40) - 1))
    }

    fn map(&self, iova: Iova, phys: PhysAddr, bytes: u64, access: Access) -> Result<(), IommuError> {
        self.world.step(Did::IommuMap);
        let mut state = self.world.state();
        if state.fails(Habit::Tables, 40) {
            state.did(Did::IommuMapFails);
            return Err(IommuError::OutOfTables);
        }
        state.note(|| {
            format!(
                "  device {} {iova:?} to page {:?}, {} pages, {access:?}",
                self.no,
                page_of(phys.0),
                bytes / PAGE_BYTES
            )
        });
        let first = iova.0 / PAGE_BYTES;
        let iommu = &mut state.devices[self.no].iommu;
        if iommu.range(first..first + bytes / PAGE_BYTES).next().is_some() {
            state.violate(Checker::DoubleOwner, "a page is linked twice");
            return Err(IommuError::AlreadyMapped(iova));
        }
        for page in 0..bytes / PAGE_BYTES {
            iommu.insert(first + page, (phys + page * PAGE_BYTES, access));
        }
        Ok(())
    }

    fn protect(&self, iova: Iova, bytes: u64, access: Access) -> Result<(), IommuError> {
        self.world.step(Did::IommuProtect);
        let mut state = self.world.state();
        let first = iova.0 / PAGE_BYTES;
        for page in first..first + bytes / PAGE_BYTES {
            state.devices[self.no].iommu.get_mut(&page).ok_or(IommuError::NotMapped(iova))?.1 = access;
        }
        Ok(())
    }

    fn unmap(&self, iova: Iova, bytes: u64) -> Result<(), IommuError> {
        self.world.step(Did::IommuUnmap);
        let mut state = self.world.state();
        state.note(|| format!("  device {} {iova:?}, {} pages", self.no, bytes / PAGE_BYTES));
        let first = iova.0 / PAGE_BYTES;
        for page in first..first + bytes / PAGE_BYTES {
            let iommu = &mut state.devices[self.no].iommu;
            iommu.remove(&page).ok_or(IommuError::NotMapped(Iova(page * PAGE_BYTES)))?;
        }
        Ok(())
    }

    fn mapped(&self, iova: Iova, bytes: u64) -> Option<Mapped> {
        let state = self.world.state();
        let pages = iova.0 / PAGE_BYTES..(iova.0 + bytes) / PAGE_BYTES;
        let (page, (phys, access)) = state.devices[self.no].iommu.range(pages).next()?;
        Some(Mapped { iova: Iova(page * PAGE_BYTES), phys: *phys, bytes: PAGE_BYTES, access: *access })
    }

    fn flush(&self, _: Iova, _: u64) {}
}
