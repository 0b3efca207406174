use alloc::collections::{BTreeMap, BTreeSet};

use thiserror::Error;

use crate::units::{Iova, PAGE_BYTES};

/// Hands out IOVA ranges of one device, to callers that share it.
pub trait ReserveIova: Sync {
    /// Reserves `bytes`, aligned to `align_bytes`.
    ///
    /// # Errors
    /// As [`IovaSpace::reserve`].
    fn reserve(&self, bytes: u64, align_bytes: u64) -> Result<Iova, IovaError>;

    /// Gives a reservation back. Nothing of it is linked any more.
    ///
    /// # Errors
    /// As [`IovaSpace::free`].
    fn free(&self, base: Iova, bytes: u64) -> Result<(), IovaError>;
}

/// The free and the reserved addresses of one IOMMU domain. Best fit by size; neighbours merge when they are
/// freed. A reservation of any size costs O(log n) of the number of free ranges.
#[derive(Debug)]
pub struct IovaSpace {
    /// Start -> bytes of each free range; no two touch.
    free: BTreeMap<u64, u64>,
    /// The same, ordered by (bytes, start).
    by_bytes: BTreeSet<(u64, u64)>,
    /// Start -> bytes of each reservation.
    reserved: BTreeMap<u64, u64>,
}

/// Why the IOVA space refused. Nothing is changed then.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Error)]
#[non_exhaustive]
pub enum IovaError {
    /// A size of zero, or one that is no multiple of a page.
    #[error("{0} bytes are not a whole number of pages (at least one)")]
    BadSize(u64),
    /// An alignment that is no power of two or below a page.
    #[error("an alignment of {0} bytes is not a power of two of at least 4096")]
    BadAlignment(u64),
    /// No free range is large enough.
    #[error("no free IOVA range of {0} bytes is left; free a reservation first")]
    Exhausted(u64),
    /// What is to be freed was not reserved so.
    #[error("no reservation of that size begins at {0}")]
    NotReserved(Iova),
}

impl IovaSpace {
    /// A space over an aperture, first and last address inclusive, but for `windows` that nobody may use (such as
    /// that of message-signalled interrupts), as (first address, bytes), page aligned.
    pub fn new(aperture: (Iova, Iova), windows: &[(Iova, u64)]) -> Self {
        let first = aperture.0.0.max(PAGE_BYTES).next_multiple_of(PAGE_BYTES);
        let end = aperture.1.0.saturating_add(1) & !(PAGE_BYTES - 1);
        let mut space = Self { free: BTreeMap::new(), by_bytes: BTreeSet::new(), reserved: BTreeMap::new() };
        space.insert_free(first, end.saturating_sub(first));
        for (start, bytes) in windows {
            space.cut(start.0, start.0.saturating_add(*bytes));
        }
        space
    }

    fn insert_free(&mut self, start: u64, bytes: u64) {
        if bytes > 0 {
            self.free.insert(start, bytes);
            self.by_bytes.insert((bytes, start));
        }
    }

    fn remove_free(&mut self, start: u64) -> u64 {
        let bytes = self.free.remove(&start).expect("a free range is in both indices");
        self.by_bytes.remove(&(bytes, start));
        bytes
    }

    /// Takes start..end out of whatever free ranges hold parts of it.
    fn cut(&mut self, start: u64, end: u64) {
        let before = self.free.range(..start).next_back().map(|(s, _)| *s);
        let inside = self.free.range(start..end).map(|(s, _)| *s);
        let hit: alloc::vec::Vec<u64> = before.into_iter().chain(inside).collect();
        for s in hit {
            let e = s + self.remove_free(s);
            self.insert_free(s, start.min(e).saturating_sub(s));
            self.insert_free(end.max(s), e.saturating_sub(end.max(s)));
        }
    }

