use std::cell::Cell;
use std::collections::BTreeMap;

use super::*;

/// Counts flushes and completes each at once.
#[derive(Default)]
struct Flushes(Cell<u64>, Cell<u64>);

impl Quiet for Flushes {
    fn generation(&self) -> u64 {
        self.0.get()
    }
    fn completed(&self) -> u64 {
        self.1.get()
    }
    fn flush_all(&self) {
        self.0.set(self.0.get() + 1);
        self.1.set(self.0.get());
    }
}

const BASE: u64 = 0x7f00_0000_0000;
const RW: Access = Access::Write;

fn at(table: &PageTable, at: u64) -> Option<Leaf> {
    match table.find(at) {
        Found::Leaf(leaf) => Some(leaf),
        Found::Hole(_) => None,
    }
}

#[test]
fn leaf_sizes_follow_alignment_of_address_target_and_length() {
    let (table, quiet) = (PageTable::new(64).expect("memory"), Flushes::default());
    table.set(BASE, BLOCK_BYTES, 0, false, RW, &quiet).expect("fits");
    assert_eq!(at(&table, BASE + 5000).map(|leaf| (leaf.bytes, leaf.target)), Some((BLOCK_BYTES, 0)));
    table.set(BASE + BLOCK_BYTES, BLOCK_BYTES, 1 << 16, false, RW, &quiet).expect("fits");
    assert_eq!(table.leaves(), LeafCounts { small: 0, medium: 32, large: 1 });
    table.set(BASE + 2 * BLOCK_BYTES, BLOCK_BYTES, 0x3000, true, Access::Read, &quiet).expect("fits");
    assert_eq!(table.leaves(), LeafCounts { small: 512, medium: 32, large: 1 });
    let leaf = at(&table, BASE + 2 * BLOCK_BYTES + 0x1234).expect("mapped");
    let expected = Leaf {
        base: BASE + 2 * BLOCK_BYTES + 0x1000,
        bytes: PAGE_BYTES,
        target: 0x4000,
        system: true,
        write: false,
    };
    assert_eq!(leaf, expected);
}

#[test]
fn a_leaf_splits_around_a_hole_and_merges_when_it_closes() {
    let (table, quiet) = (PageTable::new(64).expect("memory"), Flushes::default());
    table.set(BASE, BLOCK_BYTES, 0, false, RW, &quiet).expect("fits");
    table.clear(BASE + 3 * PAGE_BYTES, PAGE_BYTES, &quiet);
    assert_eq!(table.leaves(), LeafCounts { small: 15, medium: 31, large: 0 });
    assert_eq!(at(&table, BASE + 3 * PAGE_BYTES), None);
    table.set(BASE + 3 * PAGE_BYTES, PAGE_BYTES, 3 * PAGE_BYTES, false, RW, &quiet).expect("fits");
    assert_eq!(table.leaves(), LeafCounts { small: 0, medium: 0, large: 1 });
    table.protect(BASE + 8 * PAGE_BYTES, 16 * PAGE_BYTES, Access::Read, &quiet).expect("mapped");
    assert_eq!(table.leaves(), LeafCounts { small: 32, medium: 30, large: 0 });
    table.protect(BASE, BLOCK_BYTES, Access::Read, &quiet).expect("mapped");
    assert_eq!(table.leaves(), LeafCounts { small: 0, medium: 0, large: 1 });
}

#[test]
fn splitting_never_lacks_a_node_and_mapping_is_refused_before_it_changes_anything() {
    // Root, two uppers, and 3 more: three large leaves with a reserve each.
    let (table, quiet) = (PageTable::new(6).expect("memory"), Flushes::default());
    table.set(BASE, 3 * BLOCK_BYTES, 0, false, RW, &quiet).expect("three leaves");
    assert_eq!(table.set(BASE + 3 * BLOCK_BYTES, PAGE_BYTES, 0, false, RW, &quiet), Err(OutOfNodes));
    assert_eq!(table.leaves().large, 3);
    for block in 0..3 {
        table.clear(BASE + block * BLOCK_BYTES + PAGE_BYTES, PAGE_BYTES, &quiet);
    }
    assert_eq!(table.leaves(), LeafCounts { small: 45, medium: 93, large: 0 });
    table.clear(BASE, 3 * BLOCK_BYTES, &quiet);
    assert_eq!(table.leaves(), LeafCounts::default());
    let before = quiet.0.get();
    table.set(BASE + (1 << 40), BLOCK_BYTES, 0, false, RW, &quiet).expect("nodes are used again");
    assert!(quiet.0.get() > before, "a node was used again while an engine could still walk it");
}

#[test]
fn clearing_a_huge_range_skips_what_is_not_there() {
    let (table, quiet) = (PageTable::new(64).expect("memory"), Flushes::default());
    for place in [0, 1 << 30, 1 << 39, (1 << 46) + 12345 * PAGE_BYTES, SPACE_BYTES - PAGE_BYTES] {
        table.set(place, PAGE_BYTES, 0, false, RW, &quiet).expect("fits");
    }
    table.clear(PAGE_BYTES, SPACE_BYTES - 2 * PAGE_BYTES, &quiet);
    assert_eq!(table.leaves().small, 2);
    table.clear(0, SPACE_BYTES, &quiet);
    assert_eq!(table.leaves(), LeafCounts::default());
    assert_eq!(table.first(0, SPACE_BYTES, true), None);
}

