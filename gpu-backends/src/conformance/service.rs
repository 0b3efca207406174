//! The fault service that checks play.

use std::sync::atomic::{AtomicBool, Ordering};

use granule::ports::{Device, DeviceFault, FaultCause};

/// Serves faults with `serve` while `body` runs. An error of `serve` cancels the fault.
pub(super) fn served<R>(
    device: &dyn Device,
    serve: impl Fn(&DeviceFault) -> Result<(), FaultCause> + Sync,
    body: impl FnOnce() -> R,
) -> R {
    struct Ended<'a>(&'a AtomicBool, &'a dyn Device);
    impl Drop for Ended<'_> {
        fn drop(&mut self) {
            self.0.store(true, Ordering::SeqCst);
            self.1.interrupt();
        }
    }
    let ended = AtomicBool::new(false);
    device.attach();
    let result = std::thread::scope(|scope| {
        scope.spawn(|| {
            let mut faults = [DeviceFault::default(); 7];
            while !ended.load(Ordering::SeqCst) {
                device.wait_fault();
                let taken = device.fetch(&mut faults);
                for fault in &faults[..taken] {
                    if let Err(cause) = serve(fault) {
                        device.cancel(fault, cause);
                    }
                }
                device.replay();
            }
        });
        let _end = Ended(&ended, device);
        body()
    });
    device.detach();
    result
}

/// Waits for the next fault and fetches it alone.
pub(super) fn next_fault(device: &dyn Device) -> DeviceFault {
    let mut fault = [DeviceFault::default()];
    while device.fetch(&mut fault) == 0 {
        device.wait_fault();
    }
    fault[0]
}
