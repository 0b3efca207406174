//! Reading what the kernel tells: faults and changes of the address space.
//!
//! # Rules
//! 1. One thread reads. From before [`Host::drain`] until what it returned is applied, that thread holds the
//!    gate closed; waiting in [`LinuxHost::wait`] reads nothing and lets nobody go on.
//! 2. Reading an event lets its caller go on. The kernel hands out faults before older events, so a fault is
//!    judged after the events of the same drain.
//! 3. The reader makes no mapping call on mirrored memory and takes no lock but those of the tables.
//! 4. Where pages are taken by protecting and discarding, messages are read one at a time (see `drops`).
#![allow(unsafe_code, reason = "poll, eventfd, and descriptors that come out of messages")]

use core::sync::atomic::{AtomicI32, Ordering};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, OwnedFd};

use linux_raw_sys::general as raw;

use super::abi::Message;
use super::host::LinuxHost;
use super::take::TakeWay;
use super::userfaultfd::{ChildFd, Userfaultfd, copy_to_child, discard_messages};
use super::walk::{Step, walk};
use crate::ports::{Host, HostEvent, WORDS_PER_PAGE, Word};
use crate::units::{Access, PAGE_BYTES, VirtAddr, VirtRange};

/// How many children after fork may wait for their pages at once.
pub(super) const CHILDREN: usize = 256;

/// How often a child that changes its mappings is waited for before it gets no more.
const CHILD_PATIENCE: u32 = 10_000;

/// After an event of `madvise`, when to look whether its pages are gone, each counted from the look before. Usually
/// they are at the first; what is still there after the last is looked at again when somebody wants to take it.
const SETTLE_AFTER_MS: [i32; 4] = [1, 4, 16, 64];

/// Messages read by one call.
const BATCH: usize = 32;

/// Why [`LinuxHost::wait`] returned.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Readiness {
    /// Messages can be drained.
    pub messages: bool,
    /// Somebody called [`LinuxHost::interrupt`].
    pub interrupted: bool,
}

/// A descriptor that ends a `poll`.
#[derive(Debug)]
pub(super) struct Signal(OwnedFd);

impl Signal {
    pub(super) fn open() -> std::io::Result<Self> {
        // SAFETY: no pointers; a fresh descriptor belongs to who opened it.
        unsafe {
            let fd = libc::eventfd(0, libc::EFD_CLOEXEC | libc::EFD_NONBLOCK);
            if fd < 0 { Err(std::io::Error::last_os_error()) } else { Ok(Self(OwnedFd::from_raw_fd(fd))) }
        }
    }

    fn raise(&self) {
        let one = 1u64;
        // SAFETY: eight bytes of this stack. A full counter is raised already.
        unsafe { libc::write(self.0.as_raw_fd(), (&raw const one).cast(), 8) };
    }

    fn consume(&self) {
        let mut count = 0u64;
        // SAFETY: eight bytes of this stack. Nothing to read is nothing to consume.
        unsafe { libc::read(self.0.as_raw_fd(), (&raw mut count).cast(), 8) };
    }
}

impl AsFd for Signal {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }
}

impl LinuxHost {
    /// Sleeps until there is something to drain or [`LinuxHost::interrupt`] is called, and consumes the
    /// interrupt. Reads nothing and acknowledges nothing.
    pub fn wait(&self) -> Readiness {
        let poll = |fd: i32| libc::pollfd { fd, events: libc::POLLIN, revents: 0 };
        // A negative descriptor is passed over.
        let sigbus = self.sigbus.as_ref().map_or(-1, |uffd| uffd.as_fd().as_raw_fd());
        let main = self.uffd.as_fd().as_raw_fd();
        let regions = self.region_uffd.as_ref().map_or(-1, |uffd| uffd.as_fd().as_raw_fd());
        let mut fds = [poll(main), poll(self.signal.0.as_raw_fd()), poll(sigbus), poll(regions)];
        loop {
            let looked = self.settling.load(Ordering::Relaxed) as usize;
            let limit_ms = SETTLE_AFTER_MS.get(looked).copied().unwrap_or(-1);
            // SAFETY: four entries of this stack.
            let ready = unsafe { libc::poll(fds.as_mut_ptr(), 4, limit_ms) };
            if ready > 0 {
                break;
            }
            if ready == 0 {
                self.settle_removed();
                self.settling.store((looked as u32).saturating_add(1), Ordering::Relaxed);
            }
        }
        let interrupted = fds[1].revents != 0;
        if interrupted {
            self.signal.consume();
        }
        Readiness {
            messages: (fds[0].revents | fds[2].revents | fds[3].revents) & libc::POLLIN != 0,
            interrupted,
        }
    }

    /// Makes one [`LinuxHost::wait`] (the current or the next) return.
    pub fn interrupt(&self) {
        self.signal.raise();
    }

    /// Events of the service's own discards are left out; the tables are up to date with what is returned.
    pub(super) fn read_messages(&self, out: &mut [HostEvent]) -> usize {
        let most = if self.way == TakeWay::WriteProtect { 1 } else { BATCH };
        let mut filled = self.read_from(&self.uffd, most, out);
        for uffd in [&self.sigbus, &self.region_uffd].into_iter().flatten() {
            filled += self.read_from(uffd, most, &mut out[filled..]);
        }
        filled
    }