#[test]
fn random_edits_agree_with_a_map_of_pages() {
    let (table, quiet) = (PageTable::new(40).expect("memory"), Flushes::default());
    let mut model: BTreeMap<u64, (u64, bool)> = BTreeMap::new();
    let mut random = 7u64;
    let mut next = move |below: u64| {
        random = random.wrapping_mul(6364136223846793005).wrapping_add(1442695040888963407);
        (random >> 33) % below
    };
    let space = 4 * 512;
    for step in 0..3000 {
        let mut first = next(space);
        let mut pages = 1 + next(if step % 3 == 0 { 1200 } else { 20 });
        if step % 2 == 0 {
            first &= !15;
            pages = pages.next_multiple_of(16);
        }
        if step % 5 == 0 {
            first &= !511;
            pages = 512;
        }
        let pages = pages.min(space - first);
        let (start, bytes) = (BASE + first * PAGE_BYTES, pages * PAGE_BYTES);
        match next(4) {
            0 | 1 => {
                let target = if next(3) == 0 { next(1 << 20) } else { first } * PAGE_BYTES;
                let access = if next(2) == 0 { Access::Read } else { RW };
                table.set(start, bytes, target, true, access, &quiet).expect("40 nodes are enough");
                for page in 0..pages {
                    model.insert(first + page, (target + page * PAGE_BYTES, access == RW));
                }
            }
            2 => {
                table.clear(start, bytes, &quiet);
                model.retain(|page, _| !(first..first + pages).contains(page));
            }
            _ => {
                let whole = (first..first + pages).all(|page| model.contains_key(&page));
                assert_eq!(table.protect(start, bytes, Access::Read, &quiet).is_ok(), whole);
                if whole {
                    (first..first + pages).for_each(|page| model.get_mut(&page).expect("there").1 = false);
                }
            }
        }
        if step % 10 == 0 {
            for page in 0..space {
                let here = BASE + page * PAGE_BYTES;
                let found = at(&table, here).map(|leaf| (leaf.target + (here - leaf.base), leaf.write));
                assert_eq!(found, model.get(&page).copied(), "page {page} after step {step}");
            }
        }
    }
}

#[test]
fn runs_of_absent_pages_agree_with_a_map_of_pages_and_leave_nothing_of_a_refused_call() {
    let (table, quiet) = (PageTable::new(40).expect("memory"), Flushes::default());
    let mut model: BTreeMap<u64, u64> = BTreeMap::new();
    let mut random = 11u64;
    let mut next = move |below: u64| {
        random = random.wrapping_mul(6364136223846793005).wrapping_add(1442695040888963407);
        (random >> 33) % below
    };
    let space = 3 * 512;
    let (mut taken, mut refused, mut beyond) = (0, 0, 0);
    for step in 0..4000 {
        if step % 3 == 2 {
            let (first, pages) = (next(space), 1 + next(700));
            let pages = pages.min(space - first);
            table.clear(BASE + first * PAGE_BYTES, pages * PAGE_BYTES, &quiet);
            model.retain(|page, _| !(first..first + pages).contains(page));
            continue;
        }
        let first = if next(2) == 0 { next(space) } else { next(space) & !15 };
        let mut runs = Vec::new();
        for _ in 0..1 + next(5) {
            let pages = if next(4) == 0 { 16 * (1 + next(32)) } else { 1 + next(20) };
            let target = if next(2) == 0 { first } else { next(1 << 20) };
            runs.push((target * PAGE_BYTES, pages * PAGE_BYTES));
        }
        let pages: Vec<u64> = runs
            .iter()
            .flat_map(|(target, bytes)| (0..bytes / PAGE_BYTES).map(move |page| target + page * PAGE_BYTES))
            .collect();
        let end = BASE + space * PAGE_BYTES;
        let result = table.set_absent(BASE + first * PAGE_BYTES, end, &mut runs.into_iter(), RW, &quiet);
        let places = first..first + pages.len() as u64;
        match result {
            Ok(bytes) => {
                assert_eq!(bytes, pages.len() as u64 * PAGE_BYTES);
                for (page, target) in places.zip(pages) {
                    assert_eq!(model.insert(page, target), None, "page {page} was mapped already");
                }
                taken += 1;
            }
            Err((NotSet::Present(page), _)) => {
                assert!(model.contains_key(&((page - BASE) / PAGE_BYTES)));
                refused += 1;
            }
            Err((NotSet::Beyond, _)) => {
                assert!(places.end > space);
                beyond += 1;
            }
            Err((NotSet::OutOfNodes, _)) => panic!("40 nodes are enough"),
        }
        if step % 10 == 0 {
            for page in 0..space {
                let here = BASE + page * PAGE_BYTES;
                let found = at(&table, here).map(|leaf| leaf.target + (here - leaf.base));
                assert_eq!(found, model.get(&page).copied(), "page {page} after step {step}");
            }
        }
    }
    assert!(taken > 100 && refused > 100 && beyond > 20, "{taken} {refused} {beyond}");
    table.clear(BASE, space * PAGE_BYTES, &quiet);
    assert_eq!(table.leaves(), LeafCounts::default());
}
