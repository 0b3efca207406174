//! The host port: what the library asks of the kernel and of its own tables.

use granule::ports::{
    FollowCount, Give, Host, HostError, HostEvent, Lookup, Mirrored, StagingId, Take, Vma, VmaKind,
    WORDS_PER_PAGE, Word,
};
use granule::sync::{AtomicU32, Ordering, Park};
use granule::units::{Access, BlockNo, PageMask, VirtAddr, VirtRange};

use super::calls::Touch;
use super::counts::Did;
use super::fibers;
use super::oracle::{By, Checker};
use super::plan::Habit;
use super::scheduler::Key;
use super::world::{
    AWAY, FOLLOWED, POISONED, PRESENT, REMOVING, SHARED, TABLE_FOLLOWED, TABLE_TRAPPED, TRAPPED, World, at,
    page_of, pages_of, range,
};

/// The host of a world.
pub struct SimHost<'w>(pub &'w World);

/// Staging slots that workers share when they are scarce, and when not.
const FEW: usize = 1;
const ENOUGH: usize = 4;

impl SimHost<'_> {
    fn give_page(&self, page: usize, stamp: u64) -> Result<(), HostError> {
        let mut state = self.0.state();
        if state.kernel.changing > 0 {
            return Err(HostError::Changing);
        }
        if state.kernel.pages[page].mapping == 0 {
            return Err(HostError::NoMapping);
        }
        if state.kernel.pages[page].has(PRESENT) {
            state.kernel.presents += 1;
            return Err(HostError::Present);
        }
        if state.fails(Habit::Memory, 40) {
            return Err(HostError::OutOfMemory);
        }
        let found = state.oracle.look(stamp, page, By::Cpu);
        if let Some(life) = state.judge(found) {
            if life != state.kernel.pages[page].life {
                state.violate(Checker::StaleMapping, format!("page {page} is given contents that are gone"));
            }
            if !state.kernel.pages[page].has(AWAY) {
                state.violate(Checker::DoubleOwner, format!("page {page} is given, but was not taken"));
            }
        }
        let here = &mut state.kernel.pages[page];
        here.value = stamp;
        here.set(PRESENT, true);
        here.set(AWAY | POISONED, false);
        state.wake_pages(page..page + 1);
        Ok(())
    }

    /// Takes one page; what stands in the way.
    fn take_page(
        &self,
        page: usize,
        word: &Word,
        take: &mut Take,
        index: granule::units::PageIndex,
    ) -> Result<(), HostError> {
        let mut state = self.0.state();
        if state.kernel.changing > 0 {
            return Err(HostError::Changing);
        }
        let Some(mapping) = state.kernel.mapping(page) else {
            return Err(HostError::NoMapping);
        };
        let here = state.kernel.pages[page];
        if here.has(REMOVING) {
            if here.has(PRESENT) {
                state.did(Did::TakeRemoving);
                take.refused.insert(index);
                return Ok(());
            }
            state.kernel.pages[page].set(REMOVING, false);
        }
        if here.has(SHARED)
            || here.has(POISONED)
            || mapping.kind != VmaKind::Movable
            || state.fails(Habit::Refuse, 30)
        {
            state.did(Did::TakeRefused);
            take.refused.insert(index);
            return Ok(());
        }
        if state.fails(Habit::Memory, 60) {
            return Err(HostError::OutOfMemory);
        }
        if here.has(AWAY) {
            state.violate(Checker::DoubleOwner, format!("page {page} is taken twice"));
        }
        if !here.has(TRAPPED) {
            state.violate(Checker::Conduct, format!("page {page} is taken and would not trap"));
        }
        let stamp = if here.has(PRESENT) { here.value } else { state.oracle.newest(here.life) };
        word.store(stamp, Ordering::Relaxed);
        let here = &mut state.kernel.pages[page];
        here.set(PRESENT, false);
        here.set(AWAY, true);
        take.taken.insert(index);
        Ok(())
    }
}

