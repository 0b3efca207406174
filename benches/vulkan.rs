//! Sums in compute shaders: by faults over memory nobody told the device of, against a plain Vulkan program that copies the
//! same numbers into a buffer; and once more over pages that are there, against the plain kernel alone.

#![allow(unsafe_code, reason = "words that a shader writes are read and written")]

#[path = "../gpu-backends/examples/vulkan_list_plain.rs"]
mod plain;
mod support;

use std::time::Instant;

use criterion::Criterion;
use granule::units::PAGE_BYTES;
use granule::{Granularity, Svm};
use granule_backends::vulkan::{Mode, VulkanDevice, shaders};
use plain::{Buffer, Plain, Shader};
use support::{Bound, Region, Report, Row, is_quick, paired};

/// The plain kernel: the same sum in the same work groups, from a buffer.
const SUM: &[u8] = include_bytes!("../gpu-backends/shaders/plain_sum.spv");
const GROUP: u64 = 64;

/// The plain program: its kernel, the numbers, the sum.
struct Floor {
    plain: Plain,
    shader: Shader,
    data: Buffer,
    sum: Buffer,
    words: u64,
}

impl Floor {
    fn new(bytes: u64) -> Self {
        let plain = Plain::new().expect("a Vulkan device");
        let shader = plain.shader(SUM).expect("a shader");
        let (data, sum) = (plain.buffer(bytes).expect("memory"), plain.buffer(8).expect("memory"));
        Self { plain, shader, data, sum, words: bytes / 8 }
    }

    fn upload(&self, from: &Region) {
        support::copy(self.data.host.cast(), from.base(), self.words * 8);
    }

    fn sum(&self) -> u64 {
        // SAFETY: mapped, and no shader runs.
        unsafe { self.sum.host.write_volatile(0) };
        let groups = (self.words / 512).div_ceil(GROUP) as u32;
        let push = [self.data.address, self.words, self.sum.address];
        self.plain.run(self.shader, groups, push).expect("the plain kernel");
        // SAFETY: as above.
        unsafe { self.sum.host.read_volatile() }
    }
}

fn measure(c: &mut Criterion, report: &mut Report, mode: Mode, cold: f64, warm: f64) {
    let bytes: u64 = if is_quick() { 64 << 20 } else { 256 << 20 };
    let floor = Floor::new(bytes);
    // The sum lies behind the numbers, in a block of its own.
    let region = Region::touched(bytes + (2 << 20), false);
    let local = Region::touched(bytes, false);
    let numbers = &region.words()[..bytes as usize / 8];
    let expected = numbers.iter().fold(0u64, |sum, number| sum.wrapping_add(*number));
    let device =
        VulkanDevice::builder().memory_bytes(2 * bytes + (4 << 20)).mode(mode).build().expect("a device");
    let svm = Svm::builder()
        .device(device.clone())
        .window(region.whole())
        .granularity(Granularity::Mib2)
        .build()
        .expect("a space over a window");
    let kernel = device.kernel(shaders::SUM).expect("a kernel");
    let at = region.base() as u64;
    let result = at + bytes;
    let launch = || {
        let items = (bytes / PAGE_BYTES) as u32;
        device.launch(&kernel, items, &[at, bytes / 8, result, 1]).expect("every page is served");
    };
    // Brings everything home; says how many pages that were, and what the sum is, and sets it back.
    let take = || {
        let home = svm.to_ram(region.whole()).expect("a range inside of the window");
        // SAFETY: a word of the region that nobody else touches: no shader runs.
        let sum = unsafe {
            let word = region.base().cast::<u64>().add(bytes as usize / 8);
            let sum = word.read_volatile();
            word.write_volatile(0);
            sum
        };
        (home, sum)
    };
    take();
    let pairs = paired(
        c,
        &format!("vulkan/{}/cold", mode.name()),
        || {
            let begin = Instant::now();
            floor.upload(&local);
            let _ = floor.sum();
            begin.elapsed().as_nanos() as f64
        },
        || {
            let begin = Instant::now();
            launch();
            let ns = begin.elapsed().as_nanos() as f64;
            let (home, sum) = take();
            assert_eq!(sum, expected, "the sum by faults");
            assert!(home * 10 >= (bytes >> 12) * 9, "the pages had moved");
            ns
        },
    );
    let name = mode.name();
    if !pairs.0.is_empty() {
        let question = format!("Vulkan, {name}: sum over {} MiB by faults", bytes >> 20);
        let row = Row::speed(&question, bytes, &pairs, Bound::AtLeast(cold));
        report.push(row.note("floor: a plain Vulkan program, its upload included"));
    }
    launch();
    let pairs = paired(
        c,
        &format!("vulkan/{name}/warm"),
        || {
            let begin = Instant::now();
            let _ = floor.sum();
            begin.elapsed().as_nanos() as f64
        },
        || {
            let begin = Instant::now();
            launch();
            begin.elapsed().as_nanos() as f64
        },
    );
    if !pairs.0.is_empty() {
        let question = format!("Vulkan, {name}: the same again, pages there");
        let row = Row::slower_by(&question, "ms", 1e-6, &pairs, Bound::AtMost(warm));
        report.push(row.note("floor: the plain kernel alone"));
    }
    drop(svm);
}

fn main() {
    let mut c = Criterion::default().configure_from_args();
    let mut report = Report::new("vulkan");
    measure(&mut c, &mut report, Mode::Sparse, 0.5, 1.25);
    measure(&mut c, &mut report, Mode::Translation, 1.0 / 3.0, 1.6);
    c.final_summary();
}
