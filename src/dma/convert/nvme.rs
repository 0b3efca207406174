//! The two ways in which an NVMe command names its data.

use thiserror::Error;

use crate::dma::DmaRange;
use crate::units::Iova;

/// Why ranges cannot be put into a command.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Error)]
#[non_exhaustive]
pub enum NvmeError {
    /// No data.
    #[error("a command without data has no PRPs and no SGL; leave the fields zero")]
    Empty,
    /// Page or list size that the controller cannot have.
    #[error("a memory page of {0} bytes is none; pass a power of two of at least 4096")]
    BadPage(u64),
    /// Only the first range may begin inside of a page, and only the last may end there.
    #[error("range {index} does not join the one before at a page, as PRPs must; use an SGL")]
    Gap {
        /// Which range, from 0.
        index: usize,
    },
    /// PRPs and SGLs begin at multiples of 4 bytes.
    #[error("{0} is no multiple of 4; align the buffer")]
    Unaligned(Iova),
    /// The end of a range lies beyond the last address.
    #[error("the range at {0} wraps around the end of the address space; pass a shorter one")]
    Wraps(Iova),
    /// A list page that does not begin at a page of the controller's memory.
    #[error("the list page at {0} does not begin at a memory page; align it")]
    UnalignedList(Iova),
    /// The list pages are too few.
    #[error("{needed} list entries are needed and {given} are there; give more list memory")]
    ListTooShort {
        /// Entries, links to further list pages included.
        needed: usize,
        /// Entries that fit in what was given.
        given: usize,
    },
    /// Memory for a list does not fit its pages.
    #[error("a list page of {given} entries is not the size of a memory page, {needed} entries")]
    BadListPage {
        /// Entries of a memory page.
        needed: usize,
        /// What was given.
        given: usize,
    },
}

/// The two PRP fields of a command.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct NvmePrp {
    /// First entry: where the data begins.
    pub prp1: u64,
    /// Second entry: the second page, or the first list page, or 0.
    pub prp2: u64,
}

/// Memory for PRP lists: pages of the controller's memory page size, and where the device sees each.
pub struct PrpList<'a> {
    /// The entries of all pages, one behind the other.
    pub entries: &'a mut [u64],
    /// The DMA address of each page.
    pub pages: &'a [Iova],
}

/// Entries that data of so many bytes at this offset in its first page needs beyond the command's own two, without
/// links between list pages.
///
/// Asserts that the page is none of 0 bytes, and that offset and length together are a number of 64 bits.
pub const fn prp_list_entries(offset_in_page: u64, bytes: u64, page_bytes: u64) -> u64 {
    let end = offset_in_page.checked_add(bytes).expect("the data ends within 64 bits");
    assert!(page_bytes > 0, "a memory page has bytes");
    let pages = end.div_ceil(page_bytes);
    if pages <= 2 { 0 } else { pages - 1 }
}

