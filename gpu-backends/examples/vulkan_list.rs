//! A linked list, built by the CPU out of ordinary boxes, summed by a compute shader on the same pointers. The same without
//! the library is `vulkan_list_plain.rs`.
//!
//! ```sh
//! cargo run -p granule-backends --features vulkan --example vulkan_list
//! ```

use std::error::Error;

use granule::service::Svm;
use granule_backends::vulkan::{VulkanDevice, shaders};

const NODES: u64 = 10_000;

/// What `shaders/list.comp` walks.
#[allow(dead_code, reason = "the shader reads the values")]
#[repr(C)]
struct Node {
    next: Option<Box<Node>>,
    value: u64,
    made: u64,
    tag: u64,
}

fn main() -> Result<(), Box<dyn Error>> {
    let device = VulkanDevice::builder().build()?;
    let _svm = Svm::builder().device(device.clone()).build()?;
    let kernel = device.kernel(shaders::LIST)?;

    let mut first: Option<Box<Node>> = None;
    for value in 1..=NODES {
        first = Some(Box::new(Node { next: first, value, made: 0, tag: 0 }));
    }

    let sum = Box::new([0u64; 512]);
    let head = first.as_deref().map_or(0, |node| std::ptr::from_ref(node) as u64);
    device.launch(&kernel, 1, &[sum.as_ptr() as u64, head])?;
    let sum = std::hint::black_box(&sum)[0];

    println!("on {}: the sum of {NODES} nodes is {sum}", device.info().name);
    // A long list is taken apart node by node, not by recursion.
    while let Some(node) = first {
        first = node.next;
    }
    if sum == NODES * (NODES + 1) / 2 { Ok(()) } else { Err("the sum is wrong".into()) }
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
