//! How much memory the state takes: private mappings as the kernel counts them, and the heap by a counting allocator.
#![allow(unsafe_code, reason = "a counting allocator, and mappings far apart")]

#[path = "support/counting.rs"]
mod counting;
mod support;

use counting::live_bytes;

use granule::service::MemoryUse;
use granule::units::{DeviceId, GRANULE_BYTES, VirtAddr, VirtRange};
use granule::{Granularity, Svm};
use granule_backends::software::SoftwareDevice;
use support::{Bound, Region, Report, Row, is_quick};

/// What the budget is for: table, granules, blocks and the bookkeeping of IOVAs (on the heap).
fn state_bytes(memory: &MemoryUse) -> u64 {
    memory.table_bytes + memory.granule_bytes + memory.block_bytes
}

/// Growth of state by `act`: private memory and heap.
fn growth(svm: &Svm, act: impl FnOnce()) -> (u64, u64, MemoryUse) {
    // A space asks for a little memory at its first request (channels); that is no state.
    let _ = svm.to_ram(VirtRange::default());
    let heap = live_bytes();
    let before = state_bytes(&svm.stats().memory);
    act();
    let heap = live_bytes().saturating_sub(heap);
    let memory = svm.stats().memory;
    (state_bytes(&memory) - before, heap, memory)
}

fn dense(report: &mut Report, granularity: Granularity, slots: &str) {
    let bytes: u64 = if is_quick() { 512 << 20 } else { 4 << 30 };
    let device =
        SoftwareDevice::builder().memory_bytes(256 << 20).engines(1).build().expect("a software device");
    let region = Region::new(bytes, false);
    let svm = Svm::builder()
        .device(device)
        .granularity(granularity)
        .window(region.whole())
        .build()
        .expect("a space over a window");
    let (private, heap, memory) = growth(&svm, || {
        let pages = svm.prefetch(region.whole(), DeviceId(0)).expect("a range inside of the window");
        assert_eq!(pages, bytes >> 12, "the device was given every page");
    });
    let per_page = (private + heap) as f64 / (bytes >> 12) as f64;
    let question = format!("state of a dense region in slots of {slots}");
    report.push(Row::exact(&question, "bytes/page", per_page, Bound::AtMost(1.0)).note(format!(
        "{} MiB by way of a device with 256 MiB; {private} bytes private, {heap} heap; shown apart: {} of device \
         memory's records, {} of 4 KiB slots, {} of staging",
        bytes >> 20,
        memory.device_record_bytes,
        memory.fine_slot_bytes,
        memory.staging_bytes
    )));
}

fn sparse(report: &mut Report) {
    const GRANULES: u64 = 1000;
    let room = Granules::new(GRANULES + 1);
    let device =
        SoftwareDevice::builder().memory_bytes(128 << 20).engines(1).build().expect("a software device");
    let svm = Svm::builder().device(device).build().expect("a space");
    let (private, heap, memory) = growth(&svm, || {
        for granule in 0..GRANULES {
            assert_eq!(svm.prefetch(room.page(granule), DeviceId(0)), Ok(1), "its page is served");
        }
    });
    let per_granule = (private + heap) as f64 / GRANULES as f64;
    let question = "state of a granule with one touched page, mean over a thousand";
    report.push(Row::exact(question, "bytes", per_granule, Bound::AtMost(4096.0)).note(format!(
        "{private} bytes private, {heap} heap; shown apart: {} of device memory's records",
        memory.device_record_bytes
    )));
}

/// A page in each of many granules.
struct Granules {
    base: u64,
    bytes: usize,
}

impl Granules {
    fn new(granules: u64) -> Self {
        let bytes = (granules * GRANULE_BYTES) as usize;
        let flags = libc::MAP_PRIVATE | libc::MAP_ANONYMOUS | libc::MAP_NORESERVE;
        // SAFETY: a new mapping wherever the kernel likes.
        let at = unsafe { libc::mmap(std::ptr::null_mut(), bytes, libc::PROT_NONE, flags, -1, 0) };
        assert_ne!(at, libc::MAP_FAILED, "room for {granules} granules");
        let all = Self { base: at as u64, bytes };
        for granule in 0..granules - 1 {
            let page = all.page(granule);
            let protection = libc::PROT_READ | libc::PROT_WRITE;
            // SAFETY: a page inside of the mapping made above; the touch is of that page.
            unsafe {
                let rc = libc::mprotect(page.start().0 as *mut _, page.bytes() as usize, protection);
                assert_eq!(rc, 0, "a page can be made accessible");
            }
            support::touch(page.start().0 as *mut u8);
        }
        all
    }

    fn page(&self, granule: u64) -> VirtRange {
        let first = self.base.next_multiple_of(GRANULE_BYTES);
        VirtRange::of_pages(VirtAddr(first + granule * GRANULE_BYTES), 1)
    }
}

impl Drop for Granules {
    fn drop(&mut self) {
        // SAFETY: mapped by `new`, unmapped once; no space follows it any more or its reader lets this go on.
        unsafe { libc::munmap(self.base as *mut _, self.bytes) };
    }
}

fn main() {
    let mut report = Report::new("state");
    dense(&mut report, Granularity::Mib2, "2 MiB");
    dense(&mut report, Granularity::Kib64, "64 KiB");
    sparse(&mut report);
}