/// The PRPs of one command's data: its ranges, one behind the other. Entries go into `list` where there are more than
/// two pages; the last entry of a full list page leads to the next one.
///
/// # Errors
/// [`NvmeError`]; what was written to the list is void then.
pub fn prp(
    ranges: impl IntoIterator<Item = DmaRange, IntoIter: Clone>,
    page_bytes: u64,
    list: PrpList<'_>,
) -> Result<NvmePrp, NvmeError> {
    if !page_bytes.is_power_of_two() || page_bytes < 4096 {
        return Err(NvmeError::BadPage(page_bytes));
    }
    let ranges = ranges.into_iter().filter(|range| range.len > 0);
    let mask = page_bytes - 1;
    let (mut first, mut end, mut total) = (None, 0, 0);
    for (index, range) in ranges.clone().enumerate() {
        let start = range.addr.0;
        // The page of the last byte ends somewhere, too.
        let stop =
            start.checked_add(u64::from(range.len)).filter(|stop| stop.checked_add(page_bytes).is_some());
        let stop = stop.ok_or(NvmeError::Wraps(range.addr))?;
        if index > 0 && (end | start) & mask != 0 {
            return Err(NvmeError::Gap { index });
        }
        if !start.is_multiple_of(4) {
            return Err(NvmeError::Unaligned(range.addr));
        }
        first.get_or_insert(start);
        (end, total) = (stop, total + u64::from(range.len));
    }
    let prp1 = first.ok_or(NvmeError::Empty)?;
    let entries = prp_list_entries(prp1 & mask, total, page_bytes) as usize;
    let pages = ranges.flat_map(|range| {
        let (start, stop) = (range.addr.0 & !mask, range.addr.0 + u64::from(range.len));
        (start..stop).step_by(page_bytes as usize)
    });
    let mut pages = pages.skip(1);
    if entries == 0 {
        return Ok(NvmePrp { prp1, prp2: pages.next().unwrap_or(0) });
    }
    let per_page = (page_bytes / 8) as usize;
    if !list.entries.len().is_multiple_of(per_page) || list.entries.len() / per_page != list.pages.len() {
        return Err(NvmeError::BadListPage { needed: per_page, given: list.entries.len() });
    }
    if let Some(page) = list.pages.iter().find(|page| page.0 & mask != 0) {
        return Err(NvmeError::UnalignedList(*page));
    }
    // All but the last list page give an entry for the link.
    let links = entries.saturating_sub(2) / (per_page - 1);
    let links = if entries <= per_page { 0 } else { links };
    if entries + links > list.entries.len() {
        return Err(NvmeError::ListTooShort { needed: entries + links, given: list.entries.len() });
    }
    let mut at = 0;
    for index in 0..entries {
        let last_of_page = at % per_page == per_page - 1;
        if last_of_page && index + 1 < entries {
            list.entries[at] = list.pages[at / per_page + 1].0;
            at += 1;
        }
        list.entries[at] = pages.next().expect("as many pages as were counted");
        at += 1;
    }
    Ok(NvmePrp { prp1, prp2: list.pages[0].0 })
}

/// One SGL descriptor, 16 bytes, as the controller reads it.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
#[repr(C)]
pub struct NvmeSgl {
    /// Where the data, or the next segment, is.
    pub addr: u64,
    /// Its length in bytes.
    pub len: u32,
    /// Zero.
    pub reserved: [u8; 3],
    /// The type of the descriptor in the upper four bits.
    pub kind: u8,
}

const _: () = assert!(size_of::<NvmeSgl>() == 16);

impl NvmeSgl {
    /// Data.
    pub const DATA: u8 = 0x00;
    /// A segment of descriptors, the last one.
    pub const LAST_SEGMENT: u8 = 0x30;

    const fn data(range: DmaRange) -> Self {
        Self { addr: range.addr.0, len: range.len, reserved: [0; 3], kind: Self::DATA }
    }
}

/// Descriptors that data of so many ranges needs beyond the command's own one.
pub const fn sgl_segment_entries(ranges: usize) -> usize {
    if ranges <= 1 { 0 } else { ranges }
}

/// The SGL of one command's data: the descriptor in the command. With more than one range it leads to a segment, which
/// is written to `segment`; the device sees that at `segment_at`.
///
/// # Errors
/// [`NvmeError::Empty`], [`NvmeError::Wraps`], [`NvmeError::Unaligned`], [`NvmeError::ListTooShort`]; what was written to the segment is void then.
pub fn sgl(
    ranges: impl IntoIterator<Item = DmaRange, IntoIter: Clone>,
    segment: &mut [NvmeSgl],
    segment_at: Iova,
) -> Result<NvmeSgl, NvmeError> {
    let ranges = ranges.into_iter().filter(|range| range.len > 0);
    let count = ranges.clone().count();
    let first = ranges.clone().next().ok_or(NvmeError::Empty)?;
    for range in ranges.clone() {
        range.addr.checked_add(u64::from(range.len)).ok_or(NvmeError::Wraps(range.addr))?;
        if !range.addr.0.is_multiple_of(4) {
            return Err(NvmeError::Unaligned(range.addr));
        }
    }
    if count == 1 {
        return Ok(NvmeSgl::data(first));
    }
    if count > segment.len() {
        return Err(NvmeError::ListTooShort { needed: count, given: segment.len() });
    }
    for (entry, range) in segment.iter_mut().zip(ranges) {
        *entry = NvmeSgl::data(range);
    }
    let len = (count * size_of::<NvmeSgl>()) as u32;
    Ok(NvmeSgl { addr: segment_at.0, len, reserved: [0; 3], kind: NvmeSgl::LAST_SEGMENT })
}
