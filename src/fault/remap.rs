use super::forget_contents;
use crate::granule::Direction;
use crate::migrate::{Space, copy_words, extents, read_page};
use crate::ports::{Count, Host, HostError, WORDS_PER_PAGE, Word};
use crate::units::{BlockNo, PAGE_BYTES, PageIndex, PageMask, VirtAddr, VirtRange};

/// mremap moved `from` to `to`: whatever was on a device, or on its way, is copied to staging at its new position
/// and brought home there by [`bring_home`], before any fault there is served. Called by the reader with the gate
/// closed and the devices quiesced.
///
/// Returns the pages whose data could not be kept, because no staging slot or no list entry was left: with as many
/// of both as the devices have blocks this does not happen.
pub fn remap<H: Host>(space: &Space<'_, H>, from: VirtRange, to: VirtAddr) -> u64 {
    let mut lost = 0;
    let earlier = space.homecomings.len();
    forget_contents(space, from, |block, hit| {
        let number = block.number();
        let target = |page: PageIndex| to + number.page(page).bytes_since(from.start());
        let moving = block.mover().map(|seat| &space.transits[seat.0 as usize]);
        let staged = moving
            .filter(|record| record.direction() == Direction::ToDevice)
            .map_or(PageMask::EMPTY, |record| block.transit_pages(record))
            & *hit;
        let on_device = block.device_private() & *hit;
        let _ = extents(block, &space.tables, &on_device, |start, len, at| {
            for page in 0..len as u64 {
                let home = target(PageIndex((start as u64 + page) as u16));
                let Some((entry, words)) = home_for(space, home) else {
                    lost += 1;
                    continue;
                };
                let port = space.device(block.owner()).port;
                if !read_page(space, port, at + page * PAGE_BYTES, words) {
                    space.homecomings.mark_broken(entry, &PageMask::of(PageIndex::of(home)));
                }
            }
            Ok::<(), ()>(())
        });
        for page in staged.pages() {
            let record = moving.expect("staged pages have a mover");
            let at = page.0 as usize;
            let source = space.host.moving_words(number, at..at + 1, record.staging());
            match home_for(space, target(page)) {
                Some((_, words)) => copy_words(source, words),
                None => lost += 1,
            }
        }
    });
    // Pages that were on their way home from an earlier move go on from there.
    for at in 0..earlier {
        let (number, pages, staging) = space.homecomings.get(at);
        let (hit, broken) = (pages & from.mask_in(number), space.homecomings.broken(at));
        space.homecomings.remove_pages(at, &hit);
        for page in hit.pages() {
            let source = &space.host.staging_words(staging)[words_of(page)];
            let home = to + number.page(page).bytes_since(from.start());
            match home_for(space, home) {
                Some((entry, _)) if broken.contains(page) => {
                    space.homecomings.mark_broken(entry, &PageMask::of(PageIndex::of(home)));
                }
                Some((_, words)) => copy_words(source, words),
                None => lost += 1,
            }
        }
    }
    lost + mark(space)
}

fn words_of(page: PageIndex) -> core::ops::Range<usize> {
    page.0 as usize * WORDS_PER_PAGE..(page.0 as usize + 1) * WORDS_PER_PAGE
}

/// Which entry of the list is the home of a new address, and where in staging its page waits; enters it. It is marked in transit by
/// [`mark`], when no block lock is held.
fn home_for<'a, H: Host>(space: &'a Space<'_, H>, home: VirtAddr) -> Option<(usize, &'a [Word])> {
    let (number, page) = (BlockNo::of(home), PageIndex::of(home));
    let list = &space.homecomings;
    // The newest entry is the likeliest: pages come block by block.
    let known = (0..list.len()).rev().find(|at| list.get(*at).0 == number);
    let (at, staging) = match known {
        Some(at) => {
            list.add_pages(at, &PageMask::of(page));
            (at, list.get(at).2)
        }
        None if list.has_room() => {
            let staging = space.host.staging(&PageMask::EMPTY)?;
            list.push(number, &PageMask::of(page), staging);
            (list.len() - 1, staging)
        }
        None => return None,
    };
    Some((at, &space.host.staging_words(staging)[words_of(page)]))
}

/// Marks every page of the list in transit. The gate is closed: nobody can have begun to move one meanwhile.
fn mark<H: Host>(space: &Space<'_, H>) -> u64 {
    let mut lost = 0;
    for at in 0..space.homecomings.len() {
        let (number, pages, _) = space.homecomings.get(at);
        let Ok(index) = space.tables.block_or_make(number, space.park) else {
            space.homecomings.remove_pages(at, &pages);
            lost += pages.count() as u64;
            continue;
        };
        let mut block = space.tables.lock(index, space.park);
        let new = pages - block.in_transit();
        block.begin_homecoming(&new);
    }
    lost
}

/// The contents of a range are gone: nothing of it comes home any more.
pub(super) fn forget_homecomings<H: Host>(space: &Space<'_, H>, range: VirtRange) {
    for at in 0..space.homecomings.len() {
        let (number, _, _) = space.homecomings.get(at);
        space.homecomings.remove_pages(at, &range.mask_in(number));
    }
}

/// Gives homecoming pages to the application as far as the kernel lets it. Called by the reader, outside the gate,
/// after each round of events. Returns whether anything is left to do.
pub fn bring_home<H: Host>(space: &Space<'_, H>) -> bool {
    let list = &space.homecomings;
    for at in (0..list.len()).rev() {
        let (number, pages, staging) = list.get(at);
        let Some(index) = space.tables.block(number) else { continue };
        let mut block = space.tables.lock(index, space.park);
        let broken = list.broken(at);
        let whole = pages - broken;
        let mut done =
            if whole.is_empty() { whole } else { space.host.give(number, &whole, staging).settled() };
        for run in broken.runs() {
            let first = number.page(PageIndex(run.start as u16));
            let (poisoned, why) = space.host.poison(VirtRange::of_pages(first, run.len() as u64));
            space.probe.add(Count::PagesUnreadable, poisoned);
            if why != Err(HostError::Changing) {
                done |= PageMask::of_range(run);
            }
        }
        block.end_homecoming(&done);
        let waits = block.take_cpu_waits();
        drop(block);
        space.tables.record(index).announce_transit_end(space.park);
        if waits {
            space.host.wake(number.range());
        }
        list.remove_pages(at, &done);
        if done == pages {
            list.swap_remove(at);
            space.host.staging_done(staging);
        }
    }
    !list.is_empty()
}
