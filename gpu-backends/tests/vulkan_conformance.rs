//! Vulkan devices keep every promise, and a device that breaks one fails the check that names it.
#![cfg(feature = "vulkan")]

mod vulkan_support;

use std::sync::Arc;
use std::time::Duration;

use granule_backends::conformance::vulkan::VulkanUnderTest;
use granule_backends::conformance::{self, TestDevice};
use granule_backends::vulkan::VulkanDevice;

use vulkan_support::{builder, here, modes};

#[test]
fn the_vulkan_device_conforms() {
    let Some(_alone) = here() else { return };
    for (mode, builder) in modes() {
        let made = std::sync::Mutex::new(Vec::new());
        let make = || -> Arc<dyn TestDevice> {
            let test = VulkanUnderTest::new(builder.clone().validate(true)).expect("a Vulkan device");
            let test = Arc::new(test);
            made.lock().expect("no panic").push(test.clone());
            test
        };
        let report = conformance::run(&make);
        println!("{mode}:\n{report}");
        assert!(report.all_passed(), "{mode}:\n{report}");
        assert_eq!(report.outcomes.len(), conformance::names().count());
        let said: Vec<_> = made
            .lock()
            .expect("no panic")
            .iter()
            .flat_map(|test: &Arc<VulkanUnderTest>| test.device.validation_messages())
            .collect();
        assert!(said.is_empty(), "{mode}: the validation layer says:\n{}", said.join("\n"));
    }
}

/// Runs one check on a device that breaks a promise, and says how it failed.
fn broken(promise: fn(&VulkanDevice), check: &str) -> String {
    let make = || -> Arc<dyn TestDevice> {
        let test = VulkanUnderTest::new(builder()).expect("a Vulkan device");
        promise(&test.device);
        Arc::new(test)
    };
    let report = conformance::run_some(&make, Duration::from_secs(5), |name| name == check);
    assert_eq!(report.failed(), [check], "a broken promise went unnoticed");
    report.outcomes[0].failure.clone().expect("it failed")
}

#[test]
fn a_lost_fault_is_found() {
    let Some(_alone) = here() else { return };
    let why = broken(VulkanDevice::lose_faults, "no_fault_is_lost");
    assert!(why.contains("did not end"), "{why}");
}
