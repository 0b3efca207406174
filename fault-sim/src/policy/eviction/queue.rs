use std::collections::VecDeque;

/// An order of units in which a unit can be moved to the end, or taken out, in constant time and without touching its
/// neighbours: what was overtaken stays in the queue and is skipped by its stamp.
#[derive(Clone, Debug, Default)]
pub(super) struct Queue {
    order: VecDeque<(u32, u32)>,
    /// For each unit the stamp of its entry; 0: not in the order.
    stamps: Vec<u32>,
    next: u32,
    members: usize,
}

impl Queue {
    pub(super) fn contains(&self, unit: u32) -> bool {
        self.stamps.get(unit as usize).is_some_and(|stamp| *stamp != 0)
    }

    #[cfg(test)]
    pub(super) fn len(&self) -> usize {
        self.members
    }

    /// Moves a unit to the end; puts it there if it is not in.
    #[inline]
    pub(super) fn push_last(&mut self, unit: u32) {
        if unit as usize >= self.stamps.len() {
            self.stamps.resize((unit as usize + 1).next_power_of_two(), 0);
        }
        let stamp = &mut self.stamps[unit as usize];
        if *stamp != 0 && self.order.back() == Some(&(unit, *stamp)) {
            return;
        }
        self.members += usize::from(*stamp == 0);
        self.next = self.next.wrapping_add(1).max(1);
        *stamp = self.next;
        self.order.push_back((unit, self.next));
        if self.order.len() > 2 * self.members + 1024 {
            self.order.retain(|(unit, stamp)| self.stamps[*unit as usize] == *stamp);
        }
    }

    /// Takes a unit out; nothing to do if it is not in.
    #[inline]
    pub(super) fn remove(&mut self, unit: u32) {
        if let Some(stamp) = self.stamps.get_mut(unit as usize)
            && *stamp != 0
        {
            *stamp = 0;
            self.members -= 1;
        }
    }

    /// Takes the first one out.
    #[inline]
    pub(super) fn pop_first(&mut self) -> Option<u32> {
        while let Some((unit, stamp)) = self.order.pop_front() {
            if self.stamps[unit as usize] == stamp {
                self.remove(unit);
                return Some(unit);
            }
        }
        None
    }

    /// Takes the last one out.
    pub(super) fn pop_last(&mut self) -> Option<u32> {
        while let Some((unit, stamp)) = self.order.pop_back() {
            if self.stamps[unit as usize] == stamp {
                self.remove(unit);
                return Some(unit);
            }
        }
        None
    }

    /// Its first member.
    pub(super) fn first(&self) -> Option<u32> {
        self.iter().next()
    }

    /// Its last member.
    pub(super) fn last(&self) -> Option<u32> {
        self.order
            .iter()
            .rev()
            .find(|(unit, stamp)| self.stamps[*unit as usize] == *stamp)
            .map(|(unit, _)| *unit)
    }

    /// Units near the first end, some of which may not be members any more.
    pub(super) fn near_first(&self, count: usize) -> impl Iterator<Item = u32> + '_ {
        self.order.iter().take(count).map(|(unit, _)| *unit)
    }

    /// Its members from the first on.
    pub(super) fn iter(&self) -> impl Iterator<Item = u32> + '_ {
        self.order.iter().filter(|(unit, stamp)| self.stamps[*unit as usize] == *stamp).map(|(unit, _)| *unit)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn order_holds_through_moves_and_removals() {
        let mut queue = Queue::default();
        for _ in 0..10_000 {
            [3, 1, 2, 3, 9, 1].into_iter().for_each(|unit| queue.push_last(unit));
        }
        queue.remove(9);
        queue.remove(70);
        assert!(queue.iter().eq([2, 3, 1]));
        assert!(queue.order.len() < 2000, "what is stale is thrown away");
        assert_eq!((queue.len(), queue.contains(9), queue.contains(1)), (3, false, true));
        assert_eq!((queue.pop_first(), queue.pop_last()), (Some(2), Some(1)));
        assert_eq!((queue.pop_last(), queue.pop_first(), queue.len()), (Some(3), None, 0));
    }
}
