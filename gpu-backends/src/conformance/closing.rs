//! Flush, quiesce, and what they promise about accesses under way.

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use granule::ports::Device;
use granule::units::{DevAddr, DevMemAddr, PAGE_BYTES};

use super::check::{BASE, RW, done, first_word, holds, link, linkable, map, on_one, pages, same};
use super::{TestDevice, TestEngine};

/// A race is tried for so long, and at least so often.
const RACE: Duration = Duration::from_millis(1500);
const LEAST_ROUNDS: u64 = 50;

/// Repeats one round of a race; the round is told its number, from 1. Returns how many there were.
pub(super) fn race(mut round: impl FnMut(u64) -> Result<(), String>) -> Result<u64, String> {
    let (begin, mut rounds) = (Instant::now(), 0);
    while rounds < LEAST_ROUNDS || begin.elapsed() < RACE {
        rounds += 1;
        round(rounds)?;
    }
    Ok(rounds)
}

/// Lets every engine store to `BASE` until `body` has ended; `body` is told how many stores were made so far.
fn while_storing<R>(test: &dyn TestDevice, body: impl FnOnce(&dyn Fn() -> u64) -> R) -> R {
    let (ended, stores) = (AtomicBool::new(false), AtomicU64::new(0));
    let kernel = |engine: &mut dyn TestEngine| {
        let mut value = 0;
        while !ended.load(Ordering::Relaxed) {
            value += 1;
            if engine.store(BASE + engine.index() as u64 * 8, value).is_ok() {
                stores.fetch_add(1, Ordering::Relaxed);
            }
        }
    };
    std::thread::scope(|scope| {
        struct End<'a>(&'a AtomicBool);
        impl Drop for End<'_> {
            fn drop(&mut self) {
                self.0.store(true, Ordering::SeqCst);
            }
        }
        scope.spawn(|| test.run(&kernel));
        let _end = End(&ended);
        body(&|| stores.load(Ordering::Relaxed))
    })
}

/// Waits until engines have made some more stores.
fn some_more(stores: &dyn Fn() -> u64) {
    let seen = stores();
    while stores() < seen + 4 {
        std::thread::yield_now();
    }
}

pub(super) fn flush_ends_the_use_of_a_translation(test: &dyn TestDevice) -> Result<(), String> {
    let device = test.device();
    // One page of device memory after the other stands behind the same address.
    map(device, BASE, 1, 0, RW)?;
    while_storing(test, |stores| {
        race(|round| {
            let (old, new) = ((round + 1) % 2 * PAGE_BYTES, round % 2 * PAGE_BYTES);
            map(device, BASE, 1, new, RW)?;
            device.flush(DevAddr(BASE), 1);
            let before = both(device, old)?;
            some_more(stores);
            same("a page whose translation was flushed, looked at twice", both(device, old)?, before)
        })
    })
    .map(drop)
}

/// The words that the first two engines store to.
fn both(device: &dyn Device, page: u64) -> Result<[u64; 2], String> {
    let copy = pages(1)?;
    done("copy_out", device.copy_out(DevMemAddr(page), copy.as_words()))?;
    Ok([0, 1].map(|word| copy.as_words()[word].load(Ordering::SeqCst)))
}

pub(super) fn after_flush_every_write_can_be_copied_out(test: &dyn TestDevice) -> Result<(), String> {
    let device = test.device();
    for round in 1..300 {
        map(device, BASE, 1, 0, RW)?;
        same("a store", on_one(test, |engine| engine.store(BASE, round)), Ok(()))?;
        device.unmap(DevAddr(BASE), 1);
        device.flush(DevAddr(BASE), 1);
        same("copy_out after unmap and flush", first_word(device, DevMemAddr(0))?, round)?;
    }
    Ok(())
}

pub(super) fn quiesce_stops_every_access(test: &dyn TestDevice) -> Result<(), String> {
    let device = test.device();
    if !device.caps().can_quiesce {
        return Ok(());
    }
    let memory = linkable(test, 1)?;
    for is_local in [false, true] {
        if is_local {
            map(device, BASE, 1, 0, RW)?;
            device.flush(DevAddr(BASE), 1);
        } else {
            link(device, BASE, &memory, 1, RW)?;
        }
        let look = || {
            if is_local {
                both(device, 0)
            } else {
                Ok([0, 1].map(|word: usize| memory.as_words()[word].load(Ordering::SeqCst)))
            }
        };
        let mut moved = 0;
        let rounds = while_storing(test, |stores| {
            race(|_| {
                some_more(stores);
                device.quiesce();
                let (before, made) = (look(), stores());
                std::thread::yield_now();
                let after = look();
                moved += stores() - made;
                device.resume();
                same("memory while quiesced, looked at twice", after?, before?)
            })
        })?;
        // A store that ended before may be counted late, but each engine has one at most.
        let late = rounds * test.engines() as u64;
        holds("no engine makes accesses while quiesced", moved <= late)?;
    }
    Ok(())
}

pub(super) fn atomics_lose_nothing(test: &dyn TestDevice) -> Result<(), String> {
    let device = test.device();
    const EACH: u64 = 20_000;
    let memory = linkable(test, 1)?;
    let (system, local) = (BASE, BASE + (1 << 30));
    link(device, system, &memory, 1, RW)?;
    map(device, local, 1, 0, RW)?;
    let before = first_word(device, DevMemAddr(0))?;
    let refused = AtomicU64::new(0);
    std::thread::scope(|scope| {
        let word = &memory.as_words()[0];
        scope.spawn(|| {
            for _ in 0..EACH {
                word.fetch_add(1, Ordering::SeqCst);
            }
        });
        test.run(&|engine| {
            for _ in 0..EACH {
                for at in [system, local] {
                    if !matches!(engine.fetch_add(at, 1), Some(Ok(_))) {
                        refused.fetch_add(1, Ordering::Relaxed);
                    }
                }
            }
        });
    });
    let engines = test.engines() as u64;
    if refused.load(Ordering::Relaxed) == 2 * EACH * engines {
        return Ok(());
    }
    same("atomics that were refused", refused.load(Ordering::Relaxed), 0)?;
    device.flush(DevAddr(local), 1);
    let local = first_word(device, DevMemAddr(0))?.wrapping_sub(before);
    same("adds of all engines in device memory", local, engines * EACH)?;
    let system = memory.as_words()[0].load(Ordering::SeqCst);
    same("adds of all engines and the host in system memory", system, (engines + 1) * EACH)
}
