//! What a seed stands for: which of the world's habits it has, and what its actors do. Nothing here depends on the
//! schedule, so that a plan can be cut down and stays the same plan.

use std::fmt;
use std::str::FromStr;

use granule::policy::Granularity;

use super::random::Stream;
use super::world::{BLOCKS, PAGES};
use crate::seed;

/// What the world may do in a run; each seed has some of them, since what is always there hides what is rare.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[repr(u32)]
pub enum Habit {
    /// munmap.
    Unmap,
    /// madvise(MADV_DONTNEED).
    Discard,
    /// mremap.
    Move,
    /// A raw clone.
    Fork,
    /// The kernel has no memory now and then.
    Memory,
    /// A device fails to copy now and then.
    Copies,
    /// A device or its IOMMU has no room for a table now and then.
    Tables,
    /// The kernel refuses to take a page now and then.
    Refuse,
    /// Ranges are registered in advance.
    Userptr,
    /// A second device.
    Second,
    /// A thread serves its own faults (SIGBUS).
    OwnServer,
    /// The kernel's own accesses do not wait for a trapped page.
    UserMode,
    /// Prefetches and requests to bring pages to RAM.
    Requests,
    /// A policy that answers what it was not asked.
    Policy,
    /// Fewer staging slots than workers.
    Staging,
}

impl Habit {
    /// All of them.
    pub const ALL: [Habit; 15] = [
        Habit::Unmap,
        Habit::Discard,
        Habit::Move,
        Habit::Fork,
        Habit::Memory,
        Habit::Copies,
        Habit::Tables,
        Habit::Refuse,
        Habit::Userptr,
        Habit::Second,
        Habit::OwnServer,
        Habit::UserMode,
        Habit::Requests,
        Habit::Policy,
        Habit::Staging,
    ];

    /// As it is written on a command line.
    pub fn name(self) -> String {
        format!("{self:?}").to_lowercase()
    }
}

/// A set of habits.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Habits(u32);

impl Habits {
    /// Whether one is among them.
    pub fn has(self, habit: Habit) -> bool {
        self.0 >> habit as u32 & 1 == 1
    }
    /// With one more.
    pub fn with(self, habit: Habit) -> Self {
        Self(self.0 | 1 << habit as u32)
    }
    /// Without one.
    pub fn without(self, habit: Habit) -> Self {
        Self(self.0 & !(1 << habit as u32))
    }
}

/// One operation of one actor: `actor.number` on a command line.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub struct Op {
    /// Who.
    pub actor: usize,
    /// The how manyeth of its operations.
    pub number: u64,
}

impl fmt::Display for Op {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}.{}", self.actor, self.number)
    }
}

impl FromStr for Op {
    type Err = String;
    fn from_str(text: &str) -> Result<Self, String> {
        let parsed = text.split_once('.').and_then(|(actor, number)| {
            Some(Self { actor: actor.parse().ok()?, number: number.parse().ok()? })
        });
        parsed.ok_or_else(|| {
            format!("{text:?} is no operation; write the actor's number, a dot and the operation's, as 3.17")
        })
    }
}

/// What is run: a seed, cut down or whole.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Plan {
    /// What everything follows from.
    pub seed: u64,
    /// Which schedule of it.
    pub schedule: u64,
    /// Actors begin nothing new after so many steps.
    pub steps: u64,
    /// Habits that the seed has and this plan does not.
    pub without: Vec<Habit>,
    /// Only these operations are done; `None`: all, for as many steps.
    pub only: Option<Vec<Op>>,
    /// Whether every step is written down.
    pub log: bool,
}

impl Plan {
    /// The whole of a seed.
    pub fn new(seed: u64, steps: u64) -> Self {
        Self { seed, schedule: 0, steps, without: Vec::new(), only: None, log: false }
    }

    /// The habits of this run.
    pub fn habits(&self) -> Habits {
        let mut chance = Stream::new(self.seed, 1);
        let has = Habit::ALL.into_iter().filter(|habit| chance.below(10) < habit.in_ten());
        let all = has.fold(Habits::default(), Habits::with);
        self.without.iter().fold(all, |habits, habit| habits.without(*habit))
    }

