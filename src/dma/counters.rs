use crate::sync::{AtomicU64, Ordering};

macro_rules! counters {
    ($($(#[$doc:meta])* $name:ident),+ $(,)?) => {
        /// What a domain did since it was made. Each figure is exact; together they are a snapshot only while nobody
        /// uses the domain.
        #[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
        pub struct DmaCounts {
            $($(#[$doc])* pub $name: u64,)+
        }

        /// The counters behind [`DmaCounts`].
        #[derive(Debug, Default)]
        pub(super) struct Counters {
            $(pub(super) $name: AtomicU64,)+
        }

        impl Counters {
            pub(super) fn snapshot(&self) -> DmaCounts {
                DmaCounts { $($name: self.$name.load(Ordering::Relaxed),)+ }
            }
        }
    };
}

counters! {
    /// Calls that linked, by either way or where replace met a hole.
    links,
    /// Pages of the IOMMU that they linked.
    linked_pages,
    /// Calls that unlinked, by either way.
    unlinks,
    /// Pages of the IOMMU that they unlinked.
    unlinked_pages,
    /// Calls of [`Iommu::flush`](crate::ports::Iommu::flush) or `flush_runs`: waits.
    flushes,
    /// Runs that those flushes named.
    flushed_runs,
    /// Pages that they named.
    flushed_pages,
    /// Ranges whose caches were maintained, towards the device or towards the CPU.
    cache_syncs,
    /// Pages that were bounced.
    bounced_pages,
    /// Bytes that could not be copied back out of a bounce page.
    lost_bytes,
    /// Pages that replace exchanged or filled.
    replaced_pages,
    /// Ranges that were mapped as bus addresses of a peer.
    bus_ranges,
}

/// Adds to a counter.
pub(super) fn add(counter: &AtomicU64, n: u64) {
    counter.fetch_add(n, Ordering::Relaxed);
}
