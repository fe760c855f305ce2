//! Downsampling of long series for display.

/// Number of bins of a long series; each keeps its minimum and maximum.
const BINS: usize = 300;

/// Min-max downsampling: of a long series, the lowest and highest point of each bin and both ends.
/// Points that are not finite are dropped.
pub(crate) fn downsample(points: impl IntoIterator<Item = [f64; 2]>) -> Vec<[f64; 2]> {
    let finite = |point: &[f64; 2]| point.iter().all(|value| value.is_finite());
    let points: Vec<[f64; 2]> = points.into_iter().filter(finite).collect();
    if points.len() <= 2 * BINS + 2 {
        return points;
    }
    let mut kept = vec![0];
    for bin in 0..BINS {
        let [first, end] = [bin, bin + 1].map(|bin| bin * points.len() / BINS);
        let by_value = |a: &usize, b: &usize| points[*a][1].total_cmp(&points[*b][1]);
        kept.extend((first..end).min_by(by_value));
        kept.extend((first..end).max_by(by_value));
    }
    kept.push(points.len() - 1);
    kept.sort_unstable();
    kept.dedup();
    kept.into_iter().map(|index| points[index]).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_long_series_keeps_its_spikes_and_its_ends() {
        let mut points: Vec<[f64; 2]> =
            (0..100_000).map(|step| [f64::from(step), (f64::from(step) * 0.01).sin()]).collect();
        points[77_777][1] = 50.0;
        points[12_345][1] = -50.0;
        points[500][1] = f64::NAN;
        // Neither end is an extreme of its bin.
        for (at, value) in [(1, 9.0), (2, -9.0), (99_997, 9.0), (99_998, -9.0)] {
            points[at][1] = value;
        }
        let thin = downsample(points.iter().copied());
        assert!(thin.len() <= 2 * BINS + 2);
        assert!(thin.is_sorted_by(|a, b| a[0] < b[0]));
        for kept in [points[0], points[12_345], points[77_777], points[99_999]] {
            assert!(thin.contains(&kept), "{kept:?}");
        }
    }

    #[test]
    fn a_short_series_is_kept_whole() {
        let points = [[1.0, 2.0], [2.0, f64::INFINITY], [3.0, 1.0]];
        assert_eq!(downsample(points), [[1.0, 2.0], [3.0, 1.0]]);
        assert!(downsample([]).is_empty());
    }

    /// Every bin keeps both its extremes.
    #[test]
    fn a_band_stays_as_wide_as_it_is() {
        let points = (0..60_000).map(|x| [f64::from(x), f64::from(x % 2) * f64::from(x)]);
        let thin = downsample(points);
        let low = thin.iter().filter(|point| point[1] == 0.0).count();
        assert!(
            (BINS..=BINS + 1).contains(&low) && (BINS..=BINS + 1).contains(&(thin.len() - low)),
            "{low}"
        );
    }
}
