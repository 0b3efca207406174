//! The list of all parts and presets.

use std::sync::Arc;

use granule::policy::Granularity::{self, Kib4, Kib64, Mib2};

use super::Replay;
use super::batching::{self, Plain};
use super::catalogue::{Make, Making, Needs, Part, Preset};
use super::eviction::{self, Belady, Clock, Hpe, Lfu, Recency, RecencyRule, Srrip, TreeEviction};
use super::prefetch::{
    self, AmdRanges, GpusvmChunks, GranulePolicy, NvidiaTree, Oracle, Sequential, Stride, TreeOptions,
    WholeUnits,
};
use super::residency::{self, Delayed, FirstTouch, LapseRule, ReadDuplication, RemoteOnly, ThrashingOptions};
use crate::replay::Schedule;

fn nvidia(making: Making<'_>, rule: Option<LapseRule>, counters: bool) -> residency::Nvidia {
    let number = |name| making.parameters.get(name);
    let thrashing = rule.map(|rule| ThrashingOptions {
        rule,
        threshold: number("thrashing-threshold") as u8,
        pin_threshold: number("thrashing-pin-threshold") as u8,
        lapse_ns: number("thrashing-lapse-us") * 1000,
        ..ThrashingOptions::default()
    });
    let access_counter = counters.then(|| number("counter-threshold") as u16);
    residency::Nvidia::new(residency::NvidiaOptions { thrashing, access_counter })
}

fn batch_nvidia(making: Making<'_>, replay: Replay) -> batching::Nvidia {
    batching::Nvidia::new(batching::NvidiaOptions {
        replay,
        batch_count: making.parameters.get("batch-entries") as usize,
        max_batches_per_service: making.parameters.get("batches-per-service") as u32,
        ..batching::NvidiaOptions::default()
    })
}

fn tree(making: Making<'_>) -> NvidiaTree {
    NvidiaTree::new(TreeOptions {
        threshold: making.parameters.get("tree-threshold") as u32,
        min_faults: making.parameters.get("tree-min-faults") as u32,
    })
}

/// What comes, in a unit. A plan with a part that needs it is not built without.
fn schedule(making: Making<'_>, unit: Granularity) -> Arc<Schedule> {
    match making.future {
        Some(future) => future.schedule(unit),
        None => unreachable!("a part that needs the future was built without"),
    }
}

const fn part(name: &'static str, needs: Needs, about: &'static str, make: Make) -> Part {
    Part { name, about, needs, make }
}

