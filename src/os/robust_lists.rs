//! Where the threads of this process keep the heads of their robust lists: there are their stacks.
//!
//! Asking the kernel costs some microseconds per thread, and every device fault wants to know. So the answers are kept
//! as long as no thread was made.
//!
//! # Rules
//! 1. The kernel tells which process or thread id it gave out last (`/proc/loadavg`, of this process's own pid
//!    namespace). While that is what it was before the threads were asked, no thread was made since; those that ended
//!    only make the answers too many.
//! 2. Answers are kept only if every thread had one: a thread that has just begun may not have told the kernel yet.
//! 3. Unknown counts as yes.
//! 4. No heap: the answers lie in the structure, the kernel's texts in buffers on the stack.
#![allow(unsafe_code, reason = "getdents64, get_robust_list, pread")]

use std::os::fd::{AsRawFd, OwnedFd};

use super::park::FutexPark;
use crate::sync::{AtomicU32, AtomicU64, Ordering, WordLock};
use crate::units::{VirtAddr, VirtRange};

/// Threads whose answers are kept; with more, the kernel is asked each time.
const KEPT: usize = 256;

/// The heads of all threads, asked anew when a thread was made.
#[derive(Debug)]
pub(super) struct RobustLists {
    loadavg: Option<OwnedFd>,
    /// Guards what follows.
    lock: WordLock,
    /// The last id that was given out before `heads` were asked; 0: none are kept.
    last_id: AtomicU64,
    used: AtomicU32,
    heads: [AtomicU64; KEPT],
}

impl RobustLists {
    pub(super) fn open() -> Self {
        Self {
            loadavg: std::fs::File::open("/proc/loadavg").ok().map(OwnedFd::from),
            lock: WordLock::new(),
            last_id: AtomicU64::new(0),
            used: AtomicU32::new(0),
            heads: std::array::from_fn(|_| AtomicU64::new(0)),
        }
    }

    /// Whether a thread of this process keeps its head in `range`.
    pub(super) fn any_in(&self, range: VirtRange) -> bool {
        let last_id = self.loadavg.as_ref().and_then(last_id).unwrap_or(0);
        let _held = self.lock.lock(&FutexPark);
        if last_id == 0 || self.last_id.load(Ordering::Relaxed) != last_id {
            return self.ask(range, last_id);
        }
        let used = self.used.load(Ordering::Relaxed) as usize;
        self.heads[..used].iter().any(|head| range.contains(VirtAddr(head.load(Ordering::Relaxed))))
    }

    /// Asks every thread, and keeps the answers if they are complete.
    fn ask(&self, range: VirtRange, last_id: u64) -> bool {
        let (mut any, mut used, mut complete) = (false, 0, true);
        let read = for_each_thread(|tid| match robust_list_head(tid) {
            Some(head) => {
                any |= range.contains(head);
                match self.heads.get(used) {
                    Some(kept) => kept.store(head.0, Ordering::Relaxed),
                    None => complete = false,
                }
                used += 1;
            }
            None => complete = false,
        });
        let keep = read && complete;
        self.used.store(if keep { used as u32 } else { 0 }, Ordering::Relaxed);
        self.last_id.store(if keep { last_id } else { 0 }, Ordering::Relaxed);
        any || !read
    }
}

/// The id that the kernel gave out last: the last number of the line.
fn last_id(loadavg: &OwnedFd) -> Option<u64> {
    let mut line = [0u8; 128];
    // SAFETY: the buffer is writable for its whole size.
    let got = unsafe { libc::pread(loadavg.as_raw_fd(), line.as_mut_ptr().cast(), line.len(), 0) };
    let line = line.get(..usize::try_from(got).ok()?)?.trim_ascii_end();
    let digits = line.rsplit(|byte| *byte == b' ').next()?;
    std::str::from_utf8(digits).ok()?.parse().ok()
}

/// Calls `each` with the id of every thread of this process. `false`: not all could be read.
fn for_each_thread(mut each: impl FnMut(i32)) -> bool {
    // SAFETY: a C string; the descriptor is closed below.
    let dir = unsafe {
        libc::open(c"/proc/self/task".as_ptr(), libc::O_RDONLY | libc::O_DIRECTORY | libc::O_CLOEXEC)
    };
    if dir < 0 {
        return false;
    }
    let mut entries = [0u64; 256];
    let complete = loop {
        // SAFETY: the buffer is writable for its whole size.
        let got =
            unsafe { libc::syscall(libc::SYS_getdents64, dir, entries.as_mut_ptr(), size_of_val(&entries)) };
        if got <= 0 {
            break got == 0;
        }
        // SAFETY: the kernel wrote `got` bytes, which is at most the size of the buffer; bytes have no alignment.
        let bytes = unsafe { core::slice::from_raw_parts(entries.as_ptr().cast::<u8>(), got as usize) };
        let mut at = 0;
        while at + 19 <= bytes.len() {
            let record = usize::from(u16::from_ne_bytes([bytes[at + 16], bytes[at + 17]]));
            if record == 0 {
                break;
            }
            if let Some(tid) = tid_of(&bytes[at + 19..(at + record).min(bytes.len())]) {
                each(tid);
            }
            at += record;
        }
    };
    // SAFETY: opened above, closed once.
    unsafe { libc::close(dir) };
    complete
}

fn tid_of(name: &[u8]) -> Option<i32> {
    let digits = name.iter().take_while(|byte| byte.is_ascii_digit()).count();
    (digits > 0).then(|| {
        name[..digits].iter().fold(0i32, |tid, digit| tid.wrapping_mul(10) + i32::from(digit - b'0'))
    })
}

/// `None` for a thread that ended meanwhile or has none.
fn robust_list_head(tid: i32) -> Option<VirtAddr> {
    let (mut head, mut bytes) = (0u64, 0usize);
    // SAFETY: both targets live here for the call.
    let rc = unsafe { libc::syscall(libc::SYS_get_robust_list, tid, &mut head, &mut bytes) };
    (rc == 0 && head != 0).then_some(VirtAddr(head))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::units::PAGE_BYTES;

    /// The page in which the calling thread keeps its head.
    fn own() -> VirtRange {
        let head = robust_list_head(0).expect("a thread of the C library has one");
        VirtRange::of_pages(head.page_floor(), 1)
    }

    #[test]
    fn a_thread_made_after_the_answers_were_kept_is_found() {
        let lists = RobustLists::open();
        let nowhere = VirtRange::of_pages(VirtAddr(PAGE_BYTES), 1);
        assert!(lists.any_in(own()) && lists.any_in(own()));
        assert!(!lists.any_in(nowhere) && !lists.any_in(nowhere));
        for _ in 0..50 {
            let other = std::thread::scope(|scope| {
                let (tell, told) = std::sync::mpsc::channel();
                let (end, ended) = std::sync::mpsc::channel::<()>();
                scope.spawn(move || {
                    tell.send(own()).expect("somebody listens");
                    // Ends with the sender.
                    let _ = ended.recv();
                });
                let other = told.recv().expect("the thread says where");
                assert!(lists.any_in(other), "a new thread's stack is no memory of the application");
                drop(end);
                other
            });
            assert_ne!(other, own());
        }
    }
}
