//! What a replay did to each allocation and to each block.
//!
//! The engine counts by block (2 MiB). An allocation is what one or several neighbouring map events mapped; where a trace
//! has none, it is a stretch of neighbouring blocks that were touched. A block in which several allocations lie is counted
//! for the one whose pages come first there.

use granule::units::{PAGE_BYTES, PAGES_PER_BLOCK};
use serde::{Deserialize, Serialize};

use crate::replay::Blocks;
use crate::trace::{Event, EventKind};

/// The numbers of one allocation or block.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default, Serialize, Deserialize)]
pub struct Place {
    /// Its first byte.
    pub address: u64,
    /// Its length.
    pub bytes: u64,
    /// Faults of the device that were served there.
    pub faults: u64,
    /// Brought by faults.
    pub demand_bytes: u64,
    /// Brought by prefetches.
    pub prefetch_bytes: u64,
    /// Decisions to evict something there.
    pub evictions: u64,
}

/// The ranges that a trace maps, gathered while it is read.
#[derive(Clone, Debug, Default)]
pub struct Maps {
    /// First page and end, in the order of the trace.
    ranges: Vec<(u64, u64)>,
}

impl Maps {
    /// Enters the next events. A range that goes on where the last one ended is one with it.
    pub fn feed(&mut self, events: &[Event]) {
        for event in events.iter().filter(|event| event.kind == EventKind::Map) {
            let (first, end) = (event.page, event.page + u64::from(event.pages));
            match self.ranges.last_mut() {
                Some((_, last)) if *last == first => *last = end,
                _ => self.ranges.push((first, end)),
            }
        }
    }

    /// Distinct ranges by address. What was mapped again inside of an earlier range is that range.
    fn allocations(&self) -> Vec<(u64, u64)> {
        let mut ranges = self.ranges.clone();
        ranges.sort_unstable_by_key(|(first, end)| (*first, std::cmp::Reverse(*end)));
        let mut all: Vec<(u64, u64)> = Vec::new();
        for (first, end) in ranges {
            match all.last_mut() {
                Some((_, last)) if first < *last => *last = end.max(*last),
                _ => all.push((first, end)),
            }
        }
        all
    }
}

/// Every block that the device touched, by address.
pub fn blocks(of: &Blocks) -> Vec<Place> {
    let place = |number: u32| {
        let state = of.get(number);
        Place {
            address: of.first_page(number) * PAGE_BYTES,
            bytes: PAGES_PER_BLOCK as u64 * PAGE_BYTES,
            faults: u64::from(state.faults),
            demand_bytes: u64::from(state.demand_pages) * PAGE_BYTES,
            prefetch_bytes: u64::from(state.prefetch_pages) * PAGE_BYTES,
            evictions: u64::from(state.evictions),
        }
    };
    let mut all: Vec<_> = (0..of.len() as u32).map(place).collect();
    all.sort_unstable_by_key(|place| place.address);
    all
}

/// Every allocation, by address.
pub fn allocations(maps: &Maps, of: &Blocks) -> Vec<Place> {
    let blocks = blocks(of);
    let mut all: Vec<Place> = maps
        .allocations()
        .into_iter()
        .map(|(first, end)| Place {
            address: first * PAGE_BYTES,
            bytes: (end - first) * PAGE_BYTES,
            ..Place::default()
        })
        .collect();
    let is_mapped = !all.is_empty();
    for block in blocks {
        let end = block.address.saturating_add(block.bytes);
        // The first allocation that reaches into the block.
        let at = all.partition_point(|place| place.address.saturating_add(place.bytes) <= block.address);
        let found = all.get(at).is_some_and(|place| place.address < end);
        if found && is_mapped {
            all[at].add(&block);
        } else if let Some(last) =
            all.last_mut().filter(|last| !is_mapped && last.address + last.bytes == block.address)
        {
            last.bytes += block.bytes;
            last.add(&block);
        } else {
            // Touched without having been mapped.
            let at = all.partition_point(|place| place.address < block.address);
            all.insert(at, block);
        }
    }
    all
}

impl Place {
    fn add(&mut self, more: &Self) {
        self.faults += more.faults;
        self.demand_bytes += more.demand_bytes;
        self.prefetch_bytes += more.prefetch_bytes;
        self.evictions += more.evictions;
    }
}

/// The places with the most faults, at most so many.
pub fn hottest(mut places: Vec<Place>, most: usize) -> Vec<Place> {
    places.sort_by_key(|place| (std::cmp::Reverse(place.faults), place.address));
    places.truncate(most);
    places
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::policy::catalogue;
    use crate::replay::{Cost, Engine, Limits};
    use crate::trace::Access;

    const BLOCK: u64 = PAGES_PER_BLOCK as u64;

    fn played(events: &[Event]) -> (Vec<Place>, Vec<Place>) {
        let plan = catalogue::parse("lru-4k").expect("a policy");
        let mut engine =
            Engine::new(plan.build(1, None), Cost::FREE, Limits::new(16 << 20)).expect("enough memory");
        let mut maps = Maps::default();
        maps.feed(events);
        engine.feed(events);
        let (_, of) = engine.finish();
        (allocations(&maps, &of), blocks(&of))
    }

    fn touch(page: u64) -> Event {
        Event::access(0, page, Access::Read, 0)
    }

    #[test]
    fn blocks_are_counted_for_the_allocation_they_lie_in() {
        let map = |page, pages| Event::range(0, page, pages, EventKind::Map);
        // One of two blocks, mapped in two pieces; one that begins in the middle of its block; nothing mapped at the end.
        let events = [
            map(10 * BLOCK, 512),
            map(11 * BLOCK, 512),
            map(20 * BLOCK + 100, 50),
            touch(10 * BLOCK),
            touch(11 * BLOCK + 7),
            touch(11 * BLOCK + 8),
            touch(20 * BLOCK + 110),
            touch(30 * BLOCK),
        ];
        let (all, blocks) = played(&events);
        let seen: Vec<_> =
            all.iter().map(|place| (place.address / 4096, place.bytes / 4096, place.faults)).collect();
        assert_eq!(seen, [(10 * BLOCK, 1024, 3), (20 * BLOCK + 100, 50, 1), (30 * BLOCK, 512, 1)]);
        assert_eq!(blocks.iter().map(|place| place.faults).collect::<Vec<_>>(), [1, 2, 1, 1]);
        assert_eq!(blocks.iter().map(|place| place.demand_bytes).sum::<u64>(), 5 * 4096);
        assert_eq!(hottest(blocks, 1)[0].address, 11 * BLOCK * 4096);
    }

    #[test]
    fn without_maps_neighbouring_blocks_are_one() {
        let (all, _) = played(&[touch(5 * BLOCK), touch(3 * BLOCK), touch(4 * BLOCK + 9), touch(9 * BLOCK)]);
        let seen: Vec<_> =
            all.iter().map(|place| (place.address / 4096 / BLOCK, place.bytes >> 21)).collect();
        assert_eq!(seen, [(3, 3), (9, 1)]);
    }
}
