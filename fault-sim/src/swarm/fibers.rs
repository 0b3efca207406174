#![allow(unsafe_code, reason = "stacks that are switched on one thread borrow from whoever runs them")]
//! Several stacks on one thread: the library's real code, stopped in the middle and gone on with later, for the price of
//! a function call.
//!
//! # Rules
//! 1. A fiber is stopped only where it calls [`switch`]. Nothing of the library does: the simulated ports do.
//! 2. [`run`] returns after every fiber has ended or was unwound. So a fiber may borrow what outlives the call, as a
//!    scoped thread may.
//! 3. No lock of the standard library is held across a switch: the next fiber is on the same thread.
//! 4. A panic ends its fiber and is handed to whoever schedules; its message is kept and not printed.

use std::cell::{Cell, RefCell};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::ptr;
use std::sync::Once;

use corosensei::stack::DefaultStack;
use corosensei::{Coroutine, CoroutineResult, Yielder};

/// What a fiber does.
pub type Body<'env> = Box<dyn FnOnce() + 'env>;

type Stackful = Coroutine<(), (), (), DefaultStack>;

thread_local! {
    /// The way back of the fiber that runs; null outside of fibers.
    static RUNNING: Cell<*const Yielder<(), ()>> = const { Cell::new(ptr::null()) };
    /// What the last panic in a fiber said, and where.
    static SAID: RefCell<String> = const { RefCell::new(String::new()) };
}

/// Room for a fiber: what `serve` needs with its masks, and a panic's message, several times over.
const STACK_BYTES: usize = 256 << 10;

/// Stacks that are used again.
#[derive(Default)]
pub struct Stacks(Vec<DefaultStack>);

/// How a stay in a fiber ended.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Stay {
    /// It stopped in [`switch`].
    Stopped,
    /// It is done.
    Ended,
    /// It panicked, with this message.
    Panicked(String),
}

/// Stops the fiber that runs and goes on with whoever is chosen next. Does nothing outside of fibers, and nothing while
/// a fiber is unwound.
pub fn switch() {
    let way_back = RUNNING.get();
    if way_back.is_null() || std::thread::panicking() {
        return;
    }
    // SAFETY: the yielder lies at the bottom of the running fiber's stack, which this call is on; `run` keeps the stack
    // until the fiber has ended.
    unsafe { (*way_back).suspend(()) };
    RUNNING.set(way_back);
}

/// Whether the caller is in a fiber.
pub fn is_inside() -> bool {
    !RUNNING.get().is_null()
}

/// Runs bodies, each on a stack of its own. `next` is told how the last stay ended (first: nothing) and names the fiber
/// that goes on; it may name only fibers that have not ended. With `None` it ends the run: fibers that have not ended
/// are unwound where they stand.
pub fn run<'env>(
    stacks: &mut Stacks,
    bodies: Vec<Body<'env>>,
    mut next: impl FnMut(Option<(usize, Stay)>) -> Option<usize>,
) {
    keep_panics_quiet();
    let mut fibers: Vec<Option<Stackful>> =
        bodies.into_iter().map(|body| Some(start(stacks.0.pop(), body))).collect();
    let mut last = None;
    while let Some(at) = next(last.take()) {
        let fiber = fibers[at].as_mut().expect("a fiber that has not ended is named");
        let stay = catch_unwind(AssertUnwindSafe(|| fiber.resume(())));
        RUNNING.set(ptr::null());
        let stay = match stay {
            Ok(CoroutineResult::Yield(())) => Stay::Stopped,
            Ok(CoroutineResult::Return(())) => {
                let ended = fibers[at].take().expect("it has just run");
                stacks.0.push(ended.into_stack());
                Stay::Ended
            }
            Err(_) => {
                // Its stack was unwound up to its bottom.
                fibers[at] = None;
                Stay::Panicked(SAID.take())
            }
        };
        last = Some((at, stay));
    }
    // Dropping a coroutine unwinds its stack: after this nothing of `'env` is borrowed.
    drop(fibers);
}

fn start<'env>(stack: Option<DefaultStack>, body: Body<'env>) -> Stackful {
    let stack = stack.unwrap_or_else(|| DefaultStack::new(STACK_BYTES).expect("there is memory for a stack"));
    let bottom = move |way_back: &Yielder<(), ()>, ()| {
        RUNNING.set(way_back);
        body();
    };
    // SAFETY: `run` drives the coroutine to its end or drops it before it returns, also when it panics itself; what the
    // body borrows outlives that call.
    unsafe { Stackful::with_stack_unchecked(stack, bottom) }
}

/// Panics inside of fibers are results, not noise.
fn keep_panics_quiet() {
    static ONCE: Once = Once::new();
    ONCE.call_once(|| {
        let earlier = std::panic::take_hook();
        std::panic::set_hook(Box::new(move |info| {
            if !is_inside() {
                return earlier(info);
            }
            let payload = info.payload();
            let said = payload.downcast_ref::<String>().map(String::as_str);
            let said = said.or(payload.downcast_ref::<&str>().copied()).unwrap_or("a panic without words");
            let place = info.location().map(|at| format!(" ({}:{})", at.file(), at.line()));
            SAID.set(format!("{}{}", said.replace('\n', " "), place.unwrap_or_default()));
        }));
    });
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn fibers_take_turns_and_borrow() {
        let said = RefCell::new(Vec::new());
        let body = |name: u32| -> Body<'_> {
            let said = &said;
            Box::new(move || {
                for round in 0..3 {
                    said.borrow_mut().push((name, round));
                    switch();
                }
            })
        };
        let mut left = [true; 2];
        let mut turn = 0;
        run(&mut Stacks::default(), vec![body(0), body(1)], |last| {
            if let Some((at, Stay::Ended)) = last {
                left[at] = false;
            }
            turn += 1;
            [turn % 2, 1 - turn % 2].into_iter().find(|at| left[*at])
        });
        assert_eq!(*said.borrow(), [(1, 0), (0, 0), (1, 1), (0, 1), (1, 2), (0, 2)]);
    }

    #[test]
    fn who_is_left_standing_is_unwound() {
        struct Note<'a>(&'a Cell<bool>);
        impl Drop for Note<'_> {
            fn drop(&mut self) {
                // Also while it is unwound.
                switch();
                self.0.set(true);
            }
        }
        let dropped = Cell::new(false);
        let body: Body<'_> = Box::new(|| {
            let _note = Note(&dropped);
            switch();
            unreachable!("nobody goes on with it");
        });
        run(&mut Stacks::default(), vec![body], |last| last.is_none().then_some(0));
        assert!(dropped.get());
    }

    #[test]
    fn a_panic_is_a_result() {
        let mut stays = Vec::new();
        let body: Body<'_> = Box::new(|| panic!("out of {}", "luck"));
        run(&mut Stacks::default(), vec![body], |last| {
            stays.extend(last.map(|(_, stay)| stay));
            stays.is_empty().then_some(0)
        });
        let [Stay::Panicked(said)] = &stays[..] else { panic!("{stays:?}") };
        assert!(said.starts_with("out of luck (") && said.contains("fibers.rs"), "{said}");
    }
}
