use crate::replay::Engine;

/// What a replay had done by a moment. All but what is in use only grow.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default, serde::Serialize)]
pub struct Sample {
    /// Time of the device since the first event.
    pub time_ns: u64,
    /// Pages of device memory that are in use, in whole units of the eviction policy.
    pub held_pages: u64,
    /// Pages that faults brought.
    pub demand_pages: u64,
    /// Pages that prefetches brought.
    pub prefetch_pages: u64,
    /// Pages that went to system memory.
    pub out_pages: u64,
}

/// Samples of one replay, in the order of time.
#[derive(Clone, Debug, Default)]
pub struct Series {
    /// The samples; the first is at time 0.
    pub samples: Vec<Sample>,
}

impl Series {
    /// Enters a moment.
    pub fn add(&mut self, engine: &Engine) {
        let of = engine.metrics();
        if self.samples.is_empty() {
            self.samples.push(Sample::default());
        }
        self.samples.push(Sample {
            time_ns: engine.time_ns(),
            held_pages: engine.held_pages(),
            demand_pages: of.demand_pages,
            prefetch_pages: of.prefetch_pages,
            out_pages: of.evicted_pages + of.homecoming_pages,
        });
    }
}
