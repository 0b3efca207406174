use super::super::{Batch, Batching, MOST_ENTRIES, RawFault, Replay};
use crate::trace::Access;

/// The driver's parameters, with its defaults.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct NvidiaOptions {
    /// `uvm_perf_fault_batch_count`: entries of the buffer in a batch, merged ones counted.
    pub batch_count: usize,
    /// `uvm_perf_fault_coalesce`.
    pub coalesce: bool,
    /// `uvm_perf_fault_replay_policy`.
    pub replay: Replay,
    /// `uvm_perf_fault_max_batches_per_service`.
    pub max_batches_per_service: u32,
}

impl Default for NvidiaOptions {
    fn default() -> Self {
        Self { batch_count: 256, coalesce: true, replay: Replay::Flush, max_batches_per_service: 20 }
    }
}

/// A uTLB's last representative.
#[derive(Clone, Copy, Debug)]
struct Last {
    page: u64,
    position: u32,
    /// The batch in which it was.
    batch: u32,
}

const NONE: Last = Last { page: u64::MAX, position: 0, batch: 0 };

/// NVIDIA's replayable faults: merged on arrival with the last representative of the same uTLB, or with the last one of
/// the whole batch, and with nothing else.
#[derive(Clone, Debug)]
pub struct Nvidia {
    options: NvidiaOptions,
    engines: Vec<Last>,
    batch: u32,
}

impl Nvidia {
    /// With these parameters. Asserts that a batch fits ([`MOST_ENTRIES`]).
    pub fn new(options: NvidiaOptions) -> Self {
        assert!((1..=MOST_ENTRIES).contains(&options.batch_count), "a batch has 1 to 1024 entries");
        Self { options, engines: Vec::new(), batch: 0 }
    }
}

impl Batching for Nvidia {
    fn entries(&self) -> usize {
        self.options.batch_count
    }

    fn read(&mut self, buffer: &[RawFault], batch: &mut Batch) -> usize {
        let count = buffer.len().min(self.options.batch_count);
        self.batch = self.batch.wrapping_add(1).max(1);
        let mut access = [Access::Prefetch; MOST_ENTRIES];
        let mut last = NONE;
        for (at, fault) in buffer[..count].iter().enumerate() {
            access[at] = fault.access;
            let engine = usize::from(fault.engine);
            if engine >= self.engines.len() {
                self.engines.resize(engine + 1, NONE);
            }
            let own = self.engines[engine];
            if self.options.coalesce && own.batch == self.batch && own.page == fault.page {
                let by = own.position as usize;
                if fault.access > access[by] {
                    // The newcomer stands for both. The batch's last one is left as it is: a quirk of the driver.
                    batch.stands_for.iter_mut().filter(|by_of| **by_of as usize == by).for_each(|by_of| {
                        *by_of = at as u16;
                    });
                    batch.stands_for.push(at as u16);
                    self.engines[engine].position = at as u32;
                } else {
                    batch.stands_for.push(by as u16);
                }
                continue;
            }
            if self.options.coalesce
                && last.page == fault.page
                && fault.access <= access[last.position as usize]
            {
                // The representative's successor, if its own engine promoted another entry meanwhile.
                let by = batch.stands_for[last.position as usize];
                batch.stands_for.push(by);
                continue;
            }
            batch.stands_for.push(at as u16);
            last = Last { page: fault.page, position: at as u32, batch: self.batch };
            self.engines[engine] = last;
        }
        for (at, fault) in buffer[..count].iter().enumerate() {
            if usize::from(batch.stands_for[at]) == at {
                batch.keys.push(Batch::key(fault.page, fault.access, at));
            }
        }
        count
    }

    fn replay(&self) -> Replay {
        self.options.replay
    }

    fn batches_per_service(&self) -> u32 {
        self.options.max_batches_per_service
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// (engine, page, access) of each entry; the answer is who stands for each.
    fn merged(entries: &[(u16, u64, Access)]) -> Vec<u16> {
        let buffer: Vec<_> = entries
            .iter()
            .map(|(engine, page, access)| RawFault {
                page: *page,
                arrival_ns: 0,
                block: 0,
                engine: *engine,
                access: *access,
            })
            .collect();
        let mut batch = Batch::default();
        let mut policy = Nvidia::new(NvidiaOptions::default());
        assert_eq!(policy.read(&buffer, &mut batch), entries.len());
        batch.stands_for
    }

    use Access::{Read, Write};

    #[test]
    fn a_utlb_merges_with_its_last_one_only() {
        assert_eq!(merged(&[(0, 7, Read), (0, 7, Read), (0, 8, Read), (0, 7, Read)]), [0, 0, 2, 3]);
    }

    #[test]
    fn another_utlb_merges_with_the_last_of_the_batch_if_it_asks_for_no_more() {
        assert_eq!(merged(&[(0, 7, Write), (1, 7, Read), (1, 7, Read)]), [0, 0, 0]);
        assert_eq!(merged(&[(0, 7, Read), (1, 7, Write)]), [0, 1]);
    }

    #[test]
    fn who_asks_for_more_stands_for_its_utlb_but_not_for_the_batch() {
        // Entry 1 is promoted; entry 2, of another uTLB, is still compared with entry 0, a read.
        assert_eq!(merged(&[(0, 7, Read), (0, 7, Write), (1, 7, Write)]), [1, 1, 2]);
        assert_eq!(merged(&[(0, 7, Read), (0, 7, Write), (1, 7, Read)]), [1, 1, 1]);
    }

    #[test]
    fn merged_entries_count_towards_the_batch() {
        let mut policy = Nvidia::new(NvidiaOptions { batch_count: 2, ..NvidiaOptions::default() });
        let fault = RawFault { page: 7, arrival_ns: 0, block: 0, engine: 0, access: Read };
        let mut batch = Batch::default();
        assert_eq!(policy.read(&[fault; 3], &mut batch), 2);
        assert_eq!(batch.keys.len(), 1);
    }
}
