use super::super::{Batch, Batching, RawFault, Replay};

/// Entries are read in order and nothing is merged on arrival; what is sorted next to its twin is served once.
#[derive(Clone, Copy, Debug)]
pub struct Plain {
    entries: usize,
    replay: Replay,
}

impl Plain {
    /// One fault at a time, and the device goes on after each: Intel's worker, AMD's, and the batching under which Bélády's
    /// bound holds.
    pub const SERIAL: Self = Self { entries: 1, replay: Replay::EachBatch };
    /// What this library's device thread does: up to 256 entries, grouped by block, the device goes on after all.
    pub const GRANULE: Self = Self { entries: 256, replay: Replay::EachBatch };
}

impl Batching for Plain {
    fn entries(&self) -> usize {
        self.entries
    }

    fn read(&mut self, buffer: &[RawFault], batch: &mut Batch) -> usize {
        let count = buffer.len().min(self.entries);
        for (at, fault) in buffer[..count].iter().enumerate() {
            batch.keys.push(Batch::key(fault.page, fault.access, at));
            batch.stands_for.push(at as u16);
        }
        count
    }

    fn replay(&self) -> Replay {
        self.replay
    }
}
