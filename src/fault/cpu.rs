use super::invalidate::{freeze, settle};
use crate::granule::{BlockGuard, TransitBusy};
use crate::migrate::{Space, extents};
use crate::ports::{Count, DeviceError, Host, HostError, WORDS_PER_PAGE};
use crate::units::{
    Access, BlockNo, PAGE_BYTES, PAGE_SHIFT, PAGES_PER_BLOCK, PageIndex, PageMask, Seat, VirtAddr, VirtRange,
};

/// A thread of the application waits for a page.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct CpuFault {
    /// The address it touched.
    pub at: VirtAddr,
    /// What it wanted.
    pub access: Access,
    /// Whether the page is present and write-protected, rather than absent.
    pub write_protected: bool,
    /// When it was read, on the space's clock.
    pub since_ns: u64,
    /// How often the device has failed to give the page's copy since.
    pub failed_copies: u32,
}

impl CpuFault {
    /// A place holder for memory that is handed to a [`Reader`](super::Reader).
    pub const NONE: Self =
        Self { at: VirtAddr(0), access: Access::Read, write_protected: false, since_ns: 0, failed_copies: 0 };
}

/// As often as this a copy from the device may fail before the page counts as unreadable; others are served in between.
const COPY_ROUNDS: u32 = 16;

/// What became of it.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[must_use = "a fault that is to be tried again must be kept"]
pub enum CpuServed {
    /// The thread was woken.
    Woken,
    /// The page is in transit: whoever ends the transit wakes the thread.
    Queued(TransitBusy),
    /// An event waits to be read, or memory is short: read events, then serve this fault again.
    Again,
    /// The device failed to give its copy: serve this fault again, with one more in `failed_copies`.
    CopyFailed,
    /// The device does not give its copy: the touch is an error from now on, and the thread was woken to find out.
    Poisoned,
    /// The device does not give its copy, and the kernel has no way to tell the thread (before Linux 6.6): it waits until
    /// the page comes home after all, or the space ends.
    Unreadable,
}

/// Serves a CPU fault. Called by the reader outside the gate (which only the reader closes), and through
/// [`serve_in_place`] by others inside of it. Holds the block lock throughout, touches private memory only, and does
/// at most one unit of the policy's homecoming.
pub fn serve_cpu<H: Host>(space: &Space<'_, H>, fault: &CpuFault) -> CpuServed {
    let number = BlockNo::of(fault.at);
    let page = PageIndex::of(fault.at);
    let Some(index) = space.tables.block(number) else {
        // Never known to a device: the page is simply absent.
        return fill(space, fault, PageMask::of(page));
    };
    let mut block = space.tables.lock(index, space.park);
    if block.is_in_transit(page) {
        block.note_cpu_waits();
        space.probe.add(Count::CpuFaultsQueued, 1);
        return CpuServed::Queued(block.transit_busy());
    }
    if !block.device_private().contains(page) {
        if fault.write_protected {
            return unprotect(space, &mut block, fault);
        }
        let absent = !(block.device_private() | block.in_transit());
        return fill(space, fault, absent);
    }
    // After a failed copy the neighbours stay where they are.
    let wish = match fault.failed_copies {
        0 => space.policy.homecoming(number, page, &block.device_private()) | PageMask::of(page),
        _ => PageMask::of(page),
    };
    let pages = (block.device_private() - block.in_transit()) & wish;
    freeze(space, &block, &pages);
    let (home, stopped) = bring(space, &mut block, &pages);
    block.came_home(&home);
    space.count_pages(Count::PagesToRam, &home);
    settle(space, &mut block, index, &home);
    if home.contains(page) {
        return CpuServed::Woken;
    }
    match stopped {
        Some(Stopped::Host(HostError::Gone)) => CpuServed::Woken,
        Some(Stopped::Device) if fault.failed_copies < COPY_ROUNDS => CpuServed::CopyFailed,
        Some(Stopped::Device) => give_up(space, VirtRange::of_pages(fault.at.page_floor(), 1)),
        _ => CpuServed::Again,
    }
}

/// Serves a CPU fault in a thread that is not the reader and has a seat of its own: the one that touched the page (in
/// its handler of SIGBUS), or a worker that needs the page present. Returns when the touch can be made (again), or
/// `false`: the device does not give the page's only copy.
///
/// The caller holds no lock, is outside the gate, and is on a private stack: pages of its own stack may be taken while
/// this holds a block lock.
///
/// An event that waits to be read is older than this fault may be: until it is read, the kernel refuses to fill or move
/// anything in its userfaultfd ([`CpuServed::Again`]); while it is applied, the gate is closed. So nothing is filled
/// with zeros that an unread `mremap` has brought here. A page in transit is waited for outside the gate: its mover,
/// and the reader that brings pages of an `mremap` home, go on without this thread.
pub fn serve_in_place<H: Host>(space: &Space<'_, H>, seat: Seat, fault: &CpuFault) -> bool {
    let mut fault = *fault;
    loop {
        let inside = space.gate.enter(seat, space.park);
        let served = serve_cpu(space, &fault);
        drop(inside);
        match served {
            CpuServed::Woken => return true,
            CpuServed::Poisoned | CpuServed::Unreadable => return false,
            CpuServed::Again => space.host.pause(),
            CpuServed::CopyFailed => {
                fault.failed_copies += 1;
                space.host.pause();
            }
            CpuServed::Queued(busy) => {
                let index = space.tables.block(BlockNo::of(fault.at)).expect("a page in transit has a block");
                space.tables.record(index).wait_transit(busy, space.park);
            }
        }
    }
}

