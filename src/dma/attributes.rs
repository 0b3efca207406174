use crate::units::Direction;

/// How memory is mapped for DMA: a direction, and exceptions by name. An unlink or unmap says the same as its link or
/// map did.
///
/// | attribute | what it does | what it costs | who may use it |
/// |---|---|---|---|
/// | direction | [`Direction::ToDevice`] maps read-only; CPU caches and bounce pages are looked after in that direction only | nothing | everybody; `Both` where unsure |
/// | [`skip_cpu_sync`](Self::skip_cpu_sync) | caches are not maintained and bounce pages are not copied back | nothing; the caller syncs by hand ([`Domain::sync_for_device`](super::Domain::sync_for_device)) or the device reads old bytes | whoever maps once and uses often, or wrote nothing since the last sync |
/// | [`mmio`](Self::mmio) | no caches, no bounce page | a range with an unaligned end is refused to an untrusted device | registers and device memory, never system memory; where devices are not coherent it is needed for ranges flagged MMIO |
/// | [`require_coherent`](Self::require_coherent) | refused rather than bounced, or mapped for a device that is not coherent | nothing | whoever lets CPU and device use the memory at once: page-fault users, rings |
#[derive(Clone, Copy, PartialEq, Eq, Debug, Hash, Default)]
pub struct Attributes {
    direction: Direction,
    skip_cpu_sync: bool,
    mmio: bool,
    require_coherent: bool,
}

impl Attributes {
    /// The device only reads.
    pub const TO_DEVICE: Self = Self::new(Direction::ToDevice);
    /// The device writes what nobody has to see before.
    pub const FROM_DEVICE: Self = Self::new(Direction::FromDevice);
    /// The device reads and writes.
    pub const BOTH: Self = Self::new(Direction::Both);

    /// Of a direction, without exceptions.
    pub const fn new(direction: Direction) -> Self {
        Self { direction, skip_cpu_sync: false, mmio: false, require_coherent: false }
    }
    /// Leaves CPU caches and bounce pages to the caller.
    pub const fn skip_cpu_sync(self) -> Self {
        Self { skip_cpu_sync: true, ..self }
    }
    /// Registers or device memory.
    pub const fn mmio(self) -> Self {
        Self { mmio: true, ..self }
    }
    /// CPU and device use the memory at once.
    pub const fn require_coherent(self) -> Self {
        Self { require_coherent: true, ..self }
    }

    /// Which way the data goes.
    pub const fn direction(self) -> Direction {
        self.direction
    }
    /// Whether caches and bounce pages are left alone.
    pub const fn skips_cpu_sync(self) -> bool {
        self.skip_cpu_sync
    }
    /// Whether it is registers or device memory.
    pub const fn is_mmio(self) -> bool {
        self.mmio
    }
    /// Whether it must not be bounced and the device must be coherent.
    pub const fn requires_coherent(self) -> bool {
        self.require_coherent
    }
}
