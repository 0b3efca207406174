//! Who goes on next: every choice follows from the schedule's number.
//!
//! Three styles, of which a schedule has one, since each finds what the others rarely do:
//! * *even*: anybody who can, each as likely;
//! * *sticky*: mostly the one that ran last, so that others see it in few, far apart places;
//! * *ranked*: the highest rank that can; at a few steps chosen in advance the one that runs falls to the lowest rank, and
//!   so does who pauses (probabilistic concurrency testing).
//!
//! Once no new work is begun the style is even, so that everybody who can go on does.

use super::random::Stream;

/// Most fibers in a run.
pub const MOST_FIBERS: usize = 32;

/// What a fiber waits for.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Key {
    /// Nothing: it can go on.
    None,
    /// A word of the library, by its address.
    Word(usize),
    /// Something that is told to this fiber alone: a page, the reading of its event, the answer to its fault.
    Own,
    /// There is something for the reader to read.
    Events,
    /// There is a fault to fetch on this device.
    Faults(usize),
    /// The fault buffer of this device has room.
    Room(usize),
    /// Engines of this device may go on.
    Resumed(usize),
    /// An engine of this device is no longer inside an access.
    Left(usize),
    /// There is a group of faults to serve.
    Jobs,
}

#[derive(Clone, Copy, Debug)]
enum Style {
    Even,
    Sticky { stay_in_16: u64 },
    Ranked,
}

/// See the module header.
#[derive(Debug)]
pub struct Scheduler {
    keys: [Key; MOST_FIBERS],
    count: usize,
    ready: u32,
    ended: u32,
    /// Those that the run waits for; the others serve them.
    clients: u32,
    running: usize,
    has_paused: bool,
    style: Style,
    ranks: [u64; MOST_FIBERS],
    lowest: u64,
    /// Steps at which the running fiber loses its rank, descending.
    falls: Vec<u64>,
    chance: Stream,
    /// Stays so far.
    pub steps: u64,
}

impl Scheduler {
    /// For `count` fibers, of which `clients` is the set that the run waits for.
    pub fn new(schedule: u64, count: usize, clients: u32, expected_steps: u64) -> Self {
        assert!(count <= MOST_FIBERS, "fibers are kept in a word");
        let mut chance = Stream::new(schedule, 0x5ced);
        let style = match chance.below(4) {
            0 => Style::Even,
            1 => Style::Sticky { stay_in_16: 8 + chance.below(8) },
            _ => Style::Ranked,
        };
        let mut ranks = [0; MOST_FIBERS];
        ranks.iter_mut().for_each(|rank| *rank = (1 << 32) + chance.below(1 << 32));
        let mut falls: Vec<u64> =
            (0..4 + chance.below(28)).map(|_| chance.below(expected_steps.max(1))).collect();
        falls.sort_unstable_by(|a, b| b.cmp(a));
        Self {
            keys: [Key::None; MOST_FIBERS],
            count,
            ready: ((1u64 << count) - 1) as u32,
            ended: 0,
            clients,
            running: 0,
            has_paused: false,
            style,
            ranks,
            lowest: 1 << 32,
            falls,
            chance,
            steps: 0,
        }
    }

    /// Whose turn it is.
    pub fn running(&self) -> usize {
        self.running
    }

    /// The running fiber waits.
    pub fn wait_for(&mut self, key: Key) {
        self.keys[self.running] = key;
        self.ready &= !(1 << self.running);
    }

    /// The running fiber cannot do anything useful before somebody else has run.
    pub fn pause(&mut self) {
        self.has_paused = true;
    }

    /// Everyone who waits for `key` can go on.
    pub fn wake(&mut self, key: Key) {
        for at in 0..self.count {
            if self.keys[at] == key {
                self.wake_fiber(at);
            }
        }
    }

    /// This one can go on.
    pub fn wake_fiber(&mut self, at: usize) {
        self.keys[at] = Key::None;
        if self.ended >> at & 1 == 0 {
            self.ready |= 1 << at;
        }
    }

    /// A fiber is done.
    pub fn end(&mut self, at: usize) {
        self.ended |= 1 << at;
        self.ready &= !(1 << at);
    }

    /// Whether everybody whom the run waits for is done.
    pub fn is_over(&self) -> bool {
        self.clients & !self.ended == 0
    }

    /// Who waits for what, of those that the run waits for.
    pub fn waiting(&self) -> impl Iterator<Item = (usize, Key)> + '_ {
        (0..self.count).filter(|at| (self.clients & !self.ended) >> at & 1 == 1).map(|at| (at, self.keys[at]))
    }

    /// Chooses who goes on; `None` if nobody can. `evenly`: no new work is begun any more.
    pub fn next(&mut self, evenly: bool) -> Option<usize> {
        self.steps += 1;
        let paused = std::mem::take(&mut self.has_paused);
        if self.falls.last().is_some_and(|at| *at <= self.steps) {
            self.falls.pop();
            self.sink();
        } else if paused {
            self.sink();
        }
        let others = self.ready & !(1 << self.running);
        let able = if paused && others != 0 { others } else { self.ready };
        if able == 0 {
            return None;
        }
        let style = if evenly { Style::Even } else { self.style };
        let stays = able >> self.running & 1 == 1;
        self.running = match style {
            Style::Sticky { stay_in_16 } if stays && self.chance.below(16) < stay_in_16 => self.running,
            Style::Ranked => {
                (0..self.count).filter(|at| able >> at & 1 == 1).max_by_key(|at| self.ranks[*at])?
            }
            _ => {
                let mut left = able;
                for _ in 0..self.chance.below(u64::from(able.count_ones())) {
                    left &= left - 1;
                }
                left.trailing_zeros() as usize
            }
        };
        Some(self.running)
    }

    fn sink(&mut self) {
        self.lowest -= 1;
        self.ranks[self.running] = self.lowest;
    }
}
