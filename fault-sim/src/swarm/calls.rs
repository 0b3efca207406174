//! What threads of the application do: touches, and the calls that change the address space.
//!
//! The kernel's promises are kept to the letter: a mapping is gone before its event is read; whoever called goes on
//! once it was read; contents that a madvise discards are there until then; a page that is given, filled or taken while a
//! call is under way is refused.

use std::ops::Range;
use std::sync::MutexGuard;

use granule::ports::HostEvent;
use granule::units::{Access, VirtAddr};

use super::counts::Did;
use super::oracle::{By, Checker};
use super::plan::Kind;
use super::scheduler::Key;
use super::world::{
    AWAY, Child, FOLLOWED, POISONED, PRESENT, Page, SHARED, State, TABLES, TRAPPED, World, at, range,
};

/// How a touch went.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Touch {
    /// It was made.
    Done,
    /// It is an error: nothing is mapped there, it may not be written, or it is poisoned.
    Error,
    /// The page is absent and trapped.
    Trapped,
}

impl State {
    /// One access of a thread to the page as it is now.
    pub fn touch(&mut self, page: usize, access: Access) -> Touch {
        let Some(mapping) = self.kernel.mapping(page) else { return Touch::Error };
        if !mapping.access.covers(access) {
            return Touch::Error;
        }
        if !self.kernel.pages[page].has(PRESENT) {
            let here = self.kernel.pages[page];
            if here.has(POISONED) {
                return Touch::Error;
            }
            if here.has(TRAPPED) {
                return Touch::Trapped;
            }
            self.appear(page);
        }
        let here = self.kernel.pages[page];
        let found = self.oracle.look(here.value, page, By::Cpu);
        if let Some(life) = self.judge(found) {
            if life != here.life {
                self.violate(
                    Checker::DoubleOwner,
                    format!("page {page} shows the contents of an earlier mapping"),
                );
            }
            if access == Access::Write {
                let written = self.oracle.write(life, By::Cpu);
                if let Some(stamp) = self.judge(written) {
                    self.kernel.pages[page].value = stamp;
                    self.kernel.pages[page].set(SHARED, false);
                }
            }
        }
        Touch::Done
    }

    /// An absent page becomes a page of zeros.
    pub fn appear(&mut self, page: usize) {
        let here = self.kernel.pages[page];
        if here.has(AWAY) {
            self.violate(
                Checker::DoubleOwner,
                format!("page {page} reads as zeros though its contents were taken and are not back"),
            );
        }
        let zeros = self.oracle.newest(here.life);
        if self.oracle.was_written(here.life) {
            self.violate(Checker::LostWrite, format!("page {page} reads as zeros after it was written"));
        }
        let here = &mut self.kernel.pages[page];
        here.value = zeros;
        here.set(PRESENT, true);
        here.set(POISONED, false);
    }

    /// The running thread waits for a page that is absent and trapped.
    pub fn trap(&mut self, page: usize, access: Access) {
        let me = self.scheduler.running();
        self.kernel.waiting.push((page, me));
        self.push(HostEvent::Fault { at: at(page), access, write_protected: false });
    }
}

impl World {
    /// A thread touches a page until it is done; `false`: the touch is an error. `serve` is asked instead of the reader
    /// where the thread serves its own faults.
    pub fn cpu(&self, page: usize, access: Access, serve: Option<&dyn Fn(usize, Access) -> bool>) -> bool {
        loop {
            self.step(if access == Access::Write { Did::CpuWrite } else { Did::CpuRead });
            let mut state = self.state();
            match state.touch(page, access) {
                Touch::Done => return true,
                Touch::Error => {
                    state.did(Did::CpuError);
                    return false;
                }
                Touch::Trapped => {}
            }
            if let Some(serve) = serve {
                state.did(Did::CpuServesItself);
                drop(state);
                if !serve(page, access) {
                    return false;
                }
                continue;
            }
            state.did(Did::CpuWait);
            state.note(|| format!("  page {page}"));
            state.trap(page, access);
            self.wait(state, Key::Own);
        }
    }

    /// Maps what is not mapped of a range.
    pub fn mmap(&self, pages: Range<usize>, kind: Kind) {
        self.step(Did::Mmap);
        let mut state = self.state();
        state.note(|| format!("  maps pages {pages:?}, {kind:?}"));
        let State { kernel, oracle, .. } = &mut *state;
        kernel.map(oracle, pages, kind);
    }

