//! The list of all parts and presets.

use granule::policy::Granularity::{Kib4, Kib64, Mib2};

use super::batching::{Nvidia, NvidiaOptions, Plain};
use super::catalogue::{Make, Needs, Part, Preset};
use super::eviction::{Recency, RecencyRule};
use super::prefetch::{GranulePolicy, NvidiaTree, TreeOptions, WholeUnits};
use super::residency::FirstTouch;

const fn part(name: &'static str, about: &'static str, needs: Needs, make: Make) -> Part {
    Part { name, about, needs, make }
}

/// All parts, by kind.
pub const PARTS: &[Part] = &[
    part(
        "on-demand-4k",
        "nothing beside what faulted",
        Needs::Nothing,
        Make::Prefetch(|_| Box::new(WholeUnits(Kib4))),
    ),
    part(
        "on-demand-64k",
        "the aligned 64 KiB around each fault",
        Needs::Nothing,
        Make::Prefetch(|_| Box::new(WholeUnits(Kib64))),
    ),
    part(
        "whole-2m",
        "the whole block around each fault",
        Needs::Nothing,
        Make::Prefetch(|_| Box::new(WholeUnits(Mib2))),
    ),
    part(
        "nvidia-tree",
        "NVIDIA: the largest subtree more than 51 percent of which is there or asked for",
        Needs::Nothing,
        Make::Prefetch(|_| Box::new(NvidiaTree::new(TreeOptions::default()))),
    ),
    part(
        "granule-64k",
        "this library's own policy object, as the live service runs it by default",
        Needs::Nothing,
        Make::Prefetch(|_| Box::new(GranulePolicy::default())),
    ),
    part(
        "lrm-2m",
        "NVIDIA: least recently migrated to; hits do not count",
        Needs::Nothing,
        Make::Eviction(Mib2, |_| Box::new(Recency::new(Mib2, RecencyRule::Migrated))),
    ),
    part(
        "lru-4k",
        "least recently used page",
        Needs::Hits,
        Make::Eviction(Kib4, |_| Box::new(Recency::new(Kib4, RecencyRule::Touched))),
    ),
    part(
        "lru-64k",
        "least recently used 64 KiB",
        Needs::Hits,
        Make::Eviction(Kib64, |_| Box::new(Recency::new(Kib64, RecencyRule::Touched))),
    ),
    part(
        "lru-2m",
        "least recently used block",
        Needs::Hits,
        Make::Eviction(Mib2, |_| Box::new(Recency::new(Mib2, RecencyRule::Touched))),
    ),
    part(
        "first-touch",
        "who touches a page gets it",
        Needs::Nothing,
        Make::Residency(|_| Box::new(FirstTouch)),
    ),
    part(
        "serial",
        "one fault at a time, and the device goes on after each",
        Needs::Nothing,
        Make::Batching(1, |_| Box::new(Plain::SERIAL)),
    ),
    part(
        "batch-nvidia",
        "NVIDIA: 256 entries, merged on arrival, sorted, flushed and replayed after each batch",
        Needs::Nothing,
        Make::Batching(usize::MAX, |_| Box::new(Nvidia::new(NvidiaOptions::default()))),
    ),
    part(
        "batch-granule",
        "this library: what is there, grouped by block; the device goes on after all",
        Needs::Nothing,
        Make::Batching(usize::MAX, |_| Box::new(Plain::GRANULE)),
    ),
];

/// All presets.
pub const PRESETS: &[Preset] = &[
    Preset {
        name: "nvidia",
        about: "NVIDIA's driver, newest",
        parts: ["nvidia-tree", "lrm-2m", "first-touch", "batch-nvidia"],
    },
    Preset {
        name: "granule",
        about: "this library's live service",
        parts: ["granule-64k", "lrm-2m", "first-touch", "batch-granule"],
    },
];
