//! The emulated IOMMU: a domain is a page table from IOVAs to physical addresses (those of the process, and of the
//! windows of devices' memories), with what it remembers, in front of one or several devices. They reach system memory
//! through it and in no other way, and an access through an IOVA that is not linked is an error that stays visible:
//! counted, recorded with its address, and the end of the kernel that made it.
//!
//! Nothing is pinned: a linked page is followed by events only.
//!
//! # Rules
//! 1. A flush goes from the memory outwards: the domain's IOTLB, then for each attached device its IOTLB, under its own
//!    id and under each PASID, then a wait for every access under way. Engines that walk the device's page table
//!    void what they know of IOVAs with the generation of their device.
//! 2. A device is attached from before its first access until after its last. Whoever goes through the attached
//!    devices counts itself in the device's place and looks at the device after that; whoever detaches takes the
//!    device away and then waits until nobody is counted.
//! 3. A node of the table that was taken out is used again after a flush of the domain, on all devices.
#![allow(unsafe_code, reason = "devices are attached by address, since they own a handle of their domain")]

use granule::os::FutexPark;
use granule::os::private::PrivateArc;
use granule::ports::{Iommu, IommuCaps, IommuError, IovaWindow, Mapped};
use granule::sync::{AtomicU32, AtomicU64, Ordering, Park};
use granule::units::{Access, Iova, PAGE_BYTES, Pasid, PhysAddr, SPACE_BYTES};

use super::builder::BuildError;
use super::device::Inner;
use super::iotlb::Iotlb;
use super::page_table::{Found, Leaf, LeafCounts, NotSet, PageTable, Quiet};

/// How many devices a domain may have.
pub const MOST_DEVICES: usize = 16;
const MOST_WINDOWS: usize = 4;
/// Places of a domain's IOTLB, for each leaf size.
const IOTLB_SLOTS: usize = 128;

/// The lowest IOVA: page 0 stays free, so that a forgotten address is an error.
const FIRST: u64 = PAGE_BYTES;

/// An IOMMU domain that software devices may share. Handles are clones of one another.
#[derive(Clone)]
pub struct IommuDomain(pub(super) PrivateArc<DomainState>);

impl core::fmt::Debug for IommuDomain {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        f.debug_tuple("IommuDomain").field(&self.0.settings).finish()
    }
}

/// Settings of an [`IommuDomain`]. Start with [`IommuDomain::builder`].
#[derive(Clone, Copy, Debug)]
pub struct IommuDomainBuilder {
    table_bytes: u64,
    last: u64,
    page_bytes: u64,
    windows: [IovaWindow; MOST_WINDOWS],
    used_windows: usize,
    caches_absence: bool,
}

impl IommuDomainBuilder {
    pub(super) fn new(table_bytes: u64) -> Self {
        let none = IovaWindow { start: Iova(0), bytes: 0 };
        Self {
            table_bytes,
            last: SPACE_BYTES - 1,
            page_bytes: PAGE_BYTES,
            windows: [none; MOST_WINDOWS],
            used_windows: 0,
            caches_absence: false,
        }
    }

