//! The block layer of the NVMe example: bios come in, requests that are merged go out.
//!
//! # Rules
//! 1. A bio joins a request that ends on the disk where it begins (back merge), or that begins where it ends (front
//!    merge), and so do requests that touch then. Else it is a request of its own.
//! 2. A request stays within what the controller takes: bytes, segments, and the length and boundary of a segment.
//! 3. Segments that touch in memory are one segment, also across the joint of two bios.
//! 4. Where the controller's lists have no room for gaps (PRPs), a joint inside of one of its pages keeps two bios apart,
//!    unless they touch in memory.

use granule::dma::{PhysList, SegmentError, SegmentLimits, segments};
use granule::units::PhysRange;

use super::BLOCK;

/// What a file system submits: blocks of the disk, and the memory that holds them.
pub struct Bio {
    pub block: u64,
    pub segments: Vec<PhysRange>,
}

/// What the driver is given.
pub struct Request {
    pub block: u64,
    pub segments: Vec<PhysRange>,
}

/// What the controller takes in one request.
#[derive(Clone, Copy)]
pub struct Limits {
    pub bytes: u64,
    pub segments: SegmentLimits,
    /// Joints lie at multiples of this; 0: anywhere.
    pub gap_bytes: u64,
}

/// Requests that wait for the driver: merged while they wait.
pub struct Queue {
    limits: Limits,
    requests: Vec<Request>,
    pub back_merges: u64,
    pub front_merges: u64,
    /// Neighbours on the disk that were kept apart by a limit or a gap.
    pub kept_apart: u64,
}

fn bytes_of(segments: &[PhysRange]) -> u64 {
    segments.iter().map(|segment| u64::from(segment.len)).sum()
}

impl Limits {
    /// The segments of two pieces as one request, if that may be.
    fn join(&self, low: &[PhysRange], high: &[PhysRange]) -> Option<Vec<PhysRange>> {
        let (last, first) = (low.last()?, high.first()?);
        let end = last.end()?;
        let is_gap = self.gap_bytes > 0 && (end.0 | first.addr.0) % self.gap_bytes != 0;
        if end != first.addr && is_gap || bytes_of(low) + bytes_of(high) > self.bytes {
            return None;
        }
        self.merge(low.iter().chain(high).copied()).ok()
    }

    fn merge(&self, all: impl Iterator<Item = PhysRange>) -> Result<Vec<PhysRange>, SegmentError> {
        segments(all, self.segments).collect()
    }
}

impl Queue {
    pub fn new(limits: Limits) -> Self {
        Self { limits, requests: Vec::new(), back_merges: 0, front_merges: 0, kept_apart: 0 }
    }

    /// Takes a bio in.
    pub fn submit(&mut self, bio: Bio) -> Result<(), SegmentError> {
        let segments = self.limits.merge(bio.segments.into_iter())?;
        let mut new = Request { block: bio.block, segments };
        // What the bio made larger may touch another request now.
        while let Some(index) = self.join_one(&mut new) {
            self.requests.swap_remove(index);
        }
        self.requests.push(new);
        Ok(())
    }

    /// Joins a request with one that waits; says which.
    fn join_one(&mut self, new: &mut Request) -> Option<usize> {
        for (index, request) in self.requests.iter().enumerate() {
            let (is_back, is_front) = (request.end() == new.block, new.end() == request.block);
            let joined = if is_back {
                self.limits.join(&request.segments, &new.segments)
            } else if is_front {
                self.limits.join(&new.segments, &request.segments)
            } else {
                continue;
            };
            let Some(segments) = joined else {
                self.kept_apart += 1;
                continue;
            };
            self.back_merges += u64::from(is_back);
            self.front_merges += u64::from(!is_back);
            *new = Request { block: new.block.min(request.block), segments };
            return Some(index);
        }
        None
    }

    /// What waits, in the order in which it came.
    pub fn take(&mut self) -> impl Iterator<Item = Request> {
        std::mem::take(&mut self.requests).into_iter()
    }
}

impl Request {
    /// The block behind its last one.
    fn end(&self) -> u64 {
        self.block + bytes_of(&self.segments) / BLOCK
    }

    pub fn memory(&self) -> PhysList {
        self.segments.iter().copied().collect()
    }
}
