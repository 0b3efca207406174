use super::invalidate::disarm_settled;
use super::{CpuFault, CpuServed, bring_home, fill_child, invalidate, remap, serve_cpu, share_with_child};
use crate::migrate::Space;
use crate::ports::{Clock, Count, Host, HostEvent, Timing};
use crate::sync::{Rule, holds};
use crate::units::VirtRange;

/// What the reader carries from one round to the next. Its memory is handed in: a slice for the faults that wait, and one
/// for the events of a round. The kernel hands out every fault before any event, and faults may have to wait for an
/// event: so faults that do not fit are let go again rather than left unread.
pub struct Reader<'q> {
    waiting: &'q mut [CpuFault],
    used: usize,
    /// Where threads wait whose faults did not fit: they are woken, and fault again, when there is room.
    missed: VirtRange,
    events: &'q mut [HostEvent],
}

impl<'q> Reader<'q> {
    /// Nothing waits. Asserts that both slices have room.
    pub fn new(waiting: &'q mut [CpuFault], events: &'q mut [HostEvent]) -> Self {
        assert!(!waiting.is_empty() && !events.is_empty(), "a reader needs room");
        Self { waiting, used: 0, missed: VirtRange::default(), events }
    }
}

/// What a round leaves behind.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[must_use = "work that is left needs another round"]
pub enum RoundEnd {
    /// Nothing waits: sleep until there is an event.
    Idle,
    /// Something could not be done yet: let others run, then go another round.
    WorkLeft,
}

/// One round of the reader: closes the gate and stops the engines, reads everything that waits to be read, applies
/// the events in the order read, opens; then serves the faults. Sleeps only in closing the gate.
pub fn round<H: Host>(space: &Space<'_, H>, clock: &dyn Clock, reader: &mut Reader<'_>) -> RoundEnd {
    let full = read_and_apply(space, clock, reader) == reader.events.len();
    let homes_left = bring_home(space);
    serve_waiting(space, clock, reader);
    if full || homes_left || reader.used > 0 { RoundEnd::WorkLeft } else { RoundEnd::Idle }
}

fn read_and_apply<H: Host>(space: &Space<'_, H>, clock: &dyn Clock, reader: &mut Reader<'_>) -> usize {
    let closed = space.gate.close(space.park);
    space.probe.add(Count::GateClosed, 1);
    for device in space.devices {
        if holds(Rule::QuiesceBeforeRead) {
            device.port.quiesce();
        }
    }
    let read = space.host.drain(reader.events);
    let now = if read > 0 { clock.now_ns() } else { 0 };
    for event in &reader.events[..read] {
        match *event {
            HostEvent::Fault { at, .. } if reader.used == reader.waiting.len() => {
                let page = VirtRange::of_pages(at.page_floor(), 1);
                let all = if reader.missed.is_empty() { page } else { reader.missed };
                reader.missed = VirtRange::between(all.start().min(page.start()), all.end().max(page.end()));
            }
            HostEvent::Fault { at, access, write_protected } => {
                reader.waiting[reader.used] =
                    CpuFault { at, access, write_protected, since_ns: now, failed_copies: 0 };
                reader.used += 1;
                space.probe.add(Count::CpuFaults, 1);
            }
            HostEvent::Unmap(range) | HostEvent::Remove(range) => invalidate(space, range),
            HostEvent::Remap { from, to } => {
                let lost = remap(space, from, to);
                debug_assert_eq!(lost, 0, "there is a staging slot for every block that devices can hold");
            }
            HostEvent::Fork { child } => fill_child(space, child),
            HostEvent::ForkShared { child } => share_with_child(space, child),
        }
    }
    for event in &reader.events[..read] {
        if let HostEvent::Unmap(range) | HostEvent::Remove(range) | HostEvent::Remap { from: range, .. } =
            *event
        {
            disarm_settled(space, range);
        }
    }
    for device in space.devices {
        device.port.resume();
    }
    drop(closed);
    read
}

/// Serves what waits, oldest first; what has to wait on stays in the queue, in order.
fn serve_waiting<H: Host>(space: &Space<'_, H>, clock: &dyn Clock, reader: &mut Reader<'_>) {
    let mut kept = 0;
    for at in 0..reader.used {
        let fault = reader.waiting[at];
        match serve_cpu(space, &fault) {
            CpuServed::Woken => {
                space.probe.time(Timing::CpuFault, clock.now_ns().saturating_sub(fault.since_ns));
            }
            CpuServed::Queued(_) | CpuServed::Poisoned | CpuServed::Unreadable => {}
            again @ (CpuServed::Again | CpuServed::CopyFailed) if holds(Rule::FaultsAreKept) => {
                let failed = u32::from(again == CpuServed::CopyFailed);
                reader.waiting[kept] = CpuFault { failed_copies: fault.failed_copies + failed, ..fault };
                kept += 1;
            }
            CpuServed::Again | CpuServed::CopyFailed => {}
        }
    }
    reader.used = kept;
    if kept < reader.waiting.len() && !reader.missed.is_empty() {
        space.host.wake(reader.missed);
        reader.missed = VirtRange::default();
    }
}
