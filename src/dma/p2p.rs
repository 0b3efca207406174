//! Who reaches whose memory. A topology is a description; it decides nothing at run time that was not in it.

use alloc::vec::Vec;

use super::{DmaError, DmaRange, Domain};
use crate::ports::PeerWindow;
use crate::units::{Iova, PeerNo, PhysRange};

/// How a device reaches memory of another one.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Hash)]
pub enum P2pKind {
    /// It is the device's own memory: not a matter of DMA.
    None,
    /// They cannot talk.
    NotSupported,
    /// By bus address, below one switch: past the IOMMU, with nothing to unmap.
    BusAddress,
    /// Through the host bridge: mapped in the IOMMU like system memory, as MMIO.
    HostBridge,
}

/// What the domain knows of a peer.
#[derive(Clone, Copy, Debug)]
pub(super) struct Peer {
    pub(super) no: PeerNo,
    pub(super) window: PeerWindow,
    pub(super) kind: P2pKind,
}

/// A node of a [`Topology`].
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug, Hash)]
pub struct TopologyNode(u32);

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Kind {
    HostBridge,
    /// Whether it sends what goes from port to port up to the host bridge first (access control).
    Switch {
        redirects: bool,
    },
    Device,
}

/// Devices, switches and host bridges, and which host bridges pass peer traffic.
#[derive(Clone, Debug, Default)]
pub struct Topology {
    nodes: Vec<(Kind, Option<TopologyNode>)>,
    /// Pairs of host bridges between which peer traffic passes, smaller first; a bridge may stand with itself.
    passes: Vec<(TopologyNode, TopologyNode)>,
}

/// Why a node cannot be where it is said to be.
#[derive(Clone, Copy, PartialEq, Eq, Debug, thiserror::Error)]
#[non_exhaustive]
pub enum TopologyError {
    /// A device has nothing below it, and a node of another topology is none of this one.
    #[error("{0:?} is no switch or host bridge of this topology; put devices below one")]
    NotABridge(TopologyNode),
    /// Only host bridges pass traffic to one another.
    #[error("{0:?} is no host bridge of this topology; name the bridges at the top")]
    NotAHostBridge(TopologyNode),
}

impl Topology {
    /// Nothing yet.
    pub fn new() -> Self {
        Self::default()
    }

    fn push(&mut self, kind: Kind, above: Option<TopologyNode>) -> TopologyNode {
        self.nodes.push((kind, above));
        TopologyNode(self.nodes.len() as u32 - 1)
    }

    fn kind_of(&self, node: TopologyNode) -> Option<Kind> {
        self.nodes.get(node.0 as usize).map(|(kind, _)| *kind)
    }

    /// A host bridge, where a tree begins.
    pub fn host_bridge(&mut self) -> TopologyNode {
        self.push(Kind::HostBridge, None)
    }

    fn bridge(&self, node: TopologyNode) -> Result<(), TopologyError> {
        match self.kind_of(node) {
            Some(Kind::HostBridge | Kind::Switch { .. }) => Ok(()),
            Some(Kind::Device) | None => Err(TopologyError::NotABridge(node)),
        }
    }

    /// A switch below a host bridge or another switch.
    ///
    /// # Errors
    /// [`TopologyError::NotABridge`].
    pub fn switch(&mut self, above: TopologyNode) -> Result<TopologyNode, TopologyError> {
        self.bridge(above)?;
        Ok(self.push(Kind::Switch { redirects: false }, Some(above)))
    }

    /// A switch that sends traffic between its ports to the host bridge first, as access control services do.
    ///
    /// # Errors
    /// [`TopologyError::NotABridge`].
    pub fn redirecting_switch(&mut self, above: TopologyNode) -> Result<TopologyNode, TopologyError> {
        self.bridge(above)?;
        Ok(self.push(Kind::Switch { redirects: true }, Some(above)))
    }

    /// A device below a switch or a host bridge.
    ///
    /// # Errors
    /// [`TopologyError::NotABridge`].
    pub fn device(&mut self, above: TopologyNode) -> Result<TopologyNode, TopologyError> {
        self.bridge(above)?;
        Ok(self.push(Kind::Device, Some(above)))
    }

