//! Values that follow from a seed: the same seed gives the same run.

/// A well-mixed word for position `index` under `seed`. Any two positions can be asked for in any order.
pub fn word(seed: u64, index: u64) -> u64 {
    let mut z = seed ^ index.wrapping_mul(0x9e37_79b9_7f4a_7c15).wrapping_add(0x9e37_79b9_7f4a_7c15);
    z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    z ^ (z >> 31)
}

/// A number below `end`, for position `index` under `seed`. `end` must not be zero.
pub fn below(seed: u64, index: u64, end: u64) -> u64 {
    ((u128::from(word(seed, index)) * u128::from(end)) >> 64) as u64
}

/// Shuffles a slice by a seed.
pub fn shuffle<T>(seed: u64, items: &mut [T]) {
    for last in (1..items.len()).rev() {
        items.swap(last, below(seed, last as u64, last as u64 + 1) as usize);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn values_depend_on_seed_and_position_only() {
        assert_eq!(word(7, 1), word(7, 1));
        assert_ne!(word(7, 1), word(7, 2));
        assert_ne!(word(7, 1), word(8, 1));
        assert!((0..10_000).all(|i| below(3, i, 10) < 10));
        assert!((0..10).all(|n| (0..1000).any(|i| below(3, i, 10) == n)));
    }

    #[test]
    fn a_shuffle_keeps_every_item() {
        let mut items: Vec<u32> = (0..1000).collect();
        shuffle(1, &mut items);
        assert!(items.iter().zip(0..).any(|(item, at)| *item != at));
        items.sort_unstable();
        assert!(items.into_iter().eq(0..1000));
    }
}
