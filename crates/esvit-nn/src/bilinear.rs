//! PyTorch's bilinear interpolation along an axis (`align_corners=False`).

use crate::interpolation;

/// The two source positions, out of `from`, and their weights in output position `at` of `to`.
/// Positions beyond the border are those at it.
fn taps(from: usize, to: usize, at: usize) -> [(usize, f64); 2] {
    let place = ((at as f64 + 0.5) * from as f64 / to as f64 - 0.5).max(0.0);
    let (first, last) = (place.floor() as usize, from - 1);
    let share = place - place.floor();
    [(first.min(last), 1.0 - share), ((first + 1).min(last), share)]
}

/// The weights of all `from` source positions in each of `to` output positions.
pub(crate) fn axis(from: usize, to: usize) -> Vec<Vec<f64>> {
    (0..to).map(|at| interpolation::row(from, taps(from, to, at))).collect()
}

/// The same with antialiasing, as PyTorch's and Pillow's: the triangle is widened where there are fewer,
/// and its weights add up to 1.
pub(crate) fn antialiased(from: usize, to: usize) -> Vec<Vec<f64>> {
    let ratio = from as f64 / to as f64;
    let row = |at: usize| -> Vec<f64> {
        let (center, width) = (ratio * (at as f64 + 0.5), ratio.max(1.0));
        let weight = |place: usize| (1.0 - ((place as f64 + 0.5 - center) / width).abs()).max(0.0);
        let weights: Vec<f64> = (0..from).map(weight).collect();
        let sum: f64 = weights.iter().sum();
        weights.into_iter().map(|weight| weight / sum).collect()
    };
    (0..to).map(row).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Of four positions to two: a triangle twice as wide around 1. To eight: as [`taps`], but at the border,
    /// where what is beyond does not count.
    #[test]
    fn antialiased_weights_by_hand() {
        let close = |found: &[f64], expected: &[f64]| {
            let pairs = found.iter().zip(expected);
            let near = pairs.into_iter().all(|(a, b)| (a - b).abs() < 1e-12);
            assert!(near && found.len() == expected.len(), "{found:?}");
        };
        close(&antialiased(4, 2)[0], &[3.0 / 7.0, 3.0 / 7.0, 1.0 / 7.0, 0.0]);
        close(&antialiased(4, 2)[1], &[0.0, 1.0 / 7.0, 3.0 / 7.0, 3.0 / 7.0]);
        close(&antialiased(4, 8)[3], &[0.0, 0.75, 0.25, 0.0]);
        close(&antialiased(4, 8)[0], &[1.0, 0.0, 0.0, 0.0]);
        close(&antialiased(3, 3)[1], &[0.0, 1.0, 0.0]);
        close(&antialiased(5, 1)[0], &[3.0, 4.0, 5.0, 4.0, 3.0].map(|part| part / 19.0));
    }

    /// Of three positions to two: sources 0.25 and 1.75. To four: -0.125, 0.625, 1.375 and 2.125, of
    /// which the first and the last are at the border.
    #[test]
    fn weights_by_hand() {
        let close = |found: [(usize, f64); 2], expected: [(usize, f64); 2]| {
            for ((place, weight), (at, expected)) in found.into_iter().zip(expected) {
                assert!(place == at && (weight - expected).abs() < 1e-12, "{place} {weight}");
            }
        };
        close(taps(3, 2, 0), [(0, 0.75), (1, 0.25)]);
        close(taps(3, 2, 1), [(1, 0.25), (2, 0.75)]);
        close(taps(3, 4, 0), [(0, 1.0), (1, 0.0)]);
        close(taps(3, 4, 1), [(0, 0.375), (1, 0.625)]);
        close(taps(3, 4, 3), [(2, 0.875), (2, 0.125)]);
        close(taps(1, 2, 1), [(0, 0.75), (0, 0.25)]);
        close(taps(5, 5, 4), [(4, 1.0), (4, 0.0)]);
    }
}