    /// The most that the page table may occupy. Default 256 MiB.
    pub fn table_bytes(mut self, bytes: u64) -> Self {
        self.table_bytes = bytes;
        self
    }
    /// The last usable IOVA, inclusive. Default: 47 bits.
    pub fn last(mut self, last: Iova) -> Self {
        self.last = last.0.min(SPACE_BYTES - 1);
        self
    }
    /// The smallest page that it maps: a power of two of at least 4096. Default 4096.
    pub fn page_bytes(mut self, bytes: u64) -> Self {
        self.page_bytes = bytes;
        self
    }
    /// IOVAs that nobody may map; four such windows at most, the rest is not kept.
    pub fn reserved_window(mut self, window: IovaWindow) -> Self {
        if let Some(place) = self.windows.get_mut(self.used_windows) {
            *place = window;
            self.used_windows += 1;
        }
        self
    }
    /// The IOMMU remembers for DMA that nothing was mapped, as some do: what is mapped there later is seen after
    /// [`Iommu::sync`], and an omitted one is seen by tests. Default: it does not.
    pub fn caches_absence(mut self) -> Self {
        self.caches_absence = true;
        self
    }
    /// Makes the domain, with nothing mapped and no device.
    ///
    /// # Errors
    /// [`BuildError::TableBytes`], [`BuildError::IommuPage`], [`BuildError::Private`].
    pub fn build(self) -> Result<IommuDomain, BuildError> {
        if self.table_bytes < 64 << 10 {
            return Err(BuildError::TableBytes(self.table_bytes));
        }
        if !self.page_bytes.is_power_of_two() || self.page_bytes < PAGE_BYTES {
            return Err(BuildError::IommuPage(self.page_bytes));
        }
        let state = DomainState {
            table: PageTable::new((self.table_bytes / PAGE_BYTES) as usize)?,
            iotlb: Iotlb::new(IOTLB_SLOTS)?,
            settings: self,
            attached: Default::default(),
            places: AtomicU32::new(0),
            begun: AtomicU64::new(1),
            completed: AtomicU64::new(0),
            unasked: AtomicU64::new(0),
            flushed_runs: AtomicU64::new(0),
        };
        Ok(IommuDomain(PrivateArc::new(state)?))
    }
}

/// What a domain did so far. Each figure is exact; together they may be of slightly different moments.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct IommuCounters {
    /// Flushes that waited: calls of `flush` and `flush_runs`.
    pub flushes: u64,
    /// Runs that they named.
    pub flushed_runs: u64,
    /// Translations for DMA that the IOMMU's IOTLB knew.
    pub iotlb_hits: u64,
    /// Translations for DMA for which the table was walked.
    pub iotlb_misses: u64,
    /// Translations that flushes dropped from the IOMMU's IOTLB.
    pub iotlb_dropped: u64,
    /// Leaves of the page table.
    pub leaves: LeafCounts,
    /// Memory that the page table occupies.
    pub table_bytes: u64,
}

impl IommuDomain {
    /// Settings for a new domain.
    pub fn builder() -> IommuDomainBuilder {
        IommuDomainBuilder::new(256 << 20)
    }

    /// The domain as the library maps and flushes it.
    pub fn iommu(&self) -> &dyn Iommu {
        &*self.0
    }

    /// What it did so far. Looks at every leaf: not for hot paths.
    pub fn counters(&self) -> IommuCounters {
        let read = |counter: &AtomicU64| counter.load(Ordering::Relaxed);
        let state = &*self.0;
        IommuCounters {
            flushes: (read(&state.begun) - 1).saturating_sub(read(&state.unasked)),
            flushed_runs: read(&state.flushed_runs),
            iotlb_hits: read(&state.iotlb.hits),
            iotlb_misses: read(&state.iotlb.misses),
            iotlb_dropped: read(&state.iotlb.dropped),
            leaves: state.table.leaves(),
            table_bytes: state.table.resident_bytes(),
        }
    }
}

/// A device's place in a domain.
#[derive(Default)]
struct Attached {
    /// The address of an [`Inner`]; 0 if there is none.
    device: AtomicU64,
    /// How many threads look at the device.
    users: AtomicU32,
}

/// All state of a domain, in private memory.
pub(crate) struct DomainState {
    pub(super) table: PageTable,
    iotlb: Iotlb,
    settings: IommuDomainBuilder,
    attached: [Attached; MOST_DEVICES],
    /// Places that were ever used.
    places: AtomicU32,
    begun: AtomicU64,
    completed: AtomicU64,
    /// Flushes that nobody asked for but the table.
    unasked: AtomicU64,
    flushed_runs: AtomicU64,
}

impl DomainState {
    /// Attaches a device; `false` if there is no place left.
    ///
    /// # Safety
    /// The device stays where it is until `detach` has returned.
    pub(super) unsafe fn attach(&self, device: &Inner) -> bool {
        let at = (&raw const *device) as u64;
        for (place, attached) in self.attached.iter().enumerate() {
            // SeqCst pairs with the load in `each_device`.
            if attached.device.compare_exchange(0, at, Ordering::SeqCst, Ordering::Relaxed).is_ok() {
                self.places.fetch_max(place as u32 + 1, Ordering::SeqCst);
                return true;
            }
        }
        false
    }