    /// Reserves `bytes` (a multiple of 4096), aligned to `align_bytes` (a power of two, at least 4096).
    ///
    /// # Errors
    /// [`IovaError::BadSize`], [`IovaError::BadAlignment`], [`IovaError::Exhausted`].
    pub fn reserve(&mut self, bytes: u64, align_bytes: u64) -> Result<Iova, IovaError> {
        if bytes == 0 || !bytes.is_multiple_of(PAGE_BYTES) {
            return Err(IovaError::BadSize(bytes));
        }
        if !align_bytes.is_power_of_two() || align_bytes < PAGE_BYTES {
            return Err(IovaError::BadAlignment(align_bytes));
        }
        let fits = |start: u64, free: u64| {
            let aligned = start.checked_next_multiple_of(align_bytes)?;
            (aligned.checked_add(bytes)? <= start + free).then_some(aligned)
        };
        let (start, at) = self
            .by_bytes
            .range((bytes, 0)..)
            .find_map(|(free, start)| fits(*start, *free).map(|at| (*start, at)))
            .ok_or(IovaError::Exhausted(bytes))?;
        let end = start + self.remove_free(start);
        self.insert_free(start, at - start);
        self.insert_free(at + bytes, end - at - bytes);
        self.reserved.insert(at, bytes);
        Ok(Iova(at))
    }

    /// Gives back what `reserve` returned, whole.
    ///
    /// # Errors
    /// [`IovaError::NotReserved`] if no reservation of exactly these bytes begins there.
    pub fn free(&mut self, base: Iova, bytes: u64) -> Result<(), IovaError> {
        if self.reserved.get(&base.0) != Some(&bytes) {
            return Err(IovaError::NotReserved(base));
        }
        self.reserved.remove(&base.0);
        let (mut start, mut total) = (base.0, bytes);
        if let Some((s, b)) = self.free.range(..start).next_back().map(|(s, b)| (*s, *b))
            && s + b == start
        {
            self.remove_free(s);
            (start, total) = (s, total + b);
        }
        if self.free.contains_key(&(base.0 + bytes)) {
            total += self.remove_free(base.0 + bytes);
        }
        self.insert_free(start, total);
        Ok(())
    }

    /// Bytes that are reserved.
    pub fn reserved_bytes(&self) -> u64 {
        self.reserved.values().sum()
    }

    /// Bytes of the largest free range.
    pub fn largest_free_bytes(&self) -> u64 {
        self.by_bytes.last().map_or(0, |(bytes, _)| *bytes)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const GIB: u64 = 1 << 30;

    #[test]
    fn what_is_freed_merges_and_is_reserved_again() {
        let mut space = IovaSpace::new((Iova(0), Iova(4 * GIB - 1)), &[(Iova(0xfee0_0000), 0x10_0000)]);
        let before = space.largest_free_bytes();
        let a = space.reserve(GIB / 2, GIB / 2).unwrap();
        let b = space.reserve(4096, 4096).unwrap();
        assert_eq!(a.0 % (GIB / 2), 0);
        assert_eq!(space.free(a, 4096), Err(IovaError::NotReserved(a)));
        space.free(a, GIB / 2).unwrap();
        assert_eq!(space.free(a, GIB / 2), Err(IovaError::NotReserved(a)));
        space.free(b, 4096).unwrap();
        assert_eq!(space.largest_free_bytes(), before);
        assert_eq!(space.reserved_bytes(), 0);
    }

    #[test]
    fn reserved_windows_are_never_handed_out() {
        let window = (Iova(0x10_000), 0x10_000);
        let mut space = IovaSpace::new((Iova(0), Iova(0x3_ffff)), &[window]);
        let mut seen = 0;
        while let Ok(at) = space.reserve(4096, 4096) {
            assert!(at.0 >= 0x20_000 || at.0 < 0x10_000, "{at} lies in the window");
            seen += 1;
        }
        assert_eq!(seen, 15 + 32);
        assert_eq!(space.reserve(0, 4096), Err(IovaError::BadSize(0)));
        assert_eq!(space.reserve(4096, 12288), Err(IovaError::BadAlignment(12288)));
    }
}
