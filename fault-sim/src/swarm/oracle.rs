//! What every page must hold. Contents are stamps: each write puts a new one, and whoever reads says which one is there.
//!
//! A *life* is the contents of one page of one mapping, from the touch that made it to the munmap or madvise that ends
//! it. A stamp says which life it belongs to and the how manyeth write it is. So at any access, by whichever side, at
//! whichever place, it shows
//! * a **lost write**: the stamp is not the newest of its life;
//! * a **stale mapping**: its life is over, or belongs to another page;
//! * a page that is nobody's: the stamp is of no life of this run.
//!
//! A life that a munmap ended may be reached by devices until its event was read: the caller goes on only then.

use std::fmt;

/// What a run was found to do wrong.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Violation {
    /// Which checker found it.
    pub checker: Checker,
    /// One sentence.
    pub what: String,
}

impl fmt::Display for Violation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}", self.checker.name(), self.what)
    }
}

/// Who looks.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug, Hash)]
pub enum Checker {
    /// An older value is where a newer one was written.
    LostWrite,
    /// Somebody reaches what is no longer there for him.
    StaleMapping,
    /// A page is in two places, or a place has two pages.
    DoubleOwner,
    /// A waiter is woken never, or by more than one.
    Wake,
    /// Something is left over, or missing.
    Account,
    /// Nobody can go on, or nobody gets anywhere.
    Progress,
    /// An effect where it may not be.
    Conduct,
    /// The library's own assertions.
    Assertion,
    /// The same seed did something else.
    Repeat,
}

impl Checker {
    /// For people.
    pub fn name(self) -> &'static str {
        match self {
            Checker::LostWrite => "lost write",
            Checker::StaleMapping => "stale mapping",
            Checker::DoubleOwner => "double owner",
            Checker::Wake => "wake-up",
            Checker::Account => "account",
            Checker::Progress => "progress",
            Checker::Conduct => "conduct",
            Checker::Assertion => "assertion",
            Checker::Repeat => "repeat",
        }
    }
}

/// The number of a life.
pub type LifeNo = u32;

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum State {
    Alive,
    /// Over for the program; devices may reach it until this event is read.
    Ending(u64),
    Over,
}

#[derive(Clone, Copy, Debug)]
struct Life {
    page: u32,
    /// Where it was before an mremap whose event is not read, and that event.
    moved_from: Option<(u32, u64)>,
    newest: u32,
    writable: bool,
    was_moved: bool,
    state: State,
}

/// Who reads or writes.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum By {
    /// A thread of the application.
    Cpu,
    /// A device.
    Device,
}

/// See the module header.
#[derive(Debug, Default)]
pub struct Oracle {
    lives: Vec<Life>,
    /// Tells the stamps of this run from what earlier runs left in the same memory.
    tag: u64,
}

const LIFE_BITS: u32 = 20;
const WRITE_BITS: u32 = 20;

impl Oracle {
    /// No life yet. Stamps of runs with other tags are none.
    pub fn new(tag: u64) -> Self {
        Self { lives: Vec::new(), tag: (tag % ((1 << (64 - LIFE_BITS - WRITE_BITS)) - 1)) + 1 }
    }

    /// A page gets new contents.
    pub fn begin(&mut self, page: usize, writable: bool) -> LifeNo {
        assert!(self.lives.len() < 1 << LIFE_BITS, "a run has fewer lives");
        let page = page as u32;
        self.lives.push(Life {
            page,
            moved_from: None,
            newest: 0,
            writable,
            was_moved: false,
            state: State::Alive,
        });
        self.lives.len() as u32 - 1
    }

    /// Contents are gone for everybody.
    pub fn end(&mut self, life: LifeNo) {
        self.lives[life as usize].state = State::Over;
    }

    /// Contents are gone for the program, and for devices once `event` is read.
    pub fn end_with(&mut self, life: LifeNo, event: u64) {
        self.lives[life as usize].state = State::Ending(event);
    }

    /// Contents have another address; devices know once `event` is read.
    pub fn move_to(&mut self, life: LifeNo, page: usize, event: Option<u64>) {
        let life = &mut self.lives[life as usize];
        life.moved_from = event.map(|event| (life.page, event));
        life.page = page as u32;
        life.was_moved = true;
    }

