//! What it costs a program that its memory is mirrored: the first touch of never-touched memory.

mod support;

use std::time::Instant;

use criterion::Criterion;
use granule::units::{BLOCK_BYTES, DeviceId};
use granule::{Granularity, Svm};
use granule_backends::software::SoftwareDevice;
use support::{Bound, Region, Report, Row, is_quick, paired};

const PAGE: usize = 4096;
const PAGES_PER_BLOCK: usize = 512;

/// Writes to every page but the last of each block, in order; nanoseconds per page.
fn stream(region: &Region, from_block: usize, blocks: usize) -> f64 {
    let begin = Instant::now();
    for page in from_block * PAGES_PER_BLOCK..(from_block + blocks) * PAGES_PER_BLOCK {
        if page % PAGES_PER_BLOCK != PAGES_PER_BLOCK - 1 {
            support::touch(region.base().wrapping_add(page * PAGE));
        }
    }
    begin.elapsed().as_nanos() as f64 / (blocks * (PAGES_PER_BLOCK - 1)) as f64
}

fn main() {
    let mut c = Criterion::default().configure_from_args();
    let mut report = Report::new("mirrored");
    let blocks: usize = if is_quick() { 8 } else { 32 };
    let bytes = (blocks as u64 + 1) * BLOCK_BYTES;
    let device =
        SoftwareDevice::builder().memory_bytes(2 * bytes).engines(1).build().expect("a software device");
    let svm = Svm::builder().device(device.clone()).granularity(Granularity::Kib4).build().expect("a space");
    let one_page = |region: &Region, block: usize| {
        let at = (block as u64 + 1) * BLOCK_BYTES - PAGE as u64;
        assert_eq!(svm.prefetch(region.range(at, PAGE as u64), DeviceId(0)), Ok(1), "a page on the device");
    };
    let unmirrored = || stream(&Region::new(bytes, false), 1, blocks);
    let away_from_device = paired(&mut c, "mirrored/in_ram", unmirrored, || {
        let region = Region::new(bytes, false);
        // The first block is not streamed over: its page only makes the mapping a mirrored one.
        one_page(&region, 0);
        stream(&region, 1, blocks)
    });
    let with_a_page_away = paired(&mut c, "mirrored/on_device", unmirrored, || {
        let region = Region::new(bytes, false);
        (1..=blocks).for_each(|block| one_page(&region, block));
        stream(&region, 1, blocks)
    });
    for (what, pairs, bound) in [
        ("no page of the block on the device", away_from_device, 1.2),
        ("a page of each block on the device", with_a_page_away, 2.0),
    ] {
        if !pairs.0.is_empty() {
            let question = format!("streaming first touch of mirrored memory, {what}");
            report.push(Row::slower_by(&question, "us/page", 1e-3, &pairs, Bound::AtMost(bound)));
        }
    }
    c.final_summary();
}
