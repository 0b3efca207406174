//! Faults: recording, fetching, replay, cancel.

use std::sync::Mutex;
use std::sync::atomic::{AtomicU64, Ordering};

use granule::ports::{DeviceFault, FaultCause};
use granule::units::{Access, DevAddr, DevMemAddr, PAGE_BYTES};

use super::check::{BASE, RW, expected, first_word, holds, load, map, on_one, put_page, same};
use super::service::{next_fault, served};
use super::{Refused, TestDevice};

pub(super) fn a_fault_says_where_and_what(test: &dyn TestDevice) -> Result<(), String> {
    let device = test.device();
    device.attach();
    for (at, access) in
        [(BASE + 8, Access::Read), (BASE + PAGE_BYTES + 4088, Access::Write), (u64::MAX - 7, Access::Read)]
    {
        let fault = std::thread::scope(|scope| {
            scope.spawn(|| {
                on_one(test, |engine| match access {
                    Access::Read => engine.load(at).map(drop),
                    Access::Write => engine.store(at, 1),
                })
            });
            let fault = next_fault(device);
            device.cancel(&fault, FaultCause::OutsideWindow);
            fault
        });
        same("the address of a fault", fault.at, DevAddr(at))?;
        same("the kind of a fault", fault.access, access)?;
    }
    Ok(())
}

pub(super) fn a_replayed_access_happens_once(test: &dyn TestDevice) -> Result<(), String> {
    let device = test.device();
    let serve = |fault: &DeviceFault| {
        let page = fault.at.page_floor().0;
        map(device, page, 1, page - BASE, RW).map_err(|_| FaultCause::DeviceFailed)
    };
    let engines = test.engines() as u64;
    for page in 0..4 {
        put_page(device, DevMemAddr(page * PAGE_BYTES), 0)?;
    }
    let failed = AtomicU64::new(0);
    let has_atomics = AtomicU64::new(1);
    served(device, serve, || {
        test.run(&|engine| {
            for page in 0..4 {
                match engine.fetch_add(BASE + page * PAGE_BYTES, 1) {
                    None => has_atomics.store(0, Ordering::SeqCst),
                    Some(Err(_)) => {
                        failed.fetch_add(1, Ordering::SeqCst);
                    }
                    Some(Ok(_)) => {}
                }
            }
        })
    });
    if has_atomics.load(Ordering::SeqCst) == 0 {
        return Ok(());
    }
    same("accesses that failed although they were served", failed.load(Ordering::SeqCst), 0)?;
    device.flush(DevAddr(BASE), 4);
    for page in 0..4 {
        let counted = first_word(device, DevMemAddr(page * PAGE_BYTES))?.wrapping_sub(expected(0, 0));
        same("how often the adds of all engines happened", counted, engines)?;
    }
    Ok(())
}

pub(super) fn a_replay_without_a_mapping_faults_again(test: &dyn TestDevice) -> Result<(), String> {
    let device = test.device();
    device.attach();
    put_page(device, DevMemAddr(0), 6)?;
    let (faults, seen) = std::thread::scope(|scope| {
        let kernel = scope.spawn(|| load(test, BASE));
        let mut faults = Vec::new();
        for _ in 0..3 {
            faults.push(next_fault(device));
            device.replay();
        }
        faults.push(next_fault(device));
        let mapped = map(device, BASE, 1, 0, RW);
        device.replay();
        (mapped.map(|()| faults), kernel.join().map_err(|_| "the kernel panicked".to_string()))
    });
    for fault in faults? {
        same("the address of the fault, each time", fault.at, DevAddr(BASE))?;
    }
    same("the load, in the end", seen?, Ok(expected(0, 6)))
}

pub(super) fn no_fault_is_lost(test: &dyn TestDevice) -> Result<(), String> {
    let device = test.device();
    const PAGES: u64 = 200;
    for page in 0..PAGES {
        put_page(device, DevMemAddr(page * PAGE_BYTES), page)?;
    }
    let serve = |fault: &DeviceFault| {
        let page = fault.at.page_floor().0;
        let offset = (page - BASE) & ((1 << 30) - 1);
        map(device, page, 1, offset, RW).map_err(|_| FaultCause::DeviceFailed)
    };
    let wrong = Mutex::new(None);
    served(device, serve, || {
        test.run(&|engine| {
            let base = BASE + ((engine.index() as u64) << 30);
            for page in 0..PAGES {
                let seen = engine.load(base + page * PAGE_BYTES);
                if seen != Ok(expected(0, page)) {
                    *wrong.lock().expect("no check panics") = Some((engine.index(), page, seen));
                }
            }
        })
    });
    same(
        "engine, page and result of a load that went wrong",
        wrong.into_inner().expect("no check panics"),
        None,
    )
}

