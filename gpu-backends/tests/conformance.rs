//! The software device keeps every promise, and a device that breaks one fails the check that names it.

use std::sync::Arc;
use std::time::Duration;

use granule::ports::Device;
use granule::units::Pasid;
use granule_backends::conformance::software::SoftwareUnderTest;
use granule_backends::conformance::{self, TestDevice, TestEngine};
use granule_backends::software::{AddressSpace, Broken, SoftwareDevice};

#[test]
fn the_software_device_conforms() {
    let report = conformance::run(&|| Arc::new(SoftwareUnderTest::new()));
    println!("{report}");
    assert!(report.all_passed(), "{report}");
    assert_eq!(report.outcomes.len(), conformance::names().count());
}

/// A space of a device under a PASID.
struct SpaceUnderTest(AddressSpace);

impl TestDevice for SpaceUnderTest {
    fn device(&self) -> &dyn Device {
        &self.0
    }
    fn engines(&self) -> usize {
        3
    }
    fn run(&self, kernel: &(dyn Fn(&mut dyn TestEngine) + Sync)) {
        let ended = self.0.run(|engine| {
            kernel(engine);
            Ok(())
        });
        assert_eq!(ended, Ok(()), "a kernel of the suite returns no error and does not panic");
    }
}

#[test]
fn an_address_space_of_the_software_device_conforms() {
    let report = conformance::run(&|| {
        let builder = SoftwareDevice::builder().memory_bytes(16 << 20).space_memory_bytes(8 << 20);
        let builder = builder.engines(3).fault_buffer_entries(2).pasid_bits(8);
        let device = builder.build().expect("a small software device can be built");
        Arc::new(SpaceUnderTest(device.address_space(Pasid(3), 8 << 20).expect("a space")))
    });
    assert!(report.all_passed(), "{report}");
}

/// Runs one check on a device that breaks a promise, and says how it failed.
fn broken(promise: Broken, check: &str) -> String {
    let make = || -> Arc<dyn TestDevice> {
        let test = SoftwareUnderTest::new();
        test.0.break_promise(promise);
        Arc::new(test)
    };
    let report = conformance::run_some(&make, Duration::from_secs(5), |name| name == check);
    assert_eq!(report.failed(), [check], "a broken promise went unnoticed");
    report.outcomes[0].failure.clone().expect("it failed")
}

#[test]
fn a_flush_that_does_not_wait_is_found() {
    let why = broken(Broken::FlushWaits, "flush_does_not_wait_for_a_cpu_fault");
    assert!(why.contains("unmapped and flushed"), "{why}");
}

#[test]
fn a_quiesce_that_does_not_wait_is_found() {
    let why = broken(Broken::FlushWaits, "quiesce_does_not_wait_for_a_cpu_fault");
    assert!(why.contains("while quiesced"), "{why}");
}

#[test]
fn a_lost_fault_is_found() {
    let why = broken(Broken::KeepsFaults, "no_fault_is_lost");
    assert!(why.contains("did not end"), "{why}");
}
