//! The IOVA space against a naive one, and what a long churn does to it.

mod dma_support;

use std::collections::BTreeMap;

use dma_support::churn::{churn, userptr_bytes, userptr_or_granule_bytes};
use dma_support::{Dice, seeds};
use granule::dma::{IovaError, IovaRequest, IovaSpace, IovaUse};
use granule::ports::IovaWindow;
use granule::units::Iova;

const PAGE: u64 = 4096;
const GIB: u64 = 1 << 30;
const GRANULE: u64 = GIB / 2;

/// Free pages, one by one.
struct Naive {
    free: Vec<bool>,
}

impl Naive {
    fn runs(&self) -> Vec<(u64, u64)> {
        let mut runs: Vec<(u64, u64)> = Vec::new();
        for page in (0..self.free.len() as u64).filter(|page| self.free[*page as usize]) {
            match runs.last_mut() {
                Some((first, pages)) if *first + *pages == page => *pages += 1,
                _ => runs.push((page, 1)),
            }
        }
        runs
    }
    fn fits(&self, pages: u64, align: u64, end: u64) -> bool {
        self.runs()
            .iter()
            .any(|(first, free)| first.next_multiple_of(align) + pages <= (first + free).min(end))
    }
}

/// Long random sequences, errors included: what is handed out is free, aligned, below its limit; what is refused fits
/// nowhere; and free ranges are what the naive one has free.
#[test]
fn a_long_random_life_agrees_with_a_naive_model() {
    for seed in seeds(20) {
        println!("seed {seed}");
        let mut dice = Dice(seed);
        let pages = 64 + dice.below(3000);
        let window = (dice.below(pages), 1 + dice.below(40));
        let windows = [IovaWindow { start: Iova(window.0 * PAGE + 5), bytes: window.1 * PAGE }];
        let mut space = IovaSpace::new((Iova(0), Iova(pages * PAGE - 1)), &windows);
        let mut naive = Naive { free: vec![true; pages as usize] };
        naive.free[0] = false;
        // The window begins and ends inside of pages.
        (window.0..=window.0 + window.1).filter(|p| *p < pages).for_each(|p| naive.free[p as usize] = false);
        let mut held: BTreeMap<u64, (u64, IovaUse)> = BTreeMap::new();
        for _ in 0..4000 {
            if dice.below(5) < 3 {
                let wanted = 1 + if dice.one_in(10) { dice.below(700) } else { dice.below(30) };
                let align = 1 << dice.below(7);
                let last = if dice.one_in(3) { dice.below(pages * PAGE) } else { u64::MAX };
                let purpose = if dice.one_in(2) { IovaUse::OneStep } else { IovaUse::TwoStep };
                let (bytes, align_bytes) = (wanted * PAGE, align * PAGE);
                let request = IovaRequest { bytes, align_bytes, last: Iova(last), purpose };
                let end = last / PAGE + u64::from(last % PAGE == PAGE - 1);
                match space.reserve_for(&request) {
                    Ok(at) => {
                        let first = at.0 / PAGE;
                        assert!(first.is_multiple_of(align) && first + wanted <= end, "{request:?} at {at}");
                        for page in first..first + wanted {
                            let was = std::mem::replace(&mut naive.free[page as usize], false);
                            assert!(was, "page {page} was not free");
                        }
                        held.insert(at.0, (bytes, purpose));
                    }
                    Err(error) => {
                        assert!(!naive.fits(wanted, align, end), "{request:?} was refused and fits");
                        let last = Iova(last);
                        let named = if last.0 == u64::MAX {
                            IovaError::Exhausted(bytes)
                        } else {
                            IovaError::ExhaustedBelow { bytes, last }
                        };
                        assert_eq!(error, named);
                    }
                }
            } else if let Some((at, (bytes, purpose))) =
                held.iter().nth(dice.below(held.len().max(1) as u64) as usize).map(|(a, b)| (*a, *b))
            {
                let other = if purpose == IovaUse::OneStep { IovaUse::TwoStep } else { IovaUse::OneStep };
                for (bytes, purpose) in [(bytes + PAGE, purpose), (bytes, other)] {
                    let refused = space.free_for(Iova(at), bytes, purpose);
                    assert_eq!(refused, Err(IovaError::NotReserved(Iova(at))));
                }
                assert_eq!(space.reservation_at(Iova(at)), Some((bytes, purpose)));
                space.free_for(Iova(at), bytes, purpose).unwrap();
                assert_eq!(
                    space.free_for(Iova(at), bytes, purpose),
                    Err(IovaError::NotReserved(Iova(at))),
                    "it was freed twice"
                );
                held.remove(&at);
                (at / PAGE..(at + bytes) / PAGE).for_each(|page| naive.free[page as usize] = true);
            }
            assert_eq!(space.reserved_bytes(), held.values().map(|(bytes, _)| bytes).sum::<u64>());
        }
        let free: Vec<_> = space.free_ranges().map(|(at, bytes)| (at.0 / PAGE, bytes / PAGE)).collect();
        assert_eq!(free, naive.runs(), "free neighbours are one range");
        let largest = free.iter().map(|(_, pages)| *pages).max().unwrap_or(0) * PAGE;
        assert_eq!(space.largest_free_bytes(), largest);
        assert_eq!(space.free_bytes(), free.iter().map(|(_, pages)| pages * PAGE).sum::<u64>());
        for (at, (bytes, purpose)) in held {
            space.free_for(Iova(at), bytes, purpose).unwrap();
        }
        assert_eq!(space.reserved_bytes(), 0);
    }
}

