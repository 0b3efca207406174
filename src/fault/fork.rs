use crate::granule::Direction;
use crate::migrate::{Space, extents, read_pages};
use crate::ports::{Host, WORDS_PER_PAGE};
use crate::units::{PageIndex, PageMask};

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
