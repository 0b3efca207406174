//! The emulated IOMMU: a page table from IOVAs to addresses of the process. Engines reach system memory through
//! it and in no other way, and an access through an IOVA that is not linked is an error that stays visible:
//! counted, recorded with its address, and the end of the kernel that made it.
//!
//! Nothing is pinned: a linked page is followed by events only.

use granule::os::private::PrivateError;
use granule::ports::{Iommu, IommuError, Mapped};
use granule::units::{Access, Iova, PAGE_BYTES, PhysAddr, SPACE_BYTES};

use super::counters::IommuLog;
use super::device::Inner;
use super::page_table::{Found, PageTable};

/// Table and errors. The engines' IOTLBs are void with the same generation as their TLBs.
pub(crate) struct EmulatedIommu {
    pub(super) table: PageTable,
    pub(super) log: IommuLog,
}

impl EmulatedIommu {
    pub(crate) fn new(nodes: usize) -> Result<Self, PrivateError> {
        Ok(Self { table: PageTable::new(nodes)?, log: IommuLog::default() })
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
        match self.iommu.table.set_absent(iova.0, bytes, phys.0, access, &self.quiet()) {
            Ok(Ok(())) => Ok(()),
            Ok(Err(page)) => Err(IommuError::AlreadyMapped(Iova(page))),
            Err(_) => Err(IommuError::OutOfTables),
        }
    }

    fn protect(&self, iova: Iova, bytes: u64, access: Access) -> Result<(), IommuError> {
        check(iova, bytes)?;
        self.iommu
            .table
            .protect(iova.0, bytes, access, &self.quiet())
            .map_err(|page| IommuError::NotMapped(Iova(page)))
    }

    fn unmap(&self, iova: Iova, bytes: u64) -> Result<(), IommuError> {
        check(iova, bytes)?;
        self.iommu
            .table
            .clear_present(iova.0, bytes, &self.quiet())
            .map_err(|page| IommuError::NotMapped(Iova(page)))
    }

    fn mapped(&self, iova: Iova, bytes: u64) -> Option<Mapped> {
        let end = iova.0.saturating_add(bytes).min(SPACE_BYTES);
        let table = &self.iommu.table;
        let at = table.first(iova.0, end.saturating_sub(iova.0), true)?;
        let mut piece: Option<Mapped> = None;
        loop {
            let here = at + piece.map_or(0, |piece| piece.bytes);
            let Found::Leaf(leaf) = table.find(here) else { return piece };
            let phys = PhysAddr(leaf.target + (here - leaf.base));
            let access = if leaf.write { Access::Write } else { Access::Read };
            let part = (leaf.base + leaf.bytes).min(end) - here;
            let piece = piece.get_or_insert(Mapped { iova: Iova(at), phys, bytes: 0, access });
            if piece.phys + piece.bytes != phys || piece.access != access {
                return Some(*piece);
            }
            piece.bytes += part;
            if here + part >= end {
                return Some(*piece);
            }
        }
    }

    fn flush(&self, _: Iova, _: u64) {
        self.entry.flush(&self.engines);
    }
}
