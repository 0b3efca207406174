use super::order::Order;
use crate::trace::{Event, EventKind, TraceError, TraceKind, TraceWriter};

/// Takes events one by one.
pub trait Take {
    /// Takes one.
    ///
    /// # Errors
    /// It cannot be kept.
    fn take(&mut self, event: Event) -> Result<(), TraceError>;
}

impl Take for TraceWriter {
    fn take(&mut self, event: Event) -> Result<(), TraceError> {
        self.push(event)
    }
}

impl Take for Vec<Event> {
    fn take(&mut self, event: Event) -> Result<(), TraceError> {
        self.push(event);
        Ok(())
    }
}

/// Where the events of an import go: counted and put into the order of time.
pub struct Sink<'a> {
    into: &'a mut dyn Take,
    order: Order,
    kinds: [u64; EventKind::ALL.len()],
    span_ns: Option<(u64, u64)>,
}

impl<'a> Sink<'a> {
    /// Events end in `into`.
    pub fn new(into: &'a mut dyn Take) -> Self {
        Self { into, order: Order::default(), kinds: [0; EventKind::ALL.len()], span_ns: None }
    }

    pub(super) fn push(&mut self, event: Event) -> Result<(), TraceError> {
        self.kinds[event.kind as usize] += 1;
        let (first, last) = self.span_ns.unwrap_or((event.time_ns, event.time_ns));
        self.span_ns = Some((first.min(event.time_ns), last.max(event.time_ns)));
        self.order.push(event, |event| self.into.take(event))
    }

    pub(super) fn finish(&mut self) -> Result<(), TraceError> {
        self.order.finish(|event| self.into.take(event))
    }

    /// Events of every kind.
    pub(super) fn events(&self) -> u64 {
        self.kinds.iter().sum()
    }

    pub(super) fn count(&self, kind: EventKind) -> u64 {
        self.kinds[kind as usize]
    }

    pub(super) fn late(&self) -> u64 {
        self.order.late()
    }

    /// The earliest and the latest time.
    pub(super) fn span_ns(&self) -> (u64, u64) {
        self.span_ns.unwrap_or_default()
    }

    /// What the events are together.
    pub(super) fn kind(&self) -> TraceKind {
        if self.count(EventKind::Access) > 0 {
            TraceKind::Accesses
        } else if self.count(EventKind::DeviceFault) + self.count(EventKind::CpuFault) > 0 {
            TraceKind::Faults
        } else {
            TraceKind::Migrations
        }
    }
}
