//! Flush and quiesce wait for whoever is inside a window. What shows it is data: additions that would be lost, a word that
//! would change while the device stands still. Each is shown with a device that breaks the promise, too.
#![cfg(feature = "vulkan")]

mod vulkan_support;

use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use granule::os::private::PrivateBytes;
use granule::ports::{Device, DeviceFault, MapTarget};
use granule::units::{Access, DevAddr, DevMemAddr, PAGE_BYTES};
use granule_backends::vulkan::{Broken, VulkanDevice, shaders};

use vulkan_support::{chosen, here};

/// The page that is added to.
const AT: u64 = 0x10_0000_0000;
const ITEMS: u64 = 2;
const ROUNDS: u64 = 100;
/// Long enough that a window is open nearly always.
const ADDITIONS: u64 = 20_000;
/// What a launch adds.
const ADDED: u64 = ITEMS * ROUNDS * ADDITIONS;
/// How long a device is watched that stands still.
const STILL: Duration = Duration::from_millis(20);
/// How often the device is disturbed at least.
const TIMES: usize = 40;

/// Two items add to a word of a page, launch after launch, while `disturb` does something to the device at least so many
/// times. It is given the number of its round and called again when the word in the slot that `now` names has grown.
/// Faults on the page wait while it is at work and are answered after it. Returns what was added, and what it said.
fn hammered<T: Send>(
    device: &VulkanDevice,
    now: fn(u64) -> DevMemAddr,
    mut disturb: impl FnMut(u64) -> T + Send,
) -> (u64, Vec<T>) {
    let kernel = device.kernel(shaders::HAMMER).expect("a kernel");
    device.attach();
    let (stop, at_work) = (AtomicBool::new(false), Mutex::new(()));
    let times = AtomicUsize::new(0);
    let ended = std::thread::scope(|scope| {
        let server = scope.spawn(|| {
            let mut faults = [DeviceFault::default(); 16];
            while !stop.load(Ordering::SeqCst) {
                device.wait_fault();
                let _idle = at_work.lock();
                if device.fetch(&mut faults) > 0 {
                    device.replay();
                }
            }
        });
        let disturber = scope.spawn(|| {
            let mut said = Vec::new();
            while !stop.load(Ordering::SeqCst) {
                {
                    let _busy = at_work.lock();
                    said.push(disturb(said.len() as u64));
                }
                times.store(said.len(), Ordering::SeqCst);
                let here = now(said.len() as u64);
                let before = word(device, here);
                while word(device, here) == before && !stop.load(Ordering::SeqCst) {
                    std::thread::yield_now();
                }
            }
            said
        });
        let mut added = Ok(0);
        while times.load(Ordering::SeqCst) < TIMES && added.is_ok() {
            let launched = device.launch(&kernel, ITEMS as u32, &[AT, ROUNDS, ADDITIONS]);
            added = launched.and_then(|_| added.map(|added| added + ADDED));
        }
        stop.store(true, Ordering::SeqCst);
        device.interrupt();
        server.join().expect("no panic");
        (added.expect("the additions"), disturber.join().expect("no panic"))
    });
    device.detach();
    ended
}

fn made() -> VulkanDevice {
    let device = VulkanDevice::builder().select(chosen()).memory_bytes(2 << 20).build().expect("a device");
    place(&device, 0);
    device
}

/// Slots of a page each, which take turns.
fn slot(round: u64) -> DevMemAddr {
    DevMemAddr(round % 64 * PAGE_BYTES)
}

fn place(device: &VulkanDevice, round: u64) {
    let target = MapTarget::DeviceMemory(slot(round));
    device.map(DevAddr(AT), 1, target, Access::Write).expect("a page of the table");
}

fn word(device: &VulkanDevice, at: DevMemAddr) -> u64 {
    device.window(at, 8).expect("device memory")[0].load(Ordering::SeqCst)
}

/// Moves the page from slot to slot while it is added to; says how many additions were lost on how many moves.
fn lost(device: &VulkanDevice) -> (u64, u64) {
    let copy = PrivateBytes::new(PAGE_BYTES).expect("a page");
    let (added, moves) = hammered(device, slot, |round| {
        device.unmap(DevAddr(AT), 1);
        device.flush(DevAddr(AT), 1);
        device.copy_out(slot(round), copy.as_words()).expect("a copy");
        device.copy_in(slot(round + 1), copy.as_words()).expect("a copy");
        place(device, round + 1);
    });
    let moves = moves.len() as u64;
    (added - word(device, slot(moves)), moves)
}

#[test]
fn a_flush_loses_no_addition() {
    let Some(_alone) = here() else { return };
    let (lost, moves) = lost(&made());
    assert_eq!(lost, 0, "additions were lost on {moves} moves");
}

#[test]
fn a_flush_that_does_not_wait_loses_additions() {
    let Some(_alone) = here() else { return };
    let device = made();
    device.break_promise(Broken::Flush);
    let (lost, moves) = lost(&device);
    assert!(lost > 0, "nothing was lost on {moves} moves");
}

/// How many additions were seen while the device stood still, and how often it did.
fn moved_while_quiet(device: &VulkanDevice) -> (u64, usize) {
    let (added, seen) = hammered(
        device,
        |_| slot(0),
        |_| {
            device.quiesce();
            let (before, begin) = (word(device, slot(0)), Instant::now());
            while word(device, slot(0)) == before && begin.elapsed() < STILL {
                std::thread::yield_now();
            }
            let seen = word(device, slot(0)) - before;
            device.resume();
            seen
        },
    );
    assert_eq!(word(device, slot(0)), added);
    (seen.iter().sum(), seen.len())
}

#[test]
fn a_quiesced_device_stands_still() {
    let Some(_alone) = here() else { return };
    let (moved, times) = moved_while_quiet(&made());
    assert_eq!(moved, 0, "additions while it stood still, in {times} times");
}

#[test]
fn a_device_that_does_not_stop_is_found() {
    let Some(_alone) = here() else { return };
    let device = made();
    device.break_promise(Broken::Quiesce);
    let (moved, times) = moved_while_quiet(&device);
    assert!(moved > 0, "nothing moved in {times} times");
}
