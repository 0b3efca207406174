//! Engines that sleep in a page fault of the CPU: nobody waits for them, and what they were about to write does
//! not land afterwards.

use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use granule::ports::FaultCause;
use granule::units::DevAddr;

use super::check::{BASE, holds, on_one, same};
use super::sleeper::Sleeper;
use super::{Refused, TestDevice};

/// How long a write that must not land is waited for.
const LANDING: Duration = Duration::from_millis(50);

/// Fails if the word changes for a while.
fn nothing_lands(page: &Sleeper, what: &str) -> Result<(), String> {
    let begin = Instant::now();
    while begin.elapsed() < LANDING {
        same(what, page.word(), 0)?;
        std::thread::yield_now();
    }
    Ok(())
}

/// Runs `body` while engine 0 tries to store 7 at `BASE`, then `let_go`, and returns how the store ended.
fn while_storing(
    test: &dyn TestDevice,
    body: impl FnOnce() -> Result<(), String>,
    let_go: impl FnOnce(),
) -> Result<Result<(), Refused>, String> {
    std::thread::scope(|scope| {
        let kernel = scope.spawn(|| on_one(test, |engine| engine.store(BASE, 7)));
        let result = body();
        let_go();
        let ended = kernel.join().map_err(|_| "the kernel panicked".to_string());
        result.and(ended)
    })
}

pub(super) fn flush_does_not_wait_for_a_cpu_fault(test: &dyn TestDevice) -> Result<(), String> {
    let device = test.device();
    if !device.caps().can_quiesce {
        return Ok(());
    }
    let page = Sleeper::new()?;
    if !test.admit(page.range()) {
        return Ok(());
    }
    page.link(device, BASE)?;
    device.attach();
    let ended = while_storing(
        test,
        || {
            page.wait_asleep()?;
            device.unmap(DevAddr(BASE), 1);
            device.flush(DevAddr(BASE), 1);
            page.fill()?;
            nothing_lands(&page, "a store through a translation that was unmapped and flushed")
        },
        || device.detach(),
    )?;
    same(
        "the store, which has become a device fault",
        ended,
        Err(Refused::Cancelled(FaultCause::ShuttingDown)),
    )
}

pub(super) fn quiesce_does_not_wait_for_a_cpu_fault(test: &dyn TestDevice) -> Result<(), String> {
    let device = test.device();
    if !device.caps().can_quiesce {
        return Ok(());
    }
    let page = Sleeper::new()?;
    if !test.admit(page.range()) {
        return Ok(());
    }
    page.link(device, BASE)?;
    let closed = AtomicBool::new(false);
    // A device may turn the access into a fault; then it is simply tried again.
    let serve = |_: &granule::ports::DeviceFault| Ok(());
    let ended = super::service::served(device, serve, || {
        while_storing(
            test,
            || {
                page.wait_asleep()?;
                device.quiesce();
                closed.store(true, Ordering::SeqCst);
                page.fill()?;
                nothing_lands(&page, "a store to system memory while quiesced")
            },
            || {
                if closed.load(Ordering::SeqCst) {
                    device.resume();
                }
            },
        )
    })?;
    same("the store after resume", ended, Ok(()))?;
    holds("the store lands after resume", page.word() == 7)
}
