//! One device serves several spaces of one process, each under a PASID and with a window of its own: every fault
//! reaches its own space, and a PASID that is detached answers whoever waits.
#![cfg(not(granule_loom))]
#![allow(unsafe_code, reason = "maps memory that devices write")]

mod real;

use std::sync::Mutex;

use granule::ports::{AttachError, Count, Device, DeviceFault, FaultCause, MapTarget, PasidDevice};
use granule::units::{Access, DevAddr, DevMemAddr, PAGE_BYTES, Pasid, VirtRange};
use granule::{Granularity, Svm};
use granule_backends::software::{AccessError, AddressSpace, BuildError, Engine, SoftwareDevice, SpaceError};
use real::{MIB, PAGE, alone, map_aligned, peek, poke, range, unmap};

const PAGES: usize = 4 * MIB / PAGE;

fn device() -> SoftwareDevice {
    let builder = SoftwareDevice::builder().memory_bytes(16 << 20).space_memory_bytes(8 << 20);
    builder.engines(2).pasid_bits(16).build().expect("a device")
}

fn serve(space: &AddressSpace, window: VirtRange) -> Svm {
    let builder = Svm::builder().device(space.clone()).window(window).granularity(Granularity::Kib64);
    builder.build().expect("a space of its own window")
}

#[test]
fn each_fault_reaches_its_own_space() {
    let _alone = alone(60);
    let device = device();
    let spaces = [5, 9].map(|pasid| device.address_space(Pasid(pasid), 4 << 20).expect("memory for it"));
    let memory = [(); 2].map(|()| map_aligned(4 * MIB));
    let svms = [0, 1].map(|at: usize| serve(&spaces[at], range(memory[at], PAGES)));
    assert_eq!(spaces[1].caps().memory_bytes, 4 << 20);
    for round in 1..4u64 {
        for at in [0, 1] {
            let base = memory[at];
            poke(base + 8, 7 * round);
            // More than one touch per space: 64 KiB each.
            spaces[at]
                .run(|engine| {
                    for unit in engine.share(64) {
                        engine.fetch_add_u64((base + unit * 64 * 1024) as u64, at as u64 + 1)?;
                    }
                    Ok(())
                })
                .expect("served by its own service");
            assert_eq!(peek(base + 8), 7 * round);
            assert!((0..64).all(|unit| peek(base + unit * 64 * 1024) == round * (at as u64 + 1)));
        }
    }
    let counts = |at: usize| svms[at].stats().count(Count::PagesToDevice);
    assert_eq!([counts(0), counts(1)], [3 * 1024; 2]);
    assert_eq!(spaces.each_ref().map(|space| space.counters().cancelled), [0; 2]);
    // An address of the other space is outside of the window.
    let refused = spaces[0].run(|engine| engine.load::<u64>(memory[1] as u64).map(drop));
    assert!(
        matches!(refused, Err(AccessError::Fault { cause: FaultCause::OutsideWindow, .. })),
        "{refused:?}"
    );
    // The device itself has no service.
    let refused = device.run(|engine| engine.load::<u64>(memory[1] as u64).map(drop));
    assert!(
        matches!(refused, Err(AccessError::Fault { cause: FaultCause::ShuttingDown, .. })),
        "{refused:?}"
    );

    // One service ends, the other goes on.
    let [first, second] = svms;
    drop(first);
    assert_eq!(peek(memory[0] + 8), 21);
    let refused = spaces[0].run(|engine| engine.load::<u64>(memory[0] as u64).map(drop));
    assert!(
        matches!(refused, Err(AccessError::Fault { cause: FaultCause::ShuttingDown, .. })),
        "{refused:?}"
    );
    spaces[1].run(|engine| engine.fetch_add_u64(memory[1] as u64, 1).map(drop)).expect("served");
    assert_eq!(peek(memory[1]), 3 * 2 + 2, "one addition by each of two engines");
    drop(second);
    memory.iter().for_each(|at| unmap(*at, 4 * MIB));
}

/// Both spaces at once, each with kernels, touches of the CPU and discards: their services close and open the one gate
/// of the device at the same time.
#[test]
fn two_services_share_the_gate_of_one_device() {
    let _alone = alone(120);
    let device = device();
    let spaces = [5, 9].map(|pasid| device.address_space(Pasid(pasid), 4 << 20).expect("memory for it"));
    let memory = [(); 2].map(|()| map_aligned(4 * MIB));
    let svms = [0, 1].map(|at: usize| serve(&spaces[at], range(memory[at], PAGES)));
    const ROUNDS: u64 = 60;
    std::thread::scope(|scope| {
        for at in [0, 1] {
            let (space, base) = (&spaces[at], memory[at]);
            scope.spawn(move || {
                for round in 1..=ROUNDS {
                    let kernel = |engine: &mut Engine<'_>| {
                        for unit in engine.share(64) {
                            engine.fetch_add_u64((base + unit * 64 * 1024) as u64, 1)?;
                        }
                        Ok(())
                    };
                    space.run(kernel).expect("served by its own service");
                    for unit in 0..64 {
                        assert_eq!(peek(base + unit * 64 * 1024), round, "unit {unit} of space {at}");
                    }
                    // A part that nobody counts in is thrown away: an event, and a closed gate.
                    real::advise(base + 8 * PAGE, 4 * PAGE, libc::MADV_DONTNEED);
                }
            });
        }
    });
    assert!(svms.iter().all(|svm| svm.stats().count(Count::GateClosed) > 0));
    assert_eq!(device.counters().iommu_errors, 0);
    drop(svms);
    memory.iter().for_each(|at| unmap(*at, 4 * MIB));
}

