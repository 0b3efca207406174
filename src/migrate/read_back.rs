use super::Space;
use crate::ports::{Count, Device, Host, WORDS_PER_PAGE, Word};
use crate::sync::Ordering;
use crate::units::{DevMemAddr, PAGE_BYTES, PageIndex, PageMask};

/// How often the copy of a single page is tried in one go.
const TRIES: usize = 3;

/// Copies device memory from `at` on to `words`, which stand for the pages of a block from `start` on, and says which
/// pages came: all at once, and where that fails page by page. Touches private memory only.
pub(crate) fn read_pages<H: Host>(
    space: &Space<'_, H>,
    port: &dyn Device,
    start: usize,
    at: DevMemAddr,
    words: &[Word],
) -> PageMask {
    let pages = words.len() / WORDS_PER_PAGE;
    if port.copy_out(at, words).is_ok() {
        return PageMask::of_range(start..start + pages);
    }
    space.probe.add(Count::CopiesFailed, 1);
    let mut came = PageMask::EMPTY;
    for page in 0..pages {
        let part = &words[page * WORDS_PER_PAGE..(page + 1) * WORDS_PER_PAGE];
        if read_page(space, port, at + page as u64 * PAGE_BYTES, part) {
            came.insert(PageIndex((start + page) as u16));
        }
    }
    came
}

/// Copies one page of device memory to `words` by every way that there is: a few tries of the device's own copy, then
/// the host's view of device memory. `false`: it cannot be read now. Touches private memory only.
pub(crate) fn read_page<H: Host>(
    space: &Space<'_, H>,
    port: &dyn Device,
    at: DevMemAddr,
    words: &[Word],
) -> bool {
    for _ in 0..TRIES {
        if port.copy_out(at, words).is_ok() {
            return true;
        }
        space.probe.add(Count::CopiesFailed, 1);
    }
    let window = port.window(at, PAGE_BYTES);
    if let Some(window) = window {
        copy_words(window, words);
    }
    window.is_some()
}

/// Copies words that nobody else writes.
pub(crate) fn copy_words(from: &[Word], to: &[Word]) {
    for (from, to) in from.iter().zip(to) {
        to.store(from.load(Ordering::Relaxed), Ordering::Relaxed);
    }
}
