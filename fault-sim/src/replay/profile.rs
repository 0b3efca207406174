//! The cost vectors that are shipped, each figure with where it comes from.

use super::Cost;

/// One figure of a profile that differs from zero, and where it comes from.
#[derive(Clone, Copy, Debug, serde::Serialize)]
pub struct Figure {
    /// Which field of [`Cost`].
    pub name: &'static str,
    /// Where it comes from.
    pub source: &'static str,
}

/// A named cost vector.
#[derive(Clone, Copy, Debug, serde::Serialize)]
pub struct Profile {
    /// Its name on the command line.
    pub name: &'static str,
    /// What it stands for.
    pub about: &'static str,
    /// The vector.
    pub cost: Cost,
    /// Where its figures come from.
    pub figures: &'static [Figure],
}

const fn figure(name: &'static str, source: &'static str) -> Figure {
    Figure { name, source }
}

const SPLIT: &str =
    "share of the gap between copies, split as one measured Titan V batch (736 us) splits; an estimate";
const SAME_SPLIT: &str = "as a100-sxm: no figure of this machine was found";

const A100_SXM: Cost = Cost {
    interrupt_ns: 10_000,
    fetch_entry_ns: 50,
    preprocess_entry_ns: 50,
    block_ns: 1_000,
    populate_64k_ns: 2_000,
    dma_map_page_ns: 30,
    unmap_ns: 2_000,
    copy_in_ns: 1_900,
    copy_in_bytes_per_us: 26_800,
    copy_out_ns: 1_750,
    copy_out_bytes_per_us: 26_300,
    map_ns: 2_000,
    replay_ns: 3_000,
    cpu_fault_ns: 120_000,
    remote_access_ns: 1_000,
};

const TITAN_V: Cost = Cost {
    populate_64k_ns: 100_000,
    map_ns: 12_000,
    interrupt_ns: 20_000,
    copy_in_ns: 1_400,
    copy_in_bytes_per_us: 12_800,
    copy_out_ns: 1_400,
    copy_out_bytes_per_us: 12_800,
    ..A100_SXM
};