    /// The number that schedules follow from.
    pub fn schedule_seed(&self) -> u64 {
        seed::word(self.seed, 1 << 32 | self.schedule)
    }

    /// The constants of the run.
    pub fn shape(&self) -> Shape {
        let mut chance = Stream::new(self.seed, 2);
        let granularity = match chance.below(8) {
            0 => Granularity::Mib2,
            1..=3 => Granularity::Kib4,
            _ => Granularity::Kib64,
        };
        // Most touches go to few pages: where two meet.
        let blocks = 1 + chance.below(BLOCKS as u64);
        let count = 4 + chance.below(40);
        let hot = (0..count)
            .map(|_| {
                let block = chance.below(blocks);
                let page = if chance.once_in(4) {
                    chance.below(512)
                } else {
                    chance.below(4) * 16 + chance.below(3)
                };
                (block * 512 + page) as usize
            })
            .collect();
        let mut layout = Vec::new();
        for first in (0..BLOCKS).map(|block| block * 512) {
            let ranges = match chance.below(4) {
                0 => vec![first..first + 256, first + 256..first + 512],
                1 => vec![first..first + 40, first + 40..first + 96],
                _ => vec![first..first + 16, first + 20..first + 64, first + 448..first + 512],
            };
            layout.extend(ranges.into_iter().map(|range| (range, Kind::of(&mut chance))));
        }
        Shape {
            granularity,
            hot,
            layout,
            buffer: 1 + chance.below(6) as usize,
            batch: 1 + chance.below(6) as usize,
        }
    }

    /// The word that says what operation `number` of `actor` is.
    pub fn op(&self, op: Op) -> Stream {
        Stream::new(seed::word(self.seed, 0xac70 + op.actor as u64), op.number)
    }

    /// Whether an operation is done.
    pub fn has(&self, op: Op) -> bool {
        self.only.as_ref().is_none_or(|only| only.contains(&op))
    }

    /// Whether an actor has operations left from `number` on.
    pub fn has_more(&self, actor: usize, number: u64) -> bool {
        self.only.as_ref().is_none_or(|only| only.iter().any(|op| op.actor == actor && op.number >= number))
    }
}

impl Habit {
    /// In how many of ten seeds.
    fn in_ten(self) -> u64 {
        match self {
            Habit::Unmap | Habit::Requests => 8,
            Habit::Second | Habit::Discard | Habit::Move => 6,
            Habit::Fork | Habit::Userptr | Habit::OwnServer | Habit::Policy => 4,
            _ => 3,
        }
    }
}

/// What kind of mapping.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Kind {
    /// Private, writable.
    Plain,
    /// Private, read only.
    ReadOnly,
    /// Gives events but stays.
    Linked,
}

impl Kind {
    /// Mostly the first.
    pub fn of(chance: &mut Stream) -> Self {
        match chance.below(8) {
            0 => Kind::Linked,
            1 => Kind::ReadOnly,
            _ => Kind::Plain,
        }
    }
}

/// The constants of a run.
#[derive(Clone, Debug)]
pub struct Shape {
    /// The policy's unit.
    pub granularity: Granularity,
    /// Pages that are touched most.
    pub hot: Vec<usize>,
    /// What is mapped at the start.
    pub layout: Vec<(std::ops::Range<usize>, Kind)>,
    /// Records in each device's fault buffer.
    pub buffer: usize,
    /// Faults that a device's thread fetches at once.
    pub batch: usize,
}

impl Shape {
    /// A page for an operation.
    pub fn page(&self, chance: &mut Stream) -> usize {
        match chance.once_in(8) {
            true => chance.below(PAGES as u64) as usize,
            false => self.hot[chance.below(self.hot.len() as u64) as usize],
        }
    }

    /// A range for an operation: a page or a few, rarely many.
    pub fn range(&self, chance: &mut Stream) -> std::ops::Range<usize> {
        let page = self.page(chance);
        let most = match chance.below(8) {
            0 => 300,
            1..=3 => 24,
            _ => 3,
        };
        let before = chance.below(most) as usize / 2;
        let start = page.saturating_sub(before);
        start..(page + 1 + chance.below(most) as usize).min(PAGES)
    }
}
