//! Events into the order of time, as far as a window of bounded size reaches.
//!
//! Tools write roughly in order: threads of one run, or the two ends of a fault, lie close together. The window holds
//! up to twice [`WINDOW`] events; the earlier half is let go when it is full. Events of the same time keep the order in
//! which they came.

use crate::trace::Event;

/// Events that wait at least. 32 bytes each; twice as many are held.
pub const WINDOW: usize = 1 << 16;

/// The window.
#[derive(Debug, Default)]
pub(super) struct Order {
    held: Vec<Event>,
    /// The time of the last event that was let go.
    latest_ns: u64,
    /// Events that came earlier than one that was let go before.
    late: u64,
}

impl Order {
    /// Takes an event; calls `out` for those that are let go.
    pub fn push<E>(&mut self, event: Event, out: impl FnMut(Event) -> Result<(), E>) -> Result<(), E> {
        self.held.push(event);
        if self.held.len() < 2 * WINDOW { Ok(()) } else { self.let_go(WINDOW, out) }
    }

    /// Lets go what is left.
    pub fn finish<E>(&mut self, out: impl FnMut(Event) -> Result<(), E>) -> Result<(), E> {
        self.let_go(self.held.len(), out)
    }

    /// How many came too late for the window.
    pub fn late(&self) -> u64 {
        self.late
    }

    fn let_go<E>(&mut self, count: usize, mut out: impl FnMut(Event) -> Result<(), E>) -> Result<(), E> {
        self.held.sort_by_key(|event| event.time_ns);
        for event in self.held.drain(..count) {
            self.late += u64::from(event.time_ns < self.latest_ns);
            self.latest_ns = self.latest_ns.max(event.time_ns);
            out(event)?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::trace::Access;

    fn through(times: impl Iterator<Item = u64>) -> (Vec<Event>, u64) {
        let (mut order, mut out) = (Order::default(), Vec::new());
        let mut keep = |event| {
            out.push(event);
            Ok::<_, ()>(())
        };
        for (page, time_ns) in (0..).zip(times) {
            order.push(Event::access(time_ns, page, Access::Read, 0), &mut keep).expect("kept");
        }
        order.finish(&mut keep).expect("kept");
        let late = order.late();
        (out, late)
    }

    #[test]
    fn what_lies_within_the_window_is_put_in_order() {
        let count = 3 * WINDOW as u64;
        // Every pair is swapped, and one event comes nearly a window late.
        let times = (0..count).map(|at| if at == WINDOW as u64 - 1 { 0 } else { at ^ 1 });
        let (out, late) = through(times);
        assert_eq!((out.len() as u64, late), (count, 0));
        assert!(out.is_sorted_by_key(|event| event.time_ns));
    }

    #[test]
    fn equal_times_keep_their_order() {
        let (out, _) = through([5, 5, 1, 5].into_iter());
        assert_eq!(out.iter().map(|event| event.page).collect::<Vec<_>>(), [2, 0, 1, 3]);
    }

    #[test]
    fn what_comes_later_than_that_is_counted() {
        let count = 2 * WINDOW as u64;
        let (out, late) = through((10..count + 10).chain([3]));
        assert_eq!((out.len() as u64, late), (count + 1, 1));
    }
}
