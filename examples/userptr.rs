//! A range registered in advance, as a driver without page faults uses it: validate, submit, and again when it was
//! invalidated meanwhile, while a thread of the application discards pages; then a partial munmap.
//!
//! `cargo run --release --example userptr`
#![allow(unsafe_code, reason = "maps, discards and unmaps memory as an application does")]

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use granule::Svm;
use granule::ports::Count;
use granule::service::{Userptr, UserptrError, UserptrOptions};
use granule::units::{DevAddr, PAGE_BYTES, VirtAddr};
use granule_backends::software::SoftwareDevice;

const PAGES: u64 = 64;
/// Where the driver wants the device to see the range.
const DEVICE_AT: DevAddr = DevAddr(0x2000_0000_0000);
/// At least so many, and at least until a page was discarded.
const SUBMISSIONS: u64 = 200;

fn print_ranges(userptr: &Userptr, when: &str) -> Result<usize, UserptrError> {
    let ranges = userptr.dma_ranges()?;
    println!("{when}:");
    for range in &ranges {
        println!("  {} + {} KiB", range.addr, range.len / 1024);
    }
    Ok(ranges.len())
}

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let device = SoftwareDevice::builder().memory_bytes(16 << 20).engines(1).build()?;
    let svm = Svm::builder().device(device.clone()).build()?;
    // SAFETY: fresh anonymous memory, unmapped below.
    let start = unsafe {
        let (bytes, protection) = ((PAGES * PAGE_BYTES) as usize, libc::PROT_READ | libc::PROT_WRITE);
        libc::mmap(std::ptr::null_mut(), bytes, protection, libc::MAP_PRIVATE | libc::MAP_ANONYMOUS, -1, 0)
    };
    assert_ne!(start, libc::MAP_FAILED);
    let at = start as u64;

    let options = UserptrOptions { device_at: Some(DEVICE_AT), ..UserptrOptions::default() };
    let userptr = svm.userptr(VirtAddr(at), PAGES * PAGE_BYTES, options)?;
    assert_eq!(print_ranges(&userptr, "registered")?, 1);

    // The counter lies in page 0; the other thread discards page 1, again and again.
    let (ended, discarded, refused) = (AtomicBool::new(false), AtomicU64::new(0), AtomicU64::new(0));
    let submitted = std::thread::scope(|scope| -> Result<u64, Box<dyn std::error::Error>> {
        scope.spawn(|| {
            while !ended.load(Ordering::SeqCst) {
                // SAFETY: a page of the range that nobody else looks at.
                let rc = unsafe {
                    libc::madvise((at + PAGE_BYTES) as *mut _, PAGE_BYTES as usize, libc::MADV_DONTNEED)
                };
                assert_eq!(rc, 0);
                discarded.fetch_add(1, Ordering::SeqCst);
                std::thread::yield_now();
            }
        });
        let submit_all = || -> Result<u64, Box<dyn std::error::Error>> {
            let mut done = 0;
            let mut valid = userptr.validate()?;
            while done < SUBMISSIONS || discarded.load(Ordering::SeqCst) == 0 {
                match valid.submit() {
                    // While it lives, an invalidation waits: nothing here may touch memory that can be away.
                    Ok(submission) => {
                        device.run(|engine| engine.fetch_add_u64(DEVICE_AT.0, 1).map(drop))?;
                        drop(submission);
                        done += 1;
                    }
                    Err(UserptrError::Invalidated) => {
                        refused.fetch_add(1, Ordering::SeqCst);
                        valid = userptr.validate()?;
                    }
                    Err(other) => return Err(other.into()),
                }
            }
            Ok(done)
        };
        let result = submit_all();
        ended.store(true, Ordering::SeqCst);
        result
    })?;
    // SAFETY: page 0 is mapped, and no device writes it any more.
    assert_eq!(unsafe { *(at as *const u64) }, submitted);
    let (discarded, refused) = (discarded.into_inner(), refused.into_inner());
    println!("{submitted} submissions, {refused} refused and validated again, {discarded} discards");
    userptr.validate()?;

    // SAFETY: pages 10 to 12 of the mapping; nobody uses them.
    assert_eq!(unsafe { libc::munmap((at + 10 * PAGE_BYTES) as *mut _, 3 * PAGE_BYTES as usize) }, 0);
    assert_eq!(print_ranges(&userptr, "after munmap of pages 10 to 12, the rest at its old place")?, 2);
    let stats = svm.stats();
    assert_eq!(stats.count(Count::PagesToDevice), 0, "nothing moved");
    println!(
        "linked {} pages, unlinked {}, moved none",
        stats.count(Count::PagesLinked),
        stats.count(Count::PagesUnlinked)
    );
    drop(userptr);
    drop(svm);
    // SAFETY: mapped above; a hole in it is fine.
    assert_eq!(unsafe { libc::munmap(start, (PAGES * PAGE_BYTES) as usize) }, 0);
    Ok(())
}