impl Host for SimHost<'_> {
    fn window(&self) -> VirtRange {
        VirtRange::of_pages(VirtAddr(0), 1 << 35)
    }

    fn vma(&self, address: VirtAddr) -> Result<Lookup, HostError> {
        self.0.step(Did::Lookup);
        let state = self.0.state();
        let hole = Lookup::Hole { until: address + granule::units::PAGE_BYTES };
        let Some(page) = page_of(address.0) else { return Ok(hole) };
        let Some(mapping) = state.kernel.mapping(page) else { return Ok(hole) };
        let range = range(&state.kernel.extent(page));
        Ok(Lookup::Mapped(Vma { range, access: Some(mapping.access), kind: mapping.kind }))
    }

    fn mirror(&self, range: VirtRange) -> Result<Mirrored, HostError> {
        self.0.step(Did::Mirror);
        let mut state = self.0.state();
        if state.kernel.changing > 0 {
            state.did(Did::MirrorRefused);
            return Err(HostError::Changing);
        }
        if state.fails(Habit::Memory, 100) {
            return Err(HostError::MappingLimit);
        }
        let mut was = Mirrored::Already;
        for page in pages_of(range) {
            if !state.kernel.pages[page].has(TABLE_FOLLOWED) {
                was = Mirrored::FromNow;
                // What was unmapped since it was looked up is followed by nobody.
                if state.kernel.pages[page].mapping != 0 {
                    state.kernel.pages[page].set(TABLE_FOLLOWED | FOLLOWED, true);
                }
            }
        }
        state.kernel.follows += u64::from(was == Mirrored::FromNow);
        Ok(was)
    }

    fn follow_count(&self) -> FollowCount {
        FollowCount(self.0.state().kernel.follows)
    }

    fn arm(&self, range: VirtRange) -> Result<(), HostError> {
        self.0.step(Did::Arm);
        let mut state = self.0.state();
        if state.fails(Habit::Memory, 30) {
            state.did(Did::ArmRefused);
            return Err(HostError::OutOfMemory);
        }
        let pages = pages_of(range);
        if !state.kernel.pages[pages.clone()].iter().all(|page| page.has(TABLE_FOLLOWED)) {
            return Err(HostError::NoMapping);
        }
        state.note(|| format!("  pages {pages:?}"));
        let changing = state.kernel.changing > 0;
        let mut any = false;
        for page in pages {
            let here = &mut state.kernel.pages[page];
            if !here.has(TABLE_TRAPPED) {
                any = true;
                if here.mapping == 0 {
                    return Err(HostError::Changing);
                }
                here.set(TRAPPED | FOLLOWED, true);
                // Perhaps of a mapping that came since: then the event would carry the entry to where nothing is.
                here.set(TABLE_TRAPPED, !changing);
            }
        }
        if any && changing { Err(HostError::Changing) } else { Ok(()) }
    }

    fn disarm(&self, block: BlockNo) {
        self.0.step(Did::Disarm);
        let mut state = self.0.state();
        for page in pages_of(block.range()) {
            let here = &mut state.kernel.pages[page];
            if here.has(TABLE_TRAPPED) {
                here.set(TABLE_TRAPPED | TRAPPED, false);
            }
        }
    }

    fn populate(&self, range: VirtRange, access: Access) -> Result<(), HostError> {
        self.0.step(Did::Populate);
        for page in pages_of(range) {
            loop {
                let mut state = self.0.state();
                let Some(mapping) = state.kernel.mapping(page) else { return Err(HostError::NoMapping) };
                if !mapping.access.covers(access) {
                    return Err(HostError::NotPermitted);
                }
                if !state.kernel.pages[page].has(PRESENT) && state.fails(Habit::Memory, 60) {
                    return Err(HostError::OutOfMemory);
                }
                // Nothing is written, but a page that a child shares becomes this process's own.
                match state.touch(page, Access::Read) {
                    Touch::Done => {
                        if access == Access::Write {
                            state.kernel.pages[page].set(SHARED, false);
                        }
                        break;
                    }
                    Touch::Error => return Err(HostError::NotPermitted),
                    Touch::Trapped if state.habits.has(Habit::UserMode) => {
                        state.did(Did::PopulateTrapped);
                        return Err(HostError::Trapped);
                    }
                    Touch::Trapped => {
                        state.did(Did::PopulateWaits);
                        state.trap(page, access);
                        self.0.wait(state, Key::Own);
                    }
                }
            }
        }
        Ok(())
    }

    fn take(&self, block: BlockNo, pages: &PageMask, staging: StagingId) -> Take {
        self.0.step(Did::Take);
        let words = self.staging_words(staging);
        self.0.state().note(|| format!("  {block} pages {pages:?}"));
        let mut take = Take::default();
        for index in pages.pages() {
            if self.0.state().chance.once_in(64) {
                fibers::switch();
            }
            let Some(page) = page_of(block.page(index).0) else { continue };
            let word = &words[index.0 as usize * WORDS_PER_PAGE];
            if let Err(why) = self.take_page(page, word, &mut take, index) {
                self.0.state().did(Did::TakeStopped);
                take.stopped = Some(why);
                return take;
            }
        }
        take
    }

    fn is_changing(&self) -> bool {
        self.0.state().kernel.changing > 0
    }

    fn drop_taken(&self, _: BlockNo, pages: &PageMask) -> PageMask {
        *pages
    }

    fn give(&self, block: BlockNo, pages: &PageMask, staging: StagingId) -> Give {
        self.0.step(Did::Give);
        let words = self.staging_words(staging);
        self.0.state().note(|| format!("  {block} pages {pages:?}"));
        let mut give = Give::default();
        for index in pages.pages() {
            if self.0.state().chance.once_in(64) {
                fibers::switch();
            }
            let page = page_of(block.page(index).0).expect("devices get pages of the arena");
            let stamp = words[index.0 as usize * WORDS_PER_PAGE].load(Ordering::Relaxed);
            match self.give_page(page, stamp) {
                Ok(()) => give.given.insert(index),
                Err(HostError::Present) => give.present.insert(index),
                Err(why) => {
                    self.0.state().did(Did::GiveStopped);
                    give.stopped = Some(why);
                    return give;
                }
            }
        }
        give
    }

    fn give_words(&self, address: VirtAddr, words: &[Word]) -> (u64, Result<(), HostError>) {
        self.0.step(Did::GiveWords);
        let first = page_of(address.0).expect("devices get pages of the arena");
        for page in 0..words.len() / WORDS_PER_PAGE {
            let stamp = words[page * WORDS_PER_PAGE].load(Ordering::Relaxed);
            if let Err(why) = self.give_page(first + page, stamp) {
                return (page as u64, Err(why));
            }
        }
        ((words.len() / WORDS_PER_PAGE) as u64, Ok(()))
    }

    fn fill_zero(&self, range: VirtRange) -> (u64, Result<(), HostError>) {
        self.0.step(Did::FillZero);
        let mut filled = 0;
        for page in pages_of(range) {
            let mut state = self.0.state();
            let refused = if state.kernel.changing > 0 {
                Some(HostError::Changing)
            } else if state.kernel.pages[page].mapping == 0 {
                Some(HostError::NoMapping)
            } else if state.kernel.pages[page].has(PRESENT) || state.kernel.pages[page].has(POISONED) {
                Some(HostError::Present)
            } else if state.fails(Habit::Memory, 60) {
                Some(HostError::OutOfMemory)
            } else {
                None
            };
            if let Some(why) = refused {
                return (filled, Err(why));
            }
            state.appear(page);
            state.wake_pages(page..page + 1);
            filled += 1;
        }
        (filled, Ok(()))
    }

    fn poison(&self, range: VirtRange) -> (u64, Result<(), HostError>) {
        self.0.step(Did::Poison);
        let mut state = self.0.state();
        if state.kernel.changing > 0 {
            return (0, Err(HostError::Changing));
        }
        let mut poisoned = 0;
        for page in pages_of(range) {
            let here = &mut state.kernel.pages[page];
            if here.mapping != 0 && !here.has(PRESENT) {
                here.set(POISONED, true);
                poisoned += 1;
            }
        }
        state.wake_pages(pages_of(range));
        (poisoned, Ok(()))
    }

    fn wake(&self, range: VirtRange) {
        self.0.step(Did::Wake);
        let mut state = self.0.state();
        if range == BlockNo::of(range.start()).range() {
            state.did(Did::WakeBlock);
            state.kernel.block_wakes += 1;
        }
        state.wake_pages(pages_of(range));
    }

    fn unprotect(&self, _: VirtRange) -> Result<(), HostError> {
        // Nothing is protected in this world.
        Ok(())
    }

    fn staging(&self, _: &PageMask) -> Option<StagingId> {
        let mut state = self.0.state();
        let is_reader = state.scheduler.running() == self.0.reader;
        let workers = if state.habits.has(Habit::Staging) && !state.is_closing { FEW } else { ENOUGH };
        let used = state.kernel.slots[..ENOUGH].iter().filter(|used| **used).count();
        let slots = if is_reader { ENOUGH..state.kernel.slots.len() } else { 0..ENOUGH };
        let free = slots.into_iter().find(|slot| !state.kernel.slots[*slot]);
        let Some(free) = free.filter(|_| is_reader || used < workers) else {
            state.did(Did::NoStaging);
            return None;
        };
        state.kernel.slots[free] = true;
        Some(StagingId(free as u32))
    }

    fn staging_words(&self, staging: StagingId) -> &[Word] {
        self.0.memory.staging(staging.0 as usize)
    }

    fn staging_done(&self, staging: StagingId) {
        let mut state = self.0.state();
        if !std::mem::take(&mut state.kernel.slots[staging.0 as usize]) {
            state.violate(Checker::Account, "a staging slot is given back twice");
        }
    }

    fn drain(&self, out: &mut [HostEvent]) -> usize {
        self.0.step(Did::Drain);
        let mut state = self.0.state();
        // The kernel hands out faults before older events.
        let mut waiting = std::mem::take(&mut state.kernel.events);
        waiting.sort_by_key(|(_, _, event)| !matches!(event, HostEvent::Fault { .. }));
        let count = waiting.len().min(out.len());
        for (out, (number, caller, event)) in out.iter_mut().zip(waiting.drain(..count)) {
            *out = event;
            state.apply(number, event);
            if !matches!(event, HostEvent::Fault { .. }) {
                state.kernel.unread[caller] -= 1;
                state.scheduler.wake_fiber(caller);
            }
        }
        state.kernel.events = waiting;
        count
    }

    fn pause(&self) {
        self.0.pause(Did::Pause);
    }

    fn wait_word(&self, word: &AtomicU32, seen: u32, _: u64) {
        let mut state = self.0.state();
        state.did(Did::WaitFence);
        while word.load(Ordering::SeqCst) == seen {
            self.0.wait(state, Key::Word(std::ptr::from_ref(word).addr()));
            state = self.0.state();
            if state.violation.is_some() {
                return;
            }
        }
    }

    fn child_fill(&self, child: u32, address: VirtAddr, words: &[Word]) {
        let mut state = self.0.state();
        state.did(Did::ChildFill);
        let first = page_of(address.0).expect("devices get pages of the arena");
        for page in 0..words.len() / WORDS_PER_PAGE {
            let stamp = words[page * WORDS_PER_PAGE].load(Ordering::Relaxed);
            state.kernel.children[child as usize].given.entry(first + page).or_insert(stamp);
        }
    }

    fn child_done(&self, child: u32) {
        let mut state = self.0.state();
        let made = &mut state.kernel.children[child as usize];
        let (owed, given) = (std::mem::take(&mut made.owed), std::mem::take(&mut made.given));
        let again = std::mem::replace(&mut made.is_done, true);
        if again {
            state.violate(Checker::Wake, "a child is let go twice");
        }
        let may_miss = state.habits.has(Habit::Copies);
        for (page, life, writes) in owed {
            let right = given.get(&page).and_then(|stamp| state.oracle.parse(*stamp));
            let is_right = right.is_some_and(|(of, write)| of == life && write >= writes);
            let excused = !state.oracle.is_alive(life) || (may_miss && right.is_none());
            if !is_right && !excused {
                let what = format!("a child finds at page {page} what its parent did not have there");
                state.violate(Checker::LostWrite, what);
            }
        }
    }
}

/// How fibers wait for a word of the library.
pub struct SimPark<'w>(pub &'w World);

impl Park for SimPark<'_> {
    fn park(&self, word: &AtomicU32, expected: u32) {
        let mut state = self.0.state();
        state.did(Did::Park);
        if word.load(Ordering::SeqCst) != expected {
            return;
        }
        self.0.wait(state, Key::Word(std::ptr::from_ref(word).addr()));
    }

    fn unpark_all(&self, word: &AtomicU32) {
        self.0.state().scheduler.wake(Key::Word(std::ptr::from_ref(word).addr()));
    }
}

/// The addresses of the arena as device addresses, by page.
pub fn device_page(at_device: u64) -> Option<usize> {
    let page = at_device.checked_sub(at(0).0)? / granule::units::PAGE_BYTES;
    (page < (super::world::PAGES + super::world::ALIASES) as u64).then_some(page as usize)
}
