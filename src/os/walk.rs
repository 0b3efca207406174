//! One loop for every userfaultfd call that works page by page and may stop anywhere.

use core::ops::Range;

use super::abi::{Errno, Outcome};

/// What to do about a page that was refused.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Step {
    /// Go on behind it.
    Skip,
    /// Try it again: the reason was removed.
    Again,
    /// Do nothing more.
    Stop,
}

/// Walks `pages`: `call(page, count)` acts on `count` pages from `page` on, `done` hears which were acted on,
/// `refused` which single page was not and why. A call over several pages that the kernel refuses as a whole
/// (EINVAL and ENOENT: a border of mappings lies in it) is halved until it is one page, then grows again.
pub(super) fn walk(
    pages: Range<u64>,
    mut call: impl FnMut(u64, u64) -> Outcome,
    mut done: impl FnMut(Range<u64>),
    mut refused: impl FnMut(u64, Errno) -> Step,
) {
    let (mut page, mut most) = (pages.start, u64::MAX);
    while page < pages.end {
        let count = most.min(pages.end - page);
        match call(page, count) {
            Outcome::Done(bytes) => {
                let acted = (bytes / crate::units::PAGE_BYTES).clamp(1, count);
                done(page..page + acted);
                page += acted;
                most = most.saturating_mul(2);
            }
            Outcome::Refused(Errno(libc::EINVAL | libc::ENOENT)) if count > 1 => most = count / 2,
            Outcome::Refused(errno) => match refused(page, errno) {
                Step::Skip => page += 1,
                Step::Again => {}
                Step::Stop => return,
            },
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::units::PAGE_BYTES;

    /// A kernel with borders before pages 5 and 6, page 9 busy.
    #[test]
    fn borders_and_busy_pages_are_passed() {
        let mut acted = [0u8; 16];
        let mut busy = None;
        let call = |page: u64, count: u64| match (page, page + count) {
            (from, to) if [5, 6].iter().any(|border| from < *border && *border < to) => {
                Outcome::Refused(Errno(libc::EINVAL))
            }
            (9, _) => Outcome::Refused(Errno(libc::EBUSY)),
            (from, to) if from < 9 && 9 < to => Outcome::Done((9 - from) * PAGE_BYTES),
            (_, _) => Outcome::Done(count * PAGE_BYTES),
        };
        walk(
            0..16,
            call,
            |done| done.for_each(|page| acted[page as usize] += 1),
            |page, errno| {
                assert_eq!(busy.replace((page, errno)), None);
                Step::Skip
            },
        );
        assert_eq!(busy, Some((9, Errno(libc::EBUSY))));
        assert!(acted.iter().enumerate().all(|(page, &times)| times == u8::from(page != 9)));
    }
}
