use std::collections::HashMap;

use crate::seed;
use crate::trace::{Event, EventKind};

/// Pages of the sample; more halve it.
const MOST_PAGES: usize = 16_384;
/// Positions of the tree before it is packed.
const POSITIONS: usize = 4 * MOST_PAGES;
/// A page is in the sample if its hash is below this, at first.
const ALL: u64 = u64::MAX;

/// How many touches of the device would miss under LRU in pages of 4 KiB, for every capacity at once.
///
/// From the distances between touches of the same page, counted in pages, of a sample of the pages: which page is in the
/// sample is told by its hash, and the sample is halved when it has too many (SHARDS, Waldspurger et al., FAST 2015).
/// Exact for traces of up to 16,384 pages.
#[derive(Debug)]
pub struct Reuse {
    below: u64,
    /// Each page's position in the tree.
    last: HashMap<u64, usize>,
    /// A binary indexed tree: 1 at the latest position of each page.
    tree: Vec<u32>,
    next: usize,
    /// Distance in pages, in sixteenths of powers of two, to how many touches that stands for.
    distances: HashMap<u32, f64>,
    first: f64,
    touches: u64,
}

impl Default for Reuse {
    fn default() -> Self {
        Self {
            below: ALL,
            last: HashMap::new(),
            tree: vec![0; POSITIONS + 1],
            next: 1,
            distances: HashMap::new(),
            first: 0.0,
            touches: 0,
        }
    }
}

/// The step of a distance: exact below 32, then sixteen for each power of two.
fn step(distance: u64) -> u32 {
    if distance < 32 {
        return distance as u32;
    }
    let log = distance.ilog2();
    (log - 4) * 16 + 16 + ((distance >> (log - 4)) as u32 - 16)
}

/// The largest distance of a step.
fn distance_of(step: u32) -> u64 {
    if step < 32 {
        return u64::from(step);
    }
    let log = (step - 16) / 16 + 4;
    ((u64::from((step - 16) % 16) + 17) << (log - 4)) - 1
}

impl Reuse {
    /// Enters the next events. What the CPU or an unmap takes from the device is not looked at.
    pub fn feed(&mut self, events: &[Event]) {
        for event in events {
            if matches!(event.kind, EventKind::Access | EventKind::DeviceFault) {
                self.touches += 1;
                if seed::word(0x0052_4555_5345, event.page) <= self.below {
                    self.touch(event.page);
                }
            }
        }
    }

    fn rate(&self) -> f64 {
        (self.below as f64 + 1.0) / (ALL as f64 + 1.0)
    }

    fn touch(&mut self, page: u64) {
        let weight = 1.0 / self.rate();
        match self.last.insert(page, self.next) {
            Some(before) => {
                // Pages whose latest touch is younger than this one's, and the page itself.
                let younger = self.last.len() as u64 - u64::from(self.up_to(before)) + 1;
                self.add(before, u32::MAX);
                let distance = (younger as f64 * weight).round().max(1.0) as u64;
                *self.distances.entry(step(distance)).or_default() += weight;
            }
            None => self.first += weight,
        }
        self.add(self.next, 1);
        self.next += 1;
        if self.last.len() > MOST_PAGES {
            self.below /= 2;
            let below = self.below;
            self.last.retain(|page, _| seed::word(0x0052_4555_5345, *page) <= below);
            self.pack();
        } else if self.next > POSITIONS {
            self.pack();
        }
    }

    /// Numbers the latest touches from 1 on.
    fn pack(&mut self) {
        let mut order: Vec<_> = self.last.iter().map(|(page, at)| (*at, *page)).collect();
        order.sort_unstable();
        self.tree.fill(0);
        self.next = 1;
        for (_, page) in order {
            self.last.insert(page, self.next);
            self.add(self.next, 1);
            self.next += 1;
        }
    }

    /// Adds to a position; `u32::MAX` takes one away.
    fn add(&mut self, mut at: usize, what: u32) {
        while at <= POSITIONS {
            self.tree[at] = self.tree[at].wrapping_add(what);
            at += at & at.wrapping_neg();
        }
    }

