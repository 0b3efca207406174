//! Patterns: how programs touch memory, made up from a seed. One file per pattern; each is a walk over the pages of a
//! few allocations.
//!
//! # Rules
//! 1. The same pattern, options and seed give the same events, byte for byte, on every machine.
//! 2. A walk never ends by itself; the number of events ends it.
//! 3. Allocations begin at blocks (2 MiB) of their own, one behind the other from [`BASE_PAGE`] on.
//! 4. CPU touches and unmaps are mixed in from the outside (`--cpu`, `--unmap`), so that every pattern can have them.

mod bfs;
mod gemm;
mod kv_cache;
mod ping_pong;
mod random;
mod shuffle;
mod stencil;
mod stream;
mod zipf;

use granule::units::PAGES_PER_BLOCK;
use thiserror::Error;

use crate::seed;
use crate::trace::{Access, Event, EventKind};

/// The page at which the first allocation begins: address 2^46.
pub const BASE_PAGE: u64 = 1 << 34;

/// The patterns.
#[derive(Clone, Copy, PartialEq, Eq, Debug, clap::ValueEnum, serde::Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Pattern {
    /// One page after the other over a source and a destination, again and again.
    Stream,
    /// Every 17th page, then those beside them, and so on.
    Stride,
    /// Every page once in a random order, then in another one.
    Random,
    /// Few pages often and most of them rarely (exponent 0.99), over all of memory.
    Zipf,
    /// Breadth-first search through a random graph: offsets, edges, levels.
    Bfs,
    /// A five-point stencil that sweeps from one grid into another.
    Stencil,
    /// Matrix multiplication, tile by tile.
    Gemm,
    /// Decoding with a cache of keys and values: every step reads a whole sequence and appends to it.
    KvCache,
    /// Device and CPU write the same pages by turns.
    PingPong,
}

impl Pattern {
    /// Its name on the command line.
    pub fn name(self) -> &'static str {
        match self {
            Self::Stream => "stream",
            Self::Stride => "stride",
            Self::Random => "random",
            Self::Zipf => "zipf",
            Self::Bfs => "bfs",
            Self::Stencil => "stencil",
            Self::Gemm => "gemm",
            Self::KvCache => "kv-cache",
            Self::PingPong => "ping-pong",
        }
    }
}

/// What a trace is made from.
#[derive(Clone, Copy, PartialEq, Debug)]
pub struct Shape {
    /// Pages of all allocations together; at least 16.
    pub pages: u64,
    /// Touches to make.
    pub events: u64,
    /// Everything follows from it.
    pub seed: u64,
    /// Engines that take turns; at least 1.
    pub engines: u16,
    /// Nanoseconds from one touch to the next.
    pub gap_ns: u64,
    /// Of ten thousand touches, how many are the CPU's.
    pub cpu_per_myriad: u32,
    /// Of ten thousand touches, how many are followed by an unmap of the 64 KiB around them.
    pub unmap_per_myriad: u32,
}

/// Why a shape cannot be generated.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Error)]
pub enum ShapeError {
    /// Fewer pages than the smallest walk needs.
    #[error("--size must be at least 64KiB")]
    TooSmall,
    /// More than the address space above the base holds.
    #[error("--size must be at most 64TiB")]
    TooLarge,
    /// Nobody touches.
    #[error("--engines must be between 1 and 65535")]
    NoEngine,
    /// More than everything.
    #[error("--cpu and --unmap are percentages and together at most 100")]
    TooMany,
}

/// One touch of a walk: a page counted from the base.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Touch {
    page: u64,
    access: Access,
    by_cpu: bool,
}

impl Touch {
    fn read(page: u64) -> Self {
        Self { page, access: Access::Read, by_cpu: false }
    }
    fn write(page: u64) -> Self {
        Self { page, access: Access::Write, by_cpu: false }
    }
}

/// An endless sequence of touches.
trait Walk {
    /// First page and number of pages of each allocation.
    fn allocations(&self) -> Vec<(u64, u64)>;
    /// The next touch.
    fn step(&mut self) -> Touch;
}

/// Lays out allocations of so many pages, each from a block of its own on.
fn lay_out(pages: &[u64]) -> Vec<(u64, u64)> {
    let mut at = 0;
    pages
        .iter()
        .map(|pages| {
            let first = at;
            at = (first + pages).next_multiple_of(PAGES_PER_BLOCK as u64);
            (first, *pages)
        })
        .collect()
}

/// The events of a pattern: maps first, then the touches.
pub struct Events {
    walk: Box<dyn Walk>,
    shape: Shape,
    /// Maps and unmaps that come before the next touch.
    pending: std::collections::VecDeque<Event>,
    touches: u64,
}

