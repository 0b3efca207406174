//! Is there a Vulkan device here, and which one is meant?
#![allow(dead_code, reason = "each test uses a part")]

use std::sync::{Mutex, MutexGuard, PoisonError};

use granule_backends::vulkan::{Builder, Mode, Select, VulkanDevice, devices};

/// The device that `GRANULE_VULKAN_DEVICE` names (a number or a part of a name), else any.
pub fn chosen() -> Select {
    std::env::var("GRANULE_VULKAN_DEVICE").map_or(Select::Any, |text| Select::parse(&text))
}

/// A builder for the chosen device.
pub fn builder() -> Builder {
    VulkanDevice::builder().select(chosen())
}

/// Ways in which shaders reach device memory: translation; sparse buffers with the driver's own unit, and with units of
/// 64 KiB. Where `CI` is set, a device without sparse buffers is a failure.
pub fn modes() -> Vec<(&'static str, Builder)> {
    let mut all = vec![("translation", builder().mode(Mode::Translation))];
    let sparse = builder().mode(Mode::Sparse);
    match sparse.clone().build() {
        Ok(_) => all.extend([("sparse", sparse.clone()), ("sparse 64 KiB", sparse.sparse_unit(64 << 10))]),
        Err(why) => {
            assert!(!on_ci(), "{why}");
            println!("without sparse mode: {why}");
        }
    }
    all
}

/// Whether this is continuous integration.
pub fn on_ci() -> bool {
    std::env::var("CI").is_ok_and(|value| !matches!(value.as_str(), "" | "0" | "false"))
}

/// This test is the only one of its program that runs: each has a space over the whole process.
pub struct Alone(#[allow(dead_code, reason = "held")] MutexGuard<'static, ()>);

/// Whether the test can run, and then alone. Where `CI` is set, a missing device fails it; elsewhere it says why it is
/// passed over.
pub fn here() -> Option<Alone> {
    static ONE: Mutex<()> = Mutex::new(());
    is_here().then(|| Alone(ONE.lock().unwrap_or_else(PoisonError::into_inner)))
}

fn is_here() -> bool {
    let why = match devices() {
        Ok(all) if all.iter().any(|device| device.lacks.is_none()) => return true,
        Ok(all) => all
            .iter()
            .map(|device| format!("{} lacks {}", device.name, device.lacks.unwrap_or("nothing")))
            .collect::<Vec<_>>()
            .join("; "),
        Err(error) => error.to_string(),
    };
    assert!(!on_ci(), "no Vulkan device to test: {why}");
    println!("skipped: {why}");
    false
}

/// A page of the heap that nobody else has a part of.
#[repr(align(4096))]
pub struct Aligned([u64; 512]);

impl Aligned {
    /// Begins with these words.
    pub fn of<const N: usize>(words: [u64; N]) -> Box<Self> {
        let mut page = Box::new(Self([0; 512]));
        page.0[..N].copy_from_slice(&words);
        page
    }
    /// What a device calls it.
    pub fn address(&self) -> u64 {
        self.0.as_ptr() as u64
    }
    /// The words, as they are now: a device may have written them.
    #[allow(unsafe_code, reason = "a device writes behind the compiler's back")]
    pub fn words(&self) -> [u64; 512] {
        // SAFETY: a valid reference, read when no device is at work.
        unsafe { std::ptr::read_volatile(&self.0) }
    }
}
