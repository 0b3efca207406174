//! A kernel of one's own: doubles the words of an ordinary vector in a compute shader, `shaders/double.comp`.
//!
//! ```sh
//! cargo run -p granule-backends --features vulkan --example vulkan_own_kernel
//! ```

use std::error::Error;

use granule::ports::Count;
use granule::service::Svm;
use granule_backends::vulkan::VulkanDevice;

/// Compiled with `shaders/compile.sh`.
const DOUBLE: &[u8] = include_bytes!("../shaders/double.spv");

fn main() -> Result<(), Box<dyn Error>> {
    let device = VulkanDevice::builder().memory_bytes(16 << 20).build()?;
    let svm = Svm::builder().device(device.clone()).build()?;
    let kernel = device.kernel(DOUBLE)?;

    let mut words: Vec<u64> = (0..1_000_000).collect(); // ordinary memory, not registered anywhere
    device.launch(&kernel, words.len() as u32, &[words.as_mut_ptr() as u64])?;

    // The CPU takes its pages back as it looks at them.
    let is_right = std::hint::black_box(&words).iter().zip(0..).all(|(word, at)| *word == 2 * at);
    let stats = svm.stats();
    println!(
        "on {}: {} pages to the device, {} back: {}",
        device.info().name,
        stats.count(Count::PagesToDevice),
        stats.count(Count::PagesToRam),
        if is_right { "every word is doubled" } else { "WRONG" },
    );
    if is_right { Ok(()) } else { Err("a word is not what it should be".into()) }
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
