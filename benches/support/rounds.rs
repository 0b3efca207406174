use std::time::Duration;

use criterion::{Criterion, SamplingMode};

/// Nanoseconds of floor and figure, round by round.
#[derive(Default)]
pub struct Pairs(pub Vec<(f64, f64)>);

/// Whether a fast pass is asked for: fewer rounds, smaller sizes where the question allows it.
pub fn is_quick() -> bool {
    std::env::var_os("GRANULE_MEASURE_QUICK").is_some()
}

fn group(c: &mut Criterion, name: &str, mut round: impl FnMut() -> f64) {
    let mut group = c.benchmark_group("granule");
    let (samples, seconds) = if is_quick() { (10, 0.3) } else { (20, 3.0) };
    group
        .sample_size(samples)
        .sampling_mode(SamplingMode::Flat)
        .warm_up_time(Duration::from_millis(if is_quick() { 1 } else { 200 }))
        .measurement_time(Duration::from_secs_f64(seconds));
    group.bench_function(name, |bencher| {
        bencher.iter_custom(|n| Duration::from_nanos((0..n).map(|_| round()).sum::<f64>() as u64))
    });
    group.finish();
}

/// Lets floor and figure take turns; each does one round and says how many nanoseconds it took. The first round is
/// dropped: it warms up.
pub fn paired(
    c: &mut Criterion,
    name: &str,
    mut floor: impl FnMut() -> f64,
    mut figure: impl FnMut() -> f64,
) -> Pairs {
    let mut pairs = Pairs::default();
    group(c, name, || {
        let pair = (floor(), figure());
        pairs.0.push(pair);
        pair.1
    });
    pairs.drop_warm_up()
}

impl Pairs {
    fn drop_warm_up(mut self) -> Self {
        if self.0.len() > 1 {
            self.0.remove(0);
        }
        self
    }
}

/// Rounds of a figure without a floor.
pub fn rounds(c: &mut Criterion, name: &str, mut figure: impl FnMut() -> f64) -> Vec<f64> {
    let mut all = Vec::new();
    group(c, name, || {
        all.push(figure());
        all[all.len() - 1]
    });
    all
}

pub fn median(values: &[f64]) -> f64 {
    quantile(values, 0.5)
}

/// The value at a rank between 0 and 1. Asserts that there is one.
pub fn quantile(values: &[f64], rank: f64) -> f64 {
    let mut sorted = values.to_vec();
    sorted.sort_by(f64::total_cmp);
    sorted[((sorted.len() - 1) as f64 * rank).round() as usize]
}