    fn read_from(&self, uffd: &Userfaultfd, most: usize, out: &mut [HostEvent]) -> usize {
        let mut filled = 0;
        while filled < out.len() {
            let mut messages = [Message::default(); BATCH];
            let asked = most.min(out.len() - filled);
            self.drops.forget_left();
            let got = uffd.read(&mut messages[..asked]);
            for message in &messages[..got] {
                if let Some(event) = self.translate(message, uffd) {
                    out[filled] = event;
                    filled += 1;
                }
            }
            if got < asked {
                break;
            }
        }
        filled
    }

    fn translate(&self, message: &Message, uffd: &Userfaultfd) -> Option<HostEvent> {
        let [a, b, c] = message.args;
        let between = |start: u64, end: u64| VirtRange::between(VirtAddr(start), VirtAddr(end));
        match u32::from(message.event) {
            raw::UFFD_EVENT_PAGEFAULT => {
                let flags = a as u32;
                let write_protected = flags & raw::UFFD_PAGEFAULT_FLAG_WP != 0;
                let wrote = flags & (raw::UFFD_PAGEFAULT_FLAG_WRITE | raw::UFFD_PAGEFAULT_FLAG_WP) != 0;
                let access = if wrote { Access::Write } else { Access::Read };
                Some(HostEvent::Fault { at: VirtAddr(b), access, write_protected })
            }
            raw::UFFD_EVENT_FORK => {
                let shares = self.region_uffd.as_ref().is_some_and(|regions| core::ptr::eq(regions, uffd));
                if shares {
                    self.regions.share_all();
                }
                self.enter_child(a as i32).map(|child| match shares {
                    true => HostEvent::ForkShared { child },
                    false => HostEvent::Fork { child },
                })
            }
            raw::UFFD_EVENT_REMAP => {
                let (from, to) = (VirtRange::of_pages(VirtAddr(a), c / PAGE_BYTES), VirtAddr(b));
                self.moved(from, to);
                Some(HostEvent::Remap { from, to })
            }
            raw::UFFD_EVENT_REMOVE => {
                let range = between(a, b);
                if self.drops.any() && self.is_own_drop(range) {
                    return None;
                }
                self.tables.lock().removing(range);
                self.settling.store(0, Ordering::Relaxed);
                Some(HostEvent::Remove(range))
            }
            raw::UFFD_EVENT_UNMAP => {
                let range = between(a, b);
                self.tables.lock().unmapped(range);
                Some(HostEvent::Unmap(range))
            }
            // A kind that was not asked for in the handshake.
            _ => None,
        }
    }

    fn is_own_drop(&self, range: VirtRange) -> bool {
        let is_absent = |at: VirtAddr| self.pagemap.is_absent(VirtRange::of_pages(at, 1)) == Ok(true);
        let begins = |at: VirtAddr| {
            self.vmas.next_mapped(at).is_ok_and(|mapped| mapped.is_some_and(|mapped| mapped.start() == at))
        };
        self.drops.swallows(range, is_absent, begins)
    }

    fn enter_child(&self, fd: i32) -> Option<u32> {
        // SAFETY: the kernel has just installed this descriptor for us.
        let fd = unsafe { ChildFd::from_event(fd) };
        let free = self.children.iter().position(|child| child.load(Ordering::Relaxed) == 0);
        // With a full table the descriptor closes here, and the child reads zeros where it would have waited.
        let child = free?;
        self.children[child].store(fd.into_raw() + 1, Ordering::Release);
        Some(child as u32)
    }

    fn child(&self, child: u32) -> Option<&AtomicI32> {
        self.children.get(child as usize)
    }

    /// Skips pages that the child has, and stops when it is gone.
    pub(super) fn fill_child(&self, child: u32, at: VirtAddr, words: &[Word]) {
        let fd = self.child(child).map_or(0, |fd| fd.load(Ordering::Acquire)) - 1;
        if fd < 0 {
            return;
        }
        let mut patience = CHILD_PATIENCE;
        walk(
            0..(words.len() / WORDS_PER_PAGE) as u64,
            |page, count| {
                let from = page as usize * WORDS_PER_PAGE;
                copy_to_child(fd, at + page * PAGE_BYTES, &words[from..][..count as usize * WORDS_PER_PAGE])
            },
            |_| {},
            |_, errno| match errno.0 {
                libc::EEXIST | libc::ENOENT | libc::EINVAL => Step::Skip,
                // The child changes its mappings: let it go on, for a while. What it waits for is woken by the
                // copy or by closing the descriptor, so its faults may be dropped here.
                libc::EAGAIN if patience > 0 => {
                    patience -= 1;
                    discard_messages(fd);
                    self.pause();
                    Step::Again
                }
                _ => Step::Stop,
            },
        );
    }

    /// Whoever waits in the child goes on, and what was not filled reads as zeros there.
    pub(super) fn release_child(&self, child: u32) {
        let fd = self.child(child).map_or(0, |fd| fd.swap(0, Ordering::AcqRel)) - 1;
        if fd >= 0 {
            // SAFETY: the descriptor was in the table once and is taken out once.
            drop(unsafe { OwnedFd::from_raw_fd(fd) });
        }
    }
}

impl Drop for LinuxHost {
    fn drop(&mut self) {
        for child in 0..CHILDREN as u32 {
            self.release_child(child);
        }
    }
}
