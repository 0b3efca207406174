//! Which calls are tried, against the sources.

use std::path::Path;

/// Public calls of the sources that take what can be wrong, and are tried above.
const TRIED: &[&str] = &[
    "convert/iovec.rs iovecs",
    "convert/nvme.rs prp",
    "convert/nvme.rs prp_list_entries",
    "convert/nvme.rs sgl",
    "convert/nvme.rs sgl_segment_entries",
    "convert/vfio.rs vfio_maps",
    "convert/vulkan.rs sparse_binds",
    "domain.rs direct",
    "domain.rs last",
    "domain.rs peer",
    "domain.rs reserve",
    "hand_sync.rs sync_for_cpu",
    "hand_sync.rs sync_for_device",
    "iova_space.rs anywhere",
    "iova_space.rs free",
    "iova_space.rs free_for",
    "iova_space.rs new",
    "iova_space.rs reservation_at",
    "iova_space.rs reserve",
    "iova_space.rs reserve_for",
    "link.rs link",
    "list.rs push",
    "mod.rs position",
    "one_step.rs map",
    "one_step.rs map_list",
    "one_step.rs needs_unmap",
    "one_step.rs unmap",
    "p2p.rs bus_range",
    "p2p.rs device",
    "p2p.rs p2p",
    "p2p.rs passes",
    "p2p.rs redirecting_switch",
    "p2p.rs switch",
    "page_list.rs address",
    "page_list.rs allows",
    "page_list.rs is_linked",
    "page_list.rs link",
    "page_list.rs link_ranges",
    "page_list.rs linked_pages",
    "page_list.rs new",
    "page_list.rs page_list",
    "page_list.rs runs",
    "page_list.rs unlink",
    "page_list.rs unlink_runs",
    "page_list.rs with_writable",
    "pasid.rs give_back",
    "pasid.rs new",
    "pasid.rs take",
    "pinned.rs pin",
    "pinned.rs pin_vectors",
    "range.rs of_run",
    "replace.rs replace",
    "segments.rs new",
    "segments.rs segments",
    "unlink.rs unlink",
    "unlink.rs unlink_deferred",
];

/// Types of parameters that somebody can get wrong.
const NUMBERS: &[&str] = &[
    "u64",
    "u32",
    "usize",
    "Iova",
    "PhysAddr",
    "VirtAddr",
    "PhysRange",
    "DmaRange",
    "IovaWindow",
    "IovaRequest",
    "PeerWindow",
    "Pasid",
    "IoVec",
    "TopologyNode",
    "LockedU64",
    "Piece",
    "R",
];

#[test]
fn every_public_call_is_tried() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("src/dma");
    let mut found = Vec::new();
    for folder in ["", "convert/"] {
        for entry in std::fs::read_dir(root.join(folder)).expect("the sources are there").flatten() {
            let name = entry.file_name().into_string().expect("a plain name");
            let Some(text) = name.ends_with(".rs").then(|| std::fs::read_to_string(entry.path()).unwrap())
            else {
                continue;
            };
            let text = text.split("#[cfg(all(test").next().unwrap_or_default();
            for call in text.split("pub fn ").chain(text.split("pub const fn ")).skip(1) {
                let is_call = call.starts_with(|c: char| c.is_lowercase());
                let Some((head, _)) = call.split_once(" {").filter(|_| is_call) else { continue };
                let (arguments, _) = head.rsplit_once(" -> ").unwrap_or((head, ""));
                let Some((call, _)) = arguments.split_once('(') else { continue };
                let call = call.split('<').next().unwrap_or_default();
                let types = arguments.split(|c: char| !c.is_alphanumeric());
                if call.chars().all(|c| c.is_lowercase() || c == '_' || c.is_numeric())
                    && types.into_iter().any(|word| NUMBERS.contains(&word))
                {
                    found.push(format!("{folder}{name} {call}"));
                }
            }
        }
    }
    found.sort_unstable();
    found.dedup();
    let untried: Vec<_> = found.iter().filter(|call| !TRIED.contains(&call.as_str())).collect();
    assert!(untried.is_empty(), "no bad argument is tried for {untried:#?}");
    let gone: Vec<_> = TRIED.iter().filter(|call| !found.iter().any(|found| found == *call)).collect();
    assert!(gone.is_empty(), "there is no such call: {gone:#?}");
}