/// Makes every page of a range present where the kernel's own touch would be refused ([`HostError::Trapped`]). As
/// [`serve_in_place`]; a worker's stack is private.
pub(super) fn touch<H: Host>(space: &Space<'_, H>, seat: Seat, range: VirtRange) {
    for page in 0..range.pages() {
        let at = range.start() + page * PAGE_BYTES;
        // Where it fails, the touch will say so.
        let _ = serve_in_place(space, seat, &CpuFault { at, ..CpuFault::NONE });
    }
}

/// A page that nobody moves any more is still protected: mremap moved it in the middle of a take, or its contents were
/// forgotten. While somebody moves pages of the block he may be about to discard this one, and what is written now
/// with it: the fault waits for his end.
fn unprotect<H: Host>(space: &Space<'_, H>, block: &mut BlockGuard<'_>, fault: &CpuFault) -> CpuServed {
    if block.mover().is_some() {
        block.note_cpu_waits();
        space.probe.add(Count::CpuFaultsQueued, 1);
        return CpuServed::Queued(block.transit_busy());
    }
    let page = VirtRange::of_pages(fault.at.page_floor(), 1);
    match space.host.unprotect(page) {
        Err(HostError::Changing) => CpuServed::Again,
        Ok(()) => CpuServed::Woken,
        Err(_) => {
            // Gone: the thread looks again.
            space.host.wake(page);
            CpuServed::Woken
        }
    }
}

/// The device does not give the only copy of a page: whoever touches it is told by a signal, as for memory that has
/// failed. The page stays device-private: it comes home if the device recovers.
fn give_up<H: Host>(space: &Space<'_, H>, page: VirtRange) -> CpuServed {
    let (poisoned, why) = space.host.poison(page);
    space.probe.add(Count::PagesUnreadable, poisoned);
    match why {
        Ok(()) => CpuServed::Poisoned,
        Err(HostError::Changing | HostError::OutOfMemory) => CpuServed::Again,
        Err(HostError::NotSupported) => {
            space.probe.add(Count::PagesUnreadable, 1);
            CpuServed::Unreadable
        }
        Err(_) => {
            // Gone: the thread looks again.
            space.host.wake(page);
            CpuServed::Woken
        }
    }
}

/// Why a page did not come home.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Stopped {
    Host(HostError),
    /// It could not be copied.
    Device,
}

/// Moves pages of the block from device memory to the application. Returns those that are home, or whose copy does not
/// count any more: a page stands in the application where it was to go.
fn bring<H: Host>(
    space: &Space<'_, H>,
    block: &mut BlockGuard<'_>,
    pages: &PageMask,
) -> (PageMask, Option<Stopped>) {
    let number = block.number();
    let port = space.device(block.owner()).port;
    if pages.count() == 1 {
        let page = pages.first().expect("one page");
        let from = crate::migrate::place(block, &space.tables, page);
        if let Some(words) = port.window(from, PAGE_BYTES) {
            return match space.host.give_words(number.page(page), words) {
                (1, _) => (*pages, None),
                (_, Err(HostError::Present)) => {
                    space.host.wake(number.range());
                    (*pages, None)
                }
                (_, why) => (PageMask::EMPTY, why.err().map(Stopped::Host)),
            };
        }
    }
    let Some(staging) = space.host.staging_for(number, pages) else {
        return (PageMask::EMPTY, Some(Stopped::Host(HostError::OutOfMemory)));
    };
    let mut copied = PageMask::EMPTY;
    let _ = extents(block, &space.tables, pages, |start, len, at| {
        let mut done = 0;
        while done < len {
            let words = space.host.moving_words(number, start + done..start + len, staging);
            port.copy_out(at + done as u64 * PAGE_BYTES, words)
                .inspect_err(|_| space.probe.add(Count::CopiesFailed, 1))?;
            let end = done + words.len() / WORDS_PER_PAGE;
            copied |= PageMask::of_range(start + done..start + end);
            done = end;
        }
        Ok::<(), DeviceError>(())
    });
    let give = space.host.give(number, &copied, staging);
    space.host.staging_done(staging);
    if !give.present.is_empty() {
        space.host.wake(number.range());
    }
    let stopped = if copied == *pages { give.stopped.map(Stopped::Host) } else { Some(Stopped::Device) };
    (give.settled(), stopped)
}

/// Pages that are filled at once, from the faulted one to the end of their unit: being told of a touch costs as much as
/// mapping the page of zeros some hundred times, and that takes no memory.
const FILL_PAGES: usize = PAGES_PER_BLOCK / 4;

/// Zero-fills the faulted page and what follows it in its unit, as far as `absent` allows.
fn fill<H: Host>(space: &Space<'_, H>, fault: &CpuFault, absent: PageMask) -> CpuServed {
    let page = PageIndex::of(fault.at).0 as usize;
    let unit_end = (page / FILL_PAGES + 1) * FILL_PAGES;
    let run = absent & PageMask::of_range(page..unit_end);
    let pages = run.runs().next().map_or(1, |run| run.len() as u64);
    let start = fault.at.page_floor();
    let (filled, why) = match space.host.fill_zero(VirtRange::of_pages(start, pages)) {
        // The run may leave the mapping: then this page alone.
        (0, Err(HostError::NoMapping)) if pages > 1 => space.host.fill_zero(VirtRange::of_pages(start, 1)),
        result => result,
    };
    space.probe.add(Count::CpuFaultsZeroFilled, filled);
    debug_assert!(filled <= pages && (filled << PAGE_SHIFT) <= pages * PAGE_BYTES);
    match why {
        _ if filled > 0 => CpuServed::Woken,
        Err(HostError::Changing | HostError::OutOfMemory) => CpuServed::Again,
        _ => {
            // Present already, or gone: the thread looks again.
            space.host.wake(VirtRange::of_pages(start, 1));
            CpuServed::Woken
        }
    }
}
