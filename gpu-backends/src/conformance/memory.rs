//! Device memory: capabilities, copies, the window.

use granule::units::{BLOCK_BYTES, DevMemAddr, PAGE_BYTES};

use super::TestDevice;
use super::check::{done, fill, filled, holds, pages, put_page, same};

pub(super) fn caps_are_whole(test: &dyn TestDevice) -> Result<(), String> {
    let caps = test.device().caps();
    holds("memory_bytes is a multiple of 2 MiB", caps.memory_bytes.is_multiple_of(BLOCK_BYTES))?;
    holds("the device under test has at least 8 MiB", caps.memory_bytes >= 4 * BLOCK_BYTES)?;
    holds("the device under test has at least 2 engines", test.engines() >= 2)?;
    holds("the device has a name", !caps.name.is_empty())?;
    same("caps are constant", test.device().caps(), caps)
}

pub(super) fn copies_come_back(test: &dyn TestDevice) -> Result<(), String> {
    let device = test.device();
    let (to, from) = (pages(512)?, pages(512)?);
    for (salt, (at, count)) in
        [(0, 1), (5, 16), (BLOCK_BYTES / PAGE_BYTES, 512), (1023, 1)].into_iter().enumerate()
    {
        let (to, from) = (&to.as_words()[..count * 512], &from.as_words()[..count * 512]);
        fill(from, salt as u64);
        done("copy_in", device.copy_in(DevMemAddr(at * PAGE_BYTES), from))?;
        filled("copy_in leaves its source", from, salt as u64)?;
        done("copy_out", device.copy_out(DevMemAddr(at * PAGE_BYTES), to))?;
        filled("copy_out of what copy_in wrote", to, salt as u64)?;
    }
    done("copy_out", device.copy_out(DevMemAddr(0), &to.as_words()[..512]))?;
    filled("a copy elsewhere leaves other pages alone", &to.as_words()[..512], 0)
}

pub(super) fn the_window_shows_device_memory(test: &dyn TestDevice) -> Result<(), String> {
    let device = test.device();
    let at = DevMemAddr(3 * PAGE_BYTES);
    put_page(device, at, 9)?;
    let window = device.window(at, PAGE_BYTES);
    same("driver_free says whether there is a window", window.is_some(), device.caps().driver_free)?;
    let beyond = device.window(DevMemAddr(device.caps().memory_bytes), PAGE_BYTES);
    holds("there is no window beyond the end of the memory", beyond.is_none())?;
    match window {
        Some(words) => {
            same("words in a window of a page", words.len(), 512)?;
            filled("the window", words, 9)
        }
        None => Ok(()),
    }
}