    /// Takes a device away. When this returns, nobody looks at it any more. Nothing happens if it is not attached.
    pub(super) fn detach(&self, device: &Inner) {
        let at = (&raw const *device) as u64;
        for attached in &self.attached {
            // SeqCst pairs with the loads in `each_device`: that finds no device, or its count is seen here.
            if attached.device.compare_exchange(at, 0, Ordering::SeqCst, Ordering::Relaxed).is_err() {
                continue;
            }
            loop {
                match attached.users.load(Ordering::SeqCst) {
                    0 => break,
                    users => FutexPark.park(&attached.users, users),
                }
            }
        }
    }

    fn each_device(&self, mut act: impl FnMut(&Inner)) {
        let places = self.places.load(Ordering::SeqCst) as usize;
        for attached in &self.attached[..places] {
            attached.users.fetch_add(1, Ordering::SeqCst);
            let device = attached.device.load(Ordering::SeqCst) as *const Inner;
            if !device.is_null() {
                // SAFETY: `attach` stored the address of a device that stays until `detach` has returned, which
                // waits for the count that was raised above before the address was read.
                act(unsafe { &*device });
            }
            let before = attached.users.fetch_sub(1, Ordering::SeqCst);
            if before == 1 && attached.device.load(Ordering::SeqCst) == 0 {
                FutexPark.unpark_all(&attached.users);
            }
        }
    }

    /// The translation of an IOVA for DMA of a device under `tag`.
    pub(super) fn translate(&self, tag: Pasid, at: u64, access: Access) -> Option<Leaf> {
        let leaf = self.iotlb.look_up(tag, at, access, || match self.table.find(at) {
            Found::Leaf(leaf) if leaf.covers(access) => Some(leaf),
            _ => None,
        });
        if leaf.is_none() && self.settings.caches_absence {
            self.iotlb.remember_absence(tag, at, || !matches!(self.table.find(at), Found::Leaf(_)));
        }
        leaf
    }

    /// Whether an IOVA is mapped at all for what a device sees, for the message of an error.
    pub(super) fn is_mapped(&self, tag: Pasid, at: u64) -> bool {
        matches!(self.table.find(at), Found::Leaf(_)) && !self.iotlb.knows_absence(tag, at)
    }

    /// A device of the domain is about to look translations up, in its own IOTLB and then here.
    pub(super) fn begin(&self, device: &Iotlb) {
        device.begin();
        self.iotlb.begin();
        // SeqCst pairs with the increment in `flush_all_of`; see `Iotlb::begin`.
        self.begun.load(Ordering::SeqCst);
    }

    /// Forgets what is remembered under a PASID that was detached.
    pub(super) fn drop_tag(&self, tag: Pasid) {
        self.iotlb.drop_range(0, u64::MAX, Some(tag));
    }

    fn flush_all_of(&self, runs: &[(Iova, u64)]) {
        // SeqCst pairs with the load in `begin`: whoever begins to look translations up later sees what was unmapped,
        // and whoever began before is seen by the drops.
        let mine = self.begun.fetch_add(1, Ordering::SeqCst) + 1;
        runs.iter().for_each(|(iova, bytes)| {
            self.iotlb.drop_range(iova.0, *bytes, None);
        });
        self.each_device(|device| device.flush_iovas(runs));
        self.completed.fetch_max(mine, Ordering::SeqCst);
    }

    fn check(&self, iova: Iova, bytes: u64) -> Result<(), IommuError> {
        let page = self.settings.page_bytes;
        assert!(
            iova.0.is_multiple_of(page) && bytes.is_multiple_of(page) && bytes > 0,
            "an IOMMU maps whole pages"
        );
        let inside =
            iova.0 >= FIRST && iova.0.checked_add(bytes).is_some_and(|end| end - 1 <= self.settings.last);
        if inside { Ok(()) } else { Err(IommuError::OutsideAperture(iova)) }
    }

    fn check_phys(&self, phys: PhysAddr) {
        assert!(phys.0.is_multiple_of(self.settings.page_bytes), "an IOMMU maps whole pages");
    }
}