/// All of them.
pub const PROFILES: &[Profile] = &[
    Profile {
        name: "ideal",
        about: "nothing costs anything: what is left is the device's own time",
        cost: Cost::FREE,
        figures: &[],
    },
    Profile {
        name: "a100-sxm",
        about: "NVIDIA A100-SXM4, PCIe 4",
        cost: A100_SXM,
        figures: &[
            figure("copy_in_*", "fit of measured copies: 1.9 us + bytes / 26.8 GB/s"),
            figure("copy_out_*", "fit of measured copies: 1.6 to 1.9 us + bytes / 26.3 GB/s"),
            figure(
                "interrupt_ns, replay_ns",
                "far-fault gap measured from copy to copy: p5 18 to 21 us in all; split estimated",
            ),
            figure("fetch_entry_ns, preprocess_entry_ns, block_ns, unmap_ns, map_ns, dma_map_page_ns", SPLIT),
            figure("populate_64k_ns", "estimate"),
            figure(
                "cpu_fault_ns",
                "gap after a CPU fault on a device page: p5 142 to 180 us with the CPU's work; estimate",
            ),
            figure("remote_access_ns", "estimate: one round trip of the bus"),
        ],
    },
    Profile {
        name: "a100-pcie",
        about: "NVIDIA A100, PCIe 4 card",
        cost: Cost {
            interrupt_ns: 5_000,
            copy_in_ns: 2_900,
            copy_in_bytes_per_us: 20_000,
            copy_out_ns: 2_600,
            copy_out_bytes_per_us: 16_900,
            ..A100_SXM
        },
        figures: &[
            figure(
                "copy_*",
                "fit of measured copies: 2.9 us + bytes / 20.0 GB/s in, 2.6 us + bytes / 16.9 GB/s out",
            ),
            figure("interrupt_ns", "far-fault gap measured: 9 to 16 us in all; split estimated"),
            figure("all others", SAME_SPLIT),
        ],
    },
    Profile {
        name: "rtx-2080-ti",
        about: "NVIDIA RTX 2080 Ti in a slow slot",
        cost: Cost {
            copy_in_ns: 900,
            copy_in_bytes_per_us: 3_000,
            copy_out_ns: 900,
            copy_out_bytes_per_us: 3_000,
            ..A100_SXM
        },
        figures: &[
            figure(
                "copy_*",
                "fit of measured copies to the device: 0.9 us + bytes / 3.0 GB/s; out taken as in",
            ),
            figure("all others", SAME_SPLIT),
        ],
    },
    Profile {
        name: "titan-v",
        about: "NVIDIA Titan V, PCIe 3, pages touched for the first time",
        cost: TITAN_V,
        figures: &[
            figure(
                "populate_64k_ns, map_ns",
                "one measured batch of three pages: populate and zero 315 us, map 35 us; per unit",
            ),
            figure(
                "copy_*",
                "published PCIe 3 model: 1.76 us for 4 KiB, 81.8 us for 1020 KiB, about 12.8 GB/s",
            ),
            figure("interrupt_ns", "classic far-fault band of 20 to 50 us"),
            figure("all others", SAME_SPLIT),
        ],
    },
    Profile {
        name: "intel-xe",
        about: "Intel xe with drm_gpusvm and huge pages, 2 MiB per fault",
        cost: Cost {
            interrupt_ns: 10_000,
            fetch_entry_ns: 100,
            preprocess_entry_ns: 500,
            block_ns: 3_000,
            populate_64k_ns: 300,
            dma_map_page_ns: 2,
            unmap_ns: 10_000,
            copy_in_ns: 5_000,
            copy_in_bytes_per_us: 20_700,
            copy_out_ns: 5_000,
            copy_out_bytes_per_us: 20_700,
            map_ns: 2_000,
            replay_ns: 1_000,
            cpu_fault_ns: 120_000,
            remote_access_ns: 1_000,
        },
        figures: &[
            figure("copy_*", "kernel patch: 106 us for 2 MiB; out taken as in"),
            figure("map_ns, dma_map_page_ns", "same patch: bind 2 us, get_pages 1 us for 2 MiB"),
            figure("all others", "what is left of its 132 us for a fault of 2 MiB; split estimated"),
        ],
    },
    Profile {
        name: "granule",
        about: "this library on its software device, two cores",
        cost: Cost {
            interrupt_ns: 20_000,
            fetch_entry_ns: 100,
            preprocess_entry_ns: 100,
            block_ns: 5_000,
            populate_64k_ns: 8_000,
            dma_map_page_ns: 50,
            unmap_ns: 20_000,
            copy_in_ns: 500,
            copy_in_bytes_per_us: 8_000,
            copy_out_ns: 500,
            copy_out_bytes_per_us: 8_000,
            map_ns: 1_000,
            replay_ns: 3_000,
            cpu_fault_ns: 36_000,
            remote_access_ns: 200,
        },
        figures: &[figure(
            "sums",
            "README: device fault of 64 KiB 75.8 us at the median, CPU fault 44.0 us; split estimated",
        )],
    },
];

/// The profile with a name.
pub fn profile_named(name: &str) -> Option<&'static Profile> {
    PROFILES.iter().find(|profile| profile.name == name)
}

/// The profile of the hardware that a trace with this origin most likely comes from.
pub fn profile_nearest(origin: &str) -> &'static Profile {
    // Nsight Systems names the device.
    let devices =
        [("A100-PCI", "a100-pcie"), ("A100", "a100-sxm"), ("2080 Ti", "rtx-2080-ti"), ("TITAN V", "titan-v")];
    let device = devices.iter().find(|(device, _)| origin.contains(device)).map(|(_, profile)| *profile);
    let name = match origin.split([' ', ',']).next().unwrap_or_default() {
        "xe" | "prq_report" => "intel-xe",
        "run" => "granule",
        _ => device.unwrap_or("a100-sxm"),
    };
    profile_named(name).unwrap_or(&PROFILES[0])
}
