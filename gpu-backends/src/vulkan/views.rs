//! System memory that shaders may reach: pieces of private memory that were imported before, and memory of which the
//! library has such a view. A CPU driver does not pin
//! what it imports, so nothing else can be linked: an `munmap` by the application must never take a page away under a
//! shader.

use granule::os::FutexPark;
use granule::os::private::{PrivateError, Slab};
use granule::ports::{Iommu, IommuCaps, IommuError, Mapped};
use granule::sync::{AtomicU64, Ordering, WordLock};
use granule::units::{Access, Iova, PAGE_BYTES, PhysAddr, SPACE_BYTES};

use super::device::Inner;
use crate::software::page_table::{Found, NotSet};

/// The most pieces at once.
const MOST: usize = 1024;

/// What was imported: first byte, end, address for shaders. A free place has end 0.
pub(super) struct Views {
    places: Slab<[AtomicU64; 3]>,
    lock: WordLock,
}

impl Views {
    pub(super) fn new() -> Result<Self, PrivateError> {
        Ok(Self { places: Slab::new(MOST)?, lock: WordLock::new() })
    }

    /// Enters a piece; `false` if there is no place left.
    pub(super) fn add(&self, start: u64, bytes: u64, address: u64) -> bool {
        let _held = self.lock.lock(&FutexPark);
        let Some(place) = self.places.iter().find(|place| place[1].load(Ordering::Relaxed) == 0) else {
            return false;
        };
        place[0].store(start, Ordering::Relaxed);
        place[1].store(start + bytes, Ordering::Relaxed);
        place[2].store(address, Ordering::Relaxed);
        true
    }

    /// Takes a piece out; returns its address for shaders.
    pub(super) fn remove(&self, start: u64) -> Option<u64> {
        let _held = self.lock.lock(&FutexPark);
        let is_it = |place: &&[AtomicU64; 3]| {
            place[0].load(Ordering::Relaxed) == start && place[1].load(Ordering::Relaxed) != 0
        };
        let place = self.places.iter().find(is_it)?;
        place[1].store(0, Ordering::Relaxed);
        Some(place[2].load(Ordering::Relaxed))
    }

    /// Where shaders find a range that lies in one piece.
    fn address(&self, at: u64, bytes: u64) -> Option<u64> {
        let _held = self.lock.lock(&FutexPark);
        self.places.iter().find_map(|place| {
            let [start, end, address] = [0, 1, 2].map(|word| place[word].load(Ordering::Relaxed));
            (start <= at && at + bytes <= end).then(|| address + (at - start))
        })
    }
}

impl Views {
    /// What shaders find at an address.
    fn memory(&self, address: u64) -> Option<u64> {
        let _held = self.lock.lock(&FutexPark);
        self.places.iter().find_map(|place| {
            let [start, end, first] = [0, 1, 2].map(|word| place[word].load(Ordering::Relaxed));
            (first <= address && address - first < end.saturating_sub(start))
                .then(|| start + (address - first))
        })
    }
}

/// The lowest IOVA: page 0 stays free, so that a forgotten address is an error.
const FIRST: u64 = PAGE_BYTES;

fn check(iova: Iova, bytes: u64) -> Result<(), IommuError> {
    assert!(
        iova.is_page_aligned() && bytes.is_multiple_of(PAGE_BYTES) && bytes > 0,
        "an IOMMU maps whole pages"
    );
    let inside = iova.0 >= FIRST && iova.0.checked_add(bytes).is_some_and(|end| end <= SPACE_BYTES);
    if inside { Ok(()) } else { Err(IommuError::OutsideAperture(iova)) }
}

impl Iommu for Inner {
    fn aperture(&self) -> (Iova, Iova) {
        (Iova(FIRST), Iova(SPACE_BYTES - 1))
    }

    fn map(&self, iova: Iova, phys: PhysAddr, bytes: u64, access: Access) -> Result<(), IommuError> {
        check(iova, bytes)?;
        assert!(phys.is_page_aligned(), "an IOMMU maps whole pages");
        let target = self.views.address(phys.0, bytes).ok_or(IommuError::NotReachable(phys))?;
        let mut run = std::iter::once((target, bytes));
        match self.iommu.set_absent(iova.0, SPACE_BYTES, &mut run, access, &self.windows()) {
            Ok(_) => Ok(()),
            Err((NotSet::Present(page), _)) => Err(IommuError::AlreadyMapped(Iova(page))),
            Err((NotSet::OutOfNodes, _)) => Err(IommuError::OutOfTables),
            Err((NotSet::Beyond, _)) => Err(IommuError::OutsideAperture(iova)),
        }
    }

    fn caps(&self) -> IommuCaps {
        IommuCaps { can_replace: true, ..IommuCaps::default() }
    }

    fn replace(&self, iova: Iova, phys: PhysAddr, bytes: u64, access: Access) -> Result<(), IommuError> {
        check(iova, bytes)?;
        assert!(phys.is_page_aligned(), "an IOMMU maps whole pages");
        let target = self.views.address(phys.0, bytes).ok_or(IommuError::NotReachable(phys))?;
        let set = self.iommu.set(iova.0, bytes, target, true, access, &self.windows());
        set.map_err(|_| IommuError::OutOfTables)
    }

    fn mapped(&self, iova: Iova, bytes: u64) -> Option<Mapped> {
        let end = iova.0.saturating_add(bytes).min(SPACE_BYTES);
        let at = self.iommu.first(iova.0, end.saturating_sub(iova.0), true)?;
        let Found::Leaf(leaf) = self.iommu.find(at) else { return None };
        let access = if leaf.write { Access::Write } else { Access::Read };
        let phys = self.views.memory(leaf.target + (at - leaf.base))?;
        let bytes = (leaf.base + leaf.bytes).min(end) - at;
        Some(Mapped { iova: Iova(at), phys: PhysAddr(phys), bytes, access })
    }

    fn protect(&self, iova: Iova, bytes: u64, access: Access) -> Result<(), IommuError> {
        check(iova, bytes)?;
        self.iommu
            .protect(iova.0, bytes, access, &self.windows())
            .map_err(|page| IommuError::NotMapped(Iova(page)))
    }

    fn unmap(&self, iova: Iova, bytes: u64) -> Result<(), IommuError> {
        check(iova, bytes)?;
        self.iommu
            .clear_present(iova.0, bytes, &self.windows())
            .map_err(|page| IommuError::NotMapped(Iova(page)))
    }

    fn flush(&self, _: Iova, _: u64) {
        self.windows().flush();
    }
}
