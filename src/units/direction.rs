use super::access::Access;

/// Which way the data of a DMA mapping goes, seen from memory.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Hash, Default)]
pub enum Direction {
    /// The device only reads: mapped read-only.
    ToDevice,
    /// The device writes what nobody has to see before. Mapped readable and writable: hardware has no write-only
    /// page, and a partial write may be a read and a write.
    FromDevice,
    /// The device reads and writes.
    #[default]
    Both,
}

impl Direction {
    /// What the device may do with pages that are mapped this way.
    pub const fn access(self) -> Access {
        match self {
            Direction::ToDevice => Access::Read,
            Direction::FromDevice | Direction::Both => Access::Write,
        }
    }
    /// Whether the device may read what the CPU wrote before.
    pub const fn is_to_device(self) -> bool {
        matches!(self, Direction::ToDevice | Direction::Both)
    }
    /// Whether the CPU may read what the device wrote.
    pub const fn is_from_device(self) -> bool {
        matches!(self, Direction::FromDevice | Direction::Both)
    }
}