    /// Peer traffic passes between two host bridges, or through one (twice the same).
    ///
    /// # Errors
    /// [`TopologyError::NotAHostBridge`].
    pub fn passes(&mut self, one: TopologyNode, other: TopologyNode) -> Result<(), TopologyError> {
        for node in [one, other] {
            if self.kind_of(node) != Some(Kind::HostBridge) {
                return Err(TopologyError::NotAHostBridge(node));
            }
        }
        self.passes.push((one.min(other), one.max(other)));
        Ok(())
    }

    /// A node, what is above it, and so on up to its host bridge.
    fn path(&self, node: TopologyNode) -> impl Iterator<Item = TopologyNode> {
        let above = |node: &TopologyNode| self.nodes.get(node.0 as usize)?.1;
        core::iter::successors(Some(node), above)
    }

    /// How device `client` reaches the memory of device `provider`. Two nodes that are no devices cannot talk.
    pub fn p2p(&self, client: TopologyNode, provider: TopologyNode) -> P2pKind {
        let is_device = |node| self.kind_of(node) == Some(Kind::Device);
        if !is_device(client) || !is_device(provider) {
            return P2pKind::NotSupported;
        }
        if client == provider {
            return P2pKind::None;
        }
        let meeting = self.path(client).find(|node| self.path(provider).any(|other| other == *node));
        // A switch on the way that redirects decides as much as the one where the ways meet.
        let mut below =
            self.path(client).chain(self.path(provider)).take_while(|node| Some(*node) != meeting);
        let redirected =
            |node: TopologyNode| matches!(self.kind_of(node), Some(Kind::Switch { redirects: true }));
        let switched = meeting.is_some_and(|node| {
            matches!(self.kind_of(node), Some(Kind::Switch { redirects: false })) && !below.any(redirected)
        });
        if switched {
            return P2pKind::BusAddress;
        }
        let top = |node| self.path(node).last().expect("a path begins at its node");
        let (one, other) = (top(client), top(provider));
        let passes = self.passes.contains(&(one.min(other), one.max(other)));
        if passes { P2pKind::HostBridge } else { P2pKind::NotSupported }
    }
}

/// Where a range lies for the devices of a domain.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Reach {
    System,
    /// In the window of a peer behind the host bridge.
    HostBridge,
    /// At this bus address.
    Bus(Iova),
}

impl Domain<'_> {
    /// Where a range lies, by what the caller says of it and what the domain was told of its peers.
    pub(super) fn reach(&self, range: PhysRange) -> Result<Reach, DmaError> {
        let Some(no) = range.peer() else { return Ok(Reach::System) };
        let peer = self.peers.iter().find(|peer| peer.no == no).ok_or(DmaError::UnknownPeer(no))?;
        let offset = range.addr.0.checked_sub(peer.window.phys.0);
        let inside = |offset: &u64| {
            offset.checked_add(u64::from(range.len)).is_some_and(|end| end <= peer.window.bytes)
        };
        let offset = offset.filter(inside).ok_or(DmaError::OutsidePeer { peer: no, addr: range.addr })?;
        match peer.kind {
            P2pKind::HostBridge => Ok(Reach::HostBridge),
            P2pKind::BusAddress => Ok(Reach::Bus(Iova((peer.window.bus + offset).0))),
            kind @ (P2pKind::None | P2pKind::NotSupported) => {
                Err(DmaError::PeerUnreachable { peer: no, kind })
            }
        }
    }

    /// The bus addresses of a range of a peer's memory below the same switch: nothing is mapped, nothing is to be
    /// unmapped. `None` if the range is not reached by bus address.
    ///
    /// # Errors
    /// [`DmaError::Empty`], [`DmaError::Wraps`], [`DmaError::UnknownPeer`], [`DmaError::OutsidePeer`],
    /// [`DmaError::PeerUnreachable`].
    pub fn bus_range(&self, range: PhysRange, writable: bool) -> Result<Option<DmaRange>, DmaError> {
        if range.len == 0 {
            return Err(DmaError::Empty(0));
        }
        range.end().ok_or(DmaError::Wraps(range.addr))?;
        let Reach::Bus(addr) = self.reach(range)? else { return Ok(None) };
        let flags = DmaRange::BUS_ADDRESS | if writable { DmaRange::WRITABLE } else { 0 };
        Ok(Some(DmaRange { addr, len: range.len, flags }))
    }
}