pub(super) fn a_cancelled_fault_ends_with_its_cause(test: &dyn TestDevice) -> Result<(), String> {
    let device = test.device();
    put_page(device, DevMemAddr(0), 2)?;
    let serve = |fault: &DeviceFault| {
        if fault.at == DevAddr(BASE) {
            return map(device, BASE, 1, 0, RW).map_err(|_| FaultCause::DeviceFailed);
        }
        Err(FaultCause::ALL[(fault.at.page_floor().0 - BASE) as usize / PAGE_BYTES as usize - 1])
    };
    let seen = Mutex::new(Vec::new());
    served(device, serve, || {
        test.run(&|engine| {
            if engine.index() > 0 {
                let good = engine.load(BASE);
                seen.lock().expect("no check panics").push((good, Ok(expected(0, 2))));
                return;
            }
            for (place, cause) in FaultCause::ALL.into_iter().enumerate() {
                let refused = engine.load(BASE + (place as u64 + 1) * PAGE_BYTES);
                seen.lock().expect("no check panics").push((refused, Err(Refused::Cancelled(cause))));
            }
        })
    });
    for (seen, promised) in seen.into_inner().expect("no check panics") {
        same("the end of an access", seen, promised)?;
    }
    Ok(())
}

pub(super) fn a_late_answer_does_nothing(test: &dyn TestDevice) -> Result<(), String> {
    let device = test.device();
    device.attach();
    put_page(device, DevMemAddr(0), 4)?;
    let seen = std::thread::scope(|scope| {
        let kernel = scope.spawn(|| load(test, BASE));
        let first = next_fault(device);
        device.replay();
        let second = next_fault(device);
        // The first fault was replayed already; the access waits behind the second one.
        device.cancel(&first, FaultCause::NoAccess);
        let mapped = map(device, BASE, 1, 0, RW);
        device.replay();
        let seen = kernel.join().map_err(|_| "the kernel panicked".to_string());
        device.cancel(&second, FaultCause::NoAccess);
        mapped.and(seen)
    })?;
    same("the load whose earlier fault was cancelled late", seen, Ok(expected(0, 4)))?;
    same("the next load", load(test, BASE + 8), Ok(expected(1, 4)))
}

pub(super) fn interrupt_ends_one_wait(test: &dyn TestDevice) -> Result<(), String> {
    let device = test.device();
    device.attach();
    for _ in 0..100 {
        std::thread::scope(|scope| {
            scope.spawn(|| device_of(test).wait_fault());
            device.interrupt();
        });
    }
    device.interrupt();
    device.wait_fault();
    same("faults after interrupts only", device.fetch(&mut [DeviceFault::default()]), 0)?;
    // The interrupt is consumed: the next wait lasts until there is a fault.
    let (returned, at_fault) = (AtomicU64::new(0), AtomicU64::new(0));
    std::thread::scope(|scope| {
        scope.spawn(|| {
            device_of(test).wait_fault();
            returned.store(1, Ordering::SeqCst);
            let mut fault = [DeviceFault::default()];
            at_fault.store(device_of(test).fetch(&mut fault) as u64, Ordering::SeqCst);
            if at_fault.load(Ordering::SeqCst) == 1 {
                device_of(test).cancel(&fault[0], FaultCause::NoMapping);
            }
        });
        load(test, BASE).map(drop)
    })
    .expect_err("nothing is mapped there");
    holds(
        "a wait whose interrupt was consumed lasts until there is a fault",
        at_fault.load(Ordering::SeqCst) == 1,
    )
}

fn device_of(test: &dyn TestDevice) -> &dyn granule::ports::Device {
    test.device()
}

pub(super) fn without_a_service_faults_end(test: &dyn TestDevice) -> Result<(), String> {
    let device = test.device();
    let ended = Err(Refused::Cancelled(FaultCause::ShuttingDown));
    same("a fault before attach", load(test, BASE), ended)?;
    device.attach();
    let outstanding = std::thread::scope(|scope| {
        let kernel = scope.spawn(|| load(test, BASE));
        device.wait_fault();
        device.detach();
        kernel.join().map_err(|_| "the kernel panicked".to_string())
    })?;
    same("a fault that is outstanding at detach", outstanding, ended)?;
    same("a fault after detach", load(test, BASE), ended)?;
    put_page(device, DevMemAddr(0), 1)?;
    let serve = |_: &DeviceFault| map(device, BASE, 1, 0, RW).map_err(|_| FaultCause::DeviceFailed);
    same("a fault after the next attach", served(device, serve, || load(test, BASE)), Ok(expected(0, 1)))
}