#[test]
fn bad_arguments_are_refused_by_name() {
    let mut space = IovaSpace::new((Iova(0), Iova(GIB - 1)), &[]);
    for bytes in [0, 1, 4095, 4097, u64::MAX] {
        assert_eq!(space.reserve(bytes, PAGE), Err(IovaError::BadSize(bytes)));
    }
    for align in [0, 1, 2048, 12288, u64::MAX] {
        assert_eq!(space.reserve(PAGE, align), Err(IovaError::BadAlignment(align)));
    }
    assert_eq!(space.reserve(GIB, PAGE), Err(IovaError::Exhausted(GIB)), "page 0 is never handed out");
    let most = !(PAGE - 1);
    assert_eq!(space.reserve(most, PAGE), Err(IovaError::Exhausted(most)));
    assert_eq!(space.reserve(PAGE, 1 << 63), Err(IovaError::Exhausted(PAGE)));
    assert_eq!(space.free(Iova(PAGE), PAGE), Err(IovaError::NotReserved(Iova(PAGE))));
    let at = space.reserve(2 * PAGE, PAGE).unwrap();
    for (base, bytes) in
        [(at.0 + 1, 2 * PAGE), (at.0 + PAGE, PAGE), (at.0, PAGE), (at.0, 0), (u64::MAX, PAGE)]
    {
        assert_eq!(space.free(Iova(base), bytes), Err(IovaError::NotReserved(Iova(base))));
    }
    space.free(at, 2 * PAGE).unwrap();
    assert_eq!(space.free_bytes(), GIB - PAGE);
    // Apertures that hold nothing.
    for (first, last) in [(PAGE, PAGE - 1), (0, 0), (0, PAGE - 1), (5, 8190), (u64::MAX, 0)] {
        let mut none = IovaSpace::new((Iova(first), Iova(last)), &[]);
        assert_eq!(none.reserve(PAGE, PAGE), Err(IovaError::Exhausted(PAGE)), "{first:#x}..={last:#x}");
        assert_eq!(none.free_bytes(), 0);
    }
    // The whole of 64 bits.
    let mut all = IovaSpace::new((Iova(0), Iova(u64::MAX)), &[IovaWindow::MSI_X86]);
    let top = all.reserve(1 << 62, 1 << 62).unwrap();
    all.free(top, 1 << 62).unwrap();
}

#[test]
fn windows_are_never_handed_out_and_limits_hold() {
    let mut space = IovaSpace::new((Iova(0), Iova(8 * GIB - 1)), &[IovaWindow::MSI_X86]);
    let request = |bytes, last| IovaRequest { last: Iova(last), ..IovaRequest::anywhere(bytes, PAGE) };
    let msi = 0xfee0_0000..0xfef0_0000u64;
    let mut held = Vec::new();
    while let Ok(at) = space.reserve_for(&request(1 << 20, 4 * GIB - 1)) {
        assert!(at.0 + (1 << 20) <= msi.start || at.0 >= msi.end, "{at} lies in the window");
        assert!(at.0 + (1 << 20) <= 4 * GIB);
        held.push(at);
    }
    // 4096 MiB, less the window and less the one that page 0 spoils.
    assert_eq!(held.len(), 4096 - 2);
    let upper = space.reserve(4 * GIB, PAGE).unwrap();
    assert_eq!(upper, Iova(4 * GIB), "the upper zone is whole");
    space.free(upper, 4 * GIB).unwrap();
    // A limit that cuts the upper zone.
    let cut = space.reserve_for(&request(GIB, 5 * GIB - 1)).unwrap();
    assert_eq!(cut, Iova(4 * GIB));
    let error = space.reserve_for(&request(PAGE, 5 * GIB - 2)).map(drop);
    let last = Iova(5 * GIB - 2);
    assert_eq!(error, Ok(()), "below 5 GiB the page at 0x1000 and its neighbours are left");
    let none = space.reserve_for(&request(PAGE, PAGE - 1));
    assert_eq!(none, Err(IovaError::ExhaustedBelow { bytes: PAGE, last: Iova(PAGE - 1) }));
    assert!(space.reserve_for(&request(2 * GIB, last.0)).is_err());
}

/// A granule is found in the same few steps whatever else is reserved, also where only an exact hole is left.
#[test]
fn granules_fill_the_space_to_the_last_one() {
    let mut space = IovaSpace::new((Iova(0), Iova(64 * GIB - 1)), &[]);
    let mut all = Vec::new();
    while let Ok(at) = space.reserve(GRANULE, GRANULE) {
        assert!(at.0.is_multiple_of(GRANULE));
        all.push(at);
    }
    assert_eq!(all.len(), 127, "all but the one that page 0 spoils");
    for at in [all[13], all[77]] {
        space.free(at, GRANULE).unwrap();
        assert_eq!(space.reserve(GRANULE, GRANULE), Ok(at), "the only hole, exactly as large");
    }
}

/// Small reservations of any size do not break the space up: at 90 % use none of a million fails.
#[test]
fn a_million_userptrs_at_ninety_per_cent_do_not_fragment() {
    for seed in seeds(1) {
        let churned = churn(seed, 16 * GIB, userptr_bytes);
        println!("userptrs, seed {seed}: {churned}");
        assert_eq!(churned.failed, 0, "a userptr found no place");
        assert!(
            churned.least_largest_bytes >= 16 << 20,
            "the largest of them would find a place at any time"
        );
    }
}

/// The same with granules among them, one in a thousand: half of all bytes.
#[test]
fn a_million_reservations_of_both_kinds_at_ninety_per_cent() {
    for seed in seeds(1) {
        let churned = churn(seed, 256 * GIB, userptr_or_granule_bytes);
        println!("both, seed {seed}: {churned}");
        assert!(churned.granules > 500, "half of all bytes are granules'");
        assert_eq!((churned.failed, churned.failed_granules), (0, 0), "a reservation found no place");
    }
}
