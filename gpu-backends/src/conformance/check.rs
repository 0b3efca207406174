//! Small words for checks.

use std::fmt::Debug;
use std::sync::atomic::Ordering;

use granule::os::private::PrivateBytes;
use granule::ports::{Device, MapTarget, WORDS_PER_PAGE, Word};
use granule::units::{Access, BLOCK_BYTES, DevAddr, DevMemAddr, Iova, PAGE_BYTES, PhysAddr};

use super::{Refused, TestDevice, TestEngine};

/// Where checks map things: a block that lies nowhere near the process's own.
pub(super) const BASE: u64 = 0x1230_0000_0000 & !(BLOCK_BYTES - 1);
pub(super) const RW: Access = Access::Write;

/// Fails with a sentence unless two values are the same.
pub(super) fn same<T: PartialEq + Debug>(what: &str, seen: T, promised: T) -> Result<(), String> {
    if seen == promised { Ok(()) } else { Err(format!("{what}: promised {promised:?}, seen {seen:?}")) }
}

/// Fails with a sentence unless something holds.
pub(super) fn holds(what: &str, holds: bool) -> Result<(), String> {
    if holds { Ok(()) } else { Err(format!("broken: {what}")) }
}

/// Turns an error of the device into a sentence.
pub(super) fn done<T, E: Debug>(what: &str, result: Result<T, E>) -> Result<T, String> {
    result.map_err(|error| format!("{what}: {error:?}"))
}

/// Private memory of so many pages.
pub(super) fn pages(count: u64) -> Result<PrivateBytes, String> {
    done("private memory", PrivateBytes::aligned(count * PAGE_BYTES, BLOCK_BYTES))
}

/// Private memory of so many pages that the device can link.
pub(super) fn linkable(test: &dyn TestDevice, count: u64) -> Result<PrivateBytes, String> {
    let memory = pages(count)?;
    holds("a device can link private memory of the library", test.admit(memory.range()))?;
    Ok(memory)
}

/// Fills every word with a number made of its position and `salt`.
pub(super) fn fill(words: &[Word], salt: u64) {
    words.iter().zip(0..).for_each(|(word, at)| word.store(expected(at, salt), Ordering::SeqCst));
}

/// What `fill` writes at a position.
pub(super) fn expected(at: u64, salt: u64) -> u64 {
    (at + 1).wrapping_mul(0x9e37_79b9_7f4a_7c15) ^ salt
}

/// Fails unless the words hold what `fill` wrote.
pub(super) fn filled(what: &str, words: &[Word], salt: u64) -> Result<(), String> {
    for (word, at) in words.iter().zip(0..) {
        let seen = word.load(Ordering::SeqCst);
        if seen != expected(at, salt) {
            return Err(format!("{what}: word {at} is {seen:#x}, promised {:#x}", expected(at, salt)));
        }
    }
    Ok(())
}

/// Writes one page of device memory from `fill`.
pub(super) fn put_page(device: &dyn Device, at: DevMemAddr, salt: u64) -> Result<(), String> {
    let page = pages(1)?;
    fill(page.as_words(), salt);
    done("copy_in", device.copy_in(at, page.as_words()))
}

/// The first word of a page of device memory.
pub(super) fn first_word(device: &dyn Device, at: DevMemAddr) -> Result<u64, String> {
    let page = pages(1)?;
    done("copy_out", device.copy_out(at, page.as_words()))?;
    Ok(page.as_words()[0].load(Ordering::SeqCst))
}

/// Maps pages to device memory.
pub(super) fn map(device: &dyn Device, at: u64, count: u64, to: u64, access: Access) -> Result<(), String> {
    let target = MapTarget::DeviceMemory(DevMemAddr(to));
    done("map to device memory", device.map(DevAddr(at), count, target, access))
}

/// Links pages of `memory` at an IOVA and maps them at the same device address.
pub(super) fn link(
    device: &dyn Device,
    at: u64,
    memory: &PrivateBytes,
    count: u64,
    access: Access,
) -> Result<(), String> {
    let phys = PhysAddr(memory.base().0);
    done("iommu map", device.iommu().map(Iova(at), phys, count * PAGE_BYTES, access))?;
    done("map to system memory", device.map(DevAddr(at), count, MapTarget::System(Iova(at)), access))
}

/// Runs `kernel` on engine 0 alone and returns what it returned.
pub(super) fn on_one<R: Send>(test: &dyn TestDevice, kernel: impl Fn(&mut dyn TestEngine) -> R + Sync) -> R {
    let result = std::sync::Mutex::new(None);
    test.run(&|engine| {
        if engine.index() == 0 {
            let returned = kernel(engine);
            *result.lock().expect("no check panics in a kernel") = Some(returned);
        }
    });
    result.into_inner().expect("no check panics in a kernel").expect("run executes the kernel on engine 0")
}

/// Reads one word on engine 0.
pub(super) fn load(test: &dyn TestDevice, at: u64) -> Result<u64, Refused> {
    on_one(test, |engine| engine.load(at))
}

/// Fails unless page `n` of a mapping at `at` shows page `n` of what `fill` wrote, for every page.
pub(super) fn shows_pages(
    test: &dyn TestDevice,
    what: &str,
    at: u64,
    count: u64,
    salt: u64,
) -> Result<(), String> {
    let seen = on_one(test, |engine| {
        (0..count).map(|page| engine.load(at + page * PAGE_BYTES + 8 * (page % 512))).collect::<Vec<_>>()
    });
    for (seen, page) in seen.into_iter().zip(0..) {
        let word = page * WORDS_PER_PAGE as u64 + page % 512;
        same(&format!("{what}, page {page}"), seen, Ok(expected(word, salt)))?;
    }
    Ok(())
}