const fn preset(name: &'static str, about: &'static str, parts: [&'static str; 4]) -> Preset {
    Preset { name, about, parts }
}

/// All parts, by kind.
pub const PARTS: &[Part] = &[
    part(
        "on-demand-4k",
        Needs::Nothing,
        "nothing beside what faulted",
        Make::Prefetch(|_| Box::new(WholeUnits(Kib4))),
    ),
    part(
        "on-demand-64k",
        Needs::Nothing,
        "the aligned 64 KiB around each fault",
        Make::Prefetch(|_| Box::new(WholeUnits(Kib64))),
    ),
    part(
        "whole-2m",
        Needs::Nothing,
        "the whole block around each fault",
        Make::Prefetch(|_| Box::new(WholeUnits(Mib2))),
    ),
    part(
        "sequential-64k",
        Needs::Nothing,
        "the fifteen pages behind each fault",
        Make::Prefetch(|_| Box::new(Sequential { pages: 15 })),
    ),
    part(
        "random-page",
        Needs::Nothing,
        "one other page of the block for each fault",
        Make::Prefetch(|making| Box::new(prefetch::Random::new(making.seed))),
    ),
    part(
        "stride",
        Needs::Nothing,
        "the next eight pages of a stride that was seen twice",
        Make::Prefetch(|_| Box::new(Stride::default())),
    ),
    part(
        "nvidia-tree",
        Needs::Nothing,
        "NVIDIA: the largest subtree more than 51 percent of which is there or asked for",
        Make::Prefetch(|making| Box::new(tree(making))),
    ),
    part(
        "gpusvm-chunks",
        Needs::Nothing,
        "Intel: the largest of 2 MiB, 64 KiB and 4 KiB that fits the mapping and no other range",
        Make::Prefetch(|_| Box::new(GpusvmChunks::default())),
    ),
    part(
        "amd-ranges",
        Needs::Nothing,
        "AMD: ranges of 2 MiB, split where something was unmapped",
        Make::Prefetch(|_| Box::new(AmdRanges::new(9))),
    ),
    part(
        "granule-64k",
        Needs::Nothing,
        "this library: the object that the live service asks, 64 KiB (its default)",
        Make::Prefetch(|_| Box::new(GranulePolicy::of(Kib64))),
    ),
    part(
        "granule-4k",
        Needs::Nothing,
        "this library: the same object at 4 KiB",
        Make::Prefetch(|_| Box::new(GranulePolicy::of(Kib4))),
    ),
    part(
        "granule-2m",
        Needs::Nothing,
        "this library: the same object at 2 MiB",
        Make::Prefetch(|_| Box::new(GranulePolicy::of(Mib2))),
    ),
    part(
        "oracle",
        Needs::Future,
        "knows what comes: what of the block is needed within the next 4096 events",
        Make::Prefetch(|making| {
            Box::new(Oracle::new(schedule(making, Kib4), making.parameters.get("oracle-horizon")))
        }),
    ),
    part(
        "lrm-2m",
        Needs::Nothing,
        "NVIDIA: the block that something was moved to longest ago; hits do not count",
        Make::Eviction(Mib2, |_| Box::new(Recency::new(Mib2, RecencyRule::Migrated))),
    ),
    part(
        "lru-4k",
        Needs::Hits,
        "the least recently used page",
        Make::Eviction(Kib4, |_| Box::new(Recency::new(Kib4, RecencyRule::Touched))),
    ),
    part(
        "lru-64k",
        Needs::Hits,
        "the least recently used 64 KiB",
        Make::Eviction(Kib64, |_| Box::new(Recency::new(Kib64, RecencyRule::Touched))),
    ),
    part(
        "lru-2m",
        Needs::Hits,
        "the least recently used block",
        Make::Eviction(Mib2, |_| Box::new(Recency::new(Mib2, RecencyRule::Touched))),
    ),
    part(
        "mru-4k",
        Needs::Hits,
        "the most recently used page",
        Make::Eviction(Kib4, |_| Box::new(Recency::new(Kib4, RecencyRule::TouchedReversed))),
    ),
    part(
        "mru-64k",
        Needs::Hits,
        "the most recently used 64 KiB",
        Make::Eviction(Kib64, |_| Box::new(Recency::new(Kib64, RecencyRule::TouchedReversed))),
    ),
    part(
        "mru-2m",
        Needs::Hits,
        "the most recently used block",
        Make::Eviction(Mib2, |_| Box::new(Recency::new(Mib2, RecencyRule::TouchedReversed))),
    ),
    part(
        "fifo-4k",
        Needs::Nothing,
        "the page that came first",
        Make::Eviction(Kib4, |_| Box::new(Recency::new(Kib4, RecencyRule::Allocated))),
    ),
    part(
        "fifo-64k",
        Needs::Nothing,
        "the 64 KiB that came first",
        Make::Eviction(Kib64, |_| Box::new(Recency::new(Kib64, RecencyRule::Allocated))),
    ),
    part(
        "fifo-2m",
        Needs::Nothing,
        "the block that came first",
        Make::Eviction(Mib2, |_| Box::new(Recency::new(Mib2, RecencyRule::Allocated))),
    ),
    part(
        "random-4k",
        Needs::Nothing,
        "any page",
        Make::Eviction(Kib4, |making| Box::new(eviction::Random::new(Kib4, making.seed))),
    ),
    part(
        "random-64k",
        Needs::Nothing,
        "any 64 KiB",
        Make::Eviction(Kib64, |making| Box::new(eviction::Random::new(Kib64, making.seed))),
    ),
    part(
        "random-2m",
        Needs::Nothing,
        "any block",
        Make::Eviction(Mib2, |making| Box::new(eviction::Random::new(Mib2, making.seed))),
    ),
    part(
        "clock-4k",
        Needs::Hits,
        "the first page that was not touched since the hand passed",
        Make::Eviction(Kib4, |_| Box::new(Clock::new(Kib4))),
    ),
    part(
        "clock-64k",
        Needs::Hits,
        "the first 64 KiB that was not touched since the hand passed",
        Make::Eviction(Kib64, |_| Box::new(Clock::new(Kib64))),
    ),
    part(
        "clock-2m",
        Needs::Hits,
        "the first block that was not touched since the hand passed",
        Make::Eviction(Mib2, |_| Box::new(Clock::new(Mib2))),
    ),
    part(
        "lfu-4k",
        Needs::Hits,
        "the page that was touched least often since it came",
        Make::Eviction(Kib4, |_| Box::new(Lfu::new(Kib4))),
    ),
    part(
        "lfu-64k",
        Needs::Hits,
        "the 64 KiB that was touched least often since it came",
        Make::Eviction(Kib64, |_| Box::new(Lfu::new(Kib64))),
    ),
    part(
        "lfu-2m",
        Needs::Hits,
        "the block that was touched least often since it came",
        Make::Eviction(Mib2, |_| Box::new(Lfu::new(Mib2))),
    ),
    part(
        "srrip-4k",
        Needs::Hits,
        "the page that is predicted to be needed last, in two bits",
        Make::Eviction(Kib4, |_| Box::new(Srrip::new(Kib4))),
    ),
    part(
        "srrip-64k",
        Needs::Hits,
        "the 64 KiB that is predicted to be needed last, in two bits",
        Make::Eviction(Kib64, |_| Box::new(Srrip::new(Kib64))),
    ),
    part(
        "srrip-2m",
        Needs::Hits,
        "the block that is predicted to be needed last, in two bits",
        Make::Eviction(Mib2, |_| Box::new(Srrip::new(Mib2))),
    ),
    part(
        "tree-64k",
        Needs::Hits,
        "the least recently used 64 KiB and the subtree around it that is less than half there",
        Make::Eviction(Kib64, |_| Box::new(TreeEviction::default())),
    ),
    part(
        "hpe-64k",
        Needs::Hits,
        "sets of 16 pages in a chain of intervals; like HPE",
        Make::Eviction(Kib64, |_| Box::new(Hpe::default())),
    ),
    part(
        "belady-4k",
        Needs::Future,
        "knows what comes: the page that is needed last",
        Make::Eviction(Kib4, |making| Box::new(Belady::new(Kib4, schedule(making, Kib4)))),
    ),
    part(
        "belady-64k",
        Needs::Future,
        "knows what comes: the 64 KiB that is needed last",
        Make::Eviction(Kib64, |making| Box::new(Belady::new(Kib64, schedule(making, Kib64)))),
    ),
    part(
        "belady-2m",
        Needs::Future,
        "knows what comes: the block that is needed last",
        Make::Eviction(Mib2, |making| Box::new(Belady::new(Mib2, schedule(making, Mib2)))),
    ),
    part(
        "first-touch",
        Needs::Nothing,
        "who touches a page gets it",
        Make::Residency(|_| Box::new(FirstTouch)),
    ),
    part(
        "remote-only",
        Needs::Nothing,
        "nothing moves: the device maps pages in system memory",
        Make::Residency(|_| Box::new(RemoteOnly)),
    ),
    part(
        "delayed-8",
        Needs::Hits,
        "mapped first; 64 KiB move after 8 touches",
        Make::Residency(|_| Box::new(Delayed::new(8))),
    ),
    part(
        "delayed-256",
        Needs::Hits,
        "mapped first; 64 KiB move after 256 touches",
        Make::Residency(|_| Box::new(Delayed::new(256))),
    ),
    part(
        "read-duplication",
        Needs::Nothing,
        "what is read is duplicated; who writes gets the only copy",
        Make::Residency(|_| Box::new(ReadDuplication)),
    ),
    part(
        "nvidia-residency-535",
        Needs::Nothing,
        "NVIDIA: advice, first touch; thrashing with a fixed lapse of 500 us",
        Make::Residency(|making| Box::new(nvidia(making, Some(LapseRule::Fixed), false))),
    ),
    part(
        "nvidia-residency-590",
        Needs::Nothing,
        "NVIDIA: the same, with the lapse of 590.44.01 as it is written",
        Make::Residency(|making| Box::new(nvidia(making, Some(LapseRule::AsWritten), false))),
    ),
    part(
        "nvidia-residency-590-intended",
        Needs::Nothing,
        "NVIDIA: the same, with that lapse as it was meant",
        Make::Residency(|making| Box::new(nvidia(making, Some(LapseRule::AsIntended), false))),
    ),
    part(
        "nvidia-residency-counters",
        Needs::Hits,
        "NVIDIA: as 590, with access counters that move 64 KiB after 256 touches",
        Make::Residency(|making| Box::new(nvidia(making, Some(LapseRule::AsWritten), true))),
    ),
    part(
        "nvidia-residency-no-thrashing",
        Needs::Nothing,
        "NVIDIA: advice and first touch; thrashing is not looked for",
        Make::Residency(|making| Box::new(nvidia(making, None, false))),
    ),
    part(
        "serial",
        Needs::Nothing,
        "one fault at a time, and the device goes on after each",
        Make::Batching(1, |_| Box::new(Plain::SERIAL)),
    ),
    part(
        "batch-nvidia",
        Needs::Nothing,
        "NVIDIA: 256 entries, merged on arrival, sorted, flushed and replayed after each batch",
        Make::Batching(usize::MAX, |making| Box::new(batch_nvidia(making, Replay::Flush))),
    ),
    part(
        "batch-nvidia-block",
        Needs::Nothing,
        "NVIDIA, replay policy 0: replayed after each block",
        Make::Batching(usize::MAX, |making| Box::new(batch_nvidia(making, Replay::EachBlock))),
    ),
    part(
        "batch-nvidia-batch",
        Needs::Nothing,
        "NVIDIA, replay policy 1: replayed after each batch, without a flush",
        Make::Batching(usize::MAX, |making| Box::new(batch_nvidia(making, Replay::EachBatch))),
    ),
    part(
        "batch-nvidia-once",
        Needs::Nothing,
        "NVIDIA, replay policy 3: replayed once, when the buffer is empty",
        Make::Batching(usize::MAX, |making| Box::new(batch_nvidia(making, Replay::Once))),
    ),
    part(
        "batch-granule",
        Needs::Nothing,
        "this library: what is there, grouped by block; the device goes on after all",
        Make::Batching(usize::MAX, |_| Box::new(Plain::GRANULE)),
    ),
];

/// All presets.
pub const PRESETS: &[Preset] = &[
    preset(
        "nvidia",
        "NVIDIA's driver, newest (590)",
        ["nvidia-tree", "lrm-2m", "nvidia-residency-590", "batch-nvidia"],
    ),
    preset(
        "nvidia-590",
        "NVIDIA's driver from 590.44.01 on, as it is written",
        ["nvidia-tree", "lrm-2m", "nvidia-residency-590", "batch-nvidia"],
    ),
    preset(
        "nvidia-590-intended",
        "the same with the thrashing lapse as it was meant",
        ["nvidia-tree", "lrm-2m", "nvidia-residency-590-intended", "batch-nvidia"],
    ),
    preset(
        "nvidia-535",
        "NVIDIA's driver before 590.44.01: the lapse is fixed",
        ["nvidia-tree", "lrm-2m", "nvidia-residency-535", "batch-nvidia"],
    ),
    preset(
        "nvidia-grace",
        "the same as 590 with access counters, as where addresses are translated in common",
        ["nvidia-tree", "lrm-2m", "nvidia-residency-counters", "batch-nvidia"],
    ),
    preset("gpusvm", "Intel's driver over drm_gpusvm", ["gpusvm-chunks", "lrm-2m", "first-touch", "serial"]),
    preset("amd", "AMD's driver (KFD) with retry faults", ["amd-ranges", "fifo-2m", "first-touch", "serial"]),
    preset(
        "granule",
        "this library's live service",
        ["granule-64k", "lrm-2m", "first-touch", "batch-granule"],
    ),
];