impl Events {
    /// Begins a pattern.
    ///
    /// # Errors
    /// The shape is not one that can be walked.
    pub fn new(pattern: Pattern, shape: Shape) -> Result<Self, ShapeError> {
        match shape.pages {
            ..16 => return Err(ShapeError::TooSmall),
            16..=0x4_0000_0000 => {}
            _ => return Err(ShapeError::TooLarge),
        }
        if shape.engines == 0 {
            return Err(ShapeError::NoEngine);
        }
        if shape.cpu_per_myriad.saturating_add(shape.unmap_per_myriad) > 10_000 {
            return Err(ShapeError::TooMany);
        }
        let (pages, seed) = (shape.pages, shape.seed);
        let walk: Box<dyn Walk> = match pattern {
            Pattern::Stream => Box::new(stream::Stream::new(pages)),
            Pattern::Stride => Box::new(stream::Stride::new(pages)),
            Pattern::Random => Box::new(random::Random::new(pages, seed)),
            Pattern::Zipf => Box::new(zipf::Zipf::new(pages, seed)),
            Pattern::Bfs => Box::new(bfs::Bfs::new(pages, seed)),
            Pattern::Stencil => Box::new(stencil::Stencil::new(pages)),
            Pattern::Gemm => Box::new(gemm::Gemm::new(pages)),
            Pattern::KvCache => Box::new(kv_cache::KvCache::new(pages, seed)),
            Pattern::PingPong => Box::new(ping_pong::PingPong::new(pages)),
        };
        let map = |(first, pages)| Self::ranges(0, BASE_PAGE + first, pages, EventKind::Map);
        let pending = walk.allocations().into_iter().flat_map(map).collect();
        Ok(Self { walk, shape, pending, touches: 0 })
    }

    /// A range as events, each of which is at most 2^31 pages long.
    fn ranges(time_ns: u64, first: u64, pages: u64, kind: EventKind) -> impl Iterator<Item = Event> {
        let most = 1 << 31;
        (0..pages.div_ceil(most)).map(move |part| {
            let length = most.min(pages - part * most);
            Event::range(time_ns, first + part * most, length as u32, kind)
        })
    }
}

impl Iterator for Events {
    type Item = Event;

    fn next(&mut self) -> Option<Event> {
        if let Some(event) = self.pending.pop_front() {
            return Some(event);
        }
        if self.touches == self.shape.events {
            return None;
        }
        let time_ns = self.touches * self.shape.gap_ns;
        let touch = self.walk.step();
        let engine = (self.touches % u64::from(self.shape.engines)) as u16;
        let draw = match self.shape.cpu_per_myriad + self.shape.unmap_per_myriad {
            0 => u32::MAX,
            _ => seed::below(self.shape.seed ^ 0x6d69_7865, self.touches, 10_000) as u32,
        };
        self.touches += 1;
        let page = BASE_PAGE + touch.page;
        let unmaps = self.shape.cpu_per_myriad..self.shape.cpu_per_myriad + self.shape.unmap_per_myriad;
        if unmaps.contains(&draw) {
            let first = page & !15;
            self.pending.push_back(Event::range(time_ns, first, 16, EventKind::Unmap));
            self.pending.push_back(Event::range(time_ns, first, 16, EventKind::Map));
        }
        Some(if touch.by_cpu || draw < self.shape.cpu_per_myriad {
            Event::cpu(time_ns, page, touch.access)
        } else {
            Event::access(time_ns, page, touch.access, engine)
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::ValueEnum;

    fn shape(pages: u64, events: u64, seed: u64) -> Shape {
        let engines = 4;
        Shape { pages, events, seed, engines, gap_ns: 10, cpu_per_myriad: 0, unmap_per_myriad: 0 }
    }

    fn touches(pattern: Pattern, shape: Shape) -> Vec<Event> {
        let events = Events::new(pattern, shape).expect("a good shape");
        events.filter(|event| event.kind != EventKind::Map).collect()
    }

    #[test]
    fn every_pattern_stays_in_its_allocations_and_repeats() {
        for pattern in Pattern::value_variants() {
            for pages in [16, 17, 100, 5000] {
                let of = |seed| Events::new(*pattern, shape(pages, 3000, seed)).expect("a good shape");
                let maps: Vec<_> = of(1).take_while(|event| event.kind == EventKind::Map).collect();
                let mapped: u64 = maps.iter().map(|map| u64::from(map.pages)).sum();
                assert!(mapped > 0 && mapped <= pages, "{pattern:?} maps {mapped} of {pages}");
                for event in of(1).skip(maps.len()) {
                    let inside =
                        maps.iter().any(|m| (m.page..m.page + u64::from(m.pages)).contains(&event.page));
                    assert!(inside, "{pattern:?} of {pages} pages touches {:#x}", event.page);
                }
                assert!(of(1).eq(of(1)));
                assert_eq!(of(1).count(), 3000 + maps.len());
            }
        }
    }

    #[test]
    fn a_seed_matters_where_there_is_chance() {
        for pattern in [Pattern::Random, Pattern::Zipf, Pattern::Bfs, Pattern::KvCache] {
            assert_ne!(
                touches(pattern, shape(1000, 500, 1)),
                touches(pattern, shape(1000, 500, 2)),
                "{pattern:?}"
            );
        }
    }

    #[test]
    fn random_touches_every_page_once_before_any_twice() {
        let mut pages: Vec<_> = touches(Pattern::Random, shape(1000, 1000, 3))
            .iter()
            .map(|event| event.page - BASE_PAGE)
            .collect();
        assert!(!pages.is_sorted());
        pages.sort_unstable();
        assert!(pages.into_iter().eq(0..1000));
    }

    #[test]
    fn cpu_touches_and_unmaps_are_mixed_in() {
        let mixed = Shape { cpu_per_myriad: 1000, unmap_per_myriad: 100, ..shape(1000, 10_000, 1) };
        let events = touches(Pattern::Stream, mixed);
        let count = |kind| events.iter().filter(|event| event.kind == kind).count();
        assert!((800..1200).contains(&count(EventKind::CpuFault)), "{}", count(EventKind::CpuFault));
        assert!((50..150).contains(&count(EventKind::Unmap)), "{}", count(EventKind::Unmap));
    }
}
