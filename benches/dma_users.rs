//! The three users of two-step DMA, as their examples do it: the same DMA two-step and one-step in the same run, each byte
//! compared, per page. The floor is the rival here, and the rows say what was found.
#![allow(unsafe_code, reason = "the examples map memory as an application does")]
#![allow(dead_code, reason = "the examples are programs, too")]
#![allow(clippy::duplicate_mod, reason = "each of the examples brings what they share")]

#[path = "../examples/nvme.rs"]
mod nvme;
#[path = "../examples/odp.rs"]
mod odp;
mod support;
#[path = "../examples/vfio_dirty.rs"]
mod vfio_dirty;

use granule::units::PAGE_BYTES;
use support::{Bound, Pairs, Report, Row, is_quick};

/// Figures per page of each way, ours first: time to map, time to unmap, memory.
type Ways = Vec<(&'static str, [f64; 3])>;

/// Rows for one user: each rival against two-step, over several runs of all of them.
fn user(report: &mut Report, user: &str, most_bytes: Bound, run: impl Fn() -> Ways) {
    let rounds = if is_quick() { 3 } else { 11 };
    // The first run warms up.
    let runs: Vec<Ways> = (0..=rounds).map(|_| run()).skip(1).collect();
    for rival in 1..runs[0].len() {
        let name = runs[0][rival].0;
        for (index, what) in ["map", "unmap and flush"].iter().enumerate() {
            let pairs = Pairs(runs.iter().map(|ways| (ways[rival].1[index], ways[0].1[index])).collect());
            let question = format!("{user}: {what} a page; floor: {name}");
            report.push(Row::slower_by(&question, "ns", 1.0, &pairs, Bound::None));
        }
    }
    for (way, (name, figures)) in runs[0].iter().enumerate() {
        let bound = if way == 0 { most_bytes } else { Bound::None };
        let question = format!("{user}: kept for a page beyond the I/O page table, {name}");
        report.push(Row::exact(&question, "bytes", figures[2], bound));
    }
}

macro_rules! ways {
    ($compared:expr) => {{
        let compared = $compared.expect("the example runs");
        compared.ways.iter().map(|(name, cost)| (*name, cost.per_page())).collect()
    }};
}

fn main() {
    let mut report = Report::new("dma_users");
    let size = if is_quick() { 1 } else { 4 };
    support::pin_to_core(0);
    user(&mut report, "odp", Bound::AtMost(0.25), || ways!(odp::compare(500 * size)));
    user(&mut report, "vfio_dirty", Bound::None, || ways!(vfio_dirty::compare(2 * size)));
    user(&mut report, "nvme", Bound::None, || ways!(nvme::compare(50 * size, PAGE_BYTES)));
}
