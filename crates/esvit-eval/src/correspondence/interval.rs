//! Means with bootstrap confidence intervals.

use esvit_kernels::rng::Rng;
use rayon::prelude::*;
use serde::Serialize;

/// RNG purpose of the bootstrap samples.
const BOOTSTRAP: u64 = 0xB007;
const RESAMPLES: u64 = 1000;
/// Share of the bootstrap means left out at either end.
const TAIL: f64 = 0.025;

/// A mean over images.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
pub struct Estimate {
    /// The mean.
    pub mean: f64,
    /// 95 % bootstrap confidence interval over images; `None` for one image.
    pub interval: Option<[f64; 2]>,
}

/// Column means of `rows` (one per image), with percentile intervals from 1000 bootstrap samples.
/// The samples are always the same.
pub fn estimate<const N: usize>(rows: &[[f64; N]]) -> [Estimate; N] {
    let mean = |sum: [f64; N]| sum.map(|sum| sum / rows.len() as f64);
    let add = |sum: [f64; N], row: &[f64; N]| std::array::from_fn(|i| sum[i] + row[i]);
    let means = mean(rows.iter().fold([0.0; N], add));
    if rows.len() < 2 {
        return means.map(|mean| Estimate { mean, interval: None });
    }
    let resampled: Vec<[f64; N]> = (0..RESAMPLES)
        .into_par_iter()
        .map(|sample| {
            let mut rng = Rng::for_purpose(0, BOOTSTRAP, [sample, 0, 0]);
            let mut draw = || &rows[rng.below(rows.len() as u64) as usize];
            mean((0..rows.len()).fold([0.0; N], |sum, _| add(sum, draw())))
        })
        .collect();
    std::array::from_fn(|column| {
        let mut sorted: Vec<f64> = resampled.iter().map(|row| row[column]).collect();
        sorted.sort_by(f64::total_cmp);
        let at = |share: f64| sorted[(share * (sorted.len() - 1) as f64).round() as usize];
        Estimate { mean: means[column], interval: Some([at(TAIL), at(1.0 - TAIL)]) }
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    /// For the mean of normal numbers the interval is known.
    #[test]
    fn intervals_are_those_of_the_normal_distribution() {
        let mut rng = Rng::new(1, [0; 3]);
        let rows: Vec<[f64; 2]> = (0..400).map(|_| [3.0 + rng.normal(), 7.0]).collect();
        let [normal, constant] = estimate(&rows);
        let [low, high] = normal.interval.unwrap();
        // 1.96 of 1 / sqrt(400) to either side.
        assert!((high - low - 0.196).abs() < 0.03, "{low} {high}");
        assert!(low < normal.mean && normal.mean < high);
        assert_eq!(constant, Estimate { mean: 7.0, interval: Some([7.0; 2]) });
        assert_eq!(estimate(&rows), [normal, constant]);
    }

    #[test]
    fn one_image_has_no_interval() {
        assert_eq!(estimate(&[[2.0]]), [Estimate { mean: 2.0, interval: None }]);
    }

    /// Three of twenty are 1: a sample has none of them with probability 0.85^20 = 0.039, which is
    /// beyond 2.5 % and not beyond 5 %.
    #[test]
    fn intervals_leave_out_a_fortieth_at_either_end() {
        let few: Vec<[f64; 1]> = (0..20).map(|row| [f64::from(u8::from(row < 3))]).collect();
        let most: Vec<[f64; 1]> = few.iter().map(|[value]| [1.0 - value]).collect();
        let [[few], [most]] = [&few, &most].map(|rows| estimate(rows));
        assert_eq!(few.interval.unwrap()[0], 0.0);
        assert_eq!(most.interval.unwrap()[1], 1.0);
        assert!((few.interval.unwrap()[1] - 0.3).abs() < 0.051, "{few:?}");
        assert!((most.interval.unwrap()[0] - 0.7).abs() < 0.051, "{most:?}");
    }
}
