use super::addr::PhysAddr;
use super::geometry::PAGE_BYTES;
use super::id::PeerNo;

/// A contiguous range of physical addresses, 16 bytes: what is to be mapped for DMA. Byte-exact at both ends.
///
/// `flags` says who owns the memory and how it is reached: the constants below, and in the upper half the number of
/// the device whose memory it is ([`PhysRange::peer`]).
#[derive(Clone, Copy, PartialEq, Eq, Debug, Hash, Default)]
pub struct PhysRange {
    /// First byte.
    pub addr: PhysAddr,
    /// Length in bytes, at most [`PhysRange::MAX_BYTES`]; 0 is an empty range, which every mapping call refuses.
    pub len: u32,
    /// See the constants.
    pub flags: u32,
}

impl PhysRange {
    /// The caller holds the pages until the range is unmapped; whoever maps it need not.
    pub const PINNED: u32 = 1;
    /// Registers or memory of a device, without CPU cache and without a page of system memory behind it.
    pub const MMIO: u32 = 2;
    /// Memory of another device; the upper half of `flags` is its number.
    pub const PEER: u32 = 4;
    /// The longest range: 4 GiB less a page. Longer runs are split, at page boundaries.
    pub const MAX_BYTES: u64 = (1 << 32) - PAGE_BYTES;

    const PEER_SHIFT: u32 = 16;

    /// System memory. Asserts that `len` is at most [`PhysRange::MAX_BYTES`].
    pub const fn new(addr: PhysAddr, len: u64) -> Self {
        assert!(
            len <= Self::MAX_BYTES,
            "a range is at most 4 GiB less a page; split longer ones with of_run"
        );
        Self { addr, len: len as u32, flags: 0 }
    }

    /// The same range with more flags.
    pub const fn with(self, flags: u32) -> Self {
        Self { flags: self.flags | flags, ..self }
    }

    /// The same range, as memory of a peer device.
    pub const fn of_peer(self, peer: PeerNo) -> Self {
        let low = self.flags & ((1 << Self::PEER_SHIFT) - 1);
        Self { flags: low | Self::PEER | ((peer.0 as u32) << Self::PEER_SHIFT), ..self }
    }

    /// Whose device memory it is; `None` for system memory and for MMIO of nobody in particular.
    pub const fn peer(self) -> Option<PeerNo> {
        if self.flags & Self::PEER == 0 {
            None
        } else {
            Some(PeerNo((self.flags >> Self::PEER_SHIFT) as u16))
        }
    }

    /// The address after the last byte; `None` if that wraps.
    pub const fn end(self) -> Option<PhysAddr> {
        self.addr.checked_add(self.len as u64)
    }

    /// The ranges of a run of `bytes` bytes from `addr`, split where one would be too long. Every cut lies at a page
    /// boundary. Asserts that the run does not wrap.
    pub fn of_run(addr: PhysAddr, bytes: u64, flags: u32) -> impl Iterator<Item = Self> {
        assert!(addr.checked_add(bytes).is_some(), "a run ends within 64 bits");
        let mut done = 0;
        core::iter::from_fn(move || {
            let at = addr + done;
            let part = (bytes - done).min(Self::MAX_BYTES - at.0 % PAGE_BYTES);
            done += part;
            (part > 0).then_some(Self { addr: at, len: part as u32, flags })
        })
    }
}

const _: () = assert!(size_of::<PhysRange>() == 16);