    /// Whether it ever had another address.
    pub fn was_moved(&self, life: LifeNo) -> bool {
        self.lives[life as usize].was_moved
    }

    /// Whether it has an address that devices do not know yet.
    pub fn is_moving(&self, life: LifeNo) -> bool {
        self.lives[life as usize].moved_from.is_some()
    }

    /// Where the contents are now that devices know at `page`, if an mremap moved them whose event is not read.
    pub fn moved_from(&self, page: usize) -> Option<usize> {
        let moved = |life: &&Life| life.moved_from.is_some_and(|(from, _)| from as usize == page);
        self.lives.iter().filter(|life| life.state == State::Alive).find(moved).map(|life| life.page as usize)
    }

    /// An event was read: what it ended is over, what it moved is at its new address.
    pub fn read(&mut self, event: u64) {
        for life in &mut self.lives {
            if life.state == State::Ending(event) {
                life.state = State::Over;
            }
            if life.moved_from.is_some_and(|(_, by)| by == event) {
                life.moved_from = None;
            }
        }
    }

    /// The stamp of a life's newest contents.
    pub fn newest(&self, life: LifeNo) -> u64 {
        self.stamp(life, self.lives[life as usize].newest)
    }

    /// Whether anything was ever written to it.
    pub fn was_written(&self, life: LifeNo) -> bool {
        self.lives[life as usize].newest > 0
    }

    /// How many writes it has seen.
    pub fn writes(&self, life: LifeNo) -> u32 {
        self.lives[life as usize].newest
    }

    /// Whether it is the program's still.
    pub fn is_alive(&self, life: LifeNo) -> bool {
        self.lives[life as usize].state == State::Alive
    }

    fn stamp(&self, life: LifeNo, write: u32) -> u64 {
        self.tag << (LIFE_BITS + WRITE_BITS) | u64::from(life) << WRITE_BITS | u64::from(write)
    }

    /// Which life and write a stamp is; `None`: none of this run.
    pub fn parse(&self, stamp: u64) -> Option<(LifeNo, u32)> {
        let life = (stamp >> WRITE_BITS) as u32 & ((1 << LIFE_BITS) - 1);
        let known = stamp >> (LIFE_BITS + WRITE_BITS) == self.tag && (life as usize) < self.lives.len();
        known.then_some((life, stamp as u32 & ((1 << WRITE_BITS) - 1)))
    }

    /// Somebody finds `stamp` at `page`: which life it is.
    ///
    /// # Errors
    /// What is wrong with it.
    pub fn look(&self, stamp: u64, page: usize, by: By) -> Result<LifeNo, Violation> {
        let wrong = |checker, what: String| Err(Violation { checker, what });
        let Some((no, write)) = self.parse(stamp) else {
            return wrong(Checker::LostWrite, format!("{by:?} finds at page {page} what nobody wrote"));
        };
        let life = &self.lives[no as usize];
        let here = life.page as usize == page
            || by == By::Device && life.moved_from.is_some_and(|(from, _)| from as usize == page);
        if !here {
            let of = life.page;
            return wrong(
                Checker::DoubleOwner,
                format!("{by:?} finds at page {page} the contents of page {of}"),
            );
        }
        match life.state {
            State::Alive => {}
            State::Ending(_) if by == By::Device => {}
            _ => {
                return wrong(
                    Checker::StaleMapping,
                    format!("{by:?} reaches contents of page {page} that are gone"),
                );
            }
        }
        if write != life.newest {
            let newest = life.newest;
            return wrong(
                Checker::LostWrite,
                format!("{by:?} finds write {write} at page {page}, where {newest} were made"),
            );
        }
        Ok(no)
    }

    /// Somebody writes over `stamp`, which he found with [`Oracle::look`]; the new stamp.
    ///
    /// # Errors
    /// A device writes what may only be read.
    pub fn write(&mut self, life: LifeNo, by: By) -> Result<u64, Violation> {
        let known = &mut self.lives[life as usize];
        // What ends anyway may take a write under the rights of what comes there.
        if !known.writable && known.state == State::Alive {
            let what = format!("{by:?} writes page {}, which may only be read", known.page);
            return Err(Violation { checker: Checker::StaleMapping, what });
        }
        known.newest += 1;
        Ok(self.newest(life))
    }
}
