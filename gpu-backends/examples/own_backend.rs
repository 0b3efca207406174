//! A backend of one's own, as small as it gets: every call of [`Device`] and [`Iommu`] with a word on what a driver
//! does there. This one passes each call on to the software device, so that it runs anywhere and passes the
//! conformance suite; a driver replaces the bodies one by one and runs the suite after each.
//!
//! ```sh
//! cargo run -p granule-backends --example own_backend
//! ```

use std::process::ExitCode;
use std::sync::Arc;

use granule::ports::{
    Device, DeviceCaps, DeviceError, DeviceFault, FaultCause, Iommu, IommuError, MapTarget, Mapped, Word,
};
use granule::units::{Access, DevAddr, DevMemAddr, Iova, PhysAddr};
use granule_backends::conformance::{self, TestDevice, TestEngine};
use granule_backends::software::SoftwareDevice;

/// The backend. Everything that rule 1 of [`Device`] names must be reachable without touching the heap: keep it in
/// `granule::os::private`.
struct OwnBackend {
    below: SoftwareDevice,
}

impl Device for OwnBackend {
    fn caps(&self) -> DeviceCaps {
        // Say `driver_free: false` unless the host maps the device's memory, and `can_quiesce: false` unless
        // engines can be stopped between two accesses.
        DeviceCaps { name: "own", ..self.below.caps() }
    }
    fn copy_in(&self, dst: DevMemAddr, src: &[Word]) -> Result<(), DeviceError> {
        // A copy engine, or memcpy through the window. Return when the data are there.
        self.below.copy_in(dst, src)
    }
    fn copy_out(&self, src: DevMemAddr, dst: &[Word]) -> Result<(), DeviceError> {
        // The only copy of the data may be on the device: report what failed, change nothing.
        self.below.copy_out(src, dst)
    }
    fn window(&self, at: DevMemAddr, bytes: u64) -> Option<&[Word]> {
        self.below.window(at, bytes)
    }
    fn map(&self, at: DevAddr, pages: u64, target: MapTarget, access: Access) -> Result<(), DeviceError> {
        // Write page table entries. Choose the largest leaves that address, target and length allow. Find out
        // whether there is memory for tables before the first entry changes.
        self.below.map(at, pages, target, access)
    }
    fn unmap(&self, at: DevAddr, pages: u64) {
        // Clear entries. Cannot fail: keep a table in reserve for each large leaf that may have to be split.
        self.below.unmap(at, pages);
    }
    fn flush(&self, at: DevAddr, pages: u64) {
        // Invalidate the TLBs and wait until accesses that used them are over and their writes have landed.
        self.below.flush(at, pages);
    }
    fn quiesce(&self) {
        // Preempt the engines, or close the way to system memory, and wait.
        self.below.quiesce();
    }
    fn resume(&self) {
        self.below.resume();
    }
    fn attach(&self) {
        self.below.attach();
    }
    fn detach(&self) {
        // Cancel what is outstanding; nobody will answer it.
        self.below.detach();
    }
    fn wait_fault(&self) {
        // An interrupt of the device, or `interrupt` below: an eventfd that both write to will do.
        self.below.wait_fault();
    }
    fn interrupt(&self) {
        self.below.interrupt();
    }
    fn fetch(&self, out: &mut [DeviceFault]) -> usize {
        // Read the fault buffer from `get` to `put`, and move `get`.
        self.below.fetch(out)
    }
    fn replay(&self) {
        self.below.replay();
    }
    fn cancel(&self, fault: &DeviceFault, cause: FaultCause) {
        // The cookie names the access; if it has been replayed meanwhile, do nothing.
        self.below.cancel(fault, cause);
    }
    fn iommu(&self) -> &dyn Iommu {
        self
    }
}

impl Iommu for OwnBackend {
    fn aperture(&self) -> (Iova, Iova) {
        self.below.iommu().aperture()
    }
    fn map(&self, iova: Iova, phys: PhysAddr, bytes: u64, access: Access) -> Result<(), IommuError> {
        // A backend that cannot follow changes of the memory pins it here.
        self.below.iommu().map(iova, phys, bytes, access)
    }
    fn protect(&self, iova: Iova, bytes: u64, access: Access) -> Result<(), IommuError> {
        self.below.iommu().protect(iova, bytes, access)
    }
    fn unmap(&self, iova: Iova, bytes: u64) -> Result<(), IommuError> {
        self.below.iommu().unmap(iova, bytes)
    }
    fn mapped(&self, iova: Iova, bytes: u64) -> Option<Mapped> {
        self.below.iommu().mapped(iova, bytes)
    }
    fn flush(&self, iova: Iova, bytes: u64) {
        self.below.iommu().flush(iova, bytes);
    }
}

/// The backend as the suite drives it: with a way to make accesses.
struct UnderTest(OwnBackend);

impl TestDevice for UnderTest {
    fn device(&self) -> &dyn Device {
        &self.0
    }
    fn engines(&self) -> usize {
        self.0.below.engine_count()
    }
    fn run(&self, kernel: &(dyn Fn(&mut dyn TestEngine) + Sync)) {
        // Submit a kernel that asks the host what to access next, or accesses of a copy engine.
        let ended = self.0.below.run(|engine| {
            kernel(engine);
            Ok(())
        });
        assert_eq!(ended, Ok(()), "kernels of the suite do not fail");
    }
}

/// What the suite says about the backend.
fn report() -> conformance::Report {
    conformance::run(&|| {
        let below = SoftwareDevice::builder().memory_bytes(8 << 20).engines(2).build();
        Arc::new(UnderTest(OwnBackend { below: below.expect("a small software device can be built") }))
    })
}

fn main() -> ExitCode {
    let report = report();
    print!("{report}");
    if report.all_passed() { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}

#[cfg(test)]
mod tests {
    #[test]
    fn it_conforms() {
        let report = super::report();
        assert!(report.all_passed(), "{report}");
    }
}