/// Fetches faults until there is one of each engine.
fn fetch_all(space: &AddressSpace, engines: usize) -> Vec<DeviceFault> {
    let mut faults = Vec::new();
    while faults.len() < engines {
        space.wait_fault();
        let mut out = [DeviceFault::default(); 4];
        let taken = space.fetch(&mut out);
        faults.extend_from_slice(&out[..taken]);
    }
    faults
}

#[test]
fn nobody_else_answers_a_fault_of_a_space() {
    let _alone = alone(30);
    let device = device();
    let [one, other] =
        [5, 9].map(|pasid| device.address_space(Pasid(pasid), 2 << 20).expect("memory for it"));
    let causes = Mutex::new(Vec::new());
    one.attach();
    other.attach();
    device.attach();
    std::thread::scope(|scope| {
        scope.spawn(|| {
            one.run(|engine| {
                let Err(AccessError::Fault { cause, .. }) = engine.load::<u64>(1 << 30) else {
                    panic!("nothing is mapped there");
                };
                causes.lock().expect("no panic").push(cause);
                Ok(())
            })
            .expect("the kernel handles its faults");
        });
        let faults = fetch_all(&one, 2);
        // Had any of these answered, a fault would be raised again, and the cancel would meet an old cookie.
        other.replay();
        device.replay();
        other.detach();
        device.detach();
        faults.iter().for_each(|fault| one.cancel(fault, FaultCause::NoMapping));
    });
    assert_eq!(*causes.lock().expect("no panic"), [FaultCause::NoMapping; 2]);
    assert_eq!((one.counters().faults, other.counters().faults), (2, 0));
}

#[test]
fn detaching_a_pasid_answers_every_fault_that_waits() {
    let _alone = alone(30);
    let device = device();
    let [one, other] =
        [5, 9].map(|pasid| device.address_space(Pasid(pasid), 2 << 20).expect("memory for it"));
    let at = 1u64 << 30;
    for space in [&one, &other] {
        space.attach();
        let memory = MapTarget::DeviceMemory(DevMemAddr(0));
        space.map(DevAddr(at), 1, memory, Access::Write).expect("maps");
    }
    one.run(|engine| engine.store(at, 1u64)).expect("mapped");
    other.run(|engine| engine.store(at, 2u64)).expect("mapped");
    std::thread::scope(|scope| {
        let kernel = scope.spawn(|| one.run(|engine| engine.load::<u64>(at + PAGE_BYTES).map(drop)));
        // One fault was fetched at least, others may still be in the buffer.
        assert!(!fetch_all(&one, 1).is_empty());
        one.detach_pasid();
        let ended = kernel.join().expect("no panic");
        assert!(
            matches!(ended, Err(AccessError::Fault { cause: FaultCause::ShuttingDown, .. })),
            "{ended:?}"
        );
    });
    let later = one.run(|engine| engine.load::<u64>(at).map(drop));
    assert!(matches!(later, Err(AccessError::Fault { cause: FaultCause::ShuttingDown, .. })), "{later:?}");
    let kernel = |engine: &mut Engine<'_>| {
        assert_eq!(engine.load::<u64>(at)?, 2);
        Ok(())
    };
    other.run(kernel).expect("the other space goes on");
}

#[test]
fn what_a_space_cannot_have_is_refused_and_given_back_with_it() {
    let device = device();
    let refused = |pasid, bytes| device.address_space(Pasid(pasid), bytes).map(drop).unwrap_err();
    assert_eq!(refused(0, 2 << 20), AttachError::NotSupported(Pasid(0)).into());
    assert_eq!(refused(1 << 16, 2 << 20), AttachError::NotSupported(Pasid(1 << 16)).into());
    assert_eq!(refused(5, 0), SpaceError::Memory(0));
    assert_eq!(refused(5, 4096), SpaceError::Memory(4096));
    assert_eq!(refused(5, 10 << 20), SpaceError::Memory(10 << 20));
    let one = device.address_space(Pasid(5), 6 << 20).expect("memory for it");
    assert_eq!(one.pasid(), Pasid(5));
    assert_eq!(refused(5, 2 << 20), AttachError::Busy(Pasid(5)).into());
    assert_eq!(device.attach_pasid(Pasid(5)), Err(AttachError::Busy(Pasid(5))));
    device.attach_pasid(Pasid(6)).expect("free");
    assert_eq!(refused(6, 2 << 20), AttachError::Busy(Pasid(6)).into());
    assert_eq!(refused(7, 4 << 20), SpaceError::Memory(4 << 20));
    let two = device.address_space(Pasid(7), 2 << 20).expect("what is left");
    drop(one);
    let again = device.address_space(Pasid(5), 6 << 20).expect("memory and PASID came back");
    // What one space writes is in its own part of the memory.
    for (space, value) in [(&two, 2u64), (&again, 3)] {
        let memory = MapTarget::DeviceMemory(DevMemAddr(0));
        space.map(DevAddr(1 << 30), 1, memory, Access::Write).expect("maps");
        space.run(|engine| engine.store(1 << 30, value)).expect("mapped");
    }
    let seen = [&two, &again].map(|space| {
        let window = space.window(DevMemAddr(0), 8).expect("a window");
        window[0].load(std::sync::atomic::Ordering::SeqCst)
    });
    assert_eq!(seen, [2, 3]);
    assert!(two.window(DevMemAddr(2 << 20), 8).is_none(), "the next part is another space's");
    assert_eq!(device.caps().memory_bytes, 8 << 20);
    device.lose();
    assert_eq!(refused(8, 2 << 20), AttachError::Resetting.into());
    let none = SoftwareDevice::builder().memory_bytes(4 << 20).space_memory_bytes(4 << 20).build();
    assert!(matches!(none, Err(BuildError::SpaceMemory(_))));
}
