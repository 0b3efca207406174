use super::core::Core;
use crate::fault::{CpuFault, Reader, RoundEnd, round};
use crate::ports::{Host, HostEvent};
use crate::sync::Ordering;
use crate::units::VirtRange;

/// Room for CPU faults that wait at once; further ones wait in the kernel.
const WAITING: usize = 256;
/// Events read in one round.
const EVENTS: usize = 64;

/// The reader, until `stopping` is set and the host was interrupted. Both arrays lie on its private stack.
pub(super) fn run(core: &Core) {
    let mut waiting = [CpuFault::NONE; WAITING];
    let mut events = [HostEvent::Unmap(VirtRange::default()); EVENTS];
    let mut reader = Reader::new(&mut waiting, &mut events);
    let mut end = RoundEnd::Idle;
    // Acquire pairs with the release in `Svm::drop`.
    while core.stopping.load(Ordering::Acquire) == 0 || end == RoundEnd::WorkLeft {
        match end {
            RoundEnd::Idle => {
                core.host.wait();
            }
            RoundEnd::WorkLeft => core.space.host.pause(),
        }
        core.rounds.fetch_add(1, Ordering::SeqCst);
        end = round(&core.space, &core.clock, &mut reader);
        // Sequentially consistent with `Svm::stats`: it sees the end of the round, or is seen waiting.
        core.rounds.fetch_add(1, Ordering::SeqCst);
        if core.stats_wait.load(Ordering::SeqCst) != 0 {
            core.space.park.unpark_all(&core.rounds);
        }
    }
}
