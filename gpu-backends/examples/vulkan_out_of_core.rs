//! A histogram over four times as much memory as the device has: pages come as the shader asks for them, and leave for the
//! next ones.
//!
//! ```sh
//! cargo run -p granule-backends --features vulkan --example vulkan_out_of_core
//! ```

use std::error::Error;

use granule::ports::Count;
use granule::service::Svm;
use granule_backends::vulkan::{VulkanDevice, shaders};

const DEVICE_BYTES: u64 = 8 << 20;
const WORDS: usize = 4 * DEVICE_BYTES as usize / 8;

/// 256 counters in a page of their own, which nothing else takes back and forth.
#[repr(align(4096))]
struct Bins([u64; 512]);

fn main() -> Result<(), Box<dyn Error>> {
    let device = VulkanDevice::builder().memory_bytes(DEVICE_BYTES).build()?;
    let svm = Svm::builder().device(device.clone()).build()?;
    let kernel = device.kernel(shaders::HISTOGRAM)?;

    let words: Vec<u64> = (0..WORDS as u64).map(|at| at.wrapping_mul(0x9e37_79b9_7f4a_7c15)).collect();
    let bins = Box::new(Bins([0; 512]));

    // One item per 64 KiB; each saves its own counts while it waits for a page.
    let items = (WORDS * 8).div_ceil(64 << 10) as u32;
    let arguments = [words.as_ptr() as u64, WORDS as u64, bins.0.as_ptr() as u64];
    device.launch_saving(&kernel, items, 258, &arguments)?;
    let counted = &std::hint::black_box(&bins).0[..256];

    let mut expected = [0u64; 256];
    words.iter().flat_map(|word| word.to_le_bytes()).for_each(|byte| expected[byte as usize] += 1);
    let stats = svm.stats();
    println!(
        "on {}: {} MiB through {} MiB of device memory, {} evictions: {}",
        device.info().name,
        (WORDS * 8) >> 20,
        DEVICE_BYTES >> 20,
        stats.count(Count::Evictions),
        if counted == expected { "every count is right" } else { "WRONG" },
    );
    if counted == expected { Ok(()) } else { Err("a count is not what it should be".into()) }
}

#[cfg(test)]
mod tests {
    #[test]
    fn it_runs() {
        match super::main() {
            Err(error) if error.to_string().starts_with("there is no Vulkan") => {
                let on_ci =
                    std::env::var("CI").is_ok_and(|value| !matches!(value.as_str(), "" | "0" | "false"));
                assert!(!on_ci, "{error}");
                println!("skipped: {error}");
            }
            ended => ended.expect("the example ends well"),
        }
    }
}
