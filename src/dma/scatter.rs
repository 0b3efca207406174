//! Memory that comes from a provider: as ranges, or, where it can do no better, as an old-style scatter list.

use alloc::vec::Vec;

use super::{Attributes, DmaError, DmaList, DmaMapping, DmaRange, Domain, PhysList, Unlinked};
use crate::units::{Iova, PhysAddr, PhysRange};

/// One entry of a scatter list: memory, and where it was mapped. Mapping merges neighbours, so the DMA side has an
/// entry's own length, and entries behind the last mapped one have none.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct ScatterEntry {
    /// First byte.
    pub phys: PhysAddr,
    /// Length in bytes.
    pub bytes: u32,
    /// Where it is mapped.
    pub dma: Iova,
    /// Length of what is mapped there; 0: no more.
    pub dma_bytes: u32,
}

/// What provides memory for DMA: an exporter of buffers.
pub trait Provider {
    /// Its memory as physical ranges; `None` if it can only do scatter lists.
    fn ranges(&self) -> Option<PhysList>;

    /// Its memory as a scatter list that it mapped for a device of `domain` itself, in its own way.
    ///
    /// # Errors
    /// Why it could not map.
    fn map_scatter(&self, domain: &Domain<'_>, attributes: Attributes)
    -> Result<Vec<ScatterEntry>, DmaError>;

    /// Ends `map_scatter`.
    fn unmap_scatter(&self, domain: &Domain<'_>, list: &[ScatterEntry], attributes: Attributes);
}

/// A provider's memory, mapped. Either way the device is given ranges; the variant says which way it was.
#[derive(Debug)]
#[must_use = "it stays mapped until it is given to unmap_provided"]
pub enum Provided {
    /// It came as ranges, and this domain mapped them.
    Ranges(DmaMapping),
    /// It came as a scatter list that the provider mapped: 32 bytes an entry, kept for unmapping, beside the ranges.
    Scatter(ScatterMapping),
}

/// What a provider mapped by itself.
#[derive(Debug)]
pub struct ScatterMapping {
    domain: u32,
    ranges: DmaList,
    list: Vec<ScatterEntry>,
}

impl ScatterMapping {
    /// The provider's list.
    pub fn list(&self) -> &[ScatterEntry] {
        &self.list
    }
}

impl Provided {
    /// What the device is given.
    pub fn ranges(&self) -> &DmaList {
        match self {
            Provided::Ranges(mapping) => mapping.ranges(),
            Provided::Scatter(mapping) => &mapping.ranges,
        }
    }
}

impl Domain<'_> {
    /// Maps a provider's memory: its ranges where it has them, its scatter list where not.
    ///
    /// # Errors
    /// As [`Domain::map_list`], or what the provider says; [`DmaError::Empty`] if a list maps nothing, and
    /// [`DmaError::NotMapped`] for an entry whose DMA addresses wrap: what the provider mapped is unmapped then.
    pub fn map_provided(
        &self,
        provider: &dyn Provider,
        attributes: Attributes,
    ) -> Result<Provided, DmaError> {
        if let Some(ranges) = provider.ranges() {
            return Ok(Provided::Ranges(self.map_list(ranges.iter(), attributes)?));
        }
        let list = provider.map_scatter(self, attributes)?;
        let flags = if attributes.direction().is_from_device() { DmaRange::WRITABLE } else { 0 };
        let mapped = list.iter().take_while(|entry| entry.dma_bytes > 0);
        let wraps = |entry: &&ScatterEntry| entry.dma.checked_add(u64::from(entry.dma_bytes)).is_none();
        if let Some(entry) = mapped.clone().find(wraps) {
            provider.unmap_scatter(self, &list, attributes);
            return Err(DmaError::NotMapped(entry.dma));
        }
        let ranges: DmaList =
            mapped.flat_map(|entry| DmaRange::of_run(entry.dma, u64::from(entry.dma_bytes), flags)).collect();
        if ranges.is_empty() {
            provider.unmap_scatter(self, &list, attributes);
            return Err(DmaError::Empty(0));
        }
        Ok(Provided::Scatter(ScatterMapping { domain: self.id, ranges, list }))
    }

    /// Ends `map_provided`.
    ///
    /// # Errors
    /// [`DmaError::OtherDomain`], with everything as it was.
    pub fn unmap_provided(
        &self,
        provider: &dyn Provider,
        provided: Provided,
        attributes: Attributes,
    ) -> Result<Unlinked, (Provided, DmaError)> {
        match provided {
            Provided::Ranges(mapping) => self
                .unmap_list(mapping, attributes)
                .map_err(|(mapping, error)| (Provided::Ranges(mapping), error)),
            Provided::Scatter(mapping) if mapping.domain != self.id => {
                Err((Provided::Scatter(mapping), DmaError::OtherDomain))
            }
            Provided::Scatter(mapping) => {
                provider.unmap_scatter(self, &mapping.list, attributes);
                Ok(Unlinked::default())
            }
        }
    }
}

/// The memory of a scatter list as ranges, for who has such a list and wants to map it here.
impl FromIterator<ScatterEntry> for PhysList {
    fn from_iter<I: IntoIterator<Item = ScatterEntry>>(entries: I) -> Self {
        let ranges =
            entries.into_iter().flat_map(|entry| PhysRange::of_run(entry.phys, u64::from(entry.bytes), 0));
        ranges.collect()
    }
}