    /// Tells the reader of a change and waits until it has read that.
    fn change<'w>(&'w self, mut state: MutexGuard<'w, State>, event: HostEvent) {
        state.push(event);
        let me = state.scheduler.running();
        state.kernel.changing += 1;
        state.kernel.unread[me] += 1;
        while state.kernel.unread[me] > 0 {
            self.wait(state, Key::Own);
            state = self.state();
        }
        state.kernel.changing -= 1;
    }

    /// Unmaps a range.
    pub fn munmap(&self, pages: Range<usize>) {
        self.step(Did::Munmap);
        let mut state = self.state();
        state.note(|| format!("  unmaps pages {pages:?}"));
        let followed = state.kernel.pages[pages.clone()].iter().any(|page| page.has(FOLLOWED));
        let event = state.kernel.made + 1;
        for page in pages.clone() {
            let here = state.kernel.pages[page];
            if here.mapping == 0 {
                continue;
            }
            match followed {
                true => state.oracle.end_with(here.life, event),
                false => state.oracle.end(here.life),
            }
            state.kernel.pages[page] = Page { bits: here.bits & TABLES, ..Page::default() };
        }
        if followed {
            self.change(state, HostEvent::Unmap(range(&pages)));
        }
    }

    /// Discards the contents of a range.
    pub fn discard(&self, pages: Range<usize>) {
        self.step(Did::Discard);
        let mut state = self.state();
        state.note(|| format!("  discards pages {pages:?}"));
        if state.kernel.pages[pages.clone()].iter().any(|page| page.has(FOLLOWED)) {
            self.change(state, HostEvent::Remove(range(&pages)));
        } else {
            drop(state);
        }
        self.step(Did::Zap);
        let mut state = self.state();
        for page in pages {
            if state.kernel.pages[page].mapping != 0 && state.kernel.pages[page].has(PRESENT) {
                state.renew(page);
            }
        }
    }

    /// Moves a range to another, where nothing may be mapped. `false`: nothing was moved.
    pub fn mremap(&self, from: Range<usize>, to: usize) -> bool {
        self.step(Did::Mremap);
        let mut state = self.state();
        let target = to..to + from.len();
        let apart = target.start >= from.end || from.start >= target.end;
        let one = state.kernel.pages[from.start].mapping;
        let free = |page: &Page| page.mapping == 0;
        let movable = one != 0
            && apart
            && target.end <= state.kernel.pages.len()
            && state.kernel.pages[from.clone()].iter().all(|page| page.mapping == one)
            && state.kernel.pages[target.clone()].iter().all(free)
            // One move at a time: who follows two at once is not the library.
            && !state.kernel.pages[from.clone()].iter().any(|page| state.oracle.is_moving(page.life));
        if !movable {
            return false;
        }
        state.note(|| format!("  moves pages {from:?} to {to}"));
        let followed = state.kernel.pages[from.clone()].iter().any(|page| page.has(FOLLOWED));
        let event = followed.then_some(state.kernel.made + 1);
        let mapping = *state.kernel.mappings.get(one as usize - 1).expect("it is mapped");
        state.kernel.mappings.push(mapping);
        let number = state.kernel.mappings.len() as u32;
        for (page, new) in from.clone().zip(target) {
            let here = state.kernel.pages[page];
            let there = state.kernel.pages[new].bits & TABLES;
            state.oracle.move_to(here.life, new, event);
            state.kernel.pages[new] = Page { mapping: number, bits: here.bits & !TABLES | there, ..here };
            state.kernel.pages[page] = Page { bits: here.bits & TABLES, ..Page::default() };
        }
        if followed {
            self.change(state, HostEvent::Remap { from: range(&from), to: VirtAddr(at(to).0) });
        }
        true
    }

    /// Makes a child that has what the parent has now.
    pub fn fork(&self) {
        self.step(Did::Fork);
        let mut state = self.state();
        let State { kernel, oracle, .. } = &mut *state;
        let mut owed = Vec::new();
        for (page, here) in kernel.pages.iter_mut().enumerate() {
            if here.has(PRESENT) {
                here.set(SHARED, true);
            } else if here.has(AWAY) && oracle.was_written(here.life) {
                owed.push((page, here.life, oracle.writes(here.life)));
            }
        }
        let child = kernel.children.len() as u32;
        kernel.children.push(Child { owed, given: Default::default(), is_done: false });
        self.change(state, HostEvent::Fork { child });
    }
}

impl State {
    /// A page has new contents: zeros, when it is touched.
    pub fn renew(&mut self, page: usize) {
        let here = self.kernel.pages[page];
        self.oracle.end(here.life);
        let writable = self.kernel.mapping(page).is_some_and(|mapping| mapping.access == Access::Write);
        let life = self.oracle.begin(page, writable);
        let here = &mut self.kernel.pages[page];
        here.life = life;
        here.set(PRESENT | AWAY | SHARED | POISONED, false);
    }

    /// What the host does as it reads an event.
    pub fn apply(&mut self, number: u64, event: HostEvent) {
        match event {
            HostEvent::Fault { .. } => self.did(Did::EventFault),
            HostEvent::Unmap(range) => {
                self.did(Did::EventUnmap);
                for page in super::world::pages_of(range) {
                    self.kernel.pages[page].set(TABLES, false);
                }
                self.oracle.read(number);
            }
            HostEvent::Remove(range) => {
                self.did(Did::EventRemove);
                for page in super::world::pages_of(range) {
                    self.kernel.pages[page].set(super::world::REMOVING, true);
                    // What is elsewhere is dropped now; what is present when the call goes on.
                    let here = self.kernel.pages[page];
                    // What an mremap brought here since is known at its old address only.
                    if here.mapping != 0 && !here.has(PRESENT) && !self.oracle.is_moving(here.life) {
                        self.renew(page);
                    }
                    // Moved meanwhile by an mremap whose event comes behind this one.
                    let moved = self.oracle.moved_from(page);
                    if let Some(page) = moved.filter(|page| self.kernel.pages[*page].has(AWAY)) {
                        self.renew(page);
                    }
                }
            }
            HostEvent::Remap { from, to } => {
                self.did(Did::EventRemap);
                let from = super::world::pages_of(from);
                let to = super::world::page_of(to.0).expect("it is moved within the arena");
                for (at, page) in from.enumerate() {
                    let moved = self.kernel.pages[page].bits & TABLES;
                    self.kernel.pages[page].set(TABLES, false);
                    self.kernel.pages[to + at].set(moved, true);
                }
                self.oracle.read(number);
            }
            HostEvent::Fork { .. } | HostEvent::ForkShared { .. } => self.did(Did::EventFork),
        }
    }
}