impl Quiet for DomainState {
    fn generation(&self) -> u64 {
        self.begun.load(Ordering::SeqCst)
    }
    fn completed(&self) -> u64 {
        self.completed.load(Ordering::SeqCst)
    }
    fn flush_all(&self) {
        self.unasked.fetch_add(1, Ordering::Relaxed);
        self.flush_all_of(&[]);
    }
}

impl Iommu for DomainState {
    fn aperture(&self) -> (Iova, Iova) {
        (Iova(FIRST), Iova(self.settings.last))
    }

    fn caps(&self) -> IommuCaps {
        IommuCaps { page_bytes: self.settings.page_bytes, can_replace: true, pins: false }
    }

    fn reserved_windows(&self) -> &[IovaWindow] {
        &self.settings.windows[..self.settings.used_windows]
    }

    fn map(&self, iova: Iova, phys: PhysAddr, bytes: u64, access: Access) -> Result<(), IommuError> {
        self.check(iova, bytes)?;
        self.map_runs(iova, &mut core::iter::once((phys, bytes)), access).map(drop)
    }

    /// One walk for all runs.
    fn map_runs(
        &self,
        iova: Iova,
        runs: &mut dyn Iterator<Item = (PhysAddr, u64)>,
        access: Access,
    ) -> Result<u64, IommuError> {
        let page = self.settings.page_bytes;
        self.check(iova, page)?;
        let mut runs = runs.map(|(phys, bytes)| {
            self.check_phys(phys);
            assert!(bytes.is_multiple_of(page) && bytes > 0, "an IOMMU maps whole pages");
            (phys.0, bytes)
        });
        let end = self.settings.last + 1;
        self.table.set_absent(iova.0, end, &mut runs, access, self).map_err(|(why, mapped)| {
            if mapped > 0 {
                self.flush(iova, mapped);
            }
            match why {
                NotSet::Present(page) => IommuError::AlreadyMapped(Iova(page)),
                NotSet::OutOfNodes => IommuError::OutOfTables,
                NotSet::Beyond => IommuError::OutsideAperture(iova),
            }
        })
    }

    fn sync(&self, iova: Iova, bytes: u64) {
        if self.settings.caches_absence {
            self.iotlb.drop_range(iova.0, bytes, None);
        }
    }

    fn protect(&self, iova: Iova, bytes: u64, access: Access) -> Result<(), IommuError> {
        self.check(iova, bytes)?;
        self.table.protect(iova.0, bytes, access, self).map_err(|page| IommuError::NotMapped(Iova(page)))
    }

    fn unmap(&self, iova: Iova, bytes: u64) -> Result<(), IommuError> {
        self.check(iova, bytes)?;
        self.table.clear_present(iova.0, bytes, self).map_err(|page| IommuError::NotMapped(Iova(page)))
    }

    /// Entries change one by one, each by one store, and a leaf is split before and merged after that: see
    /// `page_table`.
    fn replace(&self, iova: Iova, phys: PhysAddr, bytes: u64, access: Access) -> Result<(), IommuError> {
        self.check(iova, bytes)?;
        self.check_phys(phys);
        self.table.set(iova.0, bytes, phys.0, true, access, self).map_err(|_| IommuError::OutOfTables)
    }

    fn mapped(&self, iova: Iova, bytes: u64) -> Option<Mapped> {
        let end = iova.0.saturating_add(bytes).min(SPACE_BYTES);
        let at = self.table.first(iova.0, end.saturating_sub(iova.0), true)?;
        let mut piece: Option<Mapped> = None;
        loop {
            let here = at + piece.map_or(0, |piece| piece.bytes);
            let Found::Leaf(leaf) = self.table.find(here) else { return piece };
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

    fn flush(&self, iova: Iova, bytes: u64) {
        self.flush_runs(&[(iova, bytes)]);
    }

    fn flush_runs(&self, runs: &[(Iova, u64)]) {
        self.flush_all_of(runs);
        self.flushed_runs.fetch_add(runs.len() as u64, Ordering::Relaxed);
    }
}
