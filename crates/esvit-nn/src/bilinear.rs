//! PyTorch's bilinear interpolation along an axis (`align_corners=False`).

/// The two source positions, out of `from`, and their weights in output position `at` of `to`.
/// Positions beyond the border are those at it.
pub(crate) fn taps(from: usize, to: usize, at: usize) -> [(usize, f64); 2] {
    let place = ((at as f64 + 0.5) * from as f64 / to as f64 - 0.5).max(0.0);
    let (first, last) = (place.floor() as usize, from - 1);
    let share = place - place.floor();
    [(first.min(last), 1.0 - share), ((first + 1).min(last), share)]
}

#[cfg(test)]
mod tests {
    use super::*;

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
