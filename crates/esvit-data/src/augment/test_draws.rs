//! What many random choices must look like, within five standard deviations.

/// All values lie in `low..=high`, and each tenth of that range has as many as the others.
pub(crate) fn assert_uniform(values: impl IntoIterator<Item = f64>, low: f64, high: f64) {
    let mut tenths = [0; 10];
    for value in values {
        assert!((low..=high).contains(&value), "{value} is not in {low}..={high}");
        tenths[(((value - low) / (high - low) * 10.0) as usize).min(9)] += 1;
    }
    assert_equally_often(&tenths);
}

/// All of them happened about equally often.
pub(crate) fn assert_equally_often(counts: &[usize]) {
    let all = counts.iter().sum();
    assert!(all >= 20 * counts.len(), "too few draws to tell: {counts:?}");
    counts.iter().for_each(|&count| assert_share(count, all, 1.0 / counts.len() as f64));
}

/// Something of probability `p` happened `count` times of `all`.
pub(crate) fn assert_share(count: usize, all: usize, p: f64) {
    let (expected, all) = (p * all as f64, all as f64);
    let deviation = (all * p * (1.0 - p)).sqrt();
    assert!((count as f64 - expected).abs() <= 5.0 * deviation, "{count} of {all}, not {expected}");
}
