//! Who is inside a window, and how to keep them out: flush and quiesce without the driver.
//!
//! # Roles
//! * An *item* (an invocation of a shader) opens a window before it looks a page up and closes it after its accesses:
//!   `granule_open` and `granule_close` in `shaders/granule.glsl`.
//! * A *closer* runs `flush` or `quiesce`. One flush at a time, and one quiesce beside it.
//!
//! # A window word
//! | bits | hold |
//! |---|---|
//! | 0 to 14 | items inside on side 0 |
//! | 15 to 29 | items inside on side 1 |
//! | 30 | the side on which items enter |
//! | 31 | closed |
//!
//! Items of different work groups use different words, so that they do not disturb one another.
//!
//! # Rules
//! 1. Everything happens by atomic additions and exchanges of one word, so all parties agree on one order: an item
//!    adds itself to the side that it saw and looks at what was there. If the side had changed, or the word was closed,
//!    it takes itself away again and has opened nothing.
//! 2. A flush turns the sides over and waits until the old ones are empty. Who entered later looks pages up after the
//!    turn, and finds what was there when the flush began. Nobody is turned away, so a flush costs no turn.
//! 3. A quiesce sets `closed` and waits until both sides are empty. Who finds a closed word tries a few times and then
//!    gives up its turn: a shader waits for nothing.
//! 4. Inside a window an item touches private memory only (tables, device memory, views of the library), so it leaves
//!    by itself, even if the processor that runs it is one of the CPU's: it cannot sleep in a page fault there.
//! 5. Nothing here calls a driver or touches the heap. Waiting is looking at a word and giving the processor away.

use granule::os::FutexPark;
use granule::sync::{AtomicU32, AtomicU64, Ordering, Park, WordLock};

use super::control::Control;
use crate::software::page_table::Quiet;

const CLOSED: u32 = 1 << 31;
const SIDE: u32 = 1 << 30;
const COUNTS: [u32; 2] = [0x7fff, 0x7fff << 15];

/// How often a closer looks before it gives the processor away: most windows are shorter.
const LOOKS: u32 = 100;

/// What closers share. The window words lie in the control memory.
#[derive(Default)]
pub(super) struct Closing {
    flush: WordLock,
    generation: AtomicU64,
    completed: AtomicU64,
    /// 1 while the device is closed; launches wait on it.
    closed: AtomicU32,
}

/// The windows of a device.
#[derive(Clone, Copy)]
pub(super) struct Windows<'a>(pub &'a Closing, pub &'a Control);

impl Windows<'_> {
    /// Waits for every window in which a translation is used that was looked up before the call.
    pub(super) fn flush(self) {
        let Windows(closing, control) = self;
        let mine = closing.generation.fetch_add(1, Ordering::SeqCst) + 1;
        let _held = closing.flush.lock(&FutexPark);
        for word in control.windows() {
            // Acquire and release pair with the items' additions: what they did before they left is seen after.
            let old = word.fetch_xor(SIDE, Ordering::SeqCst);
            empty(word, COUNTS[usize::from(old & SIDE != 0)]);
        }
        closing.completed.fetch_max(mine, Ordering::SeqCst);
    }

    /// Closes the device and waits until nobody is inside.
    pub(super) fn quiesce(self) {
        let Windows(closing, control) = self;
        let before = closing.closed.swap(1, Ordering::SeqCst);
        debug_assert_eq!(before, 0, "quiesce comes once before a resume");
        for word in control.windows() {
            word.fetch_or(CLOSED, Ordering::SeqCst);
        }
        control.windows().for_each(|word| empty(word, COUNTS[0] | COUNTS[1]));
    }

    /// Opens the device.
    pub(super) fn resume(self) {
        let Windows(closing, control) = self;
        for word in control.windows() {
            word.fetch_and(!CLOSED, Ordering::SeqCst);
        }
        closing.closed.store(0, Ordering::SeqCst);
        FutexPark.unpark_all(&closing.closed);
    }

    /// Waits until the device is open.
    pub(super) fn wait_open(self) {
        while self.0.closed.load(Ordering::SeqCst) != 0 {
            FutexPark.park(&self.0.closed, 1);
        }
    }
}

/// Returns when no item is counted in `counts`.
fn empty(word: &AtomicU32, counts: u32) {
    let mut looks = 0;
    while word.load(Ordering::SeqCst) & counts != 0 {
        looks += 1;
        if looks % LOOKS == 0 {
            rustix::thread::sched_yield();
        } else {
            core::hint::spin_loop();
        }
    }
}

impl Quiet for Windows<'_> {
    fn generation(&self) -> u64 {
        self.0.generation.load(Ordering::SeqCst)
    }
    fn completed(&self) -> u64 {
        self.0.completed.load(Ordering::SeqCst)
    }
    fn flush_all(&self) {
        self.flush();
    }
}
