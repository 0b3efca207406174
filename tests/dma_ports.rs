//! What a backend gets for nothing: the parts of the `Iommu` port that are written in terms of the others.

mod dma_support;

use dma_support::{MEMORY, Machine, PAGE};
use granule::ports::{Iommu, IommuCaps, IommuError, IovaWindow, Mapped};
use granule::units::{Access, Iova, PhysAddr};

/// A backend that implements what it must and nothing else.
struct Least(Machine);
impl Iommu for Least {
    fn aperture(&self) -> (Iova, Iova) {
        self.0.aperture()
    }
    fn map(&self, iova: Iova, phys: PhysAddr, bytes: u64, access: Access) -> Result<(), IommuError> {
        self.0.map(iova, phys, bytes, access)
    }
    fn protect(&self, iova: Iova, bytes: u64, access: Access) -> Result<(), IommuError> {
        self.0.protect(iova, bytes, access)
    }
    fn unmap(&self, iova: Iova, bytes: u64) -> Result<(), IommuError> {
        self.0.unmap(iova, bytes)
    }
    fn mapped(&self, iova: Iova, bytes: u64) -> Option<Mapped> {
        self.0.mapped(iova, bytes)
    }
    fn flush(&self, iova: Iova, bytes: u64) {
        self.0.flush(iova, bytes);
    }
}

fn phys(page: u64) -> PhysAddr {
    PhysAddr(MEMORY + page * PAGE)
}

#[test]
fn many_runs_are_all_or_nothing() {
    let least = Least(Machine::new());
    let at = |page: u64| Iova(0x100_0000 + page * PAGE);
    let runs = [(phys(5), 2 * PAGE), (phys(20), PAGE)];
    assert_eq!(least.map_runs(at(0), &mut runs.into_iter(), Access::Write), Ok(3 * PAGE));
    assert_eq!(least.0.translate(at(2).0, Access::Write), Some(phys(20).0));
    // The second run meets what is there: the first is taken back, and flushed.
    let runs = [(phys(30), PAGE), (phys(40), PAGE), (phys(50), PAGE)];
    let met = least.map_runs(at(3), &mut [runs[0]].into_iter(), Access::Read);
    assert_eq!(met, Ok(PAGE));
    let (before, flushes) = (least.0.mapped_pages(), least.0.flush_calls());
    let refused = least.map_runs(at(3).page_floor(), &mut runs.into_iter(), Access::Read);
    assert_eq!(refused, Err(IommuError::AlreadyMapped(at(3))));
    least.unmap(at(3), PAGE).unwrap();
    least.map(at(5), phys(1), PAGE, Access::Read).unwrap();
    let refused = least.map_runs(at(3), &mut runs.into_iter(), Access::Read);
    assert_eq!(refused, Err(IommuError::AlreadyMapped(at(5))));
    assert_eq!(least.0.mapped_pages(), before, "the two runs before it were taken back");
    assert_eq!(least.0.flushed_runs().last(), Some(&(at(3).0, 2 * PAGE)));
    assert_eq!(least.0.flush_calls() - flushes, 1);
    assert_eq!(least.unmap(at(4), PAGE), Err(IommuError::NotMapped(at(4))));
    let wraps = least.map_runs(Iova(u64::MAX - PAGE + 1), &mut runs.into_iter(), Access::Read);
    assert!(matches!(wraps, Err(IommuError::OutsideAperture(_))));
    assert_eq!(least.map_runs(at(9), &mut [].into_iter(), Access::Read), Ok(0), "no run is nothing");
}

#[test]
fn what_a_backend_does_not_say_it_cannot() {
    let least = Least(Machine::new());
    assert_eq!(least.caps(), IommuCaps { page_bytes: PAGE, can_replace: false, pins: false });
    assert!(least.reserved_windows().is_empty());
    let refused = least.replace(Iova(PAGE), phys(0), PAGE, Access::Write);
    assert_eq!(refused, Err(IommuError::CannotReplace(Iova(PAGE))));
    least.map(Iova(PAGE), phys(0), 4 * PAGE, Access::Write).unwrap();
    assert!((1..5).all(|page| least.0.translate(page * PAGE, Access::Read).is_some()));
    least.unmap(Iova(PAGE), 4 * PAGE).unwrap();
    least.sync(Iova(PAGE), PAGE);
    least.flush_runs(&[(Iova(PAGE), PAGE), (Iova(3 * PAGE), PAGE)]);
    let stale: Vec<bool> =
        (1..5).map(|page| least.0.translate(page * PAGE, Access::Read).is_some()).collect();
    assert_eq!(stale, [false, true, false, true], "exactly what was named is forgotten");
    assert_eq!(IovaWindow::MSI_X86.start, Iova(0xfee0_0000));
}
