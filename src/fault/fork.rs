use super::invalidate::{freeze, settle};
use crate::granule::Direction;
use crate::migrate::{Space, extents, read_page, read_pages};
use crate::ports::{Count, Host, WORDS_PER_PAGE};
use crate::units::{PAGE_BYTES, PageIndex, PageMask};

/// A child was made by a raw clone: gives it a copy of every page that its parent has on a device or on the way,
/// then lets it go on alone. Called by the reader with the gate closed and the devices quiesced; engines may still
/// write device memory, as threads of the parent may write while it forks.
pub fn fill_child<H: Host>(space: &Space<'_, H>, child: u32) {
    let Some(staging) = space.host.staging(&PageMask::EMPTY) else {
        space.host.child_done(child);
        return;
    };
    let words = space.host.staging_words(staging);
    for index in space.tables.all_blocks() {
        let block = space.tables.lock(index, space.park);
        let number = block.number();
        let moving = block.mover().map(|seat| &space.transits[seat.0 as usize]);
        let private = block.device_private();
        if !private.is_empty() {
            let port = space.device(block.owner()).port;
            let _ = extents(&block, &space.tables, &private, |start, len, at| {
                let part = &words[start * WORDS_PER_PAGE..(start + len) * WORDS_PER_PAGE];
                for run in read_pages(space, port, start, at, part).runs() {
                    let part = &words[run.start * WORDS_PER_PAGE..run.end * WORDS_PER_PAGE];
                    space.host.child_fill(child, number.page(PageIndex(run.start as u16)), part);
                }
                Ok::<(), ()>(())
            });
        }
        if let Some(record) = moving.filter(|record| record.direction() == Direction::ToDevice) {
            let source = space.host.staging_words(record.staging());
            for run in block.transit_pages(record).runs() {
                let part = &source[run.start * WORDS_PER_PAGE..run.end * WORDS_PER_PAGE];
                space.host.child_fill(child, number.page(PageIndex(run.start as u16)), part);
            }
        }
    }
    for at in 0..space.homecomings.len() {
        let (number, pages, source) = space.homecomings.get(at);
        let source = space.host.staging_words(source);
        for run in (pages - space.homecomings.broken(at)).runs() {
            let part = &source[run.start * WORDS_PER_PAGE..run.end * WORDS_PER_PAGE];
            space.host.child_fill(child, number.page(PageIndex(run.start as u16)), part);
        }
    }
    space.host.staging_done(staging);
    space.host.child_done(child);
}

/// A child was made by a raw clone that shares memory with its parent: brings what is on devices of that home, where the
/// child sees it, then lets the child go on. Called as [`fill_child`].
///
/// Pages that a worker is bringing to RAM at this moment are his: the child sees what they were before until his copy
/// is done.
pub fn share_with_child<H: Host>(space: &Space<'_, H>, child: u32) {
    if let Some(staging) = space.host.staging(&PageMask::EMPTY) {
        for index in space.tables.all_blocks() {
            let mut block = space.tables.lock(index, space.park);
            let number = block.number();
            let shared = space.host.shared_pages(number);
            let away = (block.device_private() - block.in_transit()) & shared;
            if !away.is_empty() {
                freeze(space, &block, &away);
                let port = space.device(block.owner()).port;
                let mut home = PageMask::EMPTY;
                // What cannot be read stays where it is.
                let _ = extents(&block, &space.tables, &away, |start, len, at| {
                    for page in start..start + len {
                        let words = space.host.moving_words(number, page..page + 1, staging);
                        if read_page(space, port, at + (page - start) as u64 * PAGE_BYTES, words) {
                            home.insert(PageIndex(page as u16));
                        }
                    }
                    Ok::<(), ()>(())
                });
                // Absent from the mapping still: a touch finds them in RAM.
                block.came_home(&home);
                space.count_pages(Count::PagesToRam, &home);
                settle(space, &mut block, index, &home);
            }
            let moving = block.mover().map(|seat| &space.transits[seat.0 as usize]);
            if let Some(record) = moving.filter(|record| record.direction() == Direction::ToDevice) {
                // Its contents are where the child sees them: it does not go.
                let stays = block.transit_pages(record) & shared;
                block.arrive_in_ram(record, &stays);
            }
            let waits = block.take_cpu_waits();
            drop(block);
            if waits {
                space.host.wake(number.range());
            }
        }
        space.host.staging_done(staging);
    }
    space.host.child_done(child);
}