    /// How many pages have their latest touch at or before a position.
    fn up_to(&self, mut at: usize) -> u32 {
        let mut sum = 0u32;
        while at > 0 {
            sum = sum.wrapping_add(self.tree[at]);
            at &= at - 1;
        }
        sum
    }

    /// Capacity in pages, and which part of the touches misses with it: falling from 1 on.
    pub fn curve(&self) -> Vec<(f64, f64)> {
        let mut steps: Vec<_> = self.distances.iter().map(|(step, weight)| (*step, *weight)).collect();
        steps.sort_unstable_by_key(|(step, _)| *step);
        let total = self.first + steps.iter().map(|(_, weight)| weight).sum::<f64>();
        if total == 0.0 {
            return Vec::new();
        }
        let mut missing = total;
        let mut curve = vec![(0.0, 1.0)];
        for (step, weight) in steps {
            missing -= weight;
            curve.push((distance_of(step) as f64, (missing / total).clamp(0.0, 1.0)));
        }
        curve
    }

    /// Which part of the pages was looked at.
    pub fn sampled(&self) -> f64 {
        self.rate()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::pattern::{Events, Pattern, Shape};
    use crate::trace::Access;

    fn of(events: &[Event]) -> Reuse {
        let mut reuse = Reuse::default();
        events.chunks(1000).for_each(|events| reuse.feed(events));
        reuse
    }

    fn misses(curve: &[(f64, f64)], pages: f64) -> f64 {
        curve.iter().rev().find(|(capacity, _)| *capacity <= pages).map_or(1.0, |(_, missing)| *missing)
    }

    #[test]
    fn steps_hold_what_belongs_to_them() {
        for distance in (0..5000).chain([1 << 30, (1 << 40) + 7]) {
            let at = step(distance);
            assert!(distance <= distance_of(at), "{distance}");
            assert!(at == 0 || distance > distance_of(at - 1), "{distance}");
        }
    }

    /// By hand: a b a c b a, where the second a has distance 2, the second b 3, the third a 3.
    #[test]
    fn distances_of_six_touches() {
        let events = [0, 1, 0, 2, 1, 0].map(|page| Event::access(0, page, Access::Read, 0));
        let curve = of(&events).curve();
        assert_eq!(curve.len(), 3);
        assert_eq!((misses(&curve, 1.0), misses(&curve, 2.0)), (1.0, 5.0 / 6.0));
        assert!((misses(&curve, 3.0) - 0.5).abs() < 1e-9);
    }

    /// A loop over more pages than the sample holds misses always below its length and never above.
    #[test]
    fn a_loop_that_is_sampled() {
        let pages = 100_000;
        let events: Vec<_> = (0..300_000).map(|at| Event::access(at, at % pages, Access::Read, 0)).collect();
        let reuse = of(&events);
        assert!(reuse.sampled() < 0.2);
        let curve = reuse.curve();
        assert!(misses(&curve, 90_000.0) > 0.99);
        assert!((0.3..0.37).contains(&misses(&curve, 110_000.0)), "{}", misses(&curve, 110_000.0));
    }

    /// What LRU in pages of 4 KiB counts when it is played.
    #[test]
    fn the_curve_is_what_lru_counts() {
        let shape = Shape {
            pages: 8192,
            events: 60_000,
            seed: 3,
            engines: 4,
            gap_ns: 100,
            cpu_per_myriad: 0,
            unmap_per_myriad: 0,
        };
        let events: Vec<_> = Events::new(Pattern::Zipf, shape).expect("a good shape").collect();
        let curve = of(&events).curve();
        for pages in [1024u64, 2048, 4096] {
            let plan = crate::policy::catalogue::parse("lru-4k").expect("a policy");
            let limits = crate::replay::Limits::new(pages * 4096);
            let mut engine =
                crate::replay::Engine::new(plan.build(1, None), crate::replay::Cost::FREE, limits)
                    .expect("enough memory");
            engine.feed(&events);
            let (counted, _) = engine.finish();
            let played = counted.demand_pages as f64 / 60_000.0;
            let said = misses(&curve, pages as f64);
            assert!((played - said).abs() < 0.005, "{pages} pages: played {played}, said {said}");
        }
    }
}
