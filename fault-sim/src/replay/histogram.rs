/// Buckets per power of two: a quantile is off by at most one part in sixteen.
const SUB: usize = 16;
const BUCKETS: usize = 61 * SUB;

/// How often which time was seen, in buckets that grow with the time.
#[derive(Clone, Debug)]
pub struct Histogram {
    counts: Box<[u64; BUCKETS]>,
    total: u64,
    max_ns: u64,
    sum_ns: u128,
}

impl Default for Histogram {
    fn default() -> Self {
        Self { counts: Box::new([0; BUCKETS]), total: 0, max_ns: 0, sum_ns: 0 }
    }
}

#[inline]
fn bucket(ns: u64) -> usize {
    if ns < SUB as u64 {
        return ns as usize;
    }
    let log = ns.ilog2() as usize;
    (log - 3) * SUB + ((ns >> (log - 4)) as usize - SUB)
}

/// The largest time of a bucket.
fn upper(bucket: usize) -> u64 {
    if bucket < SUB {
        return bucket as u64;
    }
    let log = bucket / SUB + 3;
    let wide = ((bucket % SUB + SUB + 1) as u128) << (log - 4);
    (wide - 1).min(u128::from(u64::MAX)) as u64
}

impl Histogram {
    /// Enters a time.
    #[inline]
    pub fn add(&mut self, ns: u64) {
        self.counts[bucket(ns)] += 1;
        self.total += 1;
        self.sum_ns += u128::from(ns);
        self.max_ns = self.max_ns.max(ns);
    }

    /// Enters a time that was seen so often.
    pub fn add_many(&mut self, ns: u64, times: u64) {
        if times > 0 {
            self.counts[bucket(ns)] += times;
            self.total += times;
            self.sum_ns += u128::from(ns) * u128::from(times);
            self.max_ns = self.max_ns.max(ns);
        }
    }

    /// How many times were entered.
    pub fn count(&self) -> u64 {
        self.total
    }

    /// The longest.
    pub fn max_ns(&self) -> u64 {
        self.max_ns
    }

    /// The mean; 0 if there is none.
    pub fn mean_ns(&self) -> u64 {
        self.sum_ns.checked_div(u128::from(self.total)).unwrap_or(0) as u64
    }

    /// A time such that at least `per_mille` of a thousand entered times are no longer; 0 if there is none.
    pub fn quantile_ns(&self, per_mille: u64) -> u64 {
        let rank = (u128::from(self.total) * u128::from(per_mille)).div_ceil(1000) as u64;
        let mut seen = 0;
        for (bucket, count) in self.counts.iter().enumerate() {
            seen += count;
            if seen >= rank && seen > 0 {
                return upper(bucket).min(self.max_ns);
            }
        }
        0
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn buckets_hold_what_belongs_to_them() {
        for ns in (0..4096).chain([u64::MAX, u64::MAX - 1, 1 << 63, (1 << 40) + 12345]) {
            let at = bucket(ns);
            assert!(ns <= upper(at), "{ns}");
            assert!(at == 0 || ns > upper(at - 1), "{ns}");
        }
    }

    #[test]
    fn quantiles_are_within_a_sixteenth() {
        let mut times = Histogram::default();
        assert_eq!(times.quantile_ns(500), 0);
        (1..=9_000).for_each(|ns| times.add(ns));
        (9_001..=10_000).for_each(|ns| times.add_many(ns, 1));
        times.add_many(1 << 40, 0);
        assert!((5000..=5320).contains(&times.quantile_ns(500)), "{}", times.quantile_ns(500));
        assert_eq!((times.quantile_ns(1000), times.max_ns(), times.mean_ns()), (10_000, 10_000, 5000));
    }
}
