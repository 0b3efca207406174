use crate::trace::{Event, EventKind};

/// What will happen to each unit of memory: for policies that may know it.
#[derive(Debug, Default)]
pub struct Future {
    events: u64,
}

impl Future {
    /// Enters the next events of the trace.
    pub fn feed(&mut self, events: &[Event]) {
        self.events += events.iter().filter(|event| event.kind == EventKind::Access).count() as u64;
    }
}
