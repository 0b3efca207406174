//! How simulated threads sleep: like on a futex of the kernel. Under loom a sleeper is blocked and takes no part in
//! the search, and a run in which everybody sleeps for ever is a deadlock that loom reports; without loom it yields.

use granule::sync::{AtomicU32, Ordering, Park};

#[cfg(granule_loom)]
mod under {
    use std::sync::Mutex;

    /// Who sleeps, and on what.
    #[derive(Default)]
    pub struct Sleepers(Mutex<Vec<(usize, loom::thread::Thread)>>);

    impl Sleepers {
        /// Sleeps on `key` if `still` says so, until `wake`. Looking and falling asleep are one step (`still` has its
        /// switch point before it looks), as the kernel compares under the lock that a waker takes.
        pub fn sleep_if(&self, key: usize, still: impl FnOnce() -> bool) {
            if !still() {
                return;
            }
            let me = loom::thread::current();
            self.0.lock().unwrap().push((key, me.clone()));
            loom::thread::park();
            self.0.lock().unwrap().retain(|(_, thread)| thread.id() != me.id());
        }

        /// Lets everyone go on who sleeps on `key`: one step with the effect before it.
        pub fn wake(&self, key: usize) {
            let mut sleepers = self.0.lock().unwrap();
            for (_, thread) in sleepers.iter().filter(|(on, _)| *on == key) {
                thread.unpark();
            }
            sleepers.retain(|(on, _)| *on != key);
        }
    }

    pub fn yield_now() {
        loom::thread::yield_now();
    }
}

#[cfg(not(granule_loom))]
mod under {
    /// Nobody is noted: a sleeper looks again and again.
    #[derive(Default)]
    pub struct Sleepers(());

    impl Sleepers {
        pub fn sleep_if(&self, _: usize, still: impl FnOnce() -> bool) {
            if still() {
                yield_now();
            }
        }
        pub fn wake(&self, _: usize) {}
    }

    pub fn yield_now() {
        std::thread::yield_now();
    }
}

pub use under::{Sleepers, yield_now};

/// A point at which a model may switch threads, before an effect on what `Step` stands for. Adding, not loading: two
/// loads of one word would count as independent, and loom would not try them in both orders.
#[derive(Default)]
pub struct Step(AtomicU32);
impl Step {
    /// Orders nothing between threads.
    pub fn take(&self) {
        self.0.fetch_add(1, Ordering::Relaxed);
    }
    /// Comes with everything that happened before an earlier step, as a system call does: the kernel's locks order
    /// what threads do to one address space, and what they did before.
    pub fn take_in_order(&self) {
        self.0.fetch_add(1, Ordering::AcqRel);
    }
}

/// A value that no word ever has: an exchange that expects it fails, and has read the newest value as the kernel does
/// (a load in a model may return an older one), without writing.
const NEVER: u32 = u32::MAX;

/// The futex.
#[derive(Default)]
pub struct SimPark(Sleepers);
impl Park for SimPark {
    fn park(&self, word: &AtomicU32, expected: u32) {
        let now = || word.compare_exchange(NEVER, NEVER, Ordering::SeqCst, Ordering::SeqCst).unwrap_err();
        self.0.sleep_if(std::ptr::from_ref(word).addr(), || now() == expected);
    }
    fn unpark_all(&self, word: &AtomicU32) {
        self.0.wake(std::ptr::from_ref(word).addr());
    }
}
